/* Distillation (convert/distill.h) of random models on every device: the divergence on held-out
 * windows falls and is what an FP64 forward pass over the stored values says, codes, fixed and
 * stray matrices stay, and bytes depend on the seed, not on threads. */
#include "backend_devices.h"
#include "convert/distill.h"
#include "tiny_batch.h"

#define LAYERS 3u

typedef struct setup {
    tiny_batch in; /* the weights of its model become the stored ones */
    ingot_quantized linear[LAYERS][INGOT_ROLE_COUNT]; /* device: start, then result */
    int codes_move;                                   /* 0 or 1 */
    bool is_fixed[INGOT_ROLE_COUNT], is_dense[INGOT_ROLE_COUNT], is_wide[INGOT_ROLE_COUNT];
    double allowed; /* of three times the error of rounding */
    double bound[LAYERS][INGOT_ROLE_COUNT];
    ingot_distill *distill;
    ingot_distill_result result;
} setup;

static double error_of(const setup *s, const ingot_weight_view *source, const ingot_quantized *q) {
    double sums[2];
    CU_ASSERT_FATAL(s->in.b->ops->weight_error(s->in.b->context, sums, source, NULL, NULL, q,
                                               s->in.device) == INGOT_OK);
    return ingot_weight_error_ratio(sums);
}

static void keep_linear(setup *s, const ingot_block *block, ingot_role role,
                        ingot_quant_format format) {
    ingot_quantized *q = &s->linear[block->layer][role];
    float *w;
    format.bits = s->is_wide[role] ? 8 : format.bits;
    tiny_batch_round(&s->in, q, &w, block, role, format);
    s->bound[block->layer][role] = 3 * s->allowed * error_of(s, &block->linear[role], q);
    CU_ASSERT_FATAL(ingot_distill_keep_matrix(s->distill, block->layer, role, q,
                                              s->bound[block->layer][role], s->is_fixed[role],
                                              false) == INGOT_OK);
}

/* What the block loop does: matrices, then the block they are in; the exact states advance. */
static void keep_blocks(setup *s, ingot_quant_format format) {
    for (uint64_t at = 0; at < LAYERS; at++) {
        ingot_block block;
        CU_ASSERT_FATAL(ingot_block_load(&block, &s->in.t->model, at, &s->in.t->source, s->in.b,
                                         s->in.host, NULL) == INGOT_OK);
        for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
            if (s->in.t->model.linear[role].is_present && !s->is_dense[role]) {
                keep_linear(s, &block, (ingot_role)role, format);
            }
        }
        CU_ASSERT_FATAL(ingot_distill_keep_block(s->distill, &block) == INGOT_OK);
        tiny_batch_advance(&s->in, &block);
        CU_ASSERT_FATAL(s->in.b->ops->wait(s->in.b->context) == INGOT_OK);
        ingot_block_release(&block, s->in.b);
    }
}

static void begin(setup *s, const ingot_backend *b, unsigned flags, uint64_t seed,
                  uint64_t codes_most) {
    memset(s, 0, sizeof *s);
    tiny_batch_begin(&s->in, b, flags, seed);
    s->allowed = 1;
    CU_ASSERT_FATAL(s->in.t->model.layers == LAYERS);
    CU_ASSERT_FATAL(ingot_distill_create(&s->distill, &s->in.loop, codes_most) == INGOT_OK);
}

static void run(setup *s) {
    CU_ASSERT_FATAL(ingot_distill_run(&s->result, s->distill, &s->in.batch, NULL) == INGOT_OK);
    CU_ASSERT(s->result.has_run);
}

static void end(setup *s) {
    ingot_distill_destroy(s->distill);
    tiny_batch_end(&s->in);
}

