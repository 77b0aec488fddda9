/* Block tuning (convert/tune.h) of random blocks on every device: the held-out error falls and is
 * what an FP64 forward pass over the stored values says, what comes out is what a container can
 * hold, a start that cannot be improved stays, and bytes depend on the seed, not on threads. */
#include "backend_devices.h"
#include "convert/tune.h"
#include "tiny_batch.h"

typedef struct setup {
    tiny_batch in;
    ingot_block block;
    ingot_quantized linear[INGOT_ROLE_COUNT]; /* the result, device */
    uint8_t *start[INGOT_ROLE_COUNT];         /* codes of plain rounding, host */
    ingot_tune_job job;
    ingot_tune_result result;
} setup;

static void quantize(setup *s, ingot_role role, ingot_quant_format format) {
    ingot_quantized *q = &s->linear[role];
    float *w;
    tiny_batch_round(&s->in, q, &w, &s->block, role, format);
    s->job.target[role] = w;
    s->start[role] = malloc(q->rows * q->cols);
    tiny_batch_read(&s->in, s->start[role], q->codes, q->rows * q->cols);
    s->job.linear[role] = q;
}

static void begin(setup *s, const ingot_backend *b, unsigned flags, ingot_quant_format format,
                  uint64_t seed) {
    memset(s, 0, sizeof *s);
    tiny_batch_begin(&s->in, b, flags, seed);
    CU_ASSERT_FATAL(ingot_block_load(&s->block, &s->in.t->model, 0, &s->in.t->source, b, s->in.host,
                                     NULL) == INGOT_OK);
    s->job = (ingot_tune_job){.loop = &s->in.loop, .batch = &s->in.batch, .block = &s->block};
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        if (s->in.t->model.linear[role].is_present) {
            quantize(s, (ingot_role)role, format);
        }
    }
}

static void tune(setup *s) {
    CU_ASSERT_FATAL(ingot_tune_block(&s->result, &s->job, NULL) == INGOT_OK);
}

static void end(setup *s) {
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        free(s->start[role]);
    }
    ingot_block_release(&s->block, s->in.b);
    tiny_batch_end(&s->in);
}

/* ---- what a container can hold ----------------------------------------------------------------
 */

/* The weights of the tiny model become those of the results; returns how many codes moved. */
static uint64_t put_results(setup *s) {
    uint64_t moved = 0;
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const ingot_quantized *q = &s->linear[role];
        char name[INGOT_NAME_SIZE];
        if (s->job.linear[role] == NULL) {
            continue;
        }
        uint8_t *codes = malloc(q->rows * q->cols), *zeros = malloc(q->rows * q->groups);
        float *scales = malloc(q->rows * q->groups * sizeof *scales);
        tiny_batch_read(&s->in, codes, q->codes, q->rows * q->cols);
        tiny_batch_read(&s->in, zeros, q->zeros, q->rows * q->groups);
        tiny_batch_read(&s->in, scales, q->scales, q->rows * q->groups * sizeof *scales);
        ingot_model_linear_name(&s->in.t->model, 0, (ingot_role)role, name);
        float *w = tiny_find(s->in.t, name)->data;
        for (uint64_t i = 0; i < q->rows * q->cols; i++) {
            const uint64_t at = i / q->cols * q->groups + i % q->cols / q->format.group;
            CU_ASSERT(codes[i] < 1u << q->format.bits);
            CU_ASSERT(ingot_scale_store(scales[at], q->format.scale_dtype) == scales[at]);
            CU_ASSERT(abs((int)codes[i] - (int)s->start[role][i]) <= 1);
            moved += codes[i] != s->start[role][i];
            w[i] = scales[at] * (float)((int)codes[i] - (int)zeros[at]);
        }
        free(codes);
        free(zeros);
        free(scales);
    }
    return moved;
}

/* A row as a norm without weights leaves it. */
static void normalize(const tiny_model *t, double *x) {
    const uint64_t n = t->model.hidden;
    double mean = 0, square = 0;
    for (uint64_t i = 0; t->model.norm == INGOT_NORM_LAYER && i < n; i++) {
        mean += x[i] / (double)n;
    }
    for (uint64_t i = 0; i < n; i++) {
        square += (x[i] - mean) * (x[i] - mean) / (double)n;
    }
    for (uint64_t i = 0; i < n; i++) {
        x[i] = (x[i] - mean) / sqrt(square + (double)t->model.norm_eps);
    }
}

/* Mean squared error on the judges in FP64, normalized: the results against the source, of the same
 * seed. */
