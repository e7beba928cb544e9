/* The running stage: the learn lane (instances and labels into the memory) and the tag lane (texts in, predictions out)
 * on their own threads, from start to drained stop. The caller owns the signals, the engine and the memory.
 *   start -> the learn lane reads to the end that it finds -> ready: the tag lane joins its group -> stop -> ended ->
 * close */
#ifndef ENGRAM_STAGE_STAGE_H
#define ENGRAM_STAGE_STAGE_H

#include <stdbool.h>

#include "base/error.h"
#include "config/config.h"
#include "engine/engine.h"
#include "store/memory.h"

struct stage;

/* Opens the console (where config names a port) and starts the lanes; brokers are waited for in the background. config,
 * engine, memory and versions (one line for people) are borrowed until stage_close. FATAL, E_IO: the port is in use. */
int stage_start(struct stage **out, const struct config *config, struct engine *engine, struct memory *memory,
                const char *versions, struct error *e);

/* Begins the drain: batches in compute are published and committed, texts that only wait are left to the next owner.
 * Any thread, at once; a second call changes nothing. */
void stage_stop(struct stage *s);

/* Have all lanes ended, after stage_stop or by a fault? Any thread. */
bool stage_ended(const struct stage *s);

/* Call about once a second: takes what the console shows; logs the figures of the last 10 s when there was work in
 * them, and a step that hangs. */
void stage_tick(struct stage *s);

/* Counts a reload of the options, taken or refused, for the console. Any thread. */
void stage_reloaded(struct stage *s, bool taken);

/* Stops if nobody has, waits for the lanes and frees. -1: the fault that ended the stage. */
int stage_close(struct stage *s, struct error *e);

#endif
