/* Other tools as child processes: whatever becomes of one, nothing else is lost. */
#ifndef INGOT_CHILD_H
#define INGOT_CHILD_H

#include "ingot_status.h"

#include <stdbool.h>
#include <sys/types.h>

#define INGOT_CHILD_MAX_WORDS 192

/* A command line under construction: words are borrowed, numbers are kept here. */
typedef struct ingot_child {
    const char *words[INGOT_CHILD_MAX_WORDS];
    unsigned count;
    char numbers[12][40];
    unsigned number_count;
    char tool[4096];         /* the program: beside this one */
    const char *out;         /* file that takes standard output, emptied before, */
    int out_descriptor;      /* or where that is NULL what takes it */
    const char *log;         /* file to which standard error is added, */
    int log_descriptor;      /* or likewise */
    int lock_descriptors[2]; /* stay open in the child; negative: none */
} ingot_child;

/* Begins the command line of a tool such as "ingot-convert".  INGOT_ERR_NOT_FOUND where it is not
 * beside this program. */
ingot_status ingot_child_begin(ingot_child *child, const char *tool,
                               ingot_error *error) INGOT_MUST_CHECK;
void ingot_child_word(ingot_child *child, const char *word);
/* Adds "option value". */
void ingot_child_option(ingot_child *child, const char *option, const char *value);
void ingot_child_number(ingot_child *child, const char *option, double value);

/* Starts it: no input, a process group of its own (so that ^C reaches it once, through us), ended
 * by SIGTERM should this process die. */
ingot_status ingot_child_start(pid_t *out, const ingot_child *child,
                               ingot_error *error) INGOT_MUST_CHECK;

/* The sentence for a wait status that is not a normal exit, such as "was killed by signal 9". */
void ingot_child_describe(char *text, size_t size, const char *tool, int wait_status);
/* The status of a tool that failed: the one whose stable code its report names; without a code
 * (NULL) INGOT_FAIL_SOURCE, its check having said no, or INGOT_ERR_INTERNAL. */
ingot_status ingot_child_status(const char *code, int wait_status);

/* Runs a program of PATH to its end; *out = its standard output (malloc, NUL-terminated; at most
 * 64 MiB).  Its standard error is lost in success and part of the error in failure.
 * INGOT_ERR_NOT_FOUND where there is no such program, INGOT_ERR_UNSUPPORTED where it failed. */
ingot_status ingot_child_capture(char **out, const char *const *words,
                                 ingot_error *error) INGOT_MUST_CHECK;

#endif
