/* Fuzz target: a checkpoint folder of two shards whose model.safetensors.index.json and, behind a
 * NUL, config.json are the input.  What is accepted must agree with the shards, whose tensors must
 * all be found and read. */
#include "format/checkpoint.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define require(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            perror(#condition);                                                                    \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static char folder[64]; /* in memory where that is possible: every run writes two files */
static const char *const file_names[] = {"model.safetensors.index.json", "config.json",
                                         "a.safetensors", "b.safetensors"};

static void put(const char *name, const void *bytes, size_t size) {
    char path[128];
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    require(fd >= 0 && write(fd, bytes, size) == (ssize_t)size && close(fd) == 0);
}

static void put_shard(const char *name, const char *header) {
    uint8_t bytes[256] = {0};
    const size_t length = strlen(header);
    bytes[0] = (uint8_t)length;
    memcpy(bytes + 8, header, length);
    put(name, bytes, 8 + length + 8);
}

static void remove_folder(void) {
    char path[128];
    for (unsigned i = 0; i < sizeof file_names / sizeof *file_names; i++) {
        (void)snprintf(path, sizeof path, "%s/%s", folder, file_names[i]);
        (void)unlink(path);
    }
    (void)rmdir(folder);
}

static void make_folder(void) {
    (void)snprintf(folder, sizeof folder, "%s/ingot-fuzz-XXXXXX",
                   access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    require(mkdtemp(folder) != NULL && atexit(remove_folder) == 0);
    put_shard("a.safetensors", "{\"x.weight\":{\"dtype\":\"F16\",\"shape\":[2,2],"
                               "\"data_offsets\":[0,8]}}");
    put_shard("b.safetensors", "{\"y.weight\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":"
                               "[0,4]},\"z\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":"
                               "[4,8]}}");
}

static void check(const ingot_checkpoint *checkpoint) {
    uint8_t bytes[8];
    uint64_t found;
    require(ingot_checkpoint_shard_count(checkpoint) <= 2);
    for (uint64_t i = 0; i < ingot_checkpoint_count(checkpoint); i++) {
        const ingot_st_tensor *tensor = ingot_checkpoint_at(checkpoint, i);
        require(ingot_checkpoint_find(checkpoint, tensor->name, &found) == tensor && found == i);
        require(tensor->bytes <= sizeof bytes);
        require(ingot_checkpoint_read(checkpoint, i, 0, tensor->bytes, bytes, NULL) == INGOT_OK);
    }
    require(ingot_checkpoint_find(checkpoint, "no such tensor", &found) == NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static bool is_made;
    if (!is_made) {
        make_folder();
        is_made = true;
    }
    static const char plain_config[] = "{\"model_type\": \"llama\"}";
    const uint8_t *end = memchr(data, '\0', size);
    put(file_names[0], data, end == NULL ? size : (size_t)(end - data));
    if (end == NULL) {
        put(file_names[1], plain_config, sizeof plain_config - 1);
    } else {
        put(file_names[1], end + 1, size - (size_t)(end - data) - 1);
    }
    ingot_checkpoint *checkpoint = NULL;
    ingot_error error = {0};
    const ingot_status status = ingot_checkpoint_open(&checkpoint, folder, &error);
    if (status == INGOT_OK) {
        check(checkpoint);
    } else {
        require(checkpoint == NULL && error.status == status && error.reason[0] != '\0');
    }
    ingot_checkpoint_close(checkpoint);
    return 0;
}