/* The weights of the tiny model become those of one result; *moved += scales that are others. */
static void put_result(setup *s, uint64_t at, ingot_role role, uint64_t *moved) {
    const ingot_quantized *before = &s->linear[at][role];
    const uint64_t n = before->rows * before->cols, g = before->rows * before->groups;
    ingot_quantized q;
    char name[INGOT_NAME_SIZE];
    CU_ASSERT_FATAL(ingot_distill_matrix(&q, s->distill, at, role, s->in.device) == INGOT_OK);
    uint8_t *codes = malloc(n), *old = malloc(n), *zeros = malloc(g);
    float *scales = malloc(g * sizeof *scales), *start = malloc(g * sizeof *start);
    tiny_batch_read(&s->in, codes, q.codes, n);
    tiny_batch_read(&s->in, old, before->codes, n);
    tiny_batch_read(&s->in, zeros, q.zeros, g);
    tiny_batch_read(&s->in, scales, q.scales, g * sizeof *scales);
    tiny_batch_read(&s->in, start, before->scales, g * sizeof *start);
    for (uint64_t i = 0; i < n; i++) {
        CU_ASSERT(abs((int)codes[i] - (int)old[i]) <= (s->is_fixed[role] ? 0 : s->codes_move));
        CU_ASSERT(codes[i] < 1u << q.format.bits);
        *moved += codes[i] != old[i];
    }
    for (uint64_t i = 0; i < g; i++) {
        CU_ASSERT(ingot_scale_store(scales[i], q.format.scale_dtype) == scales[i]);
        CU_ASSERT(!s->is_fixed[role] || scales[i] == start[i]);
        *moved += scales[i] != start[i];
    }
    ingot_model_linear_name(&s->in.t->model, at, role, name);
    float *w = tiny_find(s->in.t, name)->data;
    for (uint64_t i = 0; i < n; i++) {
        const uint64_t group = i / q.cols * q.groups + i % q.cols / q.format.group;
        w[i] = scales[group] * (float)((int)codes[i] - (int)zeros[group]);
    }
    free(codes);
    free(old);
    free(zeros);
    free(scales);
    free(start);
}

static double log_sum(const double *x, uint64_t n) {
    double sum = exp(x[0]);
    for (uint64_t i = 1; i < n; i++) {
        sum += exp(x[i]);
    }
    return log(sum);
}

/* Mean divergence on the judges in FP64: the model with the results against the source. */
static double judge(setup *s, unsigned flags) {
    tiny_model *source = tiny_create(flags, 7);
    const uint64_t vocab = source->model.vocab;
    double *p = malloc(LENGTH * vocab * sizeof *p), *q = malloc(LENGTH * vocab * sizeof *q);
    double sum = 0;
    for (uint64_t window = WINDOWS - JUDGES; window < WINDOWS; window++) {
        tiny_ref_logits(source, s->in.ids + window * LENGTH, LENGTH, p);
        tiny_ref_logits(s->in.t, s->in.ids + window * LENGTH, LENGTH, q);
        for (uint64_t row = 0; row < LENGTH; row++) {
            const double *a = p + row * vocab, *b = q + row * vocab;
            const double top = log_sum(a, vocab), other = log_sum(b, vocab);
            for (uint64_t i = 0; i < vocab; i++) {
                sum += exp(a[i] - top) * ((a[i] - top) - (b[i] - other));
            }
        }
    }
    free(p);
    free(q);
    tiny_destroy(source);
    return sum / (JUDGES * LENGTH);
}

/* Returns the divergence in the end. */
static double check(const ingot_backend *b, unsigned flags, ingot_quant_format format,
                    bool codes_move) {
    setup s;
    uint64_t moved = 0;
    begin(&s, b, flags, 1, codes_move ? UINT64_MAX : 0);
    s.codes_move = codes_move;
    s.is_fixed[INGOT_ROLE_O] = true;
    s.is_dense[INGOT_ROLE_K] = true;
    keep_blocks(&s, format);
    run(&s);
    for (uint64_t at = 0; at < LAYERS; at++) {
        for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
            if (s.in.t->model.linear[role].is_present && !s.is_dense[role]) {
                put_result(&s, at, (ingot_role)role, &moved);
            }
        }
    }
    const double after = judge(&s, flags);
    printf("%.3f -> %.3f ", s.result.before, s.result.after);
    CU_ASSERT(moved > 0 && s.result.step > 0 && s.result.after < 0.98 * s.result.before);
    CU_ASSERT(fabs(after - s.result.after) <= (b->has_own_memory ? 2e-2 : 1e-4) * after);
    end(&s);
    return s.result.after;
}

/* Scales alone, then codes as well, which gain more (spec/decisions/0018): at least a fifth in 15
 * runs of five random models. */
static void check_both(const ingot_backend *b, unsigned flags, ingot_quant_format format) {
    const double scales = check(b, flags, format, false), both = check(b, flags, format, true);
    CU_ASSERT(both < 0.9 * scales);
}

static void test_divergence(void) {
    for (unsigned d = 0; d < DEVICES; d++) {
        const ingot_backend *b = &devices[d].backend[0];
        if (devices[d].is_open) {
            check_both(b, 0, (ingot_quant_format){3, 16, INGOT_ZERO_SYMMETRIC, INGOT_F16});
            check_both(b, TINY_QKV_BIAS | TINY_HEAD_NORMS | TINY_WINDOW | TINY_TIED,
                       (ingot_quant_format){3, 32, INGOT_ZERO_STORED, INGOT_BF16});
            check_both(b, TINY_LAYER_NORM | TINY_UNGATED | TINY_PARTIAL_ROTARY,
                       (ingot_quant_format){2, 7, INGOT_ZERO_STORED, INGOT_F16});
        }
    }
}

