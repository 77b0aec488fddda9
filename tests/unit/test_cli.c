/* Command lines: what is taken, what is refused, values, help and man page. */
#include "common/cli.h"

#include "suite.h"

#include <fcntl.h>
#include <string.h>

typedef struct taken {
    char text[512];
} taken;

static ingot_status take(void *context, const char *name, const char *value, ingot_error *error) {
    taken *log = context;
    const size_t length = strlen(log->text);
    (void)snprintf(log->text + length, sizeof log->text - length, "%s=%s;", name,
                   value == NULL ? "-" : value);
    if (strcmp(name, "bits") == 0) {
        uint64_t bits;
        return ingot_cli_parse_u64(&bits, name, value, 2, 8, error);
    }
    return INGOT_OK;
}

static const ingot_cli_option options[] = {
    {"output", 'o', "FILE", "Where the result goes."},
    {"bits", 0, "N", "Bits per weight, 2 to 8. Default: 4."},
    {"bits-of-head", 0, "N", "The same for the head."},
    {"force", 'f', NULL, "Replace an existing file."},
};

static const ingot_cli_spec spec = {
    .tool = "ingot-convert",
    .summary = "convert a checkpoint into a container",
    .positional = "MODEL_DIR",
    .description = "First paragraph.\n\n.Second paragraph, with a hyphen-ated word.",
    .options = options,
    .option_count = 4,
    .examples = "ingot-convert m -o m.ingot\n    Converts m.\n",
};

static taken log_of_options;
static const char *positional;
static ingot_error error;

/* Splits line at blanks and parses it, with stdout and stderr in temporary files. */
static ingot_cli_outcome parse(const ingot_cli_spec *with, const char *line) {
    static char words[256];
    static char name[] = "ingot-convert";
    char *argv[16] = {name};
    int argc = 1;
    (void)snprintf(words, sizeof words, "%s", line);
    for (char *word = strtok(words, " "); word != NULL; word = strtok(NULL, " ")) {
        argv[argc++] = word;
    }
    argv[argc] = NULL;
    memset(&log_of_options, 0, sizeof log_of_options);
    memset(&error, 0, sizeof error);
    (void)fflush(NULL);
    const int saved_out = dup(STDOUT_FILENO);
    const int saved_err = dup(STDERR_FILENO);
    const int sink = open("/dev/null", O_WRONLY);
    (void)dup2(sink, STDOUT_FILENO);
    (void)dup2(sink, STDERR_FILENO);
    const ingot_cli_outcome outcome =
        ingot_cli_parse(with, argc, argv, take, &log_of_options, &positional, &error);
    (void)fflush(NULL);
    (void)dup2(saved_out, STDOUT_FILENO);
    (void)dup2(saved_err, STDERR_FILENO);
    (void)close(saved_out);
    (void)close(saved_err);
    (void)close(sink);
    return outcome;
}

static void test_accepted(void) {
    CU_ASSERT_EQUAL(parse(&spec, "m -o x --bits=3 -f"), INGOT_CLI_RUN);
    CU_ASSERT_STRING_EQUAL(log_of_options.text, "output=x;bits=3;force=-;");
    CU_ASSERT_STRING_EQUAL(positional, "m");
    CU_ASSERT_EQUAL(parse(&spec, "-fox m"), INGOT_CLI_RUN);
    CU_ASSERT_STRING_EQUAL(log_of_options.text, "force=-;output=x;");
    CU_ASSERT_EQUAL(parse(&spec, "--bits 8 m --output y --bits 2"), INGOT_CLI_RUN);
    CU_ASSERT_STRING_EQUAL(log_of_options.text, "bits=8;output=y;bits=2;");
    CU_ASSERT_EQUAL(parse(&spec, "-o x -- --m"), INGOT_CLI_RUN);
    CU_ASSERT_STRING_EQUAL(positional, "--m");
    CU_ASSERT_EQUAL(setenv("POSIXLY_CORRECT", "1", 1), 0); /* options after the positional, still */
    CU_ASSERT_EQUAL(parse(&spec, "m -o x"), INGOT_CLI_RUN);
    CU_ASSERT_STRING_EQUAL(log_of_options.text, "output=x;");
    CU_ASSERT_EQUAL(unsetenv("POSIXLY_CORRECT"), 0);
}

