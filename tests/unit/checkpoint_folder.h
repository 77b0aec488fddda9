/* Broken and whole checkpoint folders, made on the spot: for the tests of the readers. */
#ifndef INGOT_TEST_CHECKPOINT_FOLDER_H
#define INGOT_TEST_CHECKPOINT_FOLDER_H

#include "common/ingot_status.h"
#include "suite.h"

#include <dirent.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

static char folder[] = "/tmp/ingot-checkpoint-XXXXXX";
static ingot_error error;

static inline void folder_make(void) {
    if (mkdtemp(folder) == NULL) {
        perror(folder);
        exit(2);
    }
}

/* Removes all files of the folder (it has no sub-folders, or empty ones) and forgets the error. */
static inline void folder_clear(void) {
    char path[512];
    DIR *listing = opendir(folder);
    for (const struct dirent *item = listing != NULL ? readdir(listing) : NULL; item != NULL;
         item = readdir(listing)) {
        (void)snprintf(path, sizeof path, "%s/%s", folder, item->d_name);
        (void)(unlink(path) != 0 && rmdir(path));
    }
    if (listing != NULL) {
        (void)closedir(listing);
    }
    memset(&error, 0, sizeof error);
}

static inline void folder_remove(void) {
    folder_clear();
    (void)rmdir(folder);
}

/* Path of a file of the folder; valid until the next call. */
static inline const char *in_folder(const char *name) {
    static char path[512];
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static inline void put_bytes(const char *name, const void *bytes, size_t size) {
    FILE *file = fopen(in_folder(name), "wb");
    CU_ASSERT_PTR_NOT_NULL_FATAL(file);
    CU_ASSERT_FATAL(fwrite(bytes, 1, size, file) == size);
    CU_ASSERT_FATAL(fclose(file) == 0);
}

static inline void put_text(const char *name, const char *text) {
    put_bytes(name, text, strlen(text));
}

/* A safetensors file: claimed length of the header, the header, then data_bytes bytes 0, 1, 2 ...
 */
static inline void put_safetensors_lying(const char *name, uint64_t claimed, const char *header,
                                         size_t data_bytes) {
    const size_t header_bytes = strlen(header);
    uint8_t *bytes = malloc(8 + header_bytes + data_bytes);
    CU_ASSERT_PTR_NOT_NULL_FATAL(bytes);
    for (unsigned i = 0; i < 8; i++) {
        bytes[i] = (uint8_t)(claimed >> (8 * i));
    }
    memcpy(bytes + 8, header, header_bytes);
    for (size_t i = 0; i < data_bytes; i++) {
        bytes[8 + header_bytes + i] = (uint8_t)i;
    }
    put_bytes(name, bytes, 8 + header_bytes + data_bytes);
    free(bytes);
}

static inline void put_safetensors(const char *name, const char *header, size_t data_bytes) {
    put_safetensors_lying(name, strlen(header), header, data_bytes);
}

/* The last error has this status and says text somewhere. */
static inline void check_error(const char *what, ingot_status status, ingot_status wanted,
                               const char *text) {
    char all[2048];
    ingot_error_format(&error, all, sizeof all);
    const int is_right =
        status == wanted && error.status == wanted && (text == NULL || strstr(all, text) != NULL);
    if (!is_right) {
        printf("\n    %s: %s, \"%s\" (wanted %s, \"%s\")", what, ingot_status_code(status), all,
               ingot_status_code(wanted), text != NULL ? text : "");
    }
    CU_ASSERT(is_right);
    CU_ASSERT(error.file[0] != '\0' && error.reason[0] != '\0');
}

#endif
