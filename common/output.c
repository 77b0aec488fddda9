/* Outputs built beside their final name (common/files.h).
 *
 * Invariants of an output (numbered for the tests):
 *  1. The final name appears by one rename, after fsync of the data; the folder is synced after.
 *  2. Without force the rename never replaces a file, whenever that file appeared.
 *  3. PATH.partial is locked (flock) by its writer for as long as it exists under that name, so a
 *     partial file that can be locked belongs to a run that has ended.
 *  4. Whoever fails or aborts removes the partial file, unless it is kept to go on from; else only
 *     SIGKILL or a crash leaves it behind.
 *  5. A mapping is written only where the file is reserved and in memory: no page of it is missing
 *     for want of room, which would be a signal, not a status.
 *  6. Symbolic links are followed once, at first; what comes later has the path behind them.
 */
#include "common/files_internal.h"
#include "common/memory.h"
#include "common/worker.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define CREATE_ATTEMPTS   16
#define MOST_LINKS        40u /* one behind the other, as the system has it */
#define EARLY_FLUSH_BYTES (1u << 20)
#define RESERVE_BYTES     (UINT64_C(128) << 20) /* at once, in the background */
/* A file takes one write at a time; a few threads have something to do beside it.  In memory
 * (tmpfs) two threads write 5.1 GB/s and 16 no more, by mappings 16 write 17 and 8 11; 4 gain
 * nothing. */
#define LOCKED_WRITERS 4u
#define MAPPED_FROM    6u

/* ---- fault injection ----------------------------------------------------------------------- */

/* INGOT_TEST_FAIL_WRITE=n: the n-th change of an output and all that follow fail with ENOSPC.
 * INGOT_TEST_KILL_WRITE=n: SIGKILL arrives at the n-th change of an output.  0: off. */
static unsigned long long fail_write_at;
static unsigned long long kill_write_at;
static atomic_ullong output_changes;

__attribute__((constructor)) static void read_fault_environment(void) {
    const char *fail_at = getenv("INGOT_TEST_FAIL_WRITE");
    const char *kill_at = getenv("INGOT_TEST_KILL_WRITE");
    fail_write_at = fail_at == NULL ? 0 : strtoull(fail_at, NULL, 10);
    kill_write_at = kill_at == NULL ? 0 : strtoull(kill_at, NULL, 10);
}

void ingot_output_fail_after(uint64_t n) {
    atomic_store(&output_changes, 0);
    fail_write_at = n;
}

/* 0, or the errno that this change of an output is to fail with. */
static int injected_fault(void) {
    const unsigned long long change = atomic_fetch_add(&output_changes, 1) + 1;
    if (kill_write_at != 0 && change == kill_write_at) {
        (void)raise(SIGKILL);
    }
    return fail_write_at != 0 && change >= fail_write_at ? ENOSPC : 0;
}

/* ---- opening ------------------------------------------------------------------------------- */

struct ingot_output {
    int descriptor;
    bool is_forced;
    bool has_partial; /* the partial file is ours: locked, and to be removed on failure, */
    bool is_kept;     /* but not then */
    bool is_reopened; /* the partial file was there before, and so is what it holds */
    char *path;
    char *partial_path;
    bool is_mapped;          /* the file is in memory: what is reserved is written by mappings */
    atomic_bool is_sized;    /* but nothing can be reserved there: no more than the size is set */
    uint64_t reserved_bytes; /* as asked for; changes under the mutex, before there are writers */
    ingot_worker *reserving; /* in the background; NULL: it was not begun */
    atomic_bool is_behind;   /* it is not over, or failed */
    atomic_bool is_writing;  /* of a mapped file: a thread is in a system call that writes it */
    atomic_bool is_given_up; /* it need not go on */
    pthread_mutex_t mutex;   /* guards what follows */
    pthread_cond_t progressed;
    uint64_t ready_bytes; /* of the file, reserved so far */
    bool is_reserve_over;
    ingot_status reserve_status;
    ingot_error reserve_error;
};

static bool is_space_error(int code) {
    return code == ENOSPC || code == EDQUOT;
}

static ingot_status path_error(const char *path, int code, const char *action, ingot_error *error) {
    if (is_space_error(code)) {
        return ingot_error_set(error, INGOT_ERR_NO_SPACE, path, NULL,
                               "free some space or write elsewhere", "%s: %s", action,
                               strerror(code));
    }
    const bool is_missing = code == ENOENT || code == ENOTDIR;
    const bool is_refused = code == EACCES || code == EPERM || code == EROFS;
    return ingot_error_set(error, is_missing ? INGOT_ERR_NOT_FOUND : INGOT_ERR_IO, path, NULL,
                           is_missing             ? "create its folder first"
                           : code == EISDIR       ? "move the folder of that name away"
                           : is_refused           ? "choose a folder you may write to"
                           : code == ENAMETOOLONG ? "use a shorter name"
                                                  : NULL,
                           "%s: %s", action, strerror(code));
}

static ingot_status output_error(const ingot_output *output, int code, const char *action,
                                 ingot_error *error) {
    return path_error(output->path, code, action, error);
}

static void release_output(ingot_output *output) {
    ingot_worker_destroy(output->reserving);
    (void)pthread_cond_destroy(&output->progressed);
    (void)pthread_mutex_destroy(&output->mutex);
    if (output->descriptor >= 0) {
        (void)close(output->descriptor);
    }
    ingot_free(output->path);
    ingot_free(output->partial_path);
    ingot_free(output);
}

/* True if the open and locked file is still the one that the partial path names. */
static bool is_still_named(const ingot_output *output) {
    struct stat opened;
    struct stat named;
    return fstat(output->descriptor, &opened) == 0 && lstat(output->partial_path, &named) == 0 &&
           opened.st_dev == named.st_dev && opened.st_ino == named.st_ino;
}

/* The partial file of this process alone, at once: INGOT_ERR_LOCKED, or *is_retry when it vanished
 * between open and lock. */
static ingot_status lock_partial(ingot_output *output, bool *is_retry, ingot_error *error) {
    struct stat info;
    if (fstat(output->descriptor, &info) != 0) {
        return output_error(output, errno, "cannot stat its partial file", error);
    }
    if (!S_ISREG(info.st_mode)) {
        return ingot_error_set(error, INGOT_ERR_IO, output->partial_path, NULL, "remove it",
                               "is in the way and not a regular file");
    }
    int result;
    do {
        result = flock(output->descriptor, LOCK_EX | LOCK_NB);
    } while (result != 0 && errno == EINTR);
    if (result != 0 && errno == EWOULDBLOCK) {
        return ingot_error_set(error, INGOT_ERR_LOCKED, output->path, NULL,
                               "wait for it or choose another output",
                               "another process is writing this output");
    }
    if (result != 0) {
        return output_error(output, errno, "cannot lock its partial file", error);
    }
    *is_retry = !is_still_named(output);
    return INGOT_OK;
}

/* One attempt to own the partial file; *is_retry: it vanished meanwhile. */
static ingot_status try_own_partial(ingot_output *output, bool *is_retry, ingot_error *error) {
    *is_retry = false;
    bool is_stale = false;
    const int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
    const int creating = output->is_reopened ? 0 : O_CREAT | O_EXCL;
    output->descriptor = open(output->partial_path, flags | creating, 0666);
    if (output->descriptor < 0 && errno == ENOENT && output->is_reopened) {
        return ingot_error_set(error, INGOT_ERR_NOT_FOUND, output->partial_path, NULL,
                               "start from the beginning", "there is no partial output");
    }
    if (output->descriptor < 0 && errno == EEXIST) {
        is_stale = true;
        output->descriptor = open(output->partial_path, flags);
        if (output->descriptor < 0 && errno == ENOENT) {
            *is_retry = true;
            return INGOT_OK;
        }
    }
    if (output->descriptor < 0) {
        return output_error(output, errno, "cannot create its partial file", error);
    }
    const ingot_status status = lock_partial(output, is_retry, error);
    if (status != INGOT_OK || *is_retry) {
        /* A file that was made here and could not be locked is no one's, unless another process
         * was quicker. */
        output->has_partial = status != INGOT_OK && status != INGOT_ERR_LOCKED && !is_stale;
        return status;
    }
    output->has_partial = true;
    if (is_stale) {
        (void)fprintf(stderr, "%s: a partial file of an interrupted run was found and replaced\n",
                      output->partial_path);
        if (ftruncate(output->descriptor, 0) != 0) {
            return output_error(output, errno, "cannot empty its stale partial file", error);
        }
    }
    return INGOT_OK;
}

