/* verify/: a container made here from the shipped model, then forged in one place at a time with
 * all digests right again, so that only recomputation can tell. */
#include "forge.h"
#include "suite.h"
#include "verify/verify.h"

/* ---- running -------------------------------------------------------------------------------- */

static char container_path[64];
static ingot_verify_options base_options(void) {
    return (ingot_verify_options){.path = container_path,
                                  .source_path = MODEL,
                                  .max_ppl_ratio = NAN,
                                  .max_kld = NAN,
                                  .max_accuracy_drop = NAN,
                                  .device = "cpu",
                                  .threads = 2,
                                  .is_silent = true};
}

/* Verifies what was built: expects this status, naming the tensor and the reason. */
static void expect_verdict(bool is_quick, ingot_status wanted, const char *tensor,
                           const char *reason) {
    ingot_verification v;
    ingot_verify_options options = base_options();
    options.is_quick = is_quick;
    const ingot_status status = ingot_verify_run(&v, &options);
    char text[INGOT_ERROR_TEXT_SIZE] = "";
    ingot_error_format(&v.error, text, sizeof text);
    const bool is_right = status == wanted && v.error.status == wanted &&
                          strcmp(v.error.tensor, tensor) == 0 &&
                          strstr(v.error.reason, reason) != NULL;
    if (!is_right) {
        (void)fprintf(stderr, "\n  got %s: %s\n  expected %s: %s: %s\n", ingot_status_code(status),
                      text, ingot_status_code(wanted), tensor, reason);
    }
    CU_ASSERT(is_right);
    CU_ASSERT_EQUAL(v.valid, wanted == INGOT_OK ? INGOT_VERDICT_YES : INGOT_VERDICT_NO);
    CU_ASSERT_EQUAL(v.source_verdict, wanted == INGOT_OK ? INGOT_VERDICT_YES : INGOT_VERDICT_NO);
    ingot_verification_close(&v);
}

/* The source is compared alike whether the full check came before or not. */
static void expect_forged(forger change, ingot_status wanted, const char *tensor,
                          const char *reason) {
    build(container_path, change);
    expect_verdict(false, wanted, tensor, reason);
    expect_verdict(true, wanted, tensor, reason);
}

static void break_meta(forge *f) {
    f->meta = "{\"tool\":\"test\"";
}
static void list_meta(forge *f) {
    f->meta = "[1]";
}
static void drop_meta(forge *f) {
    f->meta = "";
}

/* The reader does not look into META; the verifier does. */
static void test_meta(void) {
    const forger changes[] = {break_meta, list_meta, drop_meta};
    for (unsigned i = 0; i < 3; i++) {
        ingot_verification v;
        ingot_verify_options options = base_options();
        build(container_path, changes[i]);
        CU_ASSERT_EQUAL(ingot_verify_run(&v, &options), INGOT_BAD_META);
        CU_ASSERT_EQUAL(v.valid, INGOT_VERDICT_NO);
        json_t *object = ingot_verify_report_json(&v);
        CU_ASSERT_PTR_NOT_NULL(object);
        json_decref(object);
        ingot_verification_close(&v);
    }
}

static void expect_failure(forger change, const char *tensor, const char *reason) {
    expect_forged(change, INGOT_FAIL_SOURCE, tensor, reason);
}

/* ---- honest containers ---------------------------------------------------------------------- */

static void test_honest(void) {
    expect_forged(NULL, INGOT_OK, "", "");
}

static float fold_scales[HIDDEN], inverse_scales[HIDDEN], folded_norm[HIDDEN];
static float row_scales[HIDDEN], row_inverse[HIDDEN];

/* The norm before q, k, v of layer 1 takes a fold, and so do v and o. The model has 4 heads on 2
 * key heads of 64: column c of o is fed by row c / 128 * 64 + c % 64 of v. */
