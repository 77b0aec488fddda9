/* A checkpoint folder: which files it has, whether index and shards agree, and whether it is
 * something Ingot converts at all. */
#include "format/checkpoint.h"

#include "common/files.h"
#include "common/json.h"
#include "common/memory.h"
#include "common/sizes.h"
#include "format/digest.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_SHARDS     9999u
#define MAX_TEXT_BYTES (UINT64_C(256) << 20)
#define MAX_PATH       1024
#define DIGEST_BYTES   (UINT64_C(8) << 20) /* read at once */
#define CONVERT_FIRST  "start from the original FP16, BF16 or FP32 checkpoint"

typedef struct entry {
    uint32_t shard;
    uint64_t local;
} entry;

typedef struct text_file {
    const char *name; /* from the list below */
    char *bytes;
    uint64_t size;
} text_file;

struct ingot_checkpoint {
    char path[MAX_PATH];
    ingot_safetensors **shards;
    char (*shard_paths)[MAX_PATH];
    uint64_t shard_count;
    entry *entries;   /* all tensors, shard by shard */
    uint64_t *sorted; /* entry numbers by name */
    uint64_t count;
    ingot_st_tensor *described; /* [count], without weights; NULL: the shards have them */
    text_file *files;
    uint64_t file_count;
};

/* What travels verbatim, sorted by name. */
static const char *const travelling[] = {
    "LICENCE",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "NOTICE.txt",
    "README.md",
    "USE_POLICY.md",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
};

static ingot_status out_of_memory(const ingot_checkpoint *checkpoint, ingot_error *error) {
    return ingot_error_set(error, INGOT_ERR_NO_MEMORY, checkpoint->path, NULL, NULL,
                           "out of memory");
}

static ingot_status file_in(char path[MAX_PATH], const ingot_checkpoint *checkpoint,
                            const char *name, ingot_error *error) {
    if (ingot_path_join(path, MAX_PATH, checkpoint->path, name) != INGOT_OK) {
        return ingot_error_set(error, INGOT_ERR_INPUT, checkpoint->path, NULL, "use a shorter path",
                               "the path is too long");
    }
    return INGOT_OK;
}

/* ---- config, refusals ------------------------------------------------------------------------ */

static ingot_status read_texts(ingot_checkpoint *checkpoint, ingot_error *error) {
    const size_t most = sizeof travelling / sizeof *travelling;
    checkpoint->files = calloc(most, sizeof *checkpoint->files);
    if (checkpoint->files == NULL) {
        return out_of_memory(checkpoint, error);
    }
    for (size_t i = 0; i < most; i++) {
        char path[MAX_PATH];
        INGOT_TRY(file_in(path, checkpoint, travelling[i], error));
        if (!ingot_path_exists(path) || ingot_path_is_directory(path)) {
            continue;
        }
        text_file *file = &checkpoint->files[checkpoint->file_count];
        INGOT_TRY(ingot_file_read_all(path, MAX_TEXT_BYTES, &file->bytes, &file->size, error));
        file->name = travelling[i];
        checkpoint->file_count++;
        INGOT_TRY(ingot_file_refuse_pointer(file->bytes, file->size, path, error));
    }
    return INGOT_OK;
}

static ingot_status check_config(const ingot_checkpoint *checkpoint, ingot_error *error) {
    char path[MAX_PATH];
    uint64_t size;
    INGOT_TRY(file_in(path, checkpoint, "config.json", error));
    const char *bytes = ingot_checkpoint_file(checkpoint, "config.json", &size);
    if (bytes == NULL) {
        return ingot_error_set(error, INGOT_ERR_NOT_FOUND, path, NULL,
                               "name a folder written by save_pretrained",
                               "the checkpoint has no config.json");
    }
    json_t *config;
    INGOT_TRY(ingot_json_parse(&config, bytes, size, path, error));
    const json_t *quantization = json_object_get(config, "quantization_config");
    ingot_status status = INGOT_OK;
    if (!json_is_object(config)) {
        status = ingot_error_set(error, INGOT_ERR_INPUT, path, NULL, "restore the file",
                                 "is not a JSON object");
    } else if (quantization != NULL && !json_is_null(quantization)) {
        const char *method = json_string_value(json_object_get(quantization, "quant_method"));
        status = ingot_error_set(error, INGOT_ERR_UNSUPPORTED, path, NULL, CONVERT_FIRST,
                                 "the checkpoint is already quantized (quantization_config: %s)",
                                 method != NULL ? method : "unnamed method");
    }
    json_decref(config);
    return status;
}

