/* Command lines: parsing from the option table, values, and the report of an error.
 * Help and man page are printed by cli_print.c. */
#include "common/cli.h"

#include "common/memory.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CODE_HELP         256
#define CODE_VERSION      257
#define CODE_MAN          258
#define CODE_FIRST_OPTION 512 /* + index into the table */

/* Escape sequences in the name of a file or tensor must not reach the terminal. */
static void make_printable(char *text) {
    for (char *c = text; *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f) {
            *c = '?';
        }
    }
}

int ingot_cli_report(const char *tool, const ingot_error *error) {
    char text[INGOT_ERROR_TEXT_SIZE];
    ingot_error_format(error, text, sizeof text);
    make_printable(text);
    (void)fprintf(stderr, "%s: %s\n", tool, text);
    return ingot_status_exit_code(error->status);
}

int ingot_cli_finish(const char *tool, int exit_code, bool is_printed) {
    ingot_error error = {0};
    const bool is_flushed = fflush(stdout) == 0 && ferror(stdout) == 0;
    if (is_printed && is_flushed) {
        return exit_code;
    }
    (void)ingot_error_set(&error, INGOT_ERR_IO, NULL, NULL, NULL,
                          "the result could not be written to standard output");
    return ingot_cli_report(tool, &error);
}

int ingot_cli_end(const char *tool, ingot_status status, ingot_error *error, bool is_printed) {
    error->status = status;
    const int exit_code = status == INGOT_OK ? 0 : ingot_cli_report(tool, error);
    return ingot_cli_finish(tool, exit_code, is_printed);
}

bool ingot_cli_has_flag(int argc, char **argv, const char *name) {
    const size_t length = strlen(name);
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strncmp(argv[i], "--", 2) == 0 && strncmp(argv[i] + 2, name, length) == 0 &&
            (argv[i][2 + length] == '\0' || argv[i][2 + length] == '=')) {
            return true;
        }
    }
    return false;
}

/* ---- subcommands --------------------------------------------------------------------------- */

const char *ingot_cli_scope_of(const ingot_cli_spec *spec, const char *option) {
    for (size_t i = 0; i < spec->scope_count; i++) {
        if (strcmp(spec->scopes[i].option, option) == 0) {
            return spec->scopes[i].commands;
        }
    }
    return NULL;
}

/* Whether a list such as "decode, kernels" has a word. */
static bool has_word(const char *list, const char *word) {
    const size_t length = strlen(word);
    while (*list != '\0') {
        const size_t size = strcspn(list, ",");
        if (size == length && strncmp(list, word, length) == 0) {
            return true;
        }
        list += size;
        list += strspn(list, ", ");
    }
    return false;
}

/* The option of a word "--NAME" or "--NAME=VALUE"; NULL: the word is none. */
static const ingot_cli_option *option_of_word(const ingot_cli_spec *spec, const char *word) {
    const size_t length = strcspn(word, "=");
    for (size_t i = 0; i < spec->option_count; i++) {
        const char *name = spec->options[i].name;
        if (length > 2 && strncmp(word, "--", 2) == 0 && strlen(name) == length - 2 &&
            strncmp(word + 2, name, length - 2) == 0) {
            return &spec->options[i];
        }
    }
    return NULL;
}

ingot_status ingot_cli_check_scopes(const ingot_cli_spec *spec, int argc, char **argv,
                                    const char *command, ingot_error *error) {
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        const ingot_cli_option *option = option_of_word(spec, argv[i]);
        if (option == NULL) {
            continue;
        }
        const char *commands = ingot_cli_scope_of(spec, option->name);
        if (commands != NULL && !has_word(commands, command)) {
            return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "leave it out",
                                   "--%s is an option of %s, not of %s", option->name, commands,
                                   command);
        }
        if (option->argument != NULL && strchr(argv[i], '=') == NULL) {
            i++; /* its value, whatever it looks like */
        }
    }
    return INGOT_OK;
}

/* ---- parsing ------------------------------------------------------------------------------- */

/* A standard stream that the caller closed gets a file that cannot be written: the first output
 * would have its number otherwise, and be sent what is printed. */
static void hold_streams(void) {
    int descriptor;
    do {
        descriptor = open("/dev/null", O_RDONLY);
    } while (descriptor >= 0 && descriptor <= STDERR_FILENO);
    if (descriptor >= 0) {
        (void)close(descriptor);
    }
}

typedef struct cli_parser {
    const ingot_cli_spec *spec;
    ingot_cli_handler handler;
    void *context;
    const char **positional;
    ingot_error *error;
    struct option *long_options;
    char *short_options;
} cli_parser;

static ingot_cli_outcome usage_report(const cli_parser *parser) {
    (void)ingot_cli_report(parser->spec->tool, parser->error);
    (void)fprintf(stderr, "Try '%s --help'.\n", parser->spec->tool);
    return INGOT_CLI_USAGE;
}

static ingot_status build_tables(cli_parser *parser) {
    const ingot_cli_spec *spec = parser->spec;
    void *memory;
    INGOT_TRY(ingot_alloc_zero(&memory, spec->option_count + 4, sizeof(struct option)));
    parser->long_options = memory;
    INGOT_TRY(ingot_alloc_zero(&memory, 2 * spec->option_count + 4, 1));
    parser->short_options = memory;

    struct option *next = parser->long_options;
    *next++ = (struct option){"help", no_argument, NULL, CODE_HELP};
    *next++ = (struct option){"version", no_argument, NULL, CODE_VERSION};
    *next++ = (struct option){"man", no_argument, NULL, CODE_MAN};
    /* '-': positionals are reported in place, so options may stand on either side of them;
     * ':': a missing argument is told apart from an unknown option. */
    char *letters = parser->short_options;
    *letters++ = '-';
    *letters++ = ':';
    *letters++ = 'h';
    for (size_t i = 0; i < spec->option_count; i++) {
        const ingot_cli_option *option = &spec->options[i];
        const bool has_argument = option->argument != NULL;
        *next++ = (struct option){option->name, has_argument ? required_argument : no_argument,
                                  NULL, CODE_FIRST_OPTION + (int)i};
        if (option->letter != 0) {
            *letters++ = option->letter;
            if (has_argument) {
                *letters++ = ':';
            }
        }
    }
    return INGOT_OK;
}

/* What the positional argument is called, or NULL where there is none. */
static const char *argument_name(const ingot_cli_spec *spec) {
    return spec->argument != NULL ? spec->argument : spec->positional;
}

static ingot_cli_outcome take_positional(cli_parser *parser, const char *value) {
    const char *wanted = argument_name(parser->spec);
    if (wanted == NULL || *parser->positional != NULL) {
        (void)ingot_error_set(parser->error, INGOT_ERR_USAGE, NULL, NULL, NULL,
                              wanted == NULL ? "takes no argument, but got '%s'"
                                             : "more than one argument: '%s'",
                              value);
        return usage_report(parser);
    }
    if (value[0] == '\0') {
        (void)ingot_error_set(parser->error, INGOT_ERR_USAGE, NULL, NULL, NULL, "%s is empty",
                              wanted);
        return usage_report(parser);
    }
    *parser->positional = value;
    return INGOT_CLI_RUN;
}

static const ingot_cli_option *option_of(const ingot_cli_spec *spec, int code) {
    if (code >= CODE_FIRST_OPTION) {
        return &spec->options[code - CODE_FIRST_OPTION];
    }
    for (size_t i = 0; i < spec->option_count; i++) {
        if (spec->options[i].letter != 0 && spec->options[i].letter == code) {
            return &spec->options[i];
        }
    }
    return NULL;
}

/* getopt_long takes any unambiguous beginning of a name.  Scripts that rely on one would break when
 * an option is added, so only whole names count. */
static bool is_abbreviated(const cli_parser *parser, int code, const char *argument) {
    const char *name = NULL;
    for (const struct option *option = parser->long_options; option->name != NULL; option++) {
        if (option->val == code) {
            name = option->name;
        }
    }
    return name != NULL && strncmp(argument, "--", 2) == 0 &&
           (strlen(name) != strcspn(argument + 2, "=") ||
            strncmp(name, argument + 2, strlen(name)) != 0);
}

/* Reports what getopt could not take; argument is the word it was looking at. */
static ingot_cli_outcome bad_option(const cli_parser *parser, int result, const char *argument) {
    const bool is_long = strncmp(argument, "--", 2) == 0;
    const bool is_known = result == ':' || (is_long && optopt != 0);
    char name[256];
    if (!is_long) {
        (void)snprintf(name, sizeof name, "-%c", optopt);
    } else {
        const size_t length = is_known ? strcspn(argument, "=") : strlen(argument);
        (void)snprintf(name, sizeof name, "%.*s", (int)length, argument);
    }
    if (!is_known) {
        (void)ingot_error_set(parser->error, INGOT_ERR_USAGE, NULL, NULL, NULL,
                              "unknown option '%s'", name);
    } else {
        (void)ingot_error_set(parser->error, INGOT_ERR_USAGE, NULL, NULL, NULL, "option '%s' %s",
                              name, result == ':' ? "needs a value" : "takes no value");
    }
    return usage_report(parser);
}

/* What was asked for must have reached its reader: a full disk under stdout is a failure. */
static ingot_cli_outcome printed(const cli_parser *parser) {
    if (fflush(stdout) == 0 && ferror(stdout) == 0) {
        return INGOT_CLI_EXIT;
    }
    (void)ingot_error_set(parser->error, INGOT_ERR_IO, NULL, NULL, NULL,
                          "cannot write to standard output: %s", strerror(errno));
    (void)ingot_cli_report(parser->spec->tool, parser->error);
    return INGOT_CLI_USAGE;
}

/* One result of getopt_long. */
static ingot_cli_outcome take_result(cli_parser *parser, int result, const char *argument) {
    const ingot_cli_spec *spec = parser->spec;
    if (result == 1) {
        return take_positional(parser, optarg);
    }
    if (result == '?' || result == ':') {
        return bad_option(parser, result, argument);
    }
    if (is_abbreviated(parser, result, argument)) {
        (void)ingot_error_set(parser->error, INGOT_ERR_USAGE, NULL, NULL, NULL,
                              "unknown option '%s'", argument);
        return usage_report(parser);
    }
    switch (result) {
    case 'h':
    case CODE_HELP:
        ingot_cli_print_help(spec, stdout);
        return printed(parser);
    case CODE_VERSION:
        (void)printf("%s %s\n", spec->tool, INGOT_VERSION);
        return printed(parser);
    case CODE_MAN:
        ingot_cli_print_man(spec, stdout);
        return printed(parser);
    default:
        break;
    }
    const ingot_cli_option *option = option_of(spec, result);
    if (optarg != NULL && optarg[0] == '\0') { /* a variable of a script that was not set */
        (void)ingot_error_set(parser->error, INGOT_ERR_USAGE, NULL, NULL, NULL,
                              "the value of --%s is empty", option->name);
        return usage_report(parser);
    }
    if (parser->handler(parser->context, option->name, optarg, parser->error) != INGOT_OK) {
        return usage_report(parser);
    }
    return INGOT_CLI_RUN;
}

static ingot_cli_outcome parse_words(cli_parser *parser, int argc, char **argv) {
    opterr = 0;
    optind = 0; /* full restart of the GNU getopt */
    for (;;) {
        const int word = optind == 0 ? 1 : optind;
        optopt = 0;
        const int result =
            getopt_long(argc, argv, parser->short_options, parser->long_options, NULL);
        if (result == -1) {
            break;
        }
        const ingot_cli_outcome outcome =
            take_result(parser, result, word < argc ? argv[word] : "");
        if (outcome != INGOT_CLI_RUN) {
            return outcome;
        }
    }
    while (optind < argc) { /* after "--" */
        const ingot_cli_outcome outcome = take_positional(parser, argv[optind++]);
        if (outcome != INGOT_CLI_RUN) {
            return outcome;
        }
    }
    if (parser->spec->positional != NULL && *parser->positional == NULL) {
        (void)ingot_error_set(parser->error, INGOT_ERR_USAGE, NULL, NULL, NULL, "%s is missing",
                              argument_name(parser->spec));
        return usage_report(parser);
    }
    return INGOT_CLI_RUN;
}

ingot_cli_outcome ingot_cli_parse(const ingot_cli_spec *spec, int argc, char **argv,
                                  ingot_cli_handler handler, void *context, const char **positional,
                                  ingot_error *error) {
    const char *ignored = NULL;
    ingot_error own_error = {0};
    cli_parser parser = {
        .spec = spec,
        .handler = handler,
        .context = context,
        .positional = positional != NULL ? positional : &ignored,
        .error = error != NULL ? error : &own_error,
    };
    *parser.positional = NULL;
    ingot_cli_outcome outcome;
    hold_streams();
    if (build_tables(&parser) == INGOT_OK) {
        outcome = parse_words(&parser, argc, argv);
    } else {
        (void)ingot_error_set(parser.error, INGOT_ERR_NO_MEMORY, NULL, NULL, NULL, "out of memory");
        (void)ingot_cli_report(spec->tool, parser.error);
        outcome = INGOT_CLI_USAGE;
    }
    ingot_free(parser.long_options);
    ingot_free(parser.short_options);
    return outcome;
}

/* ---- values -------------------------------------------------------------------------------- */

/* Digits only: strtoull alone takes signs, spaces and nothing at all. */
static bool read_digits(uint64_t *out, const char *text, const char **end) {
    if (!isdigit((unsigned char)*text)) {
        return false;
    }
    errno = 0;
    char *stop;
    const unsigned long long number = strtoull(text, &stop, 10);
    *end = stop;
    *out = number;
    return errno == 0;
}

ingot_status ingot_cli_parse_u64(uint64_t *out, const char *option, const char *value,
                                 uint64_t minimum, uint64_t maximum, ingot_error *error) {
    uint64_t number;
    const char *end;
    if (!read_digits(&number, value, &end) || *end != '\0' || number < minimum ||
        number > maximum) {
        if (maximum == UINT64_MAX) {
            return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, NULL,
                                   "--%s: '%s' is not a whole number of at least %" PRIu64, option,
                                   value, minimum);
        }
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, NULL,
                               "--%s: '%s' is not a whole number from %" PRIu64 " to %" PRIu64,
                               option, value, minimum, maximum);
    }
    *out = number;
    return INGOT_OK;
}

ingot_status ingot_cli_parse_double(double *out, const char *option, const char *value,
                                    double minimum, double maximum, ingot_error *error) {
    /* Decimal notation only: strtod also takes spaces, hexadecimal, "inf" and "nan". */
    const bool is_decimal = value[0] != '\0' && strspn(value, "0123456789+-.eE") == strlen(value);
    char *end = NULL;
    const double number = is_decimal ? strtod(value, &end) : NAN;
    if (!is_decimal || end == value || *end != '\0' || !isfinite(number) || number < minimum ||
        number > maximum) {
        if (maximum >= 1e300) {
            return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, NULL,
                                   "--%s: '%s' is not a number of at least %g", option, value,
                                   minimum);
        }
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, NULL,
                               "--%s: '%s' is not a number from %g to %g", option, value, minimum,
                               maximum);
    }
    *out = number;
    return INGOT_OK;
}

ingot_status ingot_cli_parse_bytes(uint64_t *out, const char *option, const char *value,
                                   ingot_error *error) {
    uint64_t number;
    const char *end;
    bool is_good = read_digits(&number, value, &end);
    if (is_good && *end != '\0') {
        static const char suffixes[] = "KMGT"; /* powers of 1024 */
        const char *suffix = strchr(suffixes, *end);
        is_good = suffix != NULL && end[1] == '\0';
        if (is_good) {
            const unsigned shift = 10 * (unsigned)(suffix - suffixes + 1);
            is_good = number <= UINT64_MAX >> shift;
            number <<= shift;
        }
    }
    if (!is_good) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "for example 512M or 4G",
                               "--%s: '%s' is not a size in bytes", option, value);
    }
    *out = number;
    return INGOT_OK;
}

ingot_status ingot_cli_parse_choice(int *index, const char *option, const char *value,
                                    const char *const *choices, size_t count, ingot_error *error) {
    char list[256] = "";
    size_t length = 0;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(value, choices[i]) == 0) {
            *index = (int)i;
            return INGOT_OK;
        }
        const int added =
            snprintf(list + length, sizeof list - length, "%s%s", i == 0 ? "" : ", ", choices[i]);
        if (added > 0 && (size_t)added < sizeof list - length) {
            length += (size_t)added;
        }
    }
    return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, NULL, "--%s: '%s' is none of: %s",
                           option, value, list);
}

ingot_status ingot_cli_store(void *into, const ingot_cli_member *members, size_t count,
                             const char *name, const char *value, ingot_error *error) {
    uint64_t number;
    size_t i = 0;
    while (i < count && strcmp(members[i].option, name) != 0) {
        i++;
    }
    assert(i < count);
    const ingot_cli_member *m = &members[i];
    char *at = (char *)into + m->offset;
    switch (m->type) {
    case INGOT_CLI_TEXT:
        memcpy(at, &value, sizeof value);
        return INGOT_OK;
    case INGOT_CLI_FLAG:
        *(bool *)(void *)at = true;
        return INGOT_OK;
    case INGOT_CLI_U64:
        return ingot_cli_parse_u64((uint64_t *)(void *)at, name, value, m->least, m->most, error);
    case INGOT_CLI_DOUBLE:
        return ingot_cli_parse_double((double *)(void *)at, name, value, m->low, m->high, error);
    case INGOT_CLI_COUNT:
        break;
    }
    INGOT_TRY(ingot_cli_parse_u64(&number, name, value, m->least, m->most, error));
    *(unsigned *)(void *)at = (unsigned)number;
    return INGOT_OK;
}