static void apply_folds(forge *f) {
    uint64_t seed = 20261124;
    const ingot_weight_view norm = source_view(f, NORM_NAME);
    float values[HIDDEN];
    ingot_convert_to_f32(values, norm.data, norm.dtype, HIDDEN);
    for (unsigned i = 0; i < HIDDEN; i++) {
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
        fold_scales[i] = 0.25f + (float)(seed >> 40) / (float)(1 << 24);
        inverse_scales[i] = 1.0f / fold_scales[i];
        folded_norm[i] = values[i] / fold_scales[i];
    }
    for (unsigned i = 0; i < HIDDEN; i++) { /* o's columns: the same for heads that share */
        row_scales[i] = fold_scales[i / 128 * 64 + i % 64];
    }
    for (unsigned i = 0; i < 128; i++) {
        row_inverse[i] = 1.0f / fold_scales[i];
    }
    const uint64_t norm_slot = index_of(f, NORM_NAME);
    f->specs[norm_slot].dtype = f->views[norm_slot].dtype = INGOT_F32;
    f->views[norm_slot].data = folded_norm;
    const char *const names[] = {Q_NAME, K_NAME, V_NAME, O_NAME};
    for (unsigned i = 0; i < 4; i++) {
        const ingot_weight_view view = source_view(f, names[i]);
        quantize(f, index_of(f, names[i]), &view, i == 2 ? row_inverse : NULL,
                 i == 3 ? row_scales : fold_scales);
    }
    add_vector(f, Q_NAME "#fold", fold_scales, HIDDEN);
    add_alias(f, K_NAME "#fold", Q_NAME "#fold");
    add_alias(f, V_NAME "#fold", Q_NAME "#fold");
    add_vector(f, V_NAME "#rowfold", row_inverse, 128);
    add_vector(f, O_NAME "#fold", row_scales, HIDDEN);
}

static void test_folded(void) {
    expect_forged(apply_folds, INGOT_OK, "", "");
}

/* ---- lies ----------------------------------------------------------------------------------- */

static void lie_weight_error(forge *f) {
    f->ledgers[index_of(f, Q_NAME)].weight_error *= 0.999;
}
static void lie_baseline(forge *f) {
    f->ledgers[index_of(f, Q_NAME)].weight_error_rtn *= 1.5;
}
static void lie_nan(forge *f) {
    f->ledgers[index_of(f, Q_NAME)].weight_error = NAN;
}
static void lie_digest(forge *f) {
    f->ledgers[index_of(f, Q_NAME)].source_digest[3] ^= 1;
}
static void lie_dense_digest(forge *f) {
    f->ledgers[index_of(f, NORM_NAME)].source_digest[15] ^= 0x80;
}

static void lie_method(forge *f) {
    f->ledgers[index_of(f, Q_NAME)].method = INGOT_METHOD_COPY;
}
static void lie_dense_method(forge *f) {
    f->ledgers[index_of(f, NORM_NAME)].method = INGOT_METHOD_GPTQ;
}
static void lie_outliers(forge *f) {
    f->ledgers[index_of(f, Q_NAME)].outliers = 7;
}
static void lie_folded(forge *f) {
    f->ledgers[index_of(f, Q_NAME)].is_folded = true;
}

/* The codes of the last row, which the ledger was not told about. */
static void change_codes(forge *f) {
    const uint64_t slot = index_of(f, Q_NAME);
    const ingot_weight_view *view = &f->views[slot];
    const uint64_t size = view->rows * view->row_stride_bytes;
    uint8_t *codes = room(f, size);
    memcpy(codes, view->codes, size);
    codes[size - view->row_stride_bytes] ^= 0x0f;
    f->views[slot].codes = codes;
}

/* Zeros everywhere, and a ledger that says so truthfully: only the bound is left. */
static void store_zeros(forge *f) {
    const uint64_t slot = index_of(f, Q_NAME);
    ingot_weight_view *view = &f->views[slot];
    uint8_t *codes = room(f, view->rows * view->row_stride_bytes);
    memset(codes, 0x88, view->rows * view->row_stride_bytes);
    view->codes = codes;
    f->ledgers[slot].weight_error = 1;
}