/* No safetensors here: say what there is instead. */
static ingot_status no_weights(const ingot_checkpoint *checkpoint, ingot_error *error) {
    static const char *const foreign[] = {".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack"};
    DIR *folder = opendir(checkpoint->path);
    char found[256] = "";
    off_t largest = -1; /* the weights, not the optimizer's or the trainer's state beside them */
    for (const struct dirent *item = folder != NULL ? readdir(folder) : NULL; item != NULL;
         item = readdir(folder)) {
        const char *dot = strrchr(item->d_name, '.');
        for (size_t i = 0; dot != NULL && i < sizeof foreign / sizeof *foreign; i++) {
            struct stat info;
            if (strcmp(dot, foreign[i]) == 0 &&
                fstatat(dirfd(folder), item->d_name, &info, 0) == 0 && info.st_size > largest) {
                (void)snprintf(found, sizeof found, "%s", item->d_name);
                largest = info.st_size;
            }
        }
    }
    if (folder != NULL) {
        (void)closedir(folder);
    }
    if (found[0] != '\0') {
        return ingot_error_set(error, INGOT_ERR_UNSUPPORTED, checkpoint->path, NULL,
                               "save the model with safe_serialization=True first",
                               "the weights (%s) are not safetensors", found);
    }
    return ingot_error_set(error, INGOT_ERR_NOT_FOUND, checkpoint->path, NULL,
                           "name a folder written by save_pretrained",
                           "there is no model.safetensors and no model.safetensors.index.json");
}

/* ---- shards -----------------------------------------------------------------------------------
 */

static ingot_status allocate_shards(ingot_checkpoint *checkpoint, uint64_t most,
                                    ingot_error *error) {
    checkpoint->shards = calloc(most, sizeof(ingot_safetensors *));
    checkpoint->shard_paths = calloc(most, sizeof *checkpoint->shard_paths);
    return checkpoint->shards == NULL || checkpoint->shard_paths == NULL
               ? out_of_memory(checkpoint, error)
               : INGOT_OK;
}

static bool is_legal_shard_name(const char *name) {
    const char *dot = name != NULL ? strrchr(name, '.') : NULL;
    if (dot == NULL || strcmp(dot, ".safetensors") != 0 || name[0] == '.') {
        return false;
    }
    for (const char *c = name; *c != '\0'; c++) {
        if (*c < 0x21 || *c > 0x7e || *c == '/') {
            return false;
        }
    }
    return true;
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* *names = the distinct shard names of the weight map, sorted (the array is the caller's, the
 * strings the map's). */
static ingot_status list_shards(const char ***names, uint64_t *count, const json_t *map,
                                const char *index_path, ingot_error *error) {
    const char *tensor;
    json_t *value;
    uint64_t all = 0;
    *names = calloc(json_object_size(map) + 1, sizeof **names);
    if (*names == NULL) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, index_path, NULL, NULL, "out of memory");
    }
    json_object_foreach((json_t *)(uintptr_t)map, tensor, value) {
        const char *name = json_string_value(value);
        if (!is_legal_shard_name(name)) {
            return ingot_error_set(error, INGOT_ERR_INPUT, index_path, tensor,
                                   "download the checkpoint again",
                                   "the index names no legal shard file for it");
        }
        (*names)[all++] = name;
    }
    qsort(*names, (size_t)all, sizeof **names, compare_names);
    *count = 0;
    for (uint64_t i = 0; i < all; i++) {
        if (i == 0 || strcmp((*names)[i - 1], (*names)[i]) != 0) {
            (*names)[(*count)++] = (*names)[i];
        }
    }
    if (*count > MAX_SHARDS) {
        return ingot_error_set(error, INGOT_ERR_INPUT, index_path, NULL, "use fewer shards",
                               "the index names more than %u shards", MAX_SHARDS);
    }
    return INGOT_OK;
}

