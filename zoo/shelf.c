/* Folders, locks and records of a shelf (spec/zoo.md, section 3). */
#include "zoo/shelf.h"

#include "common/files.h"
#include "common/memory.h"
#include "format/digest.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define RECORD_LIMIT_BYTES (16u << 20)
#define RECORD_FORMAT      "ingot-zoo-record"
#define RECORD_VERSION     1

static const struct {
    const char *folder, *ending;
} kinds[INGOT_SHELF_KIND_COUNT] = {
    [INGOT_SHELF_RECORD] = {"records", ".json"},
    [INGOT_SHELF_LOG] = {"logs", ".log"},
    [INGOT_SHELF_LOCK] = {"locks", ".lock"},
    [INGOT_SHELF_RECIPE] = {"recipes", ".json"},
    [INGOT_SHELF_CONVERT] = {"work", ".convert.json"},
    [INGOT_SHELF_VERIFY] = {"work", ".verify.json"},
    [INGOT_SHELF_CALIB] = {"work", ".calib.json"},
    [INGOT_SHELF_STATISTICS] = {"statistics", ".calib"},
    [INGOT_SHELF_SENSITIVITY] = {"statistics", ".sens"},
    [INGOT_SHELF_CLUSTER] = {"slurm", ""},
};

/* ---- folders -------------------------------------------------------------------------------- */

static ingot_status in_the_place(const char *path, ingot_error *error) {
    return ingot_error_set(error, INGOT_ERR_IO, path, NULL, "move it away",
                           "a file is in the place of a folder of the shelf");
}

static ingot_status make_folder(const char *path, ingot_error *error) {
    if (mkdir(path, 0777) == 0 || errno == EEXIST) {
        return ingot_path_is_directory(path) ? INGOT_OK : in_the_place(path, error);
    }
    const bool is_full = errno == ENOSPC || errno == EDQUOT;
    return ingot_error_set(error, is_full ? INGOT_ERR_NO_SPACE : INGOT_ERR_IO, path, NULL,
                           is_full ? "make room" : "check its permissions",
                           "cannot make this folder of the shelf: %s", strerror(errno));
}

/* Every folder of path in order; path is changed and restored. */
static ingot_status make_folders(char *path, ingot_error *error) {
    for (char *slash = path + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = '\0';
        const ingot_status status = make_folder(path, error);
        *slash = '/';
        INGOT_TRY(status);
    }
    return INGOT_OK;
}

ingot_status ingot_shelf_open(ingot_shelf *out, const char *path, bool create, ingot_error *error) {
    char folder[INGOT_SHELF_PATH_SIZE];
    const int length = snprintf(out->root, sizeof out->root, "%s", path);
    if (length < 1 || (size_t)length >= sizeof out->root) {
        return ingot_error_set(error, INGOT_ERR_INPUT, path, NULL, "use a shorter path",
                               "the path of the shelf is too long");
    }
    for (size_t end = (size_t)length; end > 1 && out->root[end - 1] == '/'; end--) {
        out->root[end - 1] = '\0'; /* paths below it begin behind one slash */
    }
    if (!create) {
        return ingot_path_is_directory(path)
                   ? INGOT_OK
                   : ingot_error_set(error, INGOT_ERR_NOT_FOUND, path, NULL,
                                     "make it with ingot-zoo run", "there is no shelf yet");
    }
    for (unsigned i = 0; i < INGOT_SHELF_KIND_COUNT; i++) {
        (void)snprintf(folder, sizeof folder, "%s/" INGOT_SHELF_FOLDER "/%s/", out->root,
                       kinds[i].folder);
        INGOT_TRY(make_folders(folder, error));
    }
    return INGOT_OK;
}

void ingot_shelf_path(char out[INGOT_SHELF_PATH_SIZE], const ingot_shelf *shelf,
                      ingot_shelf_kind kind, const char *name) {
    const int start = snprintf(out, INGOT_SHELF_PATH_SIZE, "%s/" INGOT_SHELF_FOLDER "/%s/",
                               shelf->root, kinds[kind].folder);
    const size_t left = INGOT_SHELF_PATH_SIZE - (size_t)start;
    (void)snprintf(out + start, left, "%.500s%s", name, kinds[kind].ending);
    for (char *c = out + start; *c != '\0'; c++) {
        *c = *c == '/' ? '@' : *c;
    }
}

void ingot_shelf_output(char out[INGOT_SHELF_PATH_SIZE], const ingot_shelf *shelf,
                        const char *output) {
    (void)snprintf(out, INGOT_SHELF_PATH_SIZE, "%s/%.1000s", shelf->root, output);
}

