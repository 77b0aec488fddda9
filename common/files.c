/* Input files read with pread, and paths (common/files.h). */
#include "common/files_internal.h"

#include "common/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- inputs -------------------------------------------------------------------------------- */

struct ingot_file {
    int descriptor;
    uint64_t size;
    char *path;
};

ingot_status files_copy_path(char **out, const char *path, const char *suffix) {
    const size_t length = strlen(path);
    const size_t suffix_length = strlen(suffix);
    void *memory;
    INGOT_TRY(ingot_alloc(&memory, (uint64_t)length + suffix_length + 1));
    *out = memory;
    memcpy(*out, path, length);
    memcpy(*out + length, suffix, suffix_length + 1);
    return INGOT_OK;
}

ingot_status files_no_memory(const char *path, ingot_error *error) {
    return ingot_error_set(error, INGOT_ERR_NO_MEMORY, path, NULL, NULL, "out of memory");
}

ingot_status ingot_file_open(ingot_file **out, const char *path, ingot_error *error) {
    *out = NULL;
    void *memory;
    if (ingot_alloc_zero(&memory, 1, sizeof(ingot_file)) != INGOT_OK) {
        return files_no_memory(path, error);
    }
    ingot_file *file = memory;
    file->descriptor = -1;
    ingot_status status = INGOT_OK;
    struct stat info;
    if (files_copy_path(&file->path, path, "") != INGOT_OK) {
        status = files_no_memory(path, error);
        goto done;
    }
    /* O_NONBLOCK: opening a FIFO must fail below, not wait for a writer. */
    file->descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (file->descriptor < 0) {
        const bool is_missing = errno == ENOENT || errno == ENOTDIR;
        status = ingot_error_set(error, is_missing ? INGOT_ERR_NOT_FOUND : INGOT_ERR_IO, path, NULL,
                                 is_missing        ? "check the path"
                                 : errno == EMFILE ? "raise the limit of open files (ulimit -n)"
                                                   : "check its permissions",
                                 "cannot open: %s", strerror(errno));
        goto done;
    }
    if (fstat(file->descriptor, &info) != 0) {
        status = ingot_error_set(error, INGOT_ERR_IO, path, NULL, NULL, "cannot stat: %s",
                                 strerror(errno));
        goto done;
    }
    if (!S_ISREG(info.st_mode)) {
        status = ingot_error_set(error, INGOT_ERR_INPUT, path, NULL, "give a regular file",
                                 S_ISDIR(info.st_mode) ? "is a folder, not a file"
                                                       : "is not a regular file");
        goto done;
    }
    file->size = (uint64_t)info.st_size;
    *out = file;
    return INGOT_OK;
done:
    ingot_file_close(file);
    return status;
}

void ingot_file_close(ingot_file *file) {
    if (file == NULL) {
        return;
    }
    if (file->descriptor >= 0) {
        (void)close(file->descriptor); /* opened for reading: nothing can be lost */
    }
    ingot_free(file->path);
    ingot_free(file);
}

uint64_t ingot_file_size(const ingot_file *file) {
    return file->size;
}

const char *ingot_file_path(const ingot_file *file) {
    return file->path;
}

bool files_is_valid_extent(uint64_t size, uint64_t offset) {
    return offset <= (uint64_t)INT64_MAX && size <= (uint64_t)INT64_MAX - offset;
}

ingot_status ingot_file_read_at(const ingot_file *file, void *buffer, uint64_t size,
                                uint64_t offset, ingot_error *error) {
    if (!files_is_valid_extent(size, offset)) {
        return ingot_error_set(error, INGOT_ERR_IO, file->path, NULL, NULL,
                               "read of %" PRIu64 " bytes at %" PRIu64 " is out of range", size,
                               offset);
    }
    unsigned char *bytes = buffer;
    uint64_t done = 0;
    while (done < size) {
        const uint64_t left = size - done;
        const size_t piece = (size_t)(left < TRANSFER_BYTES_MAX ? left : TRANSFER_BYTES_MAX);
        const ssize_t count = pread(file->descriptor, bytes + done, piece, (off_t)(offset + done));
        if (count < 0 && errno == EINTR) {
            continue;
        }
        if (count < 0) {
            return ingot_error_set(error, INGOT_ERR_IO, file->path, NULL, "check the disk",
                                   "cannot read at %" PRIu64 ": %s", offset + done,
                                   strerror(errno));
        }
        if (count == 0) {
            return ingot_error_set(
                error, INGOT_ERR_IO, file->path, NULL, "copy or download it again",
                "file is truncated: ends at %" PRIu64 ", expected %" PRIu64 " more bytes",
                offset + done, left);
        }
        done += (uint64_t)count;
    }
    return INGOT_OK;
}

ingot_status ingot_file_read_all(const char *path, uint64_t limit_bytes, char **bytes,
                                 uint64_t *size, ingot_error *error) {
    *bytes = NULL;
    *size = 0;
    ingot_file *file = NULL;
    void *memory = NULL;
    ingot_status status = INGOT_OK;
    INGOT_GO(ingot_file_open(&file, path, error));
    if (file->size > limit_bytes) {
        status = ingot_error_set(error, INGOT_ERR_INPUT, path, NULL, NULL,
                                 "is %" PRIu64 " bytes long, more than the limit of %" PRIu64,
                                 file->size, limit_bytes);
        goto done;
    }
    if (ingot_alloc(&memory, file->size + 1) != INGOT_OK) {
        status = files_no_memory(path, error);
        goto done;
    }
    INGOT_GO(ingot_file_read_at(file, memory, file->size, 0, error));
    *bytes = memory;
    *size = file->size;
    (*bytes)[*size] = '\0';
    memory = NULL;
done:
    ingot_free(memory);
    ingot_file_close(file);
    return status;
}

/* ---- paths --------------------------------------------------------------------------------- */

bool ingot_path_is_directory(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

bool ingot_path_exists(const char *path) {
    struct stat info;
    return lstat(path, &info) == 0; /* a dangling link occupies its name too */
}

bool ingot_path_same(const char *a, const char *b) {
    struct stat info_a;
    struct stat info_b;
    return stat(a, &info_a) == 0 && stat(b, &info_b) == 0 && info_a.st_dev == info_b.st_dev &&
           info_a.st_ino == info_b.st_ino;
}

ingot_status ingot_path_join(char *out, size_t size, const char *folder, const char *name) {
    size_t length = strlen(folder);
    while (length > 1 && folder[length - 1] == '/') {
        length--;
    }
    const bool needs_slash = length > 0 && folder[length - 1] != '/';
    const size_t name_length = strlen(name);
    if (length + needs_slash + name_length + 1 > size) {
        return INGOT_ERR_INPUT;
    }
    memcpy(out, folder, length);
    if (needs_slash) {
        out[length++] = '/';
    }
    memcpy(out + length, name, name_length + 1);
    return INGOT_OK;
}

ingot_status ingot_file_refuse_pointer(const void *bytes, uint64_t size, const char *path,
                                       ingot_error *error) {
    static const char start[] = "version https://git-lfs.github.com/spec/";
    if (size < sizeof start - 1 || memcmp(bytes, start, sizeof start - 1) != 0) {
        return INGOT_OK;
    }
    return ingot_error_set(error, INGOT_ERR_INPUT, path, NULL,
                           "fetch it: git lfs pull, in the folder of the clone",
                           "is a pointer of Git LFS, not the file itself");
}

bool ingot_files_allow(uint64_t count) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= count) {
        return true;
    }
    limit.rlim_cur = limit.rlim_max < count ? limit.rlim_max : count;
    return setrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur >= count;
}
