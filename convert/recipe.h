/* What the user asks for: defaults, a recipe file, command-line options, and the setting of one
 * tensor that follows from them.  Format of the file: spec/recipe.md.
 *
 * Precedence: an option replaces the recipe's default of the same name, a recipe's default replaces
 * the built-in one; a rule of the recipe whose pattern matches the tensor's name is more specific
 * than all of them, and the last matching rule wins. */
#ifndef INGOT_RECIPE_H
#define INGOT_RECIPE_H

#include "common/json.h"
#include "format/ingot.h"

typedef enum ingot_choice {
    INGOT_CHOICE_DEFAULT, /* gptq with data, rtn without */
    INGOT_CHOICE_KEEP,    /* dense, as in the source */
    INGOT_CHOICE_RTN,
    INGOT_CHOICE_SEARCHED, /* --effort fast */
    INGOT_CHOICE_AWQ,
    INGOT_CHOICE_GPTQ,
    INGOT_CHOICE_AWQ_GPTQ
} ingot_choice;

typedef enum ingot_scale_choice {
    INGOT_SCALE_AUTO, /* F16; BF16 where F16 would lose precision or range */
    INGOT_SCALE_F16,
    INGOT_SCALE_BF16,
    INGOT_SCALE_F32
} ingot_scale_choice;

typedef enum ingot_effort {
    INGOT_EFFORT_DEFAULT,
    INGOT_EFFORT_FAST,
    INGOT_EFFORT_BEST
} ingot_effort;

/* Members of a setting, as bits of ingot_setting.given. */
enum {
    INGOT_GIVEN_METHOD = 1,
    INGOT_GIVEN_BITS = 2,
    INGOT_GIVEN_GROUP = 4,
    INGOT_GIVEN_SYMMETRIC = 8,
    INGOT_GIVEN_OUTLIERS = 16,
    INGOT_GIVEN_SCALE = 32
};

typedef struct ingot_setting {
    unsigned given; /* which members were asked for */
    ingot_choice method;
    unsigned bits;
    uint64_t group; /* 0: a row */
    bool is_symmetric;
    double outliers; /* fraction of the weights */
    ingot_scale_choice scale;
} ingot_setting;

/* Steps of GPTQ and of effort best that can be left out, to see what each gains. */
typedef struct ingot_steps {
    bool is_sequential;     /* statistics of an input once what comes before it is quantized */
    bool corrects;          /* targets make up for the drift of inputs, */
    bool corrects_residual; /* and of the residual stream */
    unsigned polish_rounds;
    bool tunes, distills; /* with effort best */
} ingot_steps;

typedef struct ingot_rule {
    char *pattern; /* shell pattern over the tensor's whole name */
    ingot_setting setting;
} ingot_rule;

/* Members of a recipe outside the setting, as bits of ingot_recipe.given. */
enum {
    INGOT_GIVEN_EFFORT = 1,
    INGOT_GIVEN_EMBED = 2,
    INGOT_GIVEN_HEAD = 4,
    INGOT_GIVEN_SAMPLES = 8,
    INGOT_GIVEN_LENGTH = 16,
    INGOT_GIVEN_SEED = 32,
    INGOT_GIVEN_TARGET = 64
};

typedef struct ingot_recipe {
    unsigned given;
    ingot_setting defaults;
    ingot_rule *rules;
    uint64_t rule_count;
    ingot_effort effort;
    ingot_steps steps;
    unsigned embed_bits, head_bits; /* 0: stay in the source's type */
    double target_bpw;              /* widths by sensitivity; 0: as stated */
    uint64_t samples, seq_len;      /* seq_len 0: min(2048, context) */
    uint64_t seed;
} ingot_recipe;

/* Built-in values, nothing given. */
void ingot_recipe_init(ingot_recipe *recipe);
void ingot_recipe_free(ingot_recipe *recipe);
/* Fills whatever is not given yet from a file. */
ingot_status ingot_recipe_read(ingot_recipe *recipe, const char *path,
                               ingot_error *error) INGOT_MUST_CHECK;
/* The same from text (file is for errors). */
ingot_status ingot_recipe_parse(ingot_recipe *recipe, const char *text, uint64_t size,
                                const char *file, ingot_error *error) INGOT_MUST_CHECK;
/* Whether a rule is about a tensor of that name. */
bool ingot_rule_matches(const ingot_rule *rule, const char *name);
/* The setting of a tensor by name, rules applied.  *is_named: a rule matched; `given` is what rules
 * gave, defaults left out. */
ingot_setting ingot_recipe_setting(const ingot_recipe *recipe, const char *name, bool *is_named);
/* Replaces the default method by what it stands for: searched scales with --effort fast, else gptq
 * with data and rtn without. */
void ingot_recipe_settle(ingot_recipe *recipe, bool has_data);
/* Whether calibration data is of any use to it: plain rounding and tensors that are kept need none.
 * By the recipe alone, so a rule counts whether or not a tensor has its name. */
bool ingot_recipe_uses_data(const ingot_recipe *recipe);
/* Contradictions between effort, method and what this version does. */
ingot_status ingot_recipe_check(const ingot_recipe *recipe, bool has_data,
                                ingot_error *error) INGOT_MUST_CHECK;

/* The recipe as it took effect, for provenance: integers and decimal strings only.  New
 * reference, NULL when out of memory. */
json_t *ingot_recipe_json(const ingot_recipe *recipe);

/* Parsers shared by options and files; file and what (an option or key) are for the error. */
ingot_status ingot_recipe_parse_method(ingot_setting *setting, const char *value, const char *file,
                                       ingot_error *error) INGOT_MUST_CHECK;
ingot_status ingot_recipe_parse_group(ingot_setting *setting, const char *value, const char *file,
                                      ingot_error *error) INGOT_MUST_CHECK;
ingot_status ingot_recipe_parse_effort(ingot_recipe *recipe, const char *value, const char *file,
                                       ingot_error *error) INGOT_MUST_CHECK;
const char *ingot_choice_name(ingot_choice choice);

#endif