/* Every matrix within its bound, and known by the error it has, or as
 * it was kept; the number of those. */
static unsigned count_fixed(setup *s) {
    unsigned count = 0;
    for (uint64_t at = 0; at < LAYERS; at++) {
        ingot_block block;
        CU_ASSERT_FATAL(ingot_block_load(&block, &s->in.t->model, at, &s->in.t->source, s->in.b,
                                         s->in.host, NULL) == INGOT_OK);
        for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
            const ingot_quantized *start = &s->linear[at][role];
            const double said = ingot_distill_error(s->distill, at, (ingot_role)role);
            ingot_quantized q;
            CU_ASSERT_FATAL(ingot_distill_matrix(&q, s->distill, at, (ingot_role)role,
                                                 s->in.device) == INGOT_OK);
            const double error = error_of(s, &block.linear[role], &q);
            if (isnan(said)) {
                count++;
                CU_ASSERT(error == error_of(s, &block.linear[role], start));
            } else {
                CU_ASSERT(error == said && error <= s->bound[at][role]);
            }
        }
        ingot_block_release(&block, s->in.b);
    }
    return count;
}

/* Matrices of 8 bits among those of 2, whose scales go further than 8 bits allow, with codes as
 * well where half of it is allowed: they come out as they were, and the others learned.  Where
 * nothing is allowed all of them do. */
static void test_strays(void) {
    static const struct {
        bool codes_move;
        double allowed;
        unsigned least, most; /* of LAYERS * INGOT_ROLE_COUNT matrices */
    } cases[] = {
        {false, 1, 2 * LAYERS, 2 * LAYERS}, {true, 0.5, 1, 2 * LAYERS}, {false, 0, 21, 21}};
    for (unsigned d = 0; d < DEVICES; d++) {
        for (unsigned i = 0; devices[d].is_open && i < sizeof cases / sizeof *cases; i++) {
            setup s;
            uint64_t moved = 0;
            begin(&s, &devices[d].backend[0], 0, 1, cases[i].codes_move ? UINT64_MAX : 0);
            s.codes_move = 2 * cases[i].codes_move;
            s.is_wide[INGOT_ROLE_V] = s.is_wide[INGOT_ROLE_GATE] = true;
            s.allowed = cases[i].allowed;
            keep_blocks(&s, (ingot_quant_format){2, 16, INGOT_ZERO_SYMMETRIC, INGOT_F16});
            run(&s);
            const unsigned fixed = count_fixed(&s);
            CU_ASSERT(fixed >= cases[i].least && fixed <= cases[i].most);
            for (uint64_t at = 0; at < LAYERS; at++) {
                for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
                    put_result(&s, at, (ingot_role)role, &moved);
                }
            }
            const bool is_all = fixed == LAYERS * INGOT_ROLE_COUNT;
            const double after = judge(&s, 0), error = fabs(after - s.result.after);
            CU_ASSERT(is_all ? moved == 0 && s.result.step == 0 : moved > 0 && s.result.step > 0);
            CU_ASSERT(is_all ? s.result.after == s.result.before
                             : s.result.after < 0.98 * s.result.before);
            CU_ASSERT(error <= (devices[d].backend[0].has_own_memory ? 2e-2 : 1e-4) * after);
            end(&s);
        }
    }
}

static void test_seeds(void) {
    enum { RUNS = 3 };
    for (unsigned d = 0; d < DEVICES; d++) {
        float first[64] = {0}, scales[64] = {0};
        for (unsigned i = 0; devices[d].is_open && i < RUNS; i++) {
            setup s;
            ingot_quantized q;
            begin(&s, &devices[d].backend[i == 0 ? 0 : 1], 0, i == 2 ? 2 : 1, UINT64_MAX);
            keep_blocks(&s, (ingot_quant_format){3, 16, INGOT_ZERO_SYMMETRIC, INGOT_F16});
            run(&s);
            CU_ASSERT_FATAL(ingot_distill_matrix(&q, s.distill, 1, INGOT_ROLE_UP, s.in.device) ==
                            INGOT_OK);
            CU_ASSERT_FATAL(q.rows * q.groups >= 64);
            tiny_batch_read(&s.in, i == 0 ? first : scales, q.scales, sizeof scales);
            CU_ASSERT(i == 0 || (memcmp(first, scales, sizeof scales) == 0) == (i == 1));
            end(&s);
        }
    }
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"devices", devices_open},
        {"the held-out divergence falls, as FP64 says", test_divergence},
        {"no matrix goes further from its source than its bits allow", test_strays},
        {"seeds and threads", test_seeds},
        {"closing", devices_close},
        CU_TEST_INFO_NULL,
    };
    return suite_run("distill", tests);
}
