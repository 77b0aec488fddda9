/* What a tool says about itself: --help as text, the man page as roff, both from the option table;
 * and figures written for people. */
#include "common/cli.h"

#include <string.h>

#define LINE_COLUMNS 79
#define HELP_COLUMN  26 /* where the text of an option begins */
#define HELP_BYTES   1024

static const char *const tools[] = {"ingot-inspect", "ingot-bench", "ingot-calib", "ingot-convert",
                                    "ingot-verify",  "ingot-run",   "ingot-zoo"};

static const char *const exit_codes[][2] = {
    {"0", "Done; for a check: valid."},
    {"1", "The check said no: corrupt, not from that source, or over a gate."},
    {"2", "Could not run: wrong usage, a missing, unreadable or malformed file, an input or output "
          "error, something unsupported, out of memory, or interrupted."},
};

static const ingot_cli_option common_options[] = {
    {"help", 'h', NULL, "Print this help and exit."},
    {"version", 0, NULL, "Print the version and exit."},
};

#define COMMON_COUNT (sizeof common_options / sizeof common_options[0])

static const ingot_cli_option *option_at(const ingot_cli_spec *spec, size_t index) {
    return index < spec->option_count ? &spec->options[index]
                                      : &common_options[index - spec->option_count];
}

/* ---- text ---------------------------------------------------------------------------------- */

/* Fills lines from column (where the cursor is) to LINE_COLUMNS; later lines are indented. */
static void print_wrapped(FILE *out, const char *text, size_t length, int column, int indent) {
    const char *end = text + length;
    bool is_first = true;
    while (text < end) {
        const size_t blanks = strspn(text, " \n");
        text += blanks;
        if (text >= end) {
            break;
        }
        size_t word = strcspn(text, " \n");
        if (word > (size_t)(end - text)) {
            word = (size_t)(end - text);
        }
        if (!is_first && column + 1 + (int)word > LINE_COLUMNS) {
            (void)fprintf(out, "\n%*s", indent, "");
            column = indent;
        } else if (!is_first) {
            (void)fputc(' ', out);
            column++;
        }
        (void)fwrite(text, 1, word, out);
        column += (int)word;
        text += word;
        is_first = false;
    }
    (void)fputc('\n', out);
}

/* The next paragraph of *text: its length, and *text moved to its beginning; 0 at the end. */
static size_t next_paragraph(const char **text) {
    *text += strspn(*text, "\n");
    const char *end = strstr(*text, "\n\n");
    return end == NULL ? strlen(*text) : (size_t)(end - *text);
}

/* The help of an option, after the subcommands that take it. */
static void whole_help(char *text, size_t size, const ingot_cli_spec *spec,
                       const ingot_cli_option *option) {
    const char *commands = ingot_cli_scope_of(spec, option->name);
    (void)snprintf(text, size, "%s%s%s", commands != NULL ? commands : "",
                   commands != NULL ? ": " : "", option->help);
}

static void print_option_text(const ingot_cli_spec *spec, const ingot_cli_option *option,
                              FILE *out) {
    char left[96], help[HELP_BYTES];
    int length = snprintf(
        left, sizeof left, "  %c%c%s--%s%s%s", option->letter != 0 ? '-' : ' ',
        option->letter != 0 ? option->letter : ' ', option->letter != 0 ? ", " : "  ", option->name,
        option->argument != NULL ? " " : "", option->argument != NULL ? option->argument : "");
    (void)fputs(left, out);
    if (length > HELP_COLUMN - 2) {
        (void)fputc('\n', out);
        length = 0;
    }
    (void)fprintf(out, "%*s", HELP_COLUMN - length, "");
    whole_help(help, sizeof help, spec, option);
    print_wrapped(out, help, strlen(help), HELP_COLUMN, HELP_COLUMN);
}