static ingot_status own_partial(ingot_output *output, ingot_error *error) {
    for (int attempt = 0; attempt < CREATE_ATTEMPTS; attempt++) {
        bool is_retry;
        INGOT_TRY(try_own_partial(output, &is_retry, error));
        if (!is_retry) {
            return INGOT_OK;
        }
        if (output->descriptor >= 0) {
            (void)close(output->descriptor);
            output->descriptor = -1;
        }
    }
    return ingot_error_set(error, INGOT_ERR_LOCKED, output->path, NULL, "try again",
                           "its partial file keeps changing: other processes write this output");
}

static ingot_status exists_error(const char *path, ingot_error *error) {
    return ingot_error_set(error, INGOT_ERR_EXISTS, path, NULL,
                           "use --force to replace it or choose another output",
                           "the output already exists");
}

/* ---- where it is made ----------------------------------------------------------------------- */

static void folder_of(char folder[INGOT_PATH_BYTES], const char *path) {
    const char *slash = strrchr(path, '/');
    const size_t length = slash == NULL ? 1 : slash == path ? 1 : (size_t)(slash - path);
    memcpy(folder, slash == NULL ? "." : path, length);
    folder[length] = '\0';
}

static ingot_status stream_error(const char *name, ingot_error *error) {
    /* A rename would put a file in the place of a device, whoever else uses it. */
    return ingot_error_set(error, INGOT_ERR_EXISTS, name, NULL, "give the name of a file",
                           "the output is a device or pipe, not a file");
}

/* Links in /proc are streams that are open, as /dev/stdout leads to, wherever they lead now. */
static bool is_in_proc(const char *path) {
    char folder[INGOT_PATH_BYTES];
    struct statfs where;
    folder_of(folder, path);
    return statfs(folder, &where) == 0 && where.f_type == PROC_SUPER_MAGIC;
}

/* path becomes what it leads to as a link; false where that is too long. */
static bool follow(char path[INGOT_PATH_BYTES], const char *link, size_t length) {
    const char *slash = link[0] == '/' ? NULL : strrchr(path, '/');
    const size_t kept = slash == NULL ? 0 : (size_t)(slash - path) + 1;
    if (kept + length >= INGOT_PATH_BYTES) {
        return false;
    }
    memcpy(path + kept, link, length);
    path[kept + length] = '\0';
    return true;
}

/* Whether a path can be a file's: it names no folder, no device and not nothing. */
static ingot_status check_path(const char *path, const char *name, ingot_error *error) {
    struct stat info;
    if (path[0] == '\0' || path[strlen(path) - 1] == '/') {
        return ingot_error_set(error, INGOT_ERR_USAGE, name, NULL, "give the name of a file",
                               "the output path names no file");
    }
    if (ingot_path_is_directory(path)) {
        return ingot_error_set(error, INGOT_ERR_EXISTS, name, NULL, "give the name of a file",
                               "the output is a folder");
    }
    return stat(path, &info) == 0 && !S_ISREG(info.st_mode) ? stream_error(name, error) : INGOT_OK;
}