static void test_refused(void) {
    static const char *const cases[][2] = {
        {"", "MODEL_DIR is missing"},
        {"-o x", "MODEL_DIR is missing"},
        {"m n", "more than one argument: 'n'"},
        {"m -- n", "more than one argument: 'n'"},
        {"m --bits", "option '--bits' needs a value"},
        {"m -o", "option '-o' needs a value"},
        {"m --output=", "the value of --output is empty"},
        {"m --bits 9", "--bits: '9' is not a whole number from 2 to 8"},
        {"m --nothing", "unknown option '--nothing'"},
        {"m --nothing=1", "unknown option '--nothing=1'"},
        {"m -q", "unknown option '-q'"},
        {"m -fq", "unknown option '-q'"},
        {"m --force=1", "option '--force' takes no value"},
        /* Abbreviations would change their meaning when an option is added. */
        {"m --forc", "unknown option '--forc'"},
        {"m --outpu=x", "unknown option '--outpu=x'"},
        {"m --bit 3", "unknown option '--bit'"},
        {"--hel", "unknown option '--hel'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        CU_ASSERT_EQUAL(parse(&spec, cases[i][0]), INGOT_CLI_USAGE);
        CU_ASSERT_STRING_EQUAL(error.reason, cases[i][1]);
        if (strcmp(error.reason, cases[i][1]) != 0) {
            printf("\n  '%s': got '%s'", cases[i][0], error.reason);
        }
    }
    ingot_cli_spec without = spec;
    without.positional = NULL;
    CU_ASSERT_EQUAL(parse(&without, "m"), INGOT_CLI_USAGE);
    CU_ASSERT_EQUAL(parse(&without, "-f"), INGOT_CLI_RUN);
    ingot_cli_spec with = spec; /* a subcommand was given */
    with.positional = "plan|run FILE";
    with.argument = "FILE";
    CU_ASSERT_EQUAL(parse(&with, ""), INGOT_CLI_USAGE);
    CU_ASSERT_STRING_EQUAL(error.reason, "FILE is missing");
}

static void test_information(void) {
    static const char *const lines[] = {"--help", "-h", "--version", "--man", "m --help --bad"};
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        CU_ASSERT_EQUAL(parse(&spec, lines[i]), INGOT_CLI_EXIT);
    }
}

static void test_u64(void) {
    static const char *const bad[] = {
        "", " 1", "1 ", "-1", "+1", "0x10", "1.0", "a", "1a", "18446744073709551616", "0", "101"};
    uint64_t value = 7;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        CU_ASSERT_EQUAL(ingot_cli_parse_u64(&value, "n", bad[i], 1, 100, &error), INGOT_ERR_USAGE);
        CU_ASSERT_EQUAL(value, 7);
    }
    CU_ASSERT_EQUAL(ingot_cli_parse_u64(&value, "n", "100", 1, 100, &error), INGOT_OK);
    CU_ASSERT_EQUAL(value, 100);
    CU_ASSERT_EQUAL(ingot_cli_parse_u64(&value, "n", "18446744073709551615", 0, UINT64_MAX, &error),
                    INGOT_OK);
    CU_ASSERT_EQUAL(value, UINT64_MAX);
}

static void test_double(void) {
    static const char *const bad[] = {"",    " 1",    "1x",  "nan", "inf",
                                      "0x1", "1e999", "--1", "2",   "-1"};
    double value = 7.0;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        CU_ASSERT_EQUAL(ingot_cli_parse_double(&value, "x", bad[i], 0.0, 1.0, &error),
                        INGOT_ERR_USAGE);
        CU_ASSERT_EQUAL(value, 7.0);
    }
    CU_ASSERT_EQUAL(ingot_cli_parse_double(&value, "x", "5e-3", 0.0, 1.0, &error), INGOT_OK);
    CU_ASSERT_EQUAL(value, 0.005);
}