ingot_status ingot_shelf_make_folders(const ingot_shelf *shelf, const char *output,
                                      ingot_error *error) {
    char path[INGOT_SHELF_PATH_SIZE];
    ingot_shelf_output(path, shelf, output);
    return make_folders(path, error);
}

/* ---- before any of it is begun --------------------------------------------------------------- */

/* Whether a folder, named with a slash at its end, may be written to, or made where it is not
 * there; path becomes the last part of it that is. */
static ingot_status check_folder(char path[INGOT_SHELF_PATH_SIZE], bool is_closed,
                                 ingot_error *error) {
    const char *nothing = path[0] == '/' ? "/" : ".";
    size_t end = 0;
    bool is_there = true;
    for (char *slash = strchr(path + 1, '/'); slash != NULL && is_there;
         slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        is_there = ingot_path_is_directory(path);
        if (!is_there && ingot_path_exists(path)) {
            return in_the_place(path, error);
        }
        *slash = '/';
        end = is_there ? (size_t)(slash - path) : end;
    }
    path[end] = '\0';
    if (end == 0) {
        (void)snprintf(path, INGOT_SHELF_PATH_SIZE, "%s", nothing);
    }
    return is_closed || access(path, W_OK | X_OK) == 0
               ? INGOT_OK
               : ingot_error_set(error, INGOT_ERR_IO, path, NULL, "check its permissions",
                                 "the folder cannot be written to: %s", strerror(errno));
}

ingot_status ingot_shelf_check(const char *root, ingot_error *error) {
    char path[INGOT_SHELF_PATH_SIZE];
    for (unsigned i = 0; i < INGOT_SHELF_KIND_COUNT; i++) {
        (void)snprintf(path, sizeof path, "%.3000s/" INGOT_SHELF_FOLDER "/%s/", root,
                       kinds[i].folder);
        INGOT_TRY(check_folder(path, false, error));
    }
    return INGOT_OK;
}

ingot_status ingot_shelf_check_output(const char *root, const char *output, uint64_t added_bytes,
                                      bool is_closed, ingot_error *error) {
    char path[INGOT_SHELF_PATH_SIZE], target[INGOT_PATH_BYTES];
    const char *slash = strrchr(output, '/'), *name = slash != NULL ? slash + 1 : output;
    (void)snprintf(path, sizeof path, "%.3000s/%s", root, output);
    if (ingot_path_is_directory(path)) {
        return ingot_error_set(error, INGOT_ERR_EXISTS, path, NULL, "move it away",
                               "a folder is in the place of the product");
    }
    INGOT_TRY(ingot_output_target(target, path, error));
    if (strcmp(target, path) != 0) { /* a link: its own folder need not be written to */
        return ingot_output_check(path, error);
    }
    (void)snprintf(path, sizeof path, "%.3000s/%.*s", root, (int)(name - output), output);
    INGOT_TRY(check_folder(path, is_closed, error));
    const long most = pathconf(path, _PC_NAME_MAX);
    if (most > 0 && strlen(name) + added_bytes > (uint64_t)most) {
        return ingot_error_set(error, INGOT_ERR_IO, output, NULL, "use a shorter name",
                               "cannot be made: %s", strerror(ENAMETOOLONG));
    }
    return INGOT_OK;
}

/* ---- locks ---------------------------------------------------------------------------------- */

/* Locks of an open file: inherited by a child with its descriptor, held until the last copy is
 * closed or one is unlocked, and, unlike flock, known to a question that takes nothing. */
static int lock_call(int descriptor, int call, short *type) {
    struct flock lock = {.l_type = *type, .l_whence = SEEK_SET};
    int result;
    do {
        result = fcntl(descriptor, call, &lock);
    } while (result != 0 && errno == EINTR);
    *type = lock.l_type;
    return result;
}