ingot_status ingot_output_target(char out[INGOT_PATH_BYTES], const char *name, ingot_error *error) {
    char link[INGOT_PATH_BYTES];
    ssize_t length = (ssize_t)strlen(name);
    out[0] = '\0';
    for (unsigned links = 0; length >= 0; links++) {
        if (links > MOST_LINKS) {
            return ingot_error_set(error, INGOT_ERR_IO, name, NULL,
                                   "remove the link, or name another output",
                                   "symbolic links lead in a circle, to no file");
        }
        if (!follow(out, links == 0 ? name : link, (size_t)length)) {
            return path_error(name, ENAMETOOLONG, "cannot be made", error);
        }
        length = readlink(out, link, sizeof link);
        if ((links != 0 || length >= 0) && is_in_proc(out)) {
            return stream_error(name, error);
        }
    }
    return check_path(out, name, error);
}

bool ingot_output_exists(const char *name) {
    struct stat info;
    return stat(name, &info) == 0;
}

ingot_status ingot_output_check(const char *name, ingot_error *error) {
    char path[INGOT_PATH_BYTES], folder[INGOT_PATH_BYTES];
    struct stat info;
    INGOT_TRY(ingot_output_target(path, name, error));
    folder_of(folder, path);
    int code = stat(folder, &info) != 0           ? errno
               : !S_ISDIR(info.st_mode)           ? ENOTDIR
               : access(folder, W_OK | X_OK) != 0 ? errno
                                                  : 0;
    char partial[sizeof path + sizeof INGOT_PARTIAL_SUFFIX]; /* its name is the longer one */
    (void)snprintf(partial, sizeof partial, "%s" INGOT_PARTIAL_SUFFIX, path);
    if (code == 0 && lstat(partial, &info) != 0 && errno == ENAMETOOLONG) {
        code = errno;
    }
    return code == 0 ? INGOT_OK : path_error(path, code, "cannot be made", error);
}

void ingot_output_outlive_readers(void) {
    (void)signal(SIGPIPE, SIG_IGN);
}

static ingot_status open_output(ingot_output **out, const char *name, bool force, bool reopens,
                                ingot_error *error) {
    char path[INGOT_PATH_BYTES];
    *out = NULL;
    ingot_output_outlive_readers();
    INGOT_TRY(ingot_output_target(path, name, error));
    if (!force && ingot_path_exists(path)) {
        return exists_error(name, error);
    }
    void *memory;
    if (ingot_alloc_zero(&memory, 1, sizeof(ingot_output)) != INGOT_OK) {
        return files_no_memory(path, error);
    }
    ingot_output *output = memory;
    output->descriptor = -1;
    (void)pthread_mutex_init(&output->mutex, NULL);
    (void)pthread_cond_init(&output->progressed, NULL);
    output->is_forced = force;
    output->is_reopened = output->is_kept = reopens;
    ingot_status status = INGOT_OK;
    if (files_copy_path(&output->path, path, "") != INGOT_OK ||
        files_copy_path(&output->partial_path, path, INGOT_PARTIAL_SUFFIX) != INGOT_OK) {
        status = files_no_memory(path, error);
        goto done;
    }
    INGOT_GO(own_partial(output, error));
    *out = output;
    return INGOT_OK;
done:
    ingot_output_abort(output);
    return status;
}

ingot_status ingot_output_create(ingot_output **out, const char *path, bool force,
                                 ingot_error *error) {
    return open_output(out, path, force, false, error);
}

ingot_status ingot_output_reopen(ingot_output **out, const char *path, bool force,
                                 ingot_error *error) {
    return open_output(out, path, force, true, error);
}

void ingot_output_keep(ingot_output *output) {
    output->is_kept = true;
}

int ingot_output_descriptor(const ingot_output *output) {
    return output->descriptor;
}

/* ---- reserving and writing ------------------------------------------------------------------ */

