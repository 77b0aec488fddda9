/* What a conversion keeps beside its output while it works, and leaves there when it is killed
 * (spec/resume.md): OUT.partial, of a set one for each shard, OUT.resume, OUT.waiting.partial. */
#ifndef INGOT_ZOO_REMAINS_H
#define INGOT_ZOO_REMAINS_H

#include "zoo/shelf.h"

/* Whether a path is that of an output (ending in .ingot), or of a shard of a set that is written in
 * its place. */
bool ingot_output_is_form(const char *path, const char *output);
/* path = one of these files of an output that is there (a link that leads to nothing is none), of a
 * set's shards only where it is to be a set; false: there is none. */
bool ingot_output_find(char path[INGOT_SHELF_PATH_SIZE], const ingot_shelf *shelf,
                       const char *output, bool is_set);
/* Whether a path is that of something a conversion to the output keeps. */
bool ingot_remains_are_of(const char *path, const char *output);

/* Bytes of the disk that they have; 0 where there are none. */
uint64_t ingot_remains_bytes(const ingot_shelf *shelf, const char *output);
/* Removes them.  Whoever calls has the lock of the product. */
void ingot_remains_remove(const ingot_shelf *shelf, const char *output);

#endif