static void test_bytes(void) {
    static const char *const bad[] = {"", "K", "1k", "1KB", "-1K", "1.5G", "17179869184G", "1P"};
    uint64_t value = 7;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        CU_ASSERT_EQUAL(ingot_cli_parse_bytes(&value, "size", bad[i], &error), INGOT_ERR_USAGE);
        CU_ASSERT_EQUAL(value, 7);
    }
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0},
                {"12", 12},
                {"3K", 3072},
                {"5M", 5242880},
                {"2G", UINT64_C(2) << 30},
                {"1T", UINT64_C(1) << 40},
                {"17179869183G", UINT64_C(17179869183) << 30}};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        CU_ASSERT_EQUAL(ingot_cli_parse_bytes(&value, "size", good[i].text, &error), INGOT_OK);
        CU_ASSERT_EQUAL(value, good[i].bytes);
    }
}

static void test_choice(void) {
    static const char *const choices[] = {"rtn", "awq", "gptq"};
    int index = 7;
    CU_ASSERT_EQUAL(ingot_cli_parse_choice(&index, "method", "gpt", choices, 3, &error),
                    INGOT_ERR_USAGE);
    CU_ASSERT_EQUAL(index, 7);
    CU_ASSERT_STRING_EQUAL(error.reason, "--method: 'gpt' is none of: rtn, awq, gptq");
    CU_ASSERT_EQUAL(ingot_cli_parse_choice(&index, "method", "gptq", choices, 3, &error), INGOT_OK);
    CU_ASSERT_EQUAL(index, 2);
}

/* What print writes, as a string owned by the caller. */
static char *printed_of(void (*print)(const ingot_cli_spec *, FILE *), const ingot_cli_spec *of) {
    char *text = NULL;
    size_t size = 0;
    FILE *stream = open_memstream(&text, &size);
    CU_ASSERT_PTR_NOT_NULL_FATAL(stream);
    print(of, stream);
    CU_ASSERT_EQUAL(fclose(stream), 0);
    return text;
}

static char *printed(void (*print)(const ingot_cli_spec *, FILE *)) {
    return printed_of(print, &spec);
}

static void test_help(void) {
    char *text = printed(ingot_cli_print_help);
    CU_ASSERT_EQUAL(strncmp(text, "Usage: ingot-convert MODEL_DIR [OPTION]...\n", 43), 0);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "\n  -o, --output FILE       Where the result goes.\n"));
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "\n      --bits N "));
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "--version"));
    CU_ASSERT_PTR_NULL(strstr(text, "--man"));
    for (const char *line = text; *line != '\0'; line += strcspn(line, "\n") + 1) {
        CU_ASSERT(strcspn(line, "\n") <= 80);
    }
    free(text);
}