/* Returns when the file is reserved up to `end`, or an attempt in the background failed. */
static ingot_status settle(ingot_output *output, uint64_t end, ingot_error *error) {
    if (!output->is_behind) {
        return INGOT_OK;
    }
    (void)pthread_mutex_lock(&output->mutex);
    while (!output->is_reserve_over && output->ready_bytes < end) {
        (void)pthread_cond_wait(&output->progressed, &output->mutex);
    }
    const ingot_status status = output->reserve_status;
    if (status != INGOT_OK && error != NULL) {
        *error = output->reserve_error;
    }
    (void)pthread_mutex_unlock(&output->mutex);
    return status;
}

static ingot_status write_file(const ingot_output *output, const void *bytes, uint64_t size,
                               uint64_t offset, ingot_error *error) {
    const unsigned char *source = bytes;
    uint64_t done = 0;
    while (done < size) {
        const uint64_t left = size - done;
        const size_t piece = (size_t)(left < TRANSFER_BYTES_MAX ? left : TRANSFER_BYTES_MAX);
        const ssize_t count =
            pwrite(output->descriptor, source + done, piece, (off_t)(offset + done));
        if (count < 0 && errno == EINTR) {
            continue;
        }
        if (count <= 0) { /* a regular file never takes 0 of more than 0 bytes, except when full */
            return output_error(output, count < 0 ? errno : ENOSPC, "cannot write", error);
        }
        done += (uint64_t)count;
    }
    if (size >=
        EARLY_FLUSH_BYTES) { /* the disk starts now, beside the work, not at the last sync */
        (void)sync_file_range(output->descriptor, (off_t)offset, (off_t)size,
                              SYNC_FILE_RANGE_WRITE);
    }
    return INGOT_OK;
}

/* Copies into a part of the file that is reserved, so that no page of it can be missing; false: it
 * cannot be mapped. */
static bool write_mapped(const ingot_output *output, const void *bytes, uint64_t size,
                         uint64_t offset) {
    const uint64_t before = offset % (uint64_t)sysconf(_SC_PAGESIZE);
    char *at = mmap(NULL, (size_t)(before + size), PROT_READ | PROT_WRITE, MAP_SHARED,
                    output->descriptor, (off_t)(offset - before));
    if (at == MAP_FAILED) {
        return false;
    }
    memcpy(at + before, bytes, (size_t)size);
    (void)munmap(at, (size_t)(before + size));
    return true;
}

ingot_status ingot_output_write_at(ingot_output *output, const void *bytes, uint64_t size,
                                   uint64_t offset, ingot_error *error) {
    if (!files_is_valid_extent(size, offset)) {
        return output_error(output, EFBIG, "cannot write", error);
    }
    INGOT_TRY(settle(output, offset + size, error));
    const int fault = injected_fault();
    if (fault != 0) {
        return output_error(output, fault, "cannot write", error);
    }
    /* whoever finds the file's own way free takes it: it is the shortest for one thread */
    const bool is_mapped = output->is_mapped && !output->is_sized;
    const bool goes_beside =
        is_mapped && (output->is_behind || atomic_exchange(&output->is_writing, true));
    if (goes_beside && size != 0 && offset + size <= output->reserved_bytes &&
        write_mapped(output, bytes, size, offset)) {
        return INGOT_OK;
    }
    const ingot_status status = write_file(output, bytes, size, offset, error);
    if (is_mapped && !goes_beside) {
        output->is_writing = false;
    }
    return status;
}

/* Reserves bytes [from, size) of the file. */
static ingot_status reserve_part(ingot_output *output, uint64_t from, uint64_t size,
                                 ingot_error *error) {
    /* The system call, not posix_fallocate: the C library emulates a missing one by writing every
     * block, which costs as much as the output itself. */
    int result;
    do {
        result = fallocate(output->descriptor, 0, (off_t)from, (off_t)(size - from));
    } while (result != 0 && errno == EINTR);
    if (result == 0) {
        return INGOT_OK;
    }
    if (errno != EOPNOTSUPP && errno != ENOSYS) {
        return output_error(output, errno, "cannot reserve space", error);
    }
    /* Nothing to reserve with: only the size is set, as fallocate would have. */
    output->is_sized = true;
    struct stat info;
    if (fstat(output->descriptor, &info) != 0 ||
        ((uint64_t)info.st_size < size && ftruncate(output->descriptor, (off_t)size) != 0)) {
        return output_error(output, errno, "cannot set the size", error);
    }
    return INGOT_OK;
}