/* Every code one too high, as a reader and a writer that disagree about the zero point. */
static void shift_zero_point(forge *f) {
    const uint64_t slot = index_of(f, Q_NAME);
    ingot_weight_view *view = &f->views[slot];
    const ingot_weight_view source = source_view(f, Q_NAME);
    const uint64_t size = view->rows * view->row_stride_bytes;
    uint8_t *codes = room(f, size);
    for (uint64_t i = 0; i < size; i++) { /* plain rounding leaves code 0 unused: no overflow */
        const unsigned low = view->codes[i] & 15u, high = view->codes[i] >> 4;
        codes[i] = (uint8_t)((low - 1) | (high - 1) << 4);
    }
    view->codes = codes;
    must(ingot_weight_error(&f->ledgers[slot].weight_error, &source, NULL, NULL, view, NULL), NULL);
}

static void change_norm(forge *f) {
    const uint64_t slot = index_of(f, NORM_NAME);
    uint16_t *values = room(f, HIDDEN * sizeof *values);
    memcpy(values, f->views[slot].data, HIDDEN * sizeof *values);
    values[200] ^= 1;
    f->views[slot].data = values;
}

static void drop_tensor(forge *f) {
    /* the last but the alias */
    const uint64_t slot = f->count - 2;
    f->specs[slot] = f->specs[slot + 1];
    f->ledgers[slot] = f->ledgers[slot + 1];
    f->count--;
}

static void add_tensor(forge *f) {
    static const float values[8] = {0};
    add_vector(f, "model.extra.weight", values, 8);
    f->specs[f->count - 1].kind = INGOT_DENSE;
}

static void transpose_shape(forge *f) {
    const uint64_t slot = index_of(f, "model.norm.weight");
    f->specs[slot].rank = 2;
    f->specs[slot].dim[0] = 1;
    f->specs[slot].dim[1] = HIDDEN;
}

static void store_as_f32(forge *f) {
    const uint64_t slot = index_of(f, NORM_NAME);
    float *values = room(f, HIDDEN * sizeof *values);
    ingot_convert_to_f32(values, f->views[slot].data, f->views[slot].dtype, HIDDEN);
    f->specs[slot].dtype = f->views[slot].dtype = INGOT_F32;
    f->views[slot].data = values;
}

static void change_file(forge *f) {
    for (uint64_t i = 0; i < f->file_count; i++) {
        if (strcmp(f->files[i].name, "tokenizer_config.json") == 0) {
            char *bytes = room(f, f->files[i].size);
            memcpy(bytes, f->files[i].bytes, f->files[i].size);
            bytes[f->files[i].size - 2] ^= 1;
            f->files[i].bytes = bytes;
        }
    }
}
static void drop_file(forge *f) {
    f->file_count--;
}
static void add_file(forge *f) {
    f->files[f->file_count++] = (ingot_file_spec){"zzz.txt", "extra", 5};
}

static void test_lies(void) {
    expect_failure(lie_weight_error, Q_NAME, "the ledger says");
    expect_failure(lie_baseline, Q_NAME, "plain rounding has weight error");
    expect_failure(lie_nan, Q_NAME, "the ledger says");
    expect_failure(lie_digest, Q_NAME, "digest");
    expect_failure(lie_dense_digest, NORM_NAME, "digest");
    expect_failure(change_codes, Q_NAME, "the ledger says");
    expect_failure(lie_method, Q_NAME, "is quantized, the ledger says method copy");
    expect_failure(lie_dense_method, NORM_NAME, "is dense, the ledger says method gptq");
    expect_failure(lie_outliers, Q_NAME, "has 0 outliers, the ledger says 7");
    expect_failure(lie_folded, Q_NAME, "is not folded, the ledger says folded");
}

static void test_bound(void) {
    expect_failure(shift_zero_point, Q_NAME, "over the bound");
    expect_failure(store_zeros, Q_NAME, "over the bound");
}

static void test_tensors(void) {
    expect_failure(change_norm, NORM_NAME, "differs from the source at element 200");
    expect_failure(drop_tensor, "model.norm.weight", "the container lacks a tensor");
    expect_failure(add_tensor, "model.extra.weight", "the source has no such tensor");
    expect_failure(transpose_shape, "model.norm.weight", "another shape");
    expect_failure(store_as_f32, NORM_NAME, "stored as F32, expected F16");
}

