/* Replacing a set of shards (spec/container.md, "Writing").  The shards of a set cannot be renamed
 * at once, so an old set stands aside as NAME.replaced while the new one takes its names.
 *
 * Invariants: the first shard leaves its name first and gets the new one last, so at no moment do
 * the names hold a mixture that a reader accepts; until the new first shard stands under its name
 * the old set is complete under its own names and the .replaced ones together. */
#include "format/container_write_set.h"

#include "common/files.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char *replaced_name(const char *path) {
    const size_t length = strlen(path);
    char *name = malloc(length + sizeof INGOT_REPLACED_SUFFIX);
    if (name != NULL) {
        memcpy(name, path, length);
        memcpy(name + length, INGOT_REPLACED_SUFFIX, sizeof INGOT_REPLACED_SUFFIX);
    }
    return name;
}

ingot_status ingot_set_names(char ***out, const char *const *paths, uint32_t count) {
    *out = calloc((size_t)count + 1, sizeof **out);
    if (*out == NULL) {
        return INGOT_ERR_NO_MEMORY;
    }
    for (uint32_t i = 0; i < count; i++) {
        (*out)[i] = replaced_name(paths[i]);
        if ((*out)[i] == NULL) {
            ingot_set_names_free(*out);
            *out = NULL;
            return INGOT_ERR_NO_MEMORY;
        }
    }
    return INGOT_OK;
}

void ingot_set_names_free(char **names) {
    for (char **name = names; name != NULL && *name != NULL; name++) {
        free(*name);
    }
    free(names);
}

void ingot_set_restore(const char *const *paths, char *const *replaced, uint32_t count) {
    for (uint32_t i = count; i > 0; i--) {
        if (ingot_path_exists(replaced[i - 1]) && rename(replaced[i - 1], paths[i - 1]) != 0) {
            (void)fprintf(stderr, "%s: warning: cannot be renamed to %s: %s\n", replaced[i - 1],
                          paths[i - 1], strerror(errno));
        }
    }
}

void ingot_set_discard(char *const *replaced, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        if (unlink(replaced[i]) != 0 && errno != ENOENT) {
            (void)fprintf(stderr, "%s: warning: cannot be removed: %s\n", replaced[i],
                          strerror(errno));
        }
    }
}

ingot_status ingot_set_aside(const char *const *paths, char *const *replaced, uint32_t count,
                             ingot_error *error) {
    /* What an interrupted run left: an old set to put back, or the rest of one that is replaced. */
    if (ingot_path_exists(replaced[0]) && !ingot_path_exists(paths[0])) {
        ingot_set_restore(paths, replaced, count);
    } else {
        ingot_set_discard(replaced, count);
    }
    for (uint32_t i = 0; i < count; i++) {
        if (ingot_path_exists(paths[i]) && rename(paths[i], replaced[i]) != 0) {
            const int code = errno;
            ingot_set_restore(paths, replaced, count);
            return ingot_error_set(error, INGOT_ERR_IO, paths[i], NULL,
                                   "remove the old set or choose another output",
                                   "cannot be set aside: %s", strerror(code));
        }
    }
    return INGOT_OK;
}