ingot_status ingot_shelf_lock(int *descriptor, const ingot_shelf *shelf, const char *name,
                              ingot_error *error) {
    char path[INGOT_SHELF_PATH_SIZE];
    short type = F_WRLCK;
    ingot_shelf_path(path, shelf, INGOT_SHELF_LOCK, name);
    *descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    const bool is_open = *descriptor >= 0;
    if (is_open && lock_call(*descriptor, F_OFD_SETLK, &type) == 0) {
        return INGOT_OK;
    }
    const int code = errno;
    if (is_open) {
        (void)close(*descriptor);
        *descriptor = -1;
    }
    /* A lock that may not be opened, such as another user's, would be waited for without end. */
    if (is_open && (code == EAGAIN || code == EACCES)) {
        return ingot_error_set(error, INGOT_ERR_LOCKED, path, NULL, "wait for it",
                               "another run is making this product");
    }
    const bool is_full = code == ENOSPC || code == EDQUOT;
    return ingot_error_set(error, is_full ? INGOT_ERR_NO_SPACE : INGOT_ERR_IO, path, NULL,
                           is_full ? "make room" : "check its permissions",
                           "cannot lock a product: %s", strerror(code));
}

void ingot_shelf_unlock(int descriptor) {
    short type = F_UNLCK;
    if (descriptor >= 0) {
        (void)lock_call(descriptor, F_OFD_SETLK, &type); /* also for copies a child still has */
        (void)close(descriptor);
    }
}

bool ingot_shelf_is_locked(const ingot_shelf *shelf, const char *name) {
    char path[INGOT_SHELF_PATH_SIZE];
    short type = F_WRLCK;
    ingot_shelf_path(path, shelf, INGOT_SHELF_LOCK, name);
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (descriptor < 0) {
        return false;
    }
    const bool is_locked = lock_call(descriptor, F_OFD_GETLK, &type) == 0 && type != F_UNLCK;
    (void)close(descriptor);
    return is_locked;
}

/* ---- records -------------------------------------------------------------------------------- */

const char *ingot_zoo_text_of(const json_t *object, const char *key) {
    return json_string_value(json_object_get(object, key));
}

bool ingot_zoo_json_digest(char hex[33], const json_t *value) {
    uint8_t digest[16];
    char *text = ingot_json_canonical(value);
    if (text == NULL) {
        return false;
    }
    ingot_digest128(digest, text, strlen(text));
    ingot_digest_hex(hex, digest);
    free(text);
    return true;
}

/* Takes "digest" out of the record and compares it with that of the rest. */
static bool is_whole(json_t *record) {
    char wanted[33] = "", found[33];
    const char *digest = ingot_zoo_text_of(record, "digest");
    (void)snprintf(wanted, sizeof wanted, "%s", digest != NULL ? digest : "");
    (void)json_object_del(record, "digest");
    return ingot_zoo_json_digest(found, record) && strcmp(wanted, found) == 0;
}

ingot_status ingot_shelf_read_record(json_t **out, const ingot_shelf *shelf, const char *product,
                                     ingot_error *error) {
    char path[INGOT_SHELF_PATH_SIZE];
    ingot_shelf_path(path, shelf, INGOT_SHELF_RECORD, product);
    *out = NULL;
    INGOT_TRY(ingot_json_read(out, path, RECORD_LIMIT_BYTES, error));
    const char *format = ingot_zoo_text_of(*out, "format");
    const char *named = ingot_zoo_text_of(*out, "product");
    if (format != NULL && strcmp(format, RECORD_FORMAT) == 0 &&
        ingot_json_number_at(*out, "version") == RECORD_VERSION && named != NULL &&
        strcmp(named, product) == 0 && is_whole(*out)) {
        return INGOT_OK;
    }
    json_decref(*out);
    *out = NULL;
    return ingot_error_set(error, INGOT_ERR_INPUT, path, NULL,
                           "remove it; ingot-zoo run makes the product again",
                           "the record is damaged, or of another version");
}

ingot_status ingot_shelf_write_record(const ingot_shelf *shelf, const char *product, json_t *record,
                                      ingot_error *error) {
    char path[INGOT_SHELF_PATH_SIZE], digest[33];
    ingot_shelf_path(path, shelf, INGOT_SHELF_RECORD, product);
    (void)json_object_del(record, "digest");
    ingot_json_put(record, "format", json_string(RECORD_FORMAT));
    ingot_json_put(record, "version", json_integer(RECORD_VERSION));
    ingot_json_put(record, "product", json_string(product));
    const bool is_digested = ingot_zoo_json_digest(digest, record);
    if (is_digested) {
        ingot_json_put(record, "digest", json_string(digest));
    }
    char *text = is_digested ? ingot_json_text(record, JSON_SORT_KEYS | JSON_INDENT(1)) : NULL;
    (void)json_object_del(record, "digest");
    if (text == NULL) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, path, NULL, NULL, "out of memory");
    }
    const ingot_status status = ingot_file_write_all(path, text, strlen(text), true, error);
    free(text);
    return status;
}
