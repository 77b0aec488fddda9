/* What no product uses any more (zoo/leftovers.h). */
#include "zoo/leftovers.h"

#include "common/cli.h"
#include "common/files.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define KEY_DIGITS 32u

/* ---- what is in use ------------------------------------------------------------------------- */

/* Adds the file that a product shares with others, if it does. */
static ingot_status use_shared(json_t *used, const ingot_manifest *m, const ingot_zoo_product *p,
                               const char *fingerprint, ingot_error *error) {
    char name[64];
    ingot_product_keys keys;
    INGOT_TRY(ingot_product_make_keys(&keys, m, p, fingerprint, error));
    if (p->uses_statistics) {
        (void)snprintf(name, sizeof name, "%s.calib", keys.statistics);
        ingot_json_put(used, name, json_true());
    } else if (m->recipes[p->recipe].recipe.target_bpw != 0) {
        (void)snprintf(name, sizeof name, "%s.sens", keys.sensitivity);
        ingot_json_put(used, name, json_true());
    }
    return INGOT_OK;
}

/* *used: name -> true, of all products, also of those that --only leaves out; NULL where they are
 * not known. */
static ingot_status find_used(json_t **used, const ingot_manifest *m, ingot_error *error) {
    char fingerprint[33];
    uint64_t taken = INGOT_ZOO_NONE; /* the model whose fingerprint it is */
    ingot_error ignored;
    *used = json_object();
    for (uint64_t i = 0; i < m->product_count; i++) {
        const ingot_zoo_product *p = &m->products[i];
        ingot_status status =
            p->model == taken
                ? INGOT_OK
                : ingot_zoo_fingerprint(fingerprint, m->models[p->model].path, &ignored);
        const bool is_known = status == INGOT_OK;
        taken = p->model;
        if (is_known) {
            status = use_shared(*used, m, p, fingerprint, error);
        }
        if (status != INGOT_OK) {
            json_decref(*used);
            *used = NULL;
            return is_known ? status : INGOT_OK;
        }
    }
    return INGOT_OK;
}

/* ---- what is there -------------------------------------------------------------------------- */

/* The length of a name that a shelf gives to shared files, without what is added while one is
 * written; 0: it is somebody else's. */
static size_t shared_length(const char *name) {
    static const char *const endings[] = {".calib", ".sens"};
    const size_t digits = strspn(name, "0123456789abcdef");
    for (unsigned i = 0; i < sizeof endings / sizeof *endings && digits == KEY_DIGITS; i++) {
        const size_t length = strlen(endings[i]);
        const char *rest = name + digits + length;
        if (strncmp(name + digits, endings[i], length) == 0 &&
            (rest[0] == '\0' || strcmp(rest, INGOT_PARTIAL_SUFFIX) == 0)) {
            return digits + length;
        }
    }
    return 0;
}

static int is_shared(const struct dirent *entry) {
    return shared_length(entry->d_name) != 0;
}

/* The folder of a kind of files, with its slash. */
static void folder_of(char out[INGOT_SHELF_PATH_SIZE], const ingot_shelf *shelf,
                      ingot_shelf_kind kind) {
    ingot_shelf_path(out, shelf, kind, "");
    strrchr(out, '/')[1] = '\0';
}

/* Names of a folder of the shelf, in order; a folder that is not there has none. */
static ingot_status list(struct dirent ***entries, int *count, const char *folder,
                         int (*filter)(const struct dirent *), ingot_error *error) {
    *entries = NULL;
    *count = scandir(folder, entries, filter, alphasort);
    if (*count < 0 && errno != ENOENT) {
        return ingot_error_set(error, errno == ENOMEM ? INGOT_ERR_NO_MEMORY : INGOT_ERR_IO, folder,
                               NULL, "check its permissions", "the folder cannot be read: %s",
                               strerror(errno));
    }
    return INGOT_OK;
}

static int is_lock(const struct dirent *entry) {
    const char *ending = strrchr(entry->d_name, '.');
    return ending != NULL && strcmp(ending, ".lock") == 0;
}

/* Whether anybody has a lock of the shelf. */
static ingot_status find_others(bool *are_there, const ingot_shelf *shelf, ingot_error *error) {
    char folder[INGOT_SHELF_PATH_SIZE];
    struct dirent **entries;
    int count;
    *are_there = false;
    folder_of(folder, shelf, INGOT_SHELF_LOCK);
    INGOT_TRY(list(&entries, &count, folder, is_lock, error));
    for (int i = 0; i < count; i++) {
        *strrchr(entries[i]->d_name, '.') = '\0';
        *are_there = *are_there || ingot_shelf_is_locked(shelf, entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
    return INGOT_OK;
}

ingot_status ingot_leftovers_find(json_t **out, const ingot_manifest *manifest,
                                  const ingot_shelf *shelf, ingot_error *error) {
    char folder[INGOT_SHELF_PATH_SIZE], path[INGOT_SHELF_PATH_SIZE + 256], name[64];
    struct dirent **entries;
    json_t *used;
    int count;
    bool are_others;
    *out = json_array();
    INGOT_TRY(find_others(&are_others, shelf, error));
    if (are_others) {
        return INGOT_OK;
    }
    folder_of(folder, shelf, INGOT_SHELF_STATISTICS);
    ingot_status status = list(&entries, &count, folder, is_shared, error);
    if (status != INGOT_OK || count <= 0) {
        free(entries);
        return status;
    }
    status = find_used(&used, manifest, error);
    for (int i = 0; i < count; i++) {
        const char *file = entries[i]->d_name;
        struct stat info;
        (void)snprintf(name, sizeof name, "%.*s", (int)shared_length(file), file);
        (void)snprintf(path, sizeof path, "%s%s", folder, file);
        if (used != NULL && json_object_get(used, name) == NULL && stat(path, &info) == 0 &&
            S_ISREG(info.st_mode)) {
            (void)json_array_append_new(*out, json_pack("{s:s, s:I}", "file",
                                                        path + strlen(shelf->root) + 1, "bytes",
                                                        (json_int_t)info.st_blocks * 512));
        }
        free(entries[i]);
    }
    free(entries);
    json_decref(used);
    return status;
}

/* ---- removing ------------------------------------------------------------------------------- */

ingot_status ingot_leftovers_remove(json_t **out, const ingot_manifest *manifest,
                                    const ingot_shelf *shelf, ingot_error *error) {
    char path[INGOT_SHELF_PATH_SIZE], size[32];
    json_t *found = NULL;
    *out = json_array();
    const ingot_status status = ingot_leftovers_find(&found, manifest, shelf, error);
    for (size_t i = 0; status == INGOT_OK && i < json_array_size(found); i++) {
        json_t *one = json_array_get(found, i);
        const char *file = ingot_zoo_text_of(one, "file");
        ingot_shelf_output(path, shelf, file);
        if (unlink(path) == 0) {
            ingot_format_bytes(size, sizeof size, ingot_json_number_at(one, "bytes"));
            (void)fprintf(stderr, "%s: no product of the manifest uses it: removed (%s)\n", path,
                          size);
            (void)json_array_append(*out, one);
        }
    }
    json_decref(found);
    return status;
}
