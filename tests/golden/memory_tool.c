/* memory_tool FOLDER: gives a memory what `engram load` cannot: positions in topics, and in the same commits the
 * forgets of the ids on standard input. */
#include <stdio.h>
#include <string.h>

#include "store/memory.h"

static int change(struct memory *m, const char *id, int number, struct error *e)
{
    static const char *const topics[] = {"instances", "labels"};
    const struct slice cluster = slice_of("a-cluster");
    struct transaction *t;
    struct read_position position = {
        .next = number + 1,
        .mark = record_mark_of(number, 1700000000000 + number, slice_of(id), slice_of("value")),
        .topic_id = "the topic's id",
    };
    if (memory_begin(m, &t, e)) {
        return -1;
    }
    if (transaction_forget(t, slice_of(id), NULL, e) ||
        transaction_offset(t, cluster, slice_of(topics[number % 2]), number / 2 % 3, &position, e)) {
        transaction_abort(t);
        return -1;
    }
    return transaction_commit(t, e);
}

int main(int argc, char **argv)
{
    struct memory *m = NULL;
    struct error e = {0};
    struct memory_options options = {.path = argc == 2 ? argv[1] : "", .store_text = true};
    char line[512];
    int result = memory_open(&m, MEMORY_WRITE, &options, &e);
    for (int number = 0; result == 0 && fgets(line, sizeof line, stdin); number++) {
        line[strcspn(line, "\n")] = '\0';
        result = change(m, line, number, &e);
    }
    if (result) {
        fprintf(stderr, "memory_tool: %s\n", e.text);
    }
    memory_close(m);
    return result ? 1 : 0;
}