static double judge(setup *s, unsigned flags) {
    tiny_model *source = tiny_create(flags, 7);
    const uint64_t hidden = source->model.hidden;
    const float *embed = tiny_find(source, source->model.embed_name)->data;
    double(*x)[TINY_MAX] = calloc(LENGTH, sizeof *x), (*y)[TINY_MAX] = calloc(LENGTH, sizeof *y);
    double weight[TINY_MAX], sum = 0;
    char name[INGOT_NAME_SIZE];
    const bool has_norm = ingot_model_norm_name(&source->model, 1, INGOT_SLOT_ATTENTION, name);
    for (uint64_t c = 0; c < hidden; c++) {
        weight[c] = has_norm ? (double)tiny_find(source, name)->data[c] : 1.0;
    }
    for (uint64_t window = WINDOWS - JUDGES; window < WINDOWS; window++) {
        for (uint64_t i = 0; i < LENGTH; i++) {
            for (uint64_t c = 0; c < hidden; c++) {
                x[i][c] = (double)embed[s->in.ids[window * LENGTH + i] * hidden + c] *
                          (double)source->model.embed_scale;
            }
        }
        memcpy(y, x, LENGTH * sizeof *x);
        tiny_ref_block(s->in.t, 0, x, LENGTH, NULL);
        tiny_ref_block(source, 0, y, LENGTH, NULL);
        for (uint64_t i = 0; i < LENGTH; i++) {
            normalize(source, x[i]);
            normalize(source, y[i]);
            for (uint64_t c = 0; c < hidden; c++) {
                const double error = weight[c] * (x[i][c] - y[i][c]);
                sum += error * error;
            }
        }
    }
    free(x);
    free(y);
    tiny_destroy(source);
    return sum / (double)(JUDGES * LENGTH * hidden);
}

static void check_tuning(const ingot_backend *b, unsigned flags, ingot_quant_format format) {
    setup s;
    begin(&s, b, flags, format, 1);
    tiny_batch_advance(&s.in, &s.block);
    tune(&s);
    CU_ASSERT(s.result.step > 0 && s.result.after < 0.75 * s.result.before);
    CU_ASSERT(put_results(&s) > 0);
    const double after = judge(&s, flags);
    printf("%.2f ", s.result.after / s.result.before);
    CU_ASSERT(fabs(after - s.result.after) <= (b->has_own_memory ? 2e-2 : 1e-4) * after);
    end(&s);
}

static void test_tuning(void) {
    for (unsigned d = 0; d < DEVICES; d++) {
        const ingot_backend *b = &devices[d].backend[0];
        if (!devices[d].is_open) {
            continue;
        }
        check_tuning(b, 0, (ingot_quant_format){3, 16, INGOT_ZERO_SYMMETRIC, INGOT_F16});
        check_tuning(b, TINY_QKV_BIAS | TINY_HEAD_NORMS | TINY_WINDOW,
                     (ingot_quant_format){4, 32, INGOT_ZERO_STORED, INGOT_BF16});
        check_tuning(b, TINY_LAYER_NORM | TINY_UNGATED | TINY_PARTIAL_ROTARY,
                     (ingot_quant_format){2, 7, INGOT_ZERO_STORED, INGOT_F16});
    }
}

/* ---- starts and seeds -------------------------------------------------------------------------
 */

static void copy_result(const setup *s, uint8_t *codes, float *scales) {
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const ingot_quantized *q = &s->linear[role];
        tiny_batch_read(&s->in, codes, q->codes, q->rows * q->cols);
        tiny_batch_read(&s->in, scales, q->scales, q->rows * q->groups * sizeof *scales);
        codes += q->rows * q->cols;
        scales += q->rows * q->groups;
    }
}

/* The first device whose memory is the host's; NULL where INGOT_TEST_SMALL leaves none. */
static const ingot_backend *host_backend(void) {
    for (unsigned d = 0; d < DEVICES; d++) {
        if (devices[d].is_open && !devices[d].backend[0].has_own_memory) {
            return &devices[d].backend[0];
        }
    }
    printf("\nSKIP: no cpu among the devices\n");
    return NULL;
}

/* With the quantized block's own output and a little noise as the target the start is right, and
 * every step leads away from it: codes and scales are the start's when learning is given up. */
static void test_start(void) {
    const ingot_quant_format format = {3, 16, INGOT_ZERO_SYMMETRIC, INGOT_F16};
    const ingot_backend *b = host_backend();
    setup s;
    if (b == NULL) {
        return;
    }
    begin(&s, b, 0, format, 1);
    ingot_block quantized = s.block;
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const ingot_quantized *q = &s.linear[role];
        float *values;
        CU_ASSERT_FATAL(ingot_arena_array(s.in.device, (void **)&values, q->rows, q->cols * 4) ==
                        0);
        CU_ASSERT(s.in.b->ops->quantized_values(s.in.b->context, values, q) == INGOT_OK);
        quantized.linear[role].data = values;
    }
    tiny_batch_advance(&s.in, &quantized);
    uint64_t weights = 0;
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        weights += s.linear[role].rows * s.linear[role].cols;
    }
    uint8_t *codes = malloc(2 * weights);
    float *scales = calloc(2 * weights, sizeof *scales); /* more than there are */
    copy_result(&s, codes, scales);
    for (uint64_t i = 0; i < TOKENS * s.in.t->model.hidden; i++) { /* on the cpu: host memory */
        s.in.batch.exact.values[i] += 1e-4f * ((float)(tiny_bits(s.in.t) % 201) / 100.0f - 1.0f);
    }
    tune(&s);
    copy_result(&s, codes + weights, scales + weights);
    CU_ASSERT(s.result.step == 0 && s.result.before > 0 && s.result.before < 1e-6 &&
              s.result.after == s.result.before);
    CU_ASSERT(memcmp(codes, codes + weights, weights) == 0);
    CU_ASSERT(memcmp(scales, scales + weights, weights * sizeof *scales) == 0);
    free(codes);
    free(scales);
    end(&s);
}

