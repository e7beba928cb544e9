/* Data files: what load, eval and replay read, whatever form they have. data.c is the front; data_find.c knows folders,
 * names and forms; data_lfxmc.c, data_dexml.c and data_pairs.c read what the field distributes. In both of these a
 * label is meant by its line number, from 0, so no line may vanish unseen: a bad one keeps its number. */
#ifndef ENGRAM_CLI_DATA_H
#define ENGRAM_CLI_DATA_H

#include "cli/data_forms.h"

int data_open(struct data_file *f, const struct data_source *source, struct error *e);
/* 1: *out is the next record, in the arena; 0: the end; -1: the file cannot be read on. Bad lines are named, counted
 * and passed over. */
int data_label_next(struct data_file *f, struct arena *arena, struct label_record *out, struct error *e);
int data_instance_next(struct data_file *f, struct arena *arena, struct instance_record *out, struct error *e);
int data_text_next(struct data_file *f, struct arena *arena, struct text_record *out, struct error *e);
size_t data_number(const struct data_file *f); /* of the line last returned, from 1 */
/* How much of all these files (closed ones left out) is read, 0 to 1; below 0 when a size is unknown. */
double data_fraction(const struct data_file *files, size_t count);
void data_close(struct data_file *f);

/* The flag --text into *content. False: a usage error, *status says. */
bool data_text_flag(const char *command, const struct arguments *a, bool *content, int *status);

#endif