static ingot_status open_shard(ingot_checkpoint *checkpoint, const char *name,
                               const char *index_path, ingot_error *error) {
    char *path = checkpoint->shard_paths[checkpoint->shard_count];
    INGOT_TRY(file_in(path, checkpoint, name, error));
    if (!ingot_path_exists(path)) {
        return ingot_error_set(error, INGOT_ERR_NOT_FOUND, index_path, NULL,
                               "download the missing file",
                               "the index names shard %s, which is not there", name);
    }
    INGOT_TRY(ingot_safetensors_open(&checkpoint->shards[checkpoint->shard_count], path, error));
    checkpoint->shard_count++;
    return INGOT_OK;
}

static ingot_status open_listed(ingot_checkpoint *checkpoint, const json_t *map,
                                const char *index_path, ingot_error *error) {
    const char **names = NULL;
    uint64_t count = 0;
    ingot_status status = list_shards(&names, &count, map, index_path, error);
    if (status == INGOT_OK) {
        status = allocate_shards(checkpoint, count + 1, error);
    }
    for (uint64_t i = 0; i < count && status == INGOT_OK; i++) {
        status = open_shard(checkpoint, names[i], index_path, error);
    }
    free(names);
    return status;
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

/* Index and shards say the same of every tensor. */
static ingot_status check_index(const ingot_checkpoint *checkpoint, const json_t *map,
                                const char *index_path, ingot_error *error) {
    for (uint64_t i = 0; i < checkpoint->count; i++) {
        const ingot_st_tensor *tensor = ingot_checkpoint_at(checkpoint, i);
        const char *shard = base_name(ingot_checkpoint_shard_path(checkpoint, i));
        const char *named = json_string_value(json_object_get(map, tensor->name));
        if (named == NULL || strcmp(named, shard) != 0) {
            return ingot_error_set(error, INGOT_ERR_INPUT, index_path, tensor->name,
                                   "download the checkpoint again",
                                   "stands in %s, but the index says %s", shard,
                                   named != NULL ? named : "nothing of it");
        }
    }
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)map, name, value) {
        uint64_t found;
        if (ingot_checkpoint_find(checkpoint, name, &found) == NULL) {
            return ingot_error_set(
                error, INGOT_ERR_INPUT, index_path, name, "download the checkpoint again",
                "the index places it in %s, which does not have it", json_string_value(value));
        }
    }
    return INGOT_OK;
}

static const char *entry_name(const ingot_checkpoint *checkpoint, uint64_t index) {
    return ingot_checkpoint_at(checkpoint, index)->name;
}

static int compare_entries(const void *a, const void *b, void *checkpoint) {
    return strcmp(entry_name(checkpoint, *(const uint64_t *)a),
                  entry_name(checkpoint, *(const uint64_t *)b));
}

static ingot_status refuse_quantized(const ingot_checkpoint *checkpoint, uint64_t index,
                                     ingot_error *error) {
    static const char *const marks[] = {
        ".qweight", ".weight_packed", ".weight_scale", ".qzeros", ".weight_scale_inv",
        ".g_idx",   ".scales",        ".SCB",          ".absmax"};
    const ingot_st_tensor *tensor = ingot_checkpoint_at(checkpoint, index);
    bool is_quantized = strncmp(tensor->dtype_name, "F8_", 3) == 0;
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
        const size_t length = strlen(tensor->name);
        const size_t mark = strlen(marks[i]);
        is_quantized =
            is_quantized || (length > mark && strcmp(tensor->name + length - mark, marks[i]) == 0);
    }
    if (!is_quantized) {
        return INGOT_OK;
    }
    return ingot_error_set(
        error, INGOT_ERR_UNSUPPORTED, ingot_checkpoint_shard_path(checkpoint, index), tensor->name,
        CONVERT_FIRST, "the checkpoint is already quantized (%s)", tensor->dtype_name);
}