static void test_files(void) {
    expect_failure(change_file, "", "differs from the source in the file 'tokenizer_config.json'");
    expect_failure(drop_file, "", "the container lacks the file");
    expect_failure(add_file, "", "the source has no file 'zzz.txt'");
}

/* ---- lies about folds ------------------------------------------------------------------------ */

static void fold_without_norm(forge *f) {
    apply_folds(f);
    folded_norm[17] *= 1.0001f;
}
static void fold_of_one_consumer(forge *f) {
    static float other[HIDDEN];
    apply_folds(f);
    memcpy(other, fold_scales, sizeof other);
    other[5] *= 2;
    const uint64_t slot = index_of(f, K_NAME "#fold");
    const ingot_weight_view view = source_view(f, K_NAME);
    f->specs[slot] = (ingot_tensor_spec){.name = K_NAME "#fold",
                                         .kind = INGOT_AUXILIARY,
                                         .rank = 1,
                                         .dim = {HIDDEN},
                                         .dtype = INGOT_F32};
    f->views[slot] = (ingot_weight_view){
        .kind = INGOT_DENSE, .rows = 1, .cols = HIDDEN, .dtype = INGOT_F32, .data = other};
    quantize(f, index_of(f, K_NAME), &view, NULL, other); /* an honest ledger */
}
static void fold_that_does_not_cancel(forge *f) {
    apply_folds(f);
    row_scales[130] *= 1.001f;
    const ingot_weight_view view = source_view(f, O_NAME);
    quantize(f, index_of(f, O_NAME), &view, NULL, row_scales);
}
static void fold_of_zero(forge *f) {
    apply_folds(f);
    row_scales[1] = 0;
    const ingot_weight_view view = source_view(f, O_NAME);
    quantize(f, index_of(f, O_NAME), &view, NULL, row_scales);
}
static void fold_unexplained(forge *f) {
    static const float ones[HIDDEN] = {1};
    add_vector(f, "model.norm.weight#fold", ones, HIDDEN);
}
static void fold_too_short(forge *f) {
    static float ones[HIDDEN];
    for (unsigned i = 0; i < HIDDEN; i++) {
        ones[i] = 1;
    }
    add_vector(f, O_NAME "#fold", ones, HIDDEN - 1);
}

static void test_folds(void) {
    expect_failure(fold_without_norm, NORM_NAME, "the folded source has");
    expect_failure(fold_of_one_consumer, K_NAME "#fold", "different fold scales");
    expect_failure(fold_that_does_not_cancel, O_NAME "#fold", "do not cancel");
    expect_failure(fold_of_zero, O_NAME "#fold", "zero or not finite");
    expect_failure(fold_unexplained, "model.norm.weight#fold", "no fold of the model explains");
    expect_failure(fold_too_short, O_NAME "#fold", "no fold of the model explains");
}

/* ---- the bound on its own -------------------------------------------------------------------- */

/* Plain rounding of anything lies under the bound, whatever the width, group and zero mode; half a
 * step per weight is its worst case, the bound allows one. */
