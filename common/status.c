/* Status codes, their stable names and texts, and error reports.
 *
 * Part of libingot: uses the C library and nothing else.  The container codes come from
 * ingot_container_codes.h, so that the enumeration, the names and the texts cannot drift apart. */
#include "common/ingot_status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

typedef struct status_entry {
    ingot_status status;
    const char *code;
    const char *text;
    int exit_code;
} status_entry;

static const status_entry entries[] = {
    {INGOT_OK, "OK", "no error", 0},
    {INGOT_ERR_USAGE, "E_USAGE", "wrong usage", 2},
    {INGOT_ERR_NOT_FOUND, "E_NOT_FOUND", "not found", 2},
    {INGOT_ERR_IO, "E_IO", "input or output error", 2},
    {INGOT_ERR_NO_SPACE, "E_NO_SPACE", "no space left for the output", 2},
    {INGOT_ERR_NO_MEMORY, "E_NO_MEMORY", "out of memory", 2},
    {INGOT_ERR_UNSUPPORTED, "E_UNSUPPORTED", "not supported by this version", 2},
    {INGOT_ERR_EXISTS, "E_EXISTS", "the output already exists", 2},
    {INGOT_ERR_LOCKED, "E_LOCKED", "another process is writing this output", 2},
    {INGOT_ERR_INTERRUPTED, "E_INTERRUPTED", "interrupted by a signal", 2},
    {INGOT_ERR_INPUT, "E_INPUT", "the input is malformed", 2},
    {INGOT_ERR_NUMERIC, "E_NUMERIC", "numerical failure", 2},
    {INGOT_ERR_DEVICE, "E_DEVICE", "the device is missing or failed", 2},
    {INGOT_ERR_INTERNAL, "E_INTERNAL", "internal error", 2},
    {INGOT_ERR_STATE, "E_STATE", "the saved state is damaged or belongs to another run", 2},
#define INGOT_CONTAINER_CODE(name, number, text) {INGOT_BAD_##name, "E_" #name, text, 1},
#include "common/ingot_container_codes.h"
#undef INGOT_CONTAINER_CODE
    {INGOT_FAIL_SOURCE, "E_SOURCE", "the container does not come from this checkpoint", 1},
    {INGOT_FAIL_GATE, "E_GATE", "a quality gate was not met", 1},
};

/* A number outside the table can only be a mistake of ours; it gets an entry nonetheless. */
static const status_entry unknown_entry = {INGOT_ERR_INTERNAL, "E_UNKNOWN", "unknown status", 2};

static const status_entry *entry_of(ingot_status status) {
    for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++) {
        if (entries[i].status == status) {
            return &entries[i];
        }
    }
    return &unknown_entry;
}

const char *ingot_status_code(ingot_status status) {
    return entry_of(status)->code;
}

const char *ingot_status_text(ingot_status status) {
    return entry_of(status)->text;
}

int ingot_status_exit_code(ingot_status status) {
    return entry_of(status)->exit_code;
}

static void copy_cut(char *out, size_t size, const char *text) {
    const size_t length = text == NULL ? 0 : strnlen(text, size - 1);
    if (length > 0) {
        memmove(out, text, length); /* the text may come from the same error */
    }
    out[length] = '\0';
}

ingot_status ingot_error_set(ingot_error *error, ingot_status status, const char *file,
                             const char *tensor, const char *remedy, const char *format, ...) {
    if (error == NULL) {
        return status;
    }
    /* Arguments may point into the error itself (adding context to one already set). */
    char reason[sizeof error->reason];
    va_list arguments;
    va_start(arguments, format);
    const int written = vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    if (written < 0) {
        copy_cut(reason, sizeof reason, ingot_status_text(status));
    }
    error->status = status;
    copy_cut(error->file, sizeof error->file, file);
    copy_cut(error->tensor, sizeof error->tensor, tensor);
    copy_cut(error->remedy, sizeof error->remedy, remedy);
    copy_cut(error->reason, sizeof error->reason, reason);
    return status;
}

/* Appends text at *length, keeping the terminator inside size. */
static void append(char *out, size_t size, size_t *length, const char *text) {
    while (*text != '\0' && *length + 1 < size) {
        out[(*length)++] = *text++;
    }
    out[*length] = '\0';
}

void ingot_error_format(const ingot_error *error, char *text, size_t size) {
    if (size == 0) {
        return;
    }
    size_t length = 0;
    text[0] = '\0';
    if (error->file[0] != '\0') {
        append(text, size, &length, error->file);
        append(text, size, &length, ": ");
    }
    if (error->tensor[0] != '\0') {
        append(text, size, &length, error->tensor);
        append(text, size, &length, ": ");
    }
    append(text, size, &length,
           error->reason[0] != '\0' ? error->reason : ingot_status_text(error->status));
    if (error->remedy[0] != '\0') {
        append(text, size, &length, " (");
        append(text, size, &length, error->remedy);
        append(text, size, &length, ")");
    }
}
