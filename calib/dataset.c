/* Texts as windows of tokens. */
#include "calib/dataset.h"
#include "common/files.h"
#include "common/memory.h"
#include "common/sizes.h"
#include "format/digest.h"

#include <string.h>

#define READ_BYTES (1u << 20)

static ingot_status no_memory(ingot_error *error, const char *path) {
    return ingot_error_set(error, INGOT_ERR_NO_MEMORY, path, NULL, "use less text",
                           "out of memory while reading text");
}

/* Appends a file to text[*at..], digesting what was read. */
static ingot_status read_file(const ingot_file *file, char *text, uint64_t *at,
                              ingot_digest_stream *digest, ingot_error *error) {
    const uint64_t size = ingot_file_size(file);
    for (uint64_t done = 0; done < size;) {
        const uint64_t part = ingot_min_u64(size - done, READ_BYTES);
        INGOT_TRY(ingot_file_read_at(file, text + *at, part, done, error));
        ingot_digest_stream_update(digest, text + *at, part);
        done += part;
        *at += part;
    }
    return INGOT_OK;
}

/* *text = the files, one after the other; digest of the same bytes. */
static ingot_status read_files(char **text, uint64_t *size, uint8_t digest[16],
                               const char *const *paths, uint64_t path_count, ingot_error *error) {
    ingot_status status;
    ingot_digest_stream *stream = NULL;
    void *memory = NULL;
    ingot_file **files;
    uint64_t total = 0, at = 0;
    *text = NULL;
    if (ingot_alloc_zero(&memory, path_count, sizeof(*files)) != INGOT_OK) {
        return no_memory(error, paths[0]);
    }
    files = memory;
    for (uint64_t i = 0; i < path_count; i++) {
        INGOT_GO(ingot_file_open(&files[i], paths[i], error));
        if (!ingot_size_add(&total, total, ingot_file_size(files[i]))) {
            status = no_memory(error, paths[i]);
            goto done;
        }
    }
    if (ingot_alloc(&memory, total) != INGOT_OK) {
        status = no_memory(error, paths[0]);
        goto done;
    }
    *text = memory;
    status = ingot_digest_stream_create(&stream);
    if (status != INGOT_OK) {
        status = no_memory(error, paths[0]);
        goto done;
    }
    for (uint64_t i = 0; i < path_count; i++) {
        const uint64_t start = at;
        INGOT_GO(read_file(files[i], *text, &at, stream, error));
        INGOT_GO(ingot_file_refuse_pointer(*text + start, at - start, paths[i], error));
    }
    ingot_digest_stream_finish(stream, digest);
    *size = total;
done:
    ingot_digest_stream_destroy(stream);
    for (uint64_t i = 0; i < path_count; i++) {
        ingot_file_close(files[i]);
    }
    ingot_free(files);
    if (status != INGOT_OK) {
        ingot_free(*text);
        *text = NULL;
    }
    return status;
}

ingot_status ingot_text_load(ingot_text *out, const char *const *paths, uint64_t path_count,
                             const ingot_tokenizer *tokenizer, ingot_error *error) {
    *out = (ingot_text){0};
    char *text = NULL;
    ingot_status status;
    if (path_count == 0) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "name one with --text",
                               "no text was given");
    }
    INGOT_TRY(read_files(&text, &out->bytes, out->digest, paths, path_count, error));
    if (out->bytes == 0) {
        status =
            ingot_error_set(error, INGOT_ERR_INPUT, paths[0], NULL,
                            "give a text of at least one window", "the text is empty: 0 tokens");
        goto done;
    }
    INGOT_GO(ingot_tokenizer_encode(tokenizer, text, out->bytes, &out->ids, &out->count, error));
    if (out->count == 0) {
        status = ingot_error_set(error, INGOT_ERR_INPUT, paths[0], NULL, "give another text",
                                 "the text has no tokens: the tokenizer drops all of it");
        goto done;
    }
done:
    ingot_free(text);
    if (status != INGOT_OK) {
        ingot_text_free(out);
    }
    return status;
}

void ingot_text_free(ingot_text *text) {
    ingot_free(text->ids);
    *text = (ingot_text){0};
}

ingot_status ingot_windows_length(uint64_t *out, uint64_t wanted, uint64_t context,
                                  const char *path, ingot_error *error) {
    *out = wanted != 0 ? wanted : ingot_min_u64(INGOT_WINDOW_LENGTH, context);
    if (*out > context) {
        return ingot_error_set(error, INGOT_ERR_USAGE, path, NULL, "use a smaller --seq-len",
                               "windows of %llu tokens do not fit the model's context of %llu",
                               (unsigned long long)*out, (unsigned long long)context);
    }
    return INGOT_OK;
}

static ingot_status check_length(const ingot_text *text, uint64_t length, const char *path,
                                 ingot_error *error) {
    if (length == 0) {
        return ingot_error_set(error, INGOT_ERR_USAGE, path, NULL, "give a positive --seq-len",
                               "windows of 0 tokens");
    }
    if (text->count >= length) {
        return INGOT_OK;
    }
    return ingot_error_set(error, INGOT_ERR_INPUT, path, NULL,
                           "give more text or a smaller --seq-len",
                           "the text has %llu tokens, one window needs %llu",
                           (unsigned long long)text->count, (unsigned long long)length);
}

static ingot_status alloc_windows(ingot_windows *out, uint64_t count, uint64_t length,
                                  const char *path, ingot_error *error) {
    uint64_t bytes;
    void *ids;
    *out = (ingot_windows){0};
    if (!ingot_size_mul(&bytes, count, length) ||
        !ingot_size_mul(&bytes, bytes, sizeof(uint32_t)) || ingot_alloc(&ids, bytes) != INGOT_OK) {
        return no_memory(error, path);
    }
    *out = (ingot_windows){ids, count, length};
    return INGOT_OK;
}

ingot_status ingot_windows_calibration(ingot_windows *out, const ingot_text *text, uint64_t samples,
                                       uint64_t length, const char *path, ingot_error *error) {
    *out = (ingot_windows){0};
    INGOT_TRY(check_length(text, length, path, error));
    if (samples == 0) {
        return ingot_error_set(error, INGOT_ERR_USAGE, path, NULL, "give a positive --samples",
                               "0 windows");
    }
    const uint64_t n = ingot_min_u64(samples, text->count / length);
    INGOT_TRY(alloc_windows(out, n, length, path, error));
    for (uint64_t i = 0; i < n; i++) {
        /* i (T - L) is below 2^64: T < 2^44 tokens and i < T. */
        const uint64_t start = n == 1 ? 0 : i * (text->count - length) / (n - 1);
        memcpy(out->ids + i * length, text->ids + start, length * sizeof(uint32_t));
    }
    return INGOT_OK;
}

ingot_status ingot_windows_evaluation(ingot_windows *out, const ingot_text *text, uint64_t limit,
                                      uint64_t length, const char *path, ingot_error *error) {
    *out = (ingot_windows){0};
    INGOT_TRY(check_length(text, length, path, error));
    const uint64_t whole = text->count / length;
    const uint64_t n = limit == 0 ? whole : ingot_min_u64(limit, whole);
    INGOT_TRY(alloc_windows(out, n, length, path, error));
    memcpy(out->ids, text->ids, n * length * sizeof(uint32_t));
    return INGOT_OK;
}

void ingot_windows_free(ingot_windows *windows) {
    ingot_free(windows->ids);
    *windows = (ingot_windows){0};
}