static void test_bound_of_rounding(void) {
    enum { ROWS = 6, COLS = 200 };
    uint64_t seed = (uint64_t)getpid() * 2654435761u + 1;
    (void)fprintf(stderr, " seed %llu ", (unsigned long long)seed);
    ingot_arena *arena;
    must(ingot_arena_create(&arena), NULL);
    for (unsigned trial = 0; trial < 84; trial++) {
        const uint64_t groups[] = {32, 128, COLS};
        const ingot_quant_format format = {2 + trial % 7, groups[trial / 7 % 3],
                                           trial / 21 % 2 == 0 ? INGOT_ZERO_SYMMETRIC
                                                               : INGOT_ZERO_STORED,
                                           trial / 42 == 0 ? INGOT_F16 : INGOT_BF16};
        float w[ROWS * COLS];
        for (unsigned i = 0; i < ROWS * COLS; i++) {
            seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
            const double u = (double)(seed >> 11) * 0x1p-53 - 0.5;
            w[i] = (float)(0.1 * u * u * u * (i % 97 == 0 ? 40 : 1)); /* heavy tails */
        }
        ingot_arena_reset(arena);
        ingot_quantized q;
        double error;
        const ingot_weight_view source = {
            .kind = INGOT_DENSE, .rows = ROWS, .cols = COLS, .dtype = INGOT_F32, .data = w};
        const ingot_tensor tensor = {.cols = COLS,
                                     .bits = format.bits,
                                     .group = format.group,
                                     .zero_mode = format.zero_mode,
                                     .scale_dtype = format.scale_dtype};
        must(ingot_quantized_create(&q, ROWS, COLS, &format, arena), NULL);
        ingot_quantize_rtn(&q, w, NULL);
        must(ingot_quantized_weight_error(&error, &source, NULL, NULL, &q, NULL), NULL);
        ingot_bound_sums sums = {0};
        ingot_bound_add(&sums, &tensor, w, 2); /* in tiles, as the check does */
        ingot_bound_add(&sums, &tensor, w + 2 * COLS, ROWS - 2);
        const double bound = ingot_bound_value(&sums);
        CU_ASSERT(bound <= 1);
        CU_ASSERT(error < bound);
        CU_ASSERT(bound == 1 || error < 0.75 * bound);
    }
    ingot_arena_destroy(arena);
    const ingot_bound_sums none = {0};
    CU_ASSERT_DOUBLE_EQUAL(ingot_bound_value(&none), 0, 0);
}

/* ---- options, gates, report ------------------------------------------------------------------ */

static void test_options(void) {
    const char *texts[] = {MODEL "/evaluation.txt"};
    ingot_error error = {0};
    ingot_verify_options options = base_options();
    CU_ASSERT_EQUAL(ingot_verify_check_options(&options, &error), INGOT_OK);
    options.max_kld = 0.1;
    CU_ASSERT_EQUAL(ingot_verify_check_options(&options, &error), INGOT_ERR_USAGE);
    CU_ASSERT_PTR_NOT_NULL(strstr(error.reason, "--max-kld"));
    options.text_paths = texts;
    options.text_count = 1;
    CU_ASSERT_EQUAL(ingot_verify_check_options(&options, &error), INGOT_OK);
    options.source_path = NULL;
    CU_ASSERT_EQUAL(ingot_verify_check_options(&options, &error), INGOT_ERR_USAGE);
    options.max_kld = NAN;
    options.max_ppl_ratio = 1.1;
    CU_ASSERT_EQUAL(ingot_verify_check_options(&options, &error), INGOT_ERR_USAGE);
    CU_ASSERT_PTR_NOT_NULL(strstr(error.reason, "--max-ppl-ratio"));
    options = base_options();
    options.windows = 4;
    CU_ASSERT_EQUAL(ingot_verify_check_options(&options, &error), INGOT_ERR_USAGE);
}

static ingot_status gates(double ratio, double kld, double max_ratio, double max_kld,
                          ingot_verdict verdict) {
    ingot_verification v;
    ingot_verify_options options = base_options();
    options.max_ppl_ratio = max_ratio;
    options.max_kld = max_kld;
    ingot_verification_init(&v, &options);
    v.score.ppl_ratio = ratio;
    v.score.kld_mean = kld;
    const ingot_status status = ingot_verify_gates(&v);
    CU_ASSERT_EQUAL(v.gates_passed, verdict);
    ingot_verification_close(&v);
    return status;
}

static void test_gates(void) {
    CU_ASSERT_EQUAL(gates(1.1, 0.1, NAN, NAN, INGOT_VERDICT_NONE), INGOT_OK);
    CU_ASSERT_EQUAL(gates(1.1, 0.1, 1.1, NAN, INGOT_VERDICT_YES), INGOT_OK);
    CU_ASSERT_EQUAL(gates(1.1, 0.1, 1.09, NAN, INGOT_VERDICT_NO), INGOT_FAIL_GATE);
    CU_ASSERT_EQUAL(gates(1.1, 0.1, NAN, 0.1, INGOT_VERDICT_YES), INGOT_OK);
    CU_ASSERT_EQUAL(gates(1.1, 0.1, 1.2, 0.09, INGOT_VERDICT_NO), INGOT_FAIL_GATE);
    CU_ASSERT_EQUAL(gates(NAN, 0.1, 1.2, NAN, INGOT_VERDICT_NO), INGOT_FAIL_GATE);
    CU_ASSERT_EQUAL(gates(1.1, NAN, NAN, 0.1, INGOT_VERDICT_NO), INGOT_FAIL_GATE);
}

