/* Replacing a set of shards by another of the same names; for the writer alone. */
#ifndef INGOT_CONTAINER_WRITE_SET_H
#define INGOT_CONTAINER_WRITE_SET_H

#include "ingot_status.h"

#include <stdint.h>

#define INGOT_REPLACED_SUFFIX ".replaced"

/* *out[count + 1] = the names under which old shards stand aside, NULL at the end. */
ingot_status ingot_set_names(char ***out, const char *const *paths,
                             uint32_t count) INGOT_MUST_CHECK;
void ingot_set_names_free(char **names); /* NULL is fine */
/* Renames whatever stands under paths[count], the first shard first; puts all back on failure. */
ingot_status ingot_set_aside(const char *const *paths, char *const *replaced, uint32_t count,
                             ingot_error *error) INGOT_MUST_CHECK;
/* Puts the old shards back, the first one last; what cannot be put back is reported on stderr. */
void ingot_set_restore(const char *const *paths, char *const *replaced, uint32_t count);
/* Removes the old shards, the first one first. */
void ingot_set_discard(char *const *replaced, uint32_t count);

#endif
