/* What a conversion keeps beside its output (zoo/remains.h). */
#include "zoo/remains.h"

#include "common/files.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool ingot_output_is_form(const char *path, const char *output) {
    const size_t stem = strlen(output) - strlen(".ingot");
    unsigned shard, count;
    int end = 0;
    return strcmp(path, output) == 0 ||
           (strncmp(path, output, stem) == 0 &&
            sscanf(path + stem, "-%5u-of-%5u.ingot%n", &shard, &count, &end) == 2 && end > 0 &&
            path[stem + (size_t)end] == '\0');
}

static const char *const endings[] = {".waiting.partial", ".resume.partial", ".partial", ".resume"};

bool ingot_remains_are_of(const char *path, const char *output) {
    char whole[INGOT_SHELF_PATH_SIZE];
    const size_t length = strlen(path);
    for (unsigned i = 0; i < sizeof endings / sizeof *endings; i++) {
        const size_t tail = strlen(endings[i]);
        if (length > tail && length < sizeof whole &&
            strcmp(path + length - tail, endings[i]) == 0) {
            (void)snprintf(whole, sizeof whole, "%.*s", (int)(length - tail), path);
            return ingot_output_is_form(whole, output);
        }
    }
    return false;
}

/* Calls see(context, path) for each file in the output's folder that is_one takes for one of its
 * files. */
static void for_all(const ingot_shelf *shelf, const char *output,
                    bool (*is_one)(const char *path, const char *output),
                    void (*see)(void *context, const char *path), void *context) {
    char folder[INGOT_SHELF_PATH_SIZE], path[INGOT_SHELF_PATH_SIZE];
    ingot_shelf_output(folder, shelf, output);
    const size_t start = strlen(folder) - strlen(output);
    *strrchr(folder, '/') = '\0';
    DIR *entries = opendir(folder);
    for (struct dirent *e = entries != NULL ? readdir(entries) : NULL; e != NULL;
         e = readdir(entries)) {
        const int length = snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        if (length > 0 && (size_t)length < sizeof path && is_one(path + start, output)) {
            see(context, path);
        }
    }
    if (entries != NULL) {
        (void)closedir(entries);
    }
}

/* Those beside the output's name, and where that is a link those beside the file it leads to. */
static void for_remains(const ingot_shelf *shelf, const char *output,
                        void (*see)(void *context, const char *path), void *context) {
    char name[INGOT_SHELF_PATH_SIZE], target[INGOT_PATH_BYTES], path[sizeof target + 32];
    for_all(shelf, output, ingot_remains_are_of, see, context);
    ingot_shelf_output(name, shelf, output);
    if (ingot_output_target(target, name, NULL) != INGOT_OK || strcmp(target, name) == 0) {
        return;
    }
    for (unsigned i = 0; i < sizeof endings / sizeof *endings; i++) {
        (void)snprintf(path, sizeof path, "%s%s", target, endings[i]);
        if (ingot_path_exists(path)) {
            see(context, path);
        }
    }
}

static void add_bytes(void *context, const char *path) {
    struct stat info;
    if (stat(path, &info) == 0) {
        *(uint64_t *)context += (uint64_t)info.st_blocks * 512;
    }
}

uint64_t ingot_remains_bytes(const ingot_shelf *shelf, const char *output) {
    uint64_t bytes = 0;
    for_remains(shelf, output, add_bytes, &bytes);
    return bytes;
}

static void drop(void *context, const char *path) {
    (void)context;
    (void)unlink(path);
}

void ingot_remains_remove(const ingot_shelf *shelf, const char *output) {
    for_remains(shelf, output, drop, NULL);
}

/* ---- the output itself ----------------------------------------------------------------------- */

static void keep_first(void *context, const char *path) {
    char *first = context; /* directories have no order: the same file whatever theirs is */
    if (ingot_output_exists(path) && (first[0] == '\0' || strcmp(path, first) < 0)) {
        (void)snprintf(first, INGOT_SHELF_PATH_SIZE, "%s", path);
    }
}

bool ingot_output_find(char path[INGOT_SHELF_PATH_SIZE], const ingot_shelf *shelf,
                       const char *output, bool is_set) {
    ingot_shelf_output(path, shelf, output);
    if (ingot_output_exists(path)) {
        return true;
    }
    path[0] = '\0';
    if (is_set) {
        for_all(shelf, output, ingot_output_is_form, keep_first, path);
    }
    return path[0] != '\0';
}