static void expect_keys(const json_t *object) {
    static const char *const keys[] = {"valid",
                                       "gates_passed",
                                       "error",
                                       "error_text",
                                       "error_tensor",
                                       "tool",
                                       "version",
                                       "file",
                                       "level",
                                       "format_version",
                                       "root",
                                       "content_id",
                                       "bytes",
                                       "shards",
                                       "compressed",
                                       "parameters",
                                       "model",
                                       "meta",
                                       "quantized_weights",
                                       "bits_per_weight",
                                       "source",
                                       "source_equal",
                                       "source_bytes",
                                       "source_checked",
                                       "source_failures",
                                       "source_differences",
                                       "text",
                                       "text_digest",
                                       "text_tokens",
                                       "seq_len",
                                       "windows",
                                       "positions",
                                       "perplexity",
                                       "source_perplexity",
                                       "ppl_ratio",
                                       "kld_mean",
                                       "kld_p99",
                                       "top1",
                                       "max_ppl_ratio",
                                       "max_kld",
                                       "tasks",
                                       "tasks_digest",
                                       "task_items",
                                       "accuracy",
                                       "source_accuracy",
                                       "accuracy_drop",
                                       "accuracy_drop_low",
                                       "accuracy_drop_high",
                                       "answers_lost",
                                       "answers_gained",
                                       "answers_changed",
                                       "max_accuracy_drop",
                                       "backend",
                                       "seconds",
                                       "kinds",
                                       "tensors"};
    const size_t count = sizeof keys / sizeof *keys;
    for (size_t i = 0; i < count; i++) {
        if (json_object_get(object, keys[i]) == NULL) {
            (void)fprintf(stderr, "\n  no key %s\n", keys[i]);
        }
        CU_ASSERT_PTR_NOT_NULL(json_object_get(object, keys[i]));
    }
    CU_ASSERT_EQUAL(json_object_size(object), count);
}

static const char *error_code(const json_t *object) {
    const char *text = json_string_value(json_object_get(object, "error"));
    return text == NULL ? "" : text;
}

static void test_json(void) {
    ingot_verification v;
    ingot_verify_options options = base_options();

    ingot_verification_init(&v, &options); /* a command line that was wrong */
    json_t *object = ingot_verify_report_json(&v);
    expect_keys(object);
    CU_ASSERT(json_is_null(json_object_get(object, "valid")));
    CU_ASSERT(json_is_null(json_object_get(object, "tensors")));
    json_decref(object);
    ingot_verification_close(&v);

    options.path = "no-such-file.ingot";
    CU_ASSERT_EQUAL(ingot_verify_run(&v, &options), INGOT_ERR_NOT_FOUND);
    object = ingot_verify_report_json(&v);
    expect_keys(object);
    CU_ASSERT_STRING_EQUAL(error_code(object), "E_NOT_FOUND");
    CU_ASSERT(json_is_null(json_object_get(object, "valid")));
    json_decref(object);
    ingot_verification_close(&v);

    options.path = MODEL "/config.json"; /* there, but no container */
    CU_ASSERT_EQUAL(ingot_verify_run(&v, &options), INGOT_BAD_MAGIC);
    object = ingot_verify_report_json(&v);
    expect_keys(object);
    CU_ASSERT(json_is_false(json_object_get(object, "valid")));
    json_decref(object);
    ingot_verification_close(&v);

    build(container_path, change_codes);
    options.path = container_path;
    CU_ASSERT_EQUAL(ingot_verify_run(&v, &options), INGOT_FAIL_SOURCE);
    object = ingot_verify_report_json(&v);
    expect_keys(object);
    CU_ASSERT_STRING_EQUAL(error_code(object), ingot_status_code(INGOT_FAIL_SOURCE));
    CU_ASSERT(json_is_false(json_object_get(object, "valid")));
    CU_ASSERT(json_is_false(json_object_get(object, "source_equal")));
    CU_ASSERT_EQUAL(json_array_size(json_object_get(object, "tensors")), v.tensor_count);
    json_decref(object);
    ingot_verification_close(&v);
}