static ingot_status index_tensors(ingot_checkpoint *checkpoint, ingot_error *error) {
    uint64_t total = 0;
    for (uint64_t s = 0; s < checkpoint->shard_count; s++) {
        total += ingot_safetensors_count(checkpoint->shards[s]);
    }
    checkpoint->entries = calloc(total + 1, sizeof *checkpoint->entries);
    checkpoint->sorted = calloc(total + 1, sizeof *checkpoint->sorted);
    if (checkpoint->entries == NULL || checkpoint->sorted == NULL) {
        return out_of_memory(checkpoint, error);
    }
    for (uint64_t s = 0; s < checkpoint->shard_count; s++) {
        for (uint64_t i = 0; i < ingot_safetensors_count(checkpoint->shards[s]); i++) {
            checkpoint->sorted[checkpoint->count] = checkpoint->count;
            checkpoint->entries[checkpoint->count++] = (entry){(uint32_t)s, i};
        }
    }
    qsort_r(checkpoint->sorted, (size_t)total, sizeof *checkpoint->sorted, compare_entries,
            checkpoint);
    for (uint64_t i = 0; i < total; i++) {
        INGOT_TRY(refuse_quantized(checkpoint, i, error));
        if (i > 0 &&
            compare_entries(&checkpoint->sorted[i - 1], &checkpoint->sorted[i], checkpoint) == 0) {
            return ingot_error_set(error, INGOT_ERR_INPUT, checkpoint->path,
                                   entry_name(checkpoint, checkpoint->sorted[i]),
                                   "download the checkpoint again", "stands in two shards");
        }
    }
    return INGOT_OK;
}

static ingot_status open_weights(ingot_checkpoint *checkpoint, ingot_error *error) {
    char index_path[MAX_PATH];
    char single[MAX_PATH];
    INGOT_TRY(file_in(index_path, checkpoint, "model.safetensors.index.json", error));
    INGOT_TRY(file_in(single, checkpoint, "model.safetensors", error));
    /* Where both stand, the single file counts, as it does for `transformers`. */
    if (!ingot_path_exists(index_path) && !ingot_path_exists(single)) {
        return no_weights(checkpoint, error);
    }
    if (ingot_path_exists(single)) {
        INGOT_TRY(allocate_shards(checkpoint, 1, error));
        memcpy(checkpoint->shard_paths[0], single, MAX_PATH);
        INGOT_TRY(ingot_safetensors_open(&checkpoint->shards[0], single, error));
        checkpoint->shard_count = 1;
        return index_tensors(checkpoint, error);
    }
    json_t *index;
    INGOT_TRY(ingot_json_read(&index, index_path, MAX_TEXT_BYTES, error));
    const json_t *map = json_object_get(index, "weight_map");
    ingot_status status =
        json_is_object(map) ? open_listed(checkpoint, map, index_path, error)
                            : ingot_error_set(error, INGOT_ERR_INPUT, index_path, NULL,
                                              "download the checkpoint again", "has no weight_map");
    if (status == INGOT_OK) {
        status = index_tensors(checkpoint, error);
    }
    if (status == INGOT_OK) {
        status = check_index(checkpoint, map, index_path, error);
    }
    json_decref(index);
    return status;
}

ingot_status ingot_checkpoint_check_folder(const char *path, ingot_error *error) {
    struct stat info;
    const char *remedy = "name the folder that holds config.json";
    const int code = stat(path, &info) != 0 ? errno : 0;
    if (code == ENOENT || code == ENOTDIR) {
        return ingot_error_set(error, INGOT_ERR_NOT_FOUND, path, NULL, remedy, "does not exist");
    }
    if (code == 0 && !S_ISDIR(info.st_mode)) {
        return ingot_error_set(error, INGOT_ERR_INPUT, path, NULL, remedy, "is not a folder");
    }
    if (code != 0 || access(path, X_OK) != 0) {
        return ingot_error_set(error, INGOT_ERR_IO, path, NULL, "check its permissions",
                               "cannot be opened: %s", strerror(code != 0 ? code : errno));
    }
    return INGOT_OK;
}

ingot_status ingot_checkpoint_open(ingot_checkpoint **out, const char *folder, ingot_error *error) {
    *out = NULL;
    INGOT_TRY(ingot_checkpoint_check_folder(folder, error));
    if (strlen(folder) >= MAX_PATH) {
        return ingot_error_set(error, INGOT_ERR_INPUT, folder, NULL, "use a shorter path",
                               "the path is too long");
    }
    ingot_checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    if (checkpoint == NULL) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, folder, NULL, NULL, "out of memory");
    }
    (void)snprintf(checkpoint->path, sizeof checkpoint->path, "%s", folder);
    ingot_status status = read_texts(checkpoint, error);
    if (status == INGOT_OK) {
        status = check_config(checkpoint, error);
    }
    if (status == INGOT_OK) {
        status = open_weights(checkpoint, error);
    }
    if (status != INGOT_OK) {
        ingot_checkpoint_close(checkpoint);
        return status;
    }
    *out = checkpoint;
    return INGOT_OK;
}