void ingot_cli_print_help(const ingot_cli_spec *spec, FILE *out) {
    (void)fprintf(out, "Usage: %s%s%s [OPTION]...\n", spec->tool,
                  spec->positional != NULL ? " " : "",
                  spec->positional != NULL ? spec->positional : "");
    print_wrapped(out, spec->summary, strlen(spec->summary), 0, 0);
    if (spec->description != NULL) {
        const char *text = spec->description;
        for (size_t length = next_paragraph(&text); length != 0; length = next_paragraph(&text)) {
            (void)fputc('\n', out);
            print_wrapped(out, text, length, 0, 0);
            text += length;
        }
    }
    (void)fputs("\nOptions:\n", out);
    for (size_t i = 0; i < spec->option_count + COMMON_COUNT; i++) {
        print_option_text(spec, option_at(spec, i), out);
    }
    (void)fputs("\nExit status:\n", out);
    for (size_t i = 0; i < sizeof exit_codes / sizeof exit_codes[0]; i++) {
        (void)fprintf(out, "  %s  ", exit_codes[i][0]);
        print_wrapped(out, exit_codes[i][1], strlen(exit_codes[i][1]), 5, 5);
    }
    if (spec->examples != NULL && spec->examples[0] != '\0') {
        (void)fputs("\nExamples:\n", out);
        for (const char *line = spec->examples; *line != '\0';) {
            const size_t length = strcspn(line, "\n");
            (void)fprintf(out, "  %.*s\n", (int)length, line);
            line += length + (line[length] == '\n');
        }
    }
}

/* ---- roff ---------------------------------------------------------------------------------- */

/* Text of a roff line: hyphens and backslashes escaped, line breaks become spaces, and a control
 * character at the beginning of the line is hidden. */
static void print_roff(FILE *out, const char *text, size_t length) {
    if (length > 0 && (text[0] == '.' || text[0] == '\'')) {
        (void)fputs("\\&", out);
    }
    for (size_t i = 0; i < length; i++) {
        switch (text[i]) {
        case '\\':
            (void)fputs("\\e", out);
            break;
        case '-':
            (void)fputs("\\-", out);
            break;
        case '\n':
            (void)fputc(' ', out);
            break;
        default:
            (void)fputc(text[i], out);
            break;
        }
    }
}

static void print_roff_string(FILE *out, const char *text) {
    print_roff(out, text, strlen(text));
}

static void print_option_roff(const ingot_cli_spec *spec, const ingot_cli_option *option,
                              FILE *out) {
    char help[HELP_BYTES];
    (void)fputs(".TP\n", out);
    if (option->letter != 0) {
        (void)fprintf(out, "\\fB\\-%c\\fR, ", option->letter);
    }
    (void)fputs("\\fB\\-\\-", out);
    print_roff_string(out, option->name);
    (void)fputs("\\fR", out);
    if (option->argument != NULL) {
        (void)fputs(" \\fI", out);
        print_roff_string(out, option->argument);
        (void)fputs("\\fR", out);
    }
    (void)fputc('\n', out);
    whole_help(help, sizeof help, spec, option);
    print_roff_string(out, help);
    (void)fputc('\n', out);
}

static void print_examples_roff(const char *examples, FILE *out) {
    (void)fputs(".SH EXAMPLES\n", out);
    for (const char *line = examples; *line != '\0';) {
        const size_t length = strcspn(line, "\n");
        const size_t blanks = strspn(line, " ");
        if (blanks < length) {
            if (blanks == 0) { /* a command; what it does follows, indented */
                (void)fputs(".TP\n\\fB", out);
            }
            print_roff(out, line + blanks, length - blanks);
            (void)fputs(blanks == 0 ? "\\fR\n" : "\n", out);
        }
        line += length + (line[length] == '\n');
    }
}

static void print_see_also_roff(const char *tool, FILE *out) {
    (void)fputs(".SH SEE ALSO\n", out);
    bool is_first = true;
    for (size_t i = 0; i < sizeof tools / sizeof tools[0]; i++) {
        if (strcmp(tools[i], tool) != 0) {
            (void)fputs(is_first ? "\\fB" : ",\n\\fB", out);
            print_roff_string(out, tools[i]);
            (void)fputs("\\fR(1)", out);
            is_first = false;
        }
    }
    (void)fputc('\n', out);
}