/* A figure that is over its gate in the last digit is told apart from it. */
static void test_near_gate(void) {
    ingot_verification v;
    ingot_verify_options options = base_options();
    options.max_kld = 0.1;
    ingot_verification_init(&v, &options);
    v.score.kld_mean = nextafter(0.1, 1);
    CU_ASSERT_EQUAL(ingot_verify_gates(&v), INGOT_FAIL_GATE);
    CU_ASSERT_STRING_EQUAL(v.error.reason, "mean KL divergence is 0.10000000000000002 nats, over "
                                           "the gate of 0.10000000000000001");
    v.score.kld_mean = 0.25;
    CU_ASSERT_EQUAL(ingot_verify_gates(&v), INGOT_FAIL_GATE);
    CU_ASSERT_STRING_EQUAL(v.error.reason, "mean KL divergence is 0.25 nats, over the gate of 0.1");
    ingot_verification_close(&v);
}

/* Perplexities beyond a binary64, a gate below every accuracy: the page has no number that is none,
 * and nothing outside its charts. */
static void test_page_limits(void) {
    ingot_verification v;
    ingot_verify_options options = base_options();
    ingot_error error = {0};
    ingot_task_answer answer = {0};
    char path[80], *page = NULL;
    uint64_t size;
    options.max_ppl_ratio = 2;
    options.max_accuracy_drop = 0.5;
    options.tasks_path = "items.jsonl";
    ingot_verification_init(&v, &options);
    v.score = (ingot_score){1, INFINITY, INFINITY, 3, 1e300, 1e300, 0.5};
    v.task_score.answers = &answer;
    v.task_score.accuracy = v.task_score.source_accuracy = 0.25;
    (void)snprintf(path, sizeof path, "%s.limits.html", container_path);
    CU_ASSERT_EQUAL(ingot_verify_report_html(&v, path, &error), INGOT_OK);
    CU_ASSERT_FATAL(ingot_file_read_all(path, 1 << 24, &page, &size, &error) == INGOT_OK);
    CU_ASSERT_PTR_NULL(strstr(page, "nan\""));
    CU_ASSERT_PTR_NULL(strstr(page, "=\"-"));
    CU_ASSERT_PTR_NOT_NULL(strstr(page, "perplexity of the container: inf"));
    CU_ASSERT_PTR_NOT_NULL(strstr(page, "nats: 1e+300<"));
    ingot_free(page);
    (void)unlink(path);
    v.task_score.answers = NULL;
    ingot_verification_close(&v);
}