static ingot_status may_reserve(const ingot_output *output, uint64_t size, ingot_error *error) {
    const int code = files_is_valid_extent(size, 0) ? injected_fault() : EFBIG;
    return code == 0 ? INGOT_OK : output_error(output, code, "cannot reserve space", error);
}

/* What is being reserved in the background goes on to `size`; false: it is over. */
static bool raise_goal(ingot_output *output, uint64_t size) {
    (void)pthread_mutex_lock(&output->mutex);
    const bool is_going_on = output->reserving != NULL && !output->is_reserve_over;
    if (is_going_on && size > output->reserved_bytes) {
        output->reserved_bytes = size;
    }
    (void)pthread_mutex_unlock(&output->mutex);
    return is_going_on;
}

ingot_status ingot_output_reserve(ingot_output *output, uint64_t size, ingot_error *error) {
    INGOT_TRY(may_reserve(output, size, error));
    if (raise_goal(output, size)) {
        return INGOT_OK;
    }
    INGOT_TRY(settle(output, UINT64_MAX, error));
    if (size > output->reserved_bytes) {
        INGOT_TRY(reserve_part(output, output->reserved_bytes, size, error));
        output->reserved_bytes = size;
    }
    return INGOT_OK;
}

/* From the front, as a file is mostly written; whoever waits for a part has it early. */
static ingot_status run_reserve(void *context, ingot_error *error) {
    ingot_output *output = context;
    (void)pthread_mutex_lock(&output->mutex);
    ingot_status status = may_reserve(output, output->reserved_bytes, error);
    while (status == INGOT_OK && output->ready_bytes < output->reserved_bytes &&
           !output->is_given_up) {
        const uint64_t at = output->ready_bytes, left = output->reserved_bytes - at;
        const uint64_t end = at + (left < RESERVE_BYTES ? left : RESERVE_BYTES);
        (void)pthread_mutex_unlock(&output->mutex);
        status = reserve_part(output, at, end, error);
        (void)pthread_mutex_lock(&output->mutex);
        output->ready_bytes = status == INGOT_OK ? end : at;
        (void)pthread_cond_broadcast(&output->progressed);
    }
    output->is_reserve_over = true;
    output->reserve_status = status;
    if (status != INGOT_OK) {
        output->reserve_error = *error;
    }
    output->is_behind = status != INGOT_OK;
    (void)pthread_cond_broadcast(&output->progressed);
    (void)pthread_mutex_unlock(&output->mutex);
    return INGOT_OK; /* it is asked for otherwise */
}

void ingot_output_reserve_behind(ingot_output *output, uint64_t size) {
    assert(output->reserving == NULL);
    output->reserved_bytes = size;
    output->is_behind = true;
    if (ingot_worker_create(&output->reserving) == INGOT_OK) {
        ingot_worker_start(output->reserving, run_reserve, output);
    } else {
        ingot_error error = {.status = INGOT_OK};
        (void)!run_reserve(output, &error);
    }
}

uint64_t ingot_output_reserved(const ingot_output *output) {
    return output->reserved_bytes;
}

unsigned ingot_output_share(ingot_output *output, unsigned threads) {
    struct statfs where;
    output->is_mapped = threads >= MAPPED_FROM && fstatfs(output->descriptor, &where) == 0 &&
                        where.f_type == TMPFS_MAGIC;
    return output->is_mapped || threads < LOCKED_WRITERS ? threads : LOCKED_WRITERS;
}