void ingot_cli_print_man(const ingot_cli_spec *spec, FILE *out) {
    (void)fputs(".TH ", out);
    for (const char *c = spec->tool; *c != '\0'; c++) {
        (void)fputc(*c >= 'a' && *c <= 'z' ? *c - 'a' + 'A' : *c, out);
    }
    (void)fprintf(out, " 1 \"\" \"Ingot %s\" \"User Commands\"\n.SH NAME\n", INGOT_VERSION);
    print_roff_string(out, spec->tool);
    (void)fputs(" \\- ", out);
    print_roff_string(out, spec->summary);
    (void)fputs("\n.SH SYNOPSIS\n\\fB", out);
    print_roff_string(out, spec->tool);
    (void)fputs("\\fR", out);
    if (spec->positional != NULL) {
        (void)fputs(" \\fI", out);
        print_roff_string(out, spec->positional);
        (void)fputs("\\fR", out);
    }
    (void)fputs(" [\\fIOPTION\\fR]...\n.SH DESCRIPTION\n", out);
    const char *text = spec->description != NULL ? spec->description : spec->summary;
    bool is_first = true;
    for (size_t length = next_paragraph(&text); length != 0; length = next_paragraph(&text)) {
        if (!is_first) {
            (void)fputs(".PP\n", out);
        }
        print_roff(out, text, length);
        (void)fputc('\n', out);
        text += length;
        is_first = false;
    }
    (void)fputs(".SH OPTIONS\n", out);
    for (size_t i = 0; i < spec->option_count + COMMON_COUNT; i++) {
        print_option_roff(spec, option_at(spec, i), out);
    }
    (void)fputs(".SH EXIT STATUS\n", out);
    for (size_t i = 0; i < sizeof exit_codes / sizeof exit_codes[0]; i++) {
        (void)fprintf(out, ".TP\n%s\n", exit_codes[i][0]);
        print_roff_string(out, exit_codes[i][1]);
        (void)fputc('\n', out);
    }
    if (spec->examples != NULL && spec->examples[0] != '\0') {
        print_examples_roff(spec->examples, out);
    }
    print_see_also_roff(spec->tool, out);
}

/* ---- figures ------------------------------------------------------------------------------- */

void ingot_format_bytes(char *text, size_t size, double bytes) {
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
    size_t unit = 0;
    /* 999.95 would be printed as 1000.0 */
    while (bytes >= (unit == 0 ? 999.5 : 999.95) && unit + 1 < sizeof units / sizeof units[0]) {
        bytes /= 1000.0;
        unit++;
    }
    (void)snprintf(text, size, "%.*f %s", unit == 0 ? 0 : 1, bytes, units[unit]);
}

void ingot_format_seconds(char *text, size_t size, double seconds) {
    if (!(seconds >= 0.0) || seconds > 1e12) {
        (void)snprintf(text, size, "?");
    } else if (seconds < 9.95) {
        (void)snprintf(text, size, "%.1fs", seconds);
    } else {
        const unsigned long long whole = (unsigned long long)(seconds + 0.5);
        if (whole < 60) {
            (void)snprintf(text, size, "%llus", whole);
        } else if (whole < 3600) {
            (void)snprintf(text, size, "%llum %02llus", whole / 60, whole % 60);
        } else {
            (void)snprintf(text, size, "%lluh %02llum", whole / 3600, whole % 3600 / 60);
        }
    }
}

void ingot_format_apart(char figure[INGOT_FIGURE_SIZE], char limit[INGOT_FIGURE_SIZE], double value,
                        double most, int digits) {
    do {
        (void)snprintf(figure, INGOT_FIGURE_SIZE, "%.*g", digits, value);
        (void)snprintf(limit, INGOT_FIGURE_SIZE, "%.*g", digits, most);
    } while (strcmp(figure, limit) == 0 && ++digits <= 17);
}
