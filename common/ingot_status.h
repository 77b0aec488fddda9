/* Status codes and error reports: the one error convention of Ingot.
 *
 * Every function that can fail returns an ingot_status and, where more than the code is worth
 * saying, fills an optional ingot_error (file, tensor, reason, remedy).  This header is part of
 * the public face of libingot: it depends on nothing but the C library.
 *
 * Codes 100..199 are the stable container error codes of spec/container.md; their text
 * (ingot_status_code) is part of the format's contract and never changes. */
#ifndef INGOT_STATUS_H
#define INGOT_STATUS_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__) || defined(__clang__)
#define INGOT_MUST_CHECK   __attribute__((warn_unused_result))
#define INGOT_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define INGOT_MUST_CHECK
#define INGOT_PRINTF(f, a)
#endif

typedef enum ingot_status {
    INGOT_OK = 0,

    /* Could not run (exit code 2). */
    INGOT_ERR_USAGE = 1,       /* contradictory or illegal arguments */
    INGOT_ERR_NOT_FOUND = 2,   /* a file, tensor or section that must exist does not */
    INGOT_ERR_IO = 3,          /* the operating system refused a read or a write */
    INGOT_ERR_NO_SPACE = 4,    /* the output disk is full or over its quota */
    INGOT_ERR_NO_MEMORY = 5,   /* an allocation failed */
    INGOT_ERR_UNSUPPORTED = 6, /* well formed, but not something this version handles */
    INGOT_ERR_EXISTS = 7,      /* the output exists and --force was not given */
    INGOT_ERR_LOCKED = 8,      /* another process is writing this output */
    INGOT_ERR_INTERRUPTED = 9, /* SIGINT or SIGTERM */
    INGOT_ERR_INPUT = 10,      /* an input (checkpoint, text, recipe, tokenizer) is malformed */
    INGOT_ERR_NUMERIC = 11,    /* NaN, Inf or a factorization that failed at every damping */
    INGOT_ERR_DEVICE = 12,     /* the requested device is not there or failed */
    INGOT_ERR_INTERNAL = 13,   /* a mistake of ours that was caught */
    INGOT_ERR_STATE = 14,      /* a saved state is damaged, or not one of this run */

    /* The container breaks a rule of spec/container.md (exit code 1 for a verifier).
     * One code per rule; the list is completed in spec/container.md, section "Errors". */
    INGOT_BAD_FIRST = 100,
#define INGOT_CONTAINER_CODE(name, number, text) INGOT_BAD_##name = (number),
#include "ingot_container_codes.h"
#undef INGOT_CONTAINER_CODE
    INGOT_BAD_LAST = 199,

    /* The check said no although the container is whole (exit code 1). */
    INGOT_FAIL_SOURCE = 200, /* the container does not come from that checkpoint */
    INGOT_FAIL_GATE = 201,   /* a quality gate was not met */
} ingot_status;

/* Stable upper-case name ("E_IO", "E_CHUNK_DIGEST", ...), for --json and scripts.  Never NULL. */
const char *ingot_status_code(ingot_status status);

/* One short English phrase for people.  Never NULL. */
const char *ingot_status_text(ingot_status status);

/* Process exit code of architecture.md section 5: 0 ok, 1 the check said no, 2 could not run. */
int ingot_status_exit_code(ingot_status status);

/* What went wrong, and what to do.  Plain storage, owned by the caller; empty strings where
 * something does not apply.  Texts are cut, never overrun. */
typedef struct ingot_error {
    ingot_status status;
    char file[1024];
    char tensor[256];
    char reason[512];
    char remedy[256];
} ingot_error;

/* Fills *error (which may be NULL) and returns status, so that failure is one statement.
 * file, tensor and remedy may be NULL.  An error already set is overwritten. */
ingot_status ingot_error_set(ingot_error *error, ingot_status status, const char *file,
                             const char *tensor, const char *remedy, const char *format, ...)
    INGOT_PRINTF(6, 7);

/* Room for all parts of an error and their punctuation. */
#define INGOT_ERROR_TEXT_SIZE (sizeof(ingot_error) + 16)
/* Writes "FILE: TENSOR: reason (remedy)" into text[size]; parts that are empty are left out. */
void ingot_error_format(const ingot_error *error, char *text, size_t size);

/* Propagates any status other than INGOT_OK out of the current function. */
#define INGOT_TRY(expression)                                                                      \
    do {                                                                                           \
        const ingot_status ingot_try_status_ = (expression);                                       \
        if (ingot_try_status_ != INGOT_OK) {                                                       \
            return ingot_try_status_;                                                              \
        }                                                                                          \
    } while (0)

/* The same for functions with one clean-up block: sets `status` and jumps to `done`. */
#define INGOT_GO(expression)                                                                       \
    do {                                                                                           \
        status = (expression);                                                                     \
        if (status != INGOT_OK) {                                                                  \
            goto done;                                                                             \
        }                                                                                          \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif
