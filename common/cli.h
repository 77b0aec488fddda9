/* Command lines from one table: parsing (getopt_long), --help, --version, and the man page.
 * Conventions: architecture.md section 5. */
#ifndef INGOT_CLI_H
#define INGOT_CLI_H

#include "ingot_status.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define INGOT_VERSION "0.1.0"

typedef struct ingot_cli_option {
    const char *name;     /* long name without dashes */
    char letter;          /* short form or 0 */
    const char *argument; /* "FILE", "N", ...; NULL for a flag */
    const char *help;     /* one or more sentences, wrapped by the printer; defaults in it */
} ingot_cli_option;

/* An option that only some subcommands of a tool take. */
typedef struct ingot_cli_scope {
    const char *option;
    const char *commands; /* "convert" or "decode, kernels"; --help puts it before the help */
} ingot_cli_scope;

typedef struct ingot_cli_spec {
    const char *tool;                /* "ingot-convert" */
    const char *summary;             /* one line, for --help and the NAME section */
    const char *positional;          /* "MODEL_DIR" or NULL */
    const char *argument;            /* its name behind a subcommand that was taken off, or NULL */
    const char *description;         /* paragraphs separated by blank lines */
    const ingot_cli_option *options; /* without help and version, which every tool has */
    size_t option_count;
    const ingot_cli_scope *scopes; /* NULL: a tool without subcommands */
    size_t scope_count;
    const char *examples; /* lines: "command\n    what it does\n" */
} ingot_cli_spec;

/* Called for each option in order of appearance; value is NULL for flags.  Fills error and returns
 * INGOT_ERR_USAGE on a bad value. */
typedef ingot_status (*ingot_cli_handler)(void *context, const char *name, const char *value,
                                          ingot_error *error);

typedef enum ingot_cli_outcome {
    INGOT_CLI_RUN,  /* parsed: go on */
    INGOT_CLI_EXIT, /* --help, --version or --man was printed: exit 0 */
    INGOT_CLI_USAGE /* wrong usage, already reported on stderr: exit 2 */
} ingot_cli_outcome;

/* Parses argv; *positional is the one positional argument (required where spec->positional).
 * --man (hidden from --help) prints the man page in roff. */
ingot_cli_outcome ingot_cli_parse(const ingot_cli_spec *spec, int argc, char **argv,
                                  ingot_cli_handler handler, void *context, const char **positional,
                                  ingot_error *error);

/* Whether "--NAME" or "--NAME=VALUE" stands among the words before "--": for a tool whose command
 * line was refused and that still owes one --json object. */
bool ingot_cli_has_flag(int argc, char **argv, const char *name);

/* Refuses options of a command line that was parsed which a subcommand does not take
 * (spec->scopes), so that none is passed over in silence. */
ingot_status ingot_cli_check_scopes(const ingot_cli_spec *spec, int argc, char **argv,
                                    const char *command, ingot_error *error) INGOT_MUST_CHECK;
/* The subcommands that take an option; NULL: all do. */
const char *ingot_cli_scope_of(const ingot_cli_spec *spec, const char *option);

void ingot_cli_print_help(const ingot_cli_spec *spec, FILE *out);
void ingot_cli_print_man(const ingot_cli_spec *spec, FILE *out);

/* Value parsers: whole string, range checked; the error names the option. */
ingot_status ingot_cli_parse_u64(uint64_t *out, const char *option, const char *value,
                                 uint64_t minimum, uint64_t maximum, ingot_error *error);
ingot_status ingot_cli_parse_double(double *out, const char *option, const char *value,
                                    double minimum, double maximum, ingot_error *error);
/* With suffixes K, M, G, T (powers of 1024). */
ingot_status ingot_cli_parse_bytes(uint64_t *out, const char *option, const char *value,
                                   ingot_error *error);
/* *index = position of value in choices[count]. */
ingot_status ingot_cli_parse_choice(int *index, const char *option, const char *value,
                                    const char *const *choices, size_t count, ingot_error *error);

/* Options whose value is a member of a struct, as it is: where that is, and what it may be. */
typedef enum ingot_cli_type {
    INGOT_CLI_TEXT,   /* const char * */
    INGOT_CLI_FLAG,   /* bool: becomes true */
    INGOT_CLI_U64,    /* uint64_t */
    INGOT_CLI_COUNT,  /* unsigned */
    INGOT_CLI_DOUBLE, /* double */
} ingot_cli_type;

typedef struct ingot_cli_member {
    const char *option;
    ingot_cli_type type;
    size_t offset;
    uint64_t least, most; /* of whole numbers */
    double low, high;     /* of a double */
} ingot_cli_member;

/* Stores the value of an option where members[count] says; an option that they do not have is the
 * caller's mistake. */
ingot_status ingot_cli_store(void *into, const ingot_cli_member *members, size_t count,
                             const char *name, const char *value,
                             ingot_error *error) INGOT_MUST_CHECK;

/* "tool: FILE: TENSOR: reason (remedy)" on stderr; returns the exit code of error->status. */
int ingot_cli_report(const char *tool, const ingot_error *error);
/* The exit code of a tool that has printed its result: exit_code, or 2, with an error on stderr,
 * where not all of it reached stdout (is_printed, and what is flushed here). */
int ingot_cli_finish(const char *tool, int exit_code, bool is_printed);
/* The same for a tool that ended with a status, whose error is reported first; an error that a
 * function left empty has that status' text. */
int ingot_cli_end(const char *tool, ingot_status status, ingot_error *error, bool is_printed);

/* "12.3 MB" (powers of 1000), "1m 05s"; text is owned by the caller. */
void ingot_format_bytes(char *text, size_t size, double bytes);
void ingot_format_seconds(char *text, size_t size, double seconds);
/* A figure and the limit that it broke, with as many significant digits as tell them apart, at
 * least `digits`. */
#define INGOT_FIGURE_SIZE 32u
void ingot_format_apart(char figure[INGOT_FIGURE_SIZE], char limit[INGOT_FIGURE_SIZE], double value,
                        double most, int digits);

#endif