static void test_scopes(void) {
    static const ingot_cli_scope scopes[] = {{"bits", "make, mend"}, {"force", "break"}};
    ingot_cli_spec with = spec;
    with.scopes = scopes;
    with.scope_count = 2;
    static char name[] = "tool", bits[] = "--bits=4", longer[] = "--bits-of-head",
                force[] = "--force", end[] = "--";
    char *three[] = {name, bits, NULL}, *head[] = {name, longer, NULL},
         *late[] = {name, end, force, NULL};
    CU_ASSERT_EQUAL(ingot_cli_check_scopes(&with, 2, three, "make", &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_cli_check_scopes(&with, 2, three, "mend", &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_cli_check_scopes(&with, 2, three, "men", &error), INGOT_ERR_USAGE);
    CU_ASSERT_EQUAL(ingot_cli_check_scopes(&with, 2, three, "break", &error), INGOT_ERR_USAGE);
    CU_ASSERT_STRING_EQUAL(error.reason, "--bits is an option of make, mend, not of break");
    CU_ASSERT_EQUAL(ingot_cli_check_scopes(&with, 2, head, "break", &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_cli_check_scopes(&with, 3, late, "make", &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_cli_check_scopes(&spec, 2, three, "break", &error), INGOT_OK);
    char *text = printed_of(ingot_cli_print_help, &with);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, " make, mend: Bits per weight, 2 to 8."));
    free(text);
}

static void test_man(void) {
    static const char *const sections[] = {"NAME",     "SYNOPSIS",    "DESCRIPTION", "OPTIONS",
                                           "EXAMPLES", "EXIT STATUS", "SEE ALSO"};
    char *text = printed(ingot_cli_print_man);
    CU_ASSERT_EQUAL(strncmp(text, ".TH INGOT-CONVERT 1 ", 20), 0);
    for (size_t i = 0; i < sizeof sections / sizeof sections[0]; i++) {
        char heading[64];
        (void)snprintf(heading, sizeof heading, "\n.SH %s\n", sections[i]);
        CU_ASSERT_PTR_NOT_NULL(strstr(text, heading));
    }
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "\n\\&.Second paragraph, with a hyphen\\-ated word.\n"));
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "\\fB\\-o\\fR, \\fB\\-\\-output\\fR \\fIFILE\\fR\n"));
    CU_ASSERT_PTR_NULL(strstr(text, "convert\\fR(1)")); /* a page does not refer to itself */
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "ingot\\-verify\\fR(1)"));
    free(text);
}

static void test_figures(void) {
    static const struct {
        double value;
        const char *text;
    } bytes[] = {{0, "0 B"},        {999, "999 B"},        {999.7, "1.0 kB"},
                 {1000, "1.0 kB"},  {12345678, "12.3 MB"}, {999960, "1.0 MB"},
                 {2.5e12, "2.5 TB"}},
      seconds[] = {{0.04, "0.0s"},   {3.21, "3.2s"}, {9.96, "10s"},      {59.4, "59s"},
                   {59.6, "1m 00s"}, {65, "1m 05s"}, {3599.7, "1h 00m"}, {7384, "2h 03m"},
                   {-1.0, "?"},      {1e300, "?"}};
    char text[32];
    for (size_t i = 0; i < sizeof bytes / sizeof bytes[0]; i++) {
        ingot_format_bytes(text, sizeof text, bytes[i].value);
        CU_ASSERT_STRING_EQUAL(text, bytes[i].text);
    }
    for (size_t i = 0; i < sizeof seconds / sizeof seconds[0]; i++) {
        ingot_format_seconds(text, sizeof text, seconds[i].value);
        CU_ASSERT_STRING_EQUAL(text, seconds[i].text);
    }
    char figure[INGOT_FIGURE_SIZE], limit[INGOT_FIGURE_SIZE];
    ingot_format_apart(figure, limit, 1.25, 1.0, 5);
    CU_ASSERT_STRING_EQUAL(figure, "1.25");
    CU_ASSERT_STRING_EQUAL(limit, "1");
    ingot_format_apart(figure, limit, 0.05000002, 0.05, 5);
    CU_ASSERT_STRING_EQUAL(figure, "0.05000002");
    CU_ASSERT_STRING_EQUAL(limit, "0.05");
    ingot_format_apart(figure, limit, 0.5, 0.5, 5); /* ends where nothing does */
    CU_ASSERT_STRING_EQUAL(figure, limit);
}

int main(void) {
    const CU_TestInfo tests[] = {{"accepted", test_accepted},
                                 {"refused", test_refused},
                                 {"information", test_information},
                                 {"whole numbers", test_u64},
                                 {"numbers", test_double},
                                 {"sizes in bytes", test_bytes},
                                 {"choices", test_choice},
                                 {"help", test_help},
                                 {"man page", test_man},
                                 {"figures", test_figures},
                                 {"subcommands", test_scopes},
                                 CU_TEST_INFO_NULL};
    return suite_run("cli", tests);
}