ingot_status ingot_checkpoint_describe(ingot_checkpoint **out, const char *path,
                                       const ingot_st_tensor *tensors, uint64_t count,
                                       ingot_error *error) {
    *out = NULL;
    ingot_checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    if (checkpoint == NULL) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, path, NULL, NULL, "out of memory");
    }
    (void)snprintf(checkpoint->path, sizeof checkpoint->path, "%s", path);
    ingot_status status = INGOT_OK;
    checkpoint->described = calloc(count + 1, sizeof *checkpoint->described);
    checkpoint->sorted = calloc(count + 1, sizeof *checkpoint->sorted);
    if (checkpoint->described == NULL || checkpoint->sorted == NULL) {
        status = out_of_memory(checkpoint, error);
        goto done;
    }
    for (uint64_t i = 0; i < count; i++) {
        checkpoint->described[i] = tensors[i];
        checkpoint->described[i].name = strdup(tensors[i].name);
        checkpoint->sorted[i] = i;
        checkpoint->count++;
        if (checkpoint->described[i].name == NULL) {
            status = out_of_memory(checkpoint, error);
            goto done;
        }
    }
    qsort_r(checkpoint->sorted, (size_t)count, sizeof *checkpoint->sorted, compare_entries,
            checkpoint);
    *out = checkpoint;
    return INGOT_OK;
done:
    ingot_checkpoint_close(checkpoint);
    return status;
}

bool ingot_checkpoint_has_weights(const ingot_checkpoint *checkpoint) {
    return checkpoint->described == NULL;
}

static void free_described(ingot_checkpoint *checkpoint) {
    for (uint64_t i = 0; checkpoint->described != NULL && i < checkpoint->count; i++) {
        free((char *)(uintptr_t)checkpoint->described[i].name); /* ours: a copy */
    }
    free(checkpoint->described);
}

void ingot_checkpoint_close(ingot_checkpoint *checkpoint) {
    if (checkpoint == NULL) {
        return;
    }
    free_described(checkpoint);
    for (uint64_t i = 0; i < checkpoint->shard_count; i++) {
        ingot_safetensors_close(checkpoint->shards[i]);
    }
    for (uint64_t i = 0; i < checkpoint->file_count; i++) {
        ingot_free(checkpoint->files[i].bytes);
    }
    free(checkpoint->shards);
    free(checkpoint->shard_paths);
    free(checkpoint->entries);
    free(checkpoint->sorted);
    free(checkpoint->files);
    free(checkpoint);
}

/* ---- access -----------------------------------------------------------------------------------
 */

const char *ingot_checkpoint_path(const ingot_checkpoint *checkpoint) {
    return checkpoint->path;
}

uint64_t ingot_checkpoint_count(const ingot_checkpoint *checkpoint) {
    return checkpoint->count;
}

const ingot_st_tensor *ingot_checkpoint_at(const ingot_checkpoint *checkpoint, uint64_t index) {
    if (checkpoint->described != NULL) {
        return &checkpoint->described[index];
    }
    const entry *where = &checkpoint->entries[index];
    return ingot_safetensors_at(checkpoint->shards[where->shard], where->local);
}

const ingot_st_tensor *ingot_checkpoint_find(const ingot_checkpoint *checkpoint, const char *name,
                                             uint64_t *index) {
    uint64_t low = 0;
    uint64_t high = checkpoint->count;
    while (low < high) {
        const uint64_t middle = low + (high - low) / 2;
        const int order = strcmp(entry_name(checkpoint, checkpoint->sorted[middle]), name);
        if (order == 0) {
            if (index != NULL) {
                *index = checkpoint->sorted[middle];
            }
            return ingot_checkpoint_at(checkpoint, checkpoint->sorted[middle]);
        }
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return NULL;
}

const char *ingot_checkpoint_shard_path(const ingot_checkpoint *checkpoint, uint64_t index) {
    return checkpoint->described != NULL
               ? checkpoint->path
               : checkpoint->shard_paths[checkpoint->entries[index].shard];
}

ingot_status ingot_checkpoint_read(const ingot_checkpoint *checkpoint, uint64_t index,
                                   uint64_t offset, uint64_t size, void *buffer,
                                   ingot_error *error) {
    if (checkpoint->described != NULL) {
        return ingot_error_set(error, INGOT_ERR_NOT_FOUND, checkpoint->path,
                               checkpoint->described[index].name, "give the checkpoint",
                               "there are no weights, only a description");
    }
    const entry *where = &checkpoint->entries[index];
    const ingot_safetensors *shard = checkpoint->shards[where->shard];
    const ingot_st_tensor *tensor = ingot_safetensors_at(shard, where->local);
    uint64_t end;
    if (!ingot_size_add(&end, offset, size) || end > tensor->bytes) {
        return ingot_error_set(error, INGOT_ERR_INTERNAL,
                               ingot_checkpoint_shard_path(checkpoint, index), tensor->name,
                               "please report this", "a read goes beyond the end of the tensor");
    }
    return ingot_file_read_at(ingot_safetensors_file(shard), buffer, size, tensor->offset + offset,
                              error);
}

ingot_status ingot_checkpoint_digest(uint8_t digest[16], const ingot_checkpoint *checkpoint,
                                     uint64_t index, ingot_error *error) {
    const uint64_t bytes = ingot_checkpoint_at(checkpoint, index)->bytes;
    ingot_digest_stream *stream = NULL;
    ingot_status status = INGOT_OK;
    void *buffer = NULL;
    INGOT_GO(ingot_digest_stream_create(&stream));
    INGOT_GO(ingot_alloc(&buffer, DIGEST_BYTES));
    for (uint64_t at = 0; at < bytes; at += DIGEST_BYTES) {
        const uint64_t size = ingot_min_u64(DIGEST_BYTES, bytes - at);
        INGOT_GO(ingot_interrupt_check(error));
        INGOT_GO(ingot_checkpoint_read(checkpoint, index, at, size, buffer, error));
        ingot_digest_stream_update(stream, buffer, size);
    }
    ingot_digest_stream_finish(stream, digest);
done:
    ingot_free(buffer);
    ingot_digest_stream_destroy(stream);
    return status;
}

uint64_t ingot_checkpoint_shard_count(const ingot_checkpoint *checkpoint) {
    return checkpoint->shard_count;
}

const ingot_safetensors *ingot_checkpoint_shard(const ingot_checkpoint *checkpoint,
                                                uint64_t shard) {
    return checkpoint->shards[shard];
}

uint64_t ingot_checkpoint_file_count(const ingot_checkpoint *checkpoint) {
    return checkpoint->file_count;
}

const char *ingot_checkpoint_file_name(const ingot_checkpoint *checkpoint, uint64_t index) {
    return checkpoint->files[index].name;
}

const char *ingot_checkpoint_file(const ingot_checkpoint *checkpoint, const char *name,
                                  uint64_t *size) {
    for (uint64_t i = 0; i < checkpoint->file_count; i++) {
        if (strcmp(checkpoint->files[i].name, name) == 0) {
            *size = checkpoint->files[i].size;
            return checkpoint->files[i].bytes;
        }
    }
    return NULL;
}

/* ---- what an output must not replace --------------------------------------------------------- */

static bool is_input_name(const char *name) {
    static const char weights[] = ".safetensors", index_name[] = "model.safetensors.index.json";
    const size_t length = strlen(name), suffix = sizeof weights - 1;
    for (size_t i = 0; i < sizeof travelling / sizeof travelling[0]; i++) {
        if (strcmp(name, travelling[i]) == 0) {
            return true;
        }
    }
    return strcmp(name, index_name) == 0 ||
           (length >= suffix && strcmp(name + length - suffix, weights) == 0);
}

bool ingot_checkpoint_is_input(const char *folder, const char *path) {
    DIR *listing = ingot_path_exists(path) ? opendir(folder) : NULL;
    bool is_input = false;
    for (const struct dirent *item = listing != NULL ? readdir(listing) : NULL;
         item != NULL && !is_input; item = readdir(listing)) {
        char name[MAX_PATH];
        is_input = is_input_name(item->d_name) &&
                   ingot_path_join(name, sizeof name, folder, item->d_name) == INGOT_OK &&
                   ingot_path_same(name, path);
    }
    if (listing != NULL) {
        (void)closedir(listing);
    }
    return is_input;
}