/* Fixed linears stay, whatever the others do. */
static void test_fixed(void) {
    const ingot_quant_format format = {3, 16, INGOT_ZERO_SYMMETRIC, INGOT_F16};
    const ingot_backend *b = host_backend();
    setup s;
    if (b == NULL) {
        return;
    }
    begin(&s, b, 0, format, 1);
    tiny_batch_advance(&s.in, &s.block);
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        s.job.is_fixed[role] = role != INGOT_ROLE_UP;
    }
    tune(&s);
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const ingot_quantized *q = &s.linear[role];
        uint8_t *codes = malloc(q->rows * q->cols);
        tiny_batch_read(&s.in, codes, q->codes, q->rows * q->cols);
        CU_ASSERT((memcmp(codes, s.start[role], q->rows * q->cols) == 0) == s.job.is_fixed[role]);
        free(codes);
    }
    end(&s);
}

static double error_of(const setup *s, ingot_role role) {
    double sums[2];
    CU_ASSERT_FATAL(s->in.b->ops->weight_error(s->in.b->context, sums, &s->block.linear[role], NULL,
                                               NULL, &s->linear[role], s->in.device) == INGOT_OK);
    return ingot_weight_error_ratio(sums);
}

/* Matrices of 8 bits among those of 2: gains that make up for the errors of these are further from
 * the source than 8 bits allow, and stay out; the others are tuned all the same. */
static void test_strays(void) {
    const ingot_backend *b = host_backend();
    ingot_linear_job made_by[INGOT_ROLE_COUNT];
    ingot_arena *scratch;
    setup s;
    if (b == NULL) {
        return;
    }
    begin(&s, b, 0, (ingot_quant_format){2, 16, INGOT_ZERO_SYMMETRIC, INGOT_F16}, 1);
    tiny_batch_advance(&s.in, &s.block);
    CU_ASSERT_FATAL(ingot_backend_arena_create(&scratch, b) == INGOT_OK);
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        if (role == INGOT_ROLE_V || role == INGOT_ROLE_GATE) {
            free(s.start[role]);
            quantize(&s, (ingot_role)role,
                     (ingot_quant_format){8, 16, INGOT_ZERO_SYMMETRIC, INGOT_F16});
        }
        made_by[role] = (ingot_linear_job){
            .backend = b, .source = &s.block.linear[role], .format = s.linear[role].format};
        s.job.made_by[role] = &made_by[role];
        CU_ASSERT_FATAL(ingot_linear_bound(&s.job.bound[role], &made_by[role], scratch, NULL) ==
                        INGOT_OK);
    }
    tune(&s);
    CU_ASSERT(s.result.step > 0 && s.result.after < s.result.before);
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        CU_ASSERT(error_of(&s, (ingot_role)role) <= s.job.bound[role]);
    }
    CU_ASSERT(put_results(&s) > 0);
    ingot_arena_destroy(scratch);
    end(&s);
}

static void test_seeds(void) {
    enum { RUNS = 3, CODES = 24 * 400, SCALES = 4000 };
    const ingot_quant_format format = {3, 16, INGOT_ZERO_SYMMETRIC, INGOT_F16};
    for (unsigned d = 0; d < DEVICES; d++) {
        uint8_t *codes[RUNS];
        float *scales[RUNS];
        for (unsigned i = 0; devices[d].is_open && i < RUNS; i++) {
            setup s;
            codes[i] = calloc(CODES, 1);
            scales[i] = calloc(SCALES, sizeof(float));
            begin(&s, &devices[d].backend[i == 0 ? 0 : 1], 0, format, i == 2 ? 2 : 1);
            tiny_batch_advance(&s.in, &s.block);
            tune(&s);
            copy_result(&s, codes[i], scales[i]);
            end(&s);
        }
        if (devices[d].is_open) {
            CU_ASSERT(memcmp(codes[0], codes[1], CODES) == 0);
            CU_ASSERT(memcmp(scales[0], scales[1], SCALES * sizeof(float)) == 0);
            CU_ASSERT(memcmp(codes[0], codes[2], CODES) != 0);
            for (unsigned i = 0; i < RUNS; i++) {
                free(codes[i]);
                free(scales[i]);
            }
        }
    }
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"devices", devices_open},
        {"the held-out error falls, as FP64 says", test_tuning},
        {"a start that is right stays", test_start},
        {"fixed linears stay", test_fixed},
        {"no matrix goes further from its source than its bits allow", test_strays},
        {"seeds and threads", test_seeds},
        {"closing", devices_close},
        CU_TEST_INFO_NULL,
    };
    return suite_run("tune", tests);
}