ingot_status ingot_output_truncate(ingot_output *output, uint64_t size, ingot_error *error) {
    INGOT_TRY(settle(output, UINT64_MAX, error));
    int code = files_is_valid_extent(size, 0) ? injected_fault() : EFBIG;
    if (code == 0 && ftruncate(output->descriptor, (off_t)size) != 0) {
        code = errno;
    }
    if (size < output->reserved_bytes) {
        output->reserved_bytes = size;
    }
    return code == 0 ? INGOT_OK : output_error(output, code, "cannot set the size", error);
}

ingot_status ingot_output_sync(ingot_output *output, ingot_error *error) {
    INGOT_TRY(settle(output, UINT64_MAX, error));
    int code = injected_fault();
    if (code == 0 && fsync(output->descriptor) != 0) {
        code = errno;
    }
    return code == 0 ? INGOT_OK : output_error(output, code, "cannot flush to the disk", error);
}

const char *ingot_output_partial_path(const ingot_output *output) {
    return output->partial_path;
}

/* ---- the final name ------------------------------------------------------------------------- */

/* Renames without replacing; file systems without RENAME_NOREPLACE get a hard link, which fails
 * just as atomically when the name is taken. */
static int rename_new(const char *from, const char *to) {
    if (syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0) {
        return 0;
    }
    if (errno != EINVAL && errno != ENOSYS) {
        return errno;
    }
    if (link(from, to) == 0) {
        return unlink(from) == 0 ? 0 : errno;
    }
    if (errno != EPERM && errno != EOPNOTSUPP && errno != ENOSYS) {
        return errno;
    }
    /* Neither call: the best left is to look first. */
    if (ingot_path_exists(to)) {
        return EEXIST;
    }
    return rename(from, to) == 0 ? 0 : errno;
}

/* Makes the new name durable.  Some network file systems cannot sync a folder; that is no error. */
static int sync_folder(const char *path) {
    char folder[INGOT_PATH_BYTES];
    int code = 0;
    folder_of(folder, path);
    const int descriptor = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) {
        code = errno == EACCES ? 0 : errno; /* a folder one may write to but not list */
    } else {
        if (fsync(descriptor) != 0 && errno != EINVAL && errno != EROFS) {
            code = errno;
        }
        (void)close(descriptor);
    }
    return code;
}

ingot_status ingot_output_commit(ingot_output *output, ingot_error *error) {
    ingot_status status = INGOT_OK;
    INGOT_GO(ingot_output_sync(output, error));
    int code = injected_fault();
    if (code == 0) {
        if (!output->is_forced) {
            code = rename_new(output->partial_path, output->path);
        } else if (rename(output->partial_path, output->path) != 0) {
            code = errno;
        }
    }
    if (code != 0) {
        status = code == EEXIST ? exists_error(output->path, error)
                                : output_error(output, code, "cannot rename to its name", error);
        goto done;
    }
    output->has_partial = false;
    /* The file is complete under its name now; a folder that does not sync cannot undo that. */
    code = sync_folder(output->path);
    if (code != 0) {
        (void)fprintf(stderr, "%s: warning: its folder was not synced: %s\n", output->path,
                      strerror(code));
    }
done:
    ingot_output_abort(output);
    return status;
}

void ingot_output_abort(ingot_output *output) {
    if (output == NULL) {
        return;
    }
    output->is_given_up = true;
    if (output->has_partial && !output->is_kept) {
        (void)unlink(output->partial_path); /* before close: the lock still keeps others out */
    }
    release_output(output);
}

ingot_status ingot_file_write_all(const char *path, const void *bytes, uint64_t size, bool force,
                                  ingot_error *error) {
    ingot_output *output;
    INGOT_TRY(ingot_output_create(&output, path, force, error));
    const ingot_status status = ingot_output_write_at(output, bytes, size, 0, error);
    if (status != INGOT_OK) {
        ingot_output_abort(output);
        return status;
    }
    return ingot_output_commit(output, error);
}