/* The whole way, with a text: the figures are there, and gates decide by them. */
static void test_text(void) {
    const char *texts[] = {MODEL "/evaluation.txt"};
    ingot_verification v;
    ingot_verify_options options = base_options();
    options.text_paths = texts;
    options.text_count = 1;
    options.windows = 1;
    options.seq_len = 128;
    options.max_ppl_ratio = 2;
    options.max_kld = 1e-6;
    build(container_path, NULL);
    CU_ASSERT_EQUAL(ingot_verify_run(&v, &options), INGOT_FAIL_GATE);
    CU_ASSERT_EQUAL(v.valid, INGOT_VERDICT_YES);
    CU_ASSERT_EQUAL(v.gates_passed, INGOT_VERDICT_NO);
    CU_ASSERT_PTR_NOT_NULL(strstr(v.error.reason, "KL"));
    CU_ASSERT_EQUAL(v.score.positions, 127);
    CU_ASSERT(v.score.perplexity > 1 && v.score.perplexity < 200);
    CU_ASSERT(v.score.kld_mean > 0 && v.score.kld_mean < 1);
    json_t *object = ingot_verify_report_json(&v);
    expect_keys(object);
    CU_ASSERT(json_is_true(json_object_get(object, "valid")));
    CU_ASSERT(json_is_false(json_object_get(object, "gates_passed")));
    json_decref(object);

    char html_path[80];
    ingot_error error = {0};
    (void)snprintf(html_path, sizeof html_path, "%s.html", container_path);
    CU_ASSERT_EQUAL(ingot_verify_report_html(&v, html_path, &error), INGOT_OK);
    char *page = NULL;
    uint64_t size;
    CU_ASSERT_EQUAL(ingot_file_read_all(html_path, 1 << 24, &page, &size, &error), INGOT_OK);
    CU_ASSERT_PTR_NOT_NULL(strstr(page, "valid, but over a gate"));
    CU_ASSERT_PTR_NOT_NULL(strstr(page, "class=\"path stored\""));
    CU_ASSERT_PTR_NOT_NULL(strstr(page, Q_NAME));
    CU_ASSERT_PTR_NULL(strstr(page, "<script"));
    CU_ASSERT_PTR_NULL(strstr(page, "href="));
    CU_ASSERT_PTR_NULL(strstr(page, "src="));
    ingot_free(page);
    (void)unlink(html_path);
    ingot_verification_close(&v);
}

static void become_state(forge *f) {
    f->profile = INGOT_PROFILE_STATE;
}

/* Ends with this status before the full check has begun, or after the source stage said no. */
static void expect_end(forger change, const ingot_verify_options *options, ingot_status wanted) {
    const bool is_verdict = wanted == INGOT_FAIL_SOURCE;
    ingot_verification v;
    build(container_path, change);
    CU_ASSERT_EQUAL(ingot_verify_run(&v, options), wanted);
    CU_ASSERT_EQUAL(v.valid, is_verdict ? INGOT_VERDICT_NO : INGOT_VERDICT_NONE);
    CU_ASSERT_EQUAL(isnan(v.full_seconds), !is_verdict);
    json_t *object = ingot_verify_report_json(&v);
    expect_keys(object);
    CU_ASSERT(json_is_null(json_object_get(object, "windows")));
    CU_ASSERT(json_is_null(json_object_get(object, "backend")));
    json_decref(object);
    ingot_verification_close(&v);
}

/* What a later stage cannot use is told before the long ones; but a container that lacks what its
 * source has does not come from it. */
static void test_refused_early(void) {
    const char *texts[] = {MODEL "/config.json"};
    ingot_verify_options options = base_options();
    expect_end(become_state, &options, INGOT_ERR_UNSUPPORTED);
    options.text_paths = texts;
    options.text_count = 1;
    options.seq_len = 100000;
    expect_end(NULL, &options, INGOT_ERR_INPUT);
    options.seq_len = 16;
    expect_end(drop_tensor, &options, INGOT_FAIL_SOURCE);
    options.source_path = NULL;
    expect_end(drop_tensor, &options, INGOT_ERR_INPUT);
}

int main(void) {
    (void)snprintf(container_path, sizeof container_path, "/tmp/ingot-test-verify-%d.ingot",
                   (int)getpid());
    static const CU_TestInfo tests[] = {
        {"an honest container", test_honest},
        {"an honest container with folds", test_folded},
        {"a ledger that lies", test_lies},
        {"a truthful ledger of nonsense", test_bound},
        {"plain rounding stays under the bound", test_bound_of_rounding},
        {"tensors changed, missing, extra", test_tensors},
        {"files changed, missing, extra", test_files},
        {"folds that do not cancel", test_folds},
        {"META that is no object", test_meta},
        {"contradictory options", test_options},
        {"gates", test_gates},
        {"a gate missed by the last digit", test_near_gate},
        {"a page of figures without bounds", test_page_limits},
        {"every key on every outcome", test_json},
        {"a text, gates and the page", test_text},
        {"what is refused before the full check", test_refused_early},
        CU_TEST_INFO_NULL,
    };
    const int result = suite_run("verify", tests);
    (void)unlink(container_path);
    return result;
}
