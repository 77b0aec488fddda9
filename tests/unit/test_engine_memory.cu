/* Working memory of the engine's products, by arithmetic: no device is used.
 *
 * Passes of every kind over random models whose matrices are stored in many ways, by the library of
 * the CUDA backend, but with the functions in this file in place of its own of the same name:
 * nothing is launched, and every product must ask for no more than the engine takes for all of
 * them (engine_product_work_bytes, engine_square_bytes).  A device would write behind it, into
 * memory that as a rule belongs to something that bears it.  INGOT_TEST_SEED repeats a run. */
#include "kernels/cuda/engine_parts.h"
#include "kernels/cuda/weights.h"
#include "no_device.h"

extern "C" {
#include "common/random.h"
#include "format/pack.h"
#include "kernels/cuda/product.h"
#include "suite.h"
}

#include <cstdio>
#include <cstdlib>
#include <ctime>

static uint64_t state, work_bytes, square_bytes, products, handed, wrong;

/* ---- in place of launches ---------------------------------------------------------------------
 */

/* Of the rows that a product hands on, or of its own x. */
static void check_squares(const ingot_product *job, const float *sums, unsigned parts) {
    const uint64_t bytes = sums != nullptr ? job->m * (parts + 1) * sizeof *sums : 0;
    if (bytes > square_bytes && wrong++ < 10) {
        printf("\n    %llu rows of x, %llu x %llu, %u parts of squares: %llu bytes, not %llu",
               (unsigned long long)job->m, (unsigned long long)job->w->rows,
               (unsigned long long)job->w->cols, parts, (unsigned long long)bytes,
               (unsigned long long)square_bytes);
    }
}

extern "C" ingot_status cuda_product(void *context, const ingot_product *job) {
    const uint64_t bytes = cuda_product_workspace_bytes(context, job);
    products++;
    handed += job->next.x != nullptr;
    check_squares(job, job->next.squares.sums, job->next.squares.parts);
    check_squares(job, job->x_squares, 1);
    if (bytes > work_bytes && wrong++ < 10) {
        const ingot_weight_view *w = job->w;
        printf(
            "\n    %llu rows of x, %llu x %llu, %s %u bits, groups of %llu, %llu outliers%s: %llu "
            "bytes, not %llu",
            (unsigned long long)job->m, (unsigned long long)w->rows, (unsigned long long)w->cols,
            w->kind == INGOT_DENSE ? "dense" : "grouped", w->bits, (unsigned long long)w->group,
            (unsigned long long)w->outlier_count, job->up != nullptr ? ", up" : "",
            (unsigned long long)bytes, (unsigned long long)work_bytes);
    }
    return INGOT_OK;
}

ingot_status engine_embed(const ingot_engine *, const engine_rows *, const ingot_product_next *) {
    return INGOT_OK;
}

ingot_status engine_norm(const ingot_engine *, const engine_rows *, const float *) {
    return INGOT_OK;
}

ingot_status engine_heads(const ingot_engine *, const engine_rows *, const engine_layer *,
                          const engine_projected *) {
    return INGOT_OK;
}

ingot_status engine_activate(const ingot_engine *, const engine_rows *, const float *,
                             const float *) {
    return INGOT_OK;
}

ingot_status engine_add_bias(const ingot_engine *, const engine_rows *, const float *) {
    return INGOT_OK;
}

ingot_status engine_unpack(const ingot_engine *, __half *, const engine_linear *, uint64_t,
                           uint64_t) {
    return INGOT_OK;
}

ingot_status engine_attend(const ingot_engine *, const engine_rows *, const engine_layer *,
                           const engine_projected *, ingot_product_form) {
    return INGOT_OK;
}

/* ---- models -----------------------------------------------------------------------------------
 */

static uint64_t below(uint64_t n) {
    return ingot_random_bits(&state) % n;
}

static uint64_t pick(const uint64_t *from, unsigned count) {
    return from[below(count)];
}

/* How a matrix is stored. */
static ingot_weight_view draw_storage(void) {
    static const uint64_t groups[] = {8, 32, 64, 128, 256, 0};
    static const ingot_dtype dtypes[] = {INGOT_F32, INGOT_F16, INGOT_BF16};
    ingot_weight_view v = {};
    v.kind = below(6) == 0 ? INGOT_DENSE : INGOT_GROUPED;
    v.dtype = dtypes[below(3)];
    if (v.kind == INGOT_GROUPED) {
        v.bits = 2 + (unsigned)below(7);
        v.group = pick(groups, 6);
        v.zero_mode = below(3) == 0 ? INGOT_ZERO_STORED : INGOT_ZERO_SYMMETRIC;
        v.scale_dtype = dtypes[below(3)];
        v.outlier_count = below(5) == 0 ? 1 : 0;
    }
    return v;
}

static engine_linear make_linear(const ingot_weight_view &storage, uint64_t rows, uint64_t cols) {
    engine_linear linear = {};
    ingot_weight_view *w = &linear.w;
    *w = storage;
    w->rows = rows;
    w->cols = cols;
    w->data = w->codes = somewhere<uint8_t>();
    w->scales = somewhere<uint8_t>();
    if (w->kind == INGOT_GROUPED) {
        w->group = w->group == 0 ? cols : ingot_min_u64(w->group, cols);
        w->groups_per_row = ingot_ceil_div(cols, w->group);
        w->row_stride_bytes = ingot_pack_row_bytes(cols, w->bits);
        w->zeros = w->zero_mode == INGOT_ZERO_STORED ? somewhere<uint8_t>() : nullptr;
        w->outlier_count *= 1 + rows * cols / 200;
    }
    linear.bias = below(3) == 0 ? somewhere<float>() : nullptr;
    return linear;
}

/* One in two models has a storage for all but one matrix. */
static void draw_layer(engine_layer *layer, const ingot_engine *e) {
    const ingot_engine_model *m = &e->model;
    const uint64_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    const uint64_t size[INGOT_ENGINE_ROLES][2] = {
        {q, m->hidden},      {kv, m->hidden},     {kv, m->hidden},     {m->hidden, q},
        {m->ffn, m->hidden}, {m->ffn, m->hidden}, {m->hidden, m->ffn},
    };
    const ingot_weight_view usual = draw_storage();
    const uint64_t odd = below(2) == 0 ? INGOT_ENGINE_ROLES : below(INGOT_ENGINE_ROLES);
    *layer = {};
    for (uint64_t role = 0; role < INGOT_ENGINE_ROLES; role++) {
        const bool is_usual = odd != INGOT_ENGINE_ROLES && role != odd;
        layer->linear[role] =
            make_linear(is_usual ? usual : draw_storage(), size[role][0], size[role][1]);
    }
    const engine_linear *linear = layer->linear;
    layer->is_stacked = true;
    for (int i = 0; i < 3; i++) { /* as engine_load.cu stacks them */
        layer->is_stacked = layer->is_stacked && linear[i].w.outlier_count == 0 &&
                            cuda_weights_are_alike(&linear[0].w, &linear[i].w);
    }
    if (layer->is_stacked) {
        layer->qkv = linear[0];
        layer->qkv.w.rows = q + 2 * kv;
    }
    layer->norm_attention = below(8) == 0 ? nullptr : somewhere<float>();
    layer->norm_mlp = below(8) == 0 ? nullptr : somewhere<float>();
}

static ingot_cuda draw_device(void) {
    ingot_cuda cuda = {};
    cuda.is_hopper = below(3) != 0; /* an H200, or an A100 */
    cuda.major = cuda.is_hopper ? 9 : 8;
    cuda.multiprocessors = cuda.is_hopper ? 132 : 108;
    cuda.shared_bytes = cuda.is_hopper ? 232448 : 166912;
    for (int i = 0; i < CUDA_CLUSTER_PARTS && cuda.is_hopper; i++) {
        cuda.clusters[i] = (unsigned short)(132 / (i + 1));
    }
    return cuda;
}

static void check_model(ingot_engine *e) {
    static const uint64_t few[] = {1, 2, 3, 8, 9, 16, 17, 32, 33, 63, 64};
    static const uint64_t many[] = {65, 96, 128, 129, 192, 256, 320, 400, 512};
    work_bytes = engine_product_work_bytes(e);
    square_bytes = engine_square_bytes(e);
    engine_rows rows = {};
    uint32_t lengths[1] = {0};
    for (int is_prompt = 0; is_prompt < 2; is_prompt++) {
        rows.lengths = is_prompt != 0 ? nullptr : lengths;
        for (unsigned i = 0; i < sizeof few / sizeof *few; i++) {
            rows.m = (unsigned)few[i];
            CU_ASSERT_EQUAL(engine_pass(e, &rows, true), INGOT_OK);
        }
    }
    for (unsigned i = 0; i < sizeof many / sizeof *many && e->pass_rows >= many[i]; i++) {
        rows.m = (unsigned)many[i];
        CU_ASSERT_EQUAL(engine_pass(e, &rows, true), INGOT_OK);
    }
}

/* As engine.cu sets it up. */
static void draw_and_check(void) {
    static const uint64_t hidden[] = {44, 64, 128, 256, 1024, 2048, 4096, 8192};
    static const uint64_t ffn[] = {52, 96, 1028, 1024, 2048, 4096, 14336, 28672};
    engine_layer layer[2];
    ingot_cuda cuda = draw_device();
    ingot_engine *e = new ingot_engine();
    e->cuda = &cuda;
    e->model.layers = 2;
    e->model.hidden = pick(hidden, 8);
    e->model.ffn = pick(ffn, 8);
    e->model.head_dim = 8 << below(5);
    e->model.kv_heads = 1 << below(4);
    e->model.heads = e->model.kv_heads * (1 + below(8));
    e->model.vocab = below(2) == 0 ? 203 : 128256;
    e->sequences = 1;
    e->is_chained = cuda.is_hopper;
    e->pass_rows =
        e->model.hidden % 8 == 0 && e->model.ffn % 8 == 0 ? ENGINE_ROWS : ENGINE_PRODUCT_ROWS;
    e->layer = layer;
    e->x = e->logits = e->projected = somewhere<float>();
    e->normed = e->context = e->inner = e->gate_up = somewhere<__half>();
    e->squares[0] = e->squares[1] = e->logits;
    e->final_norm = somewhere<float>();
    e->head = make_linear(draw_storage(), e->model.vocab, e->model.hidden);
    e->head.bias = nullptr;
    for (engine_layer &one : layer) {
        draw_layer(&one, e);
    }
    check_model(e);
    delete e;
}

static void test_products(void) {
    const char *text = getenv("INGOT_TEST_SEED");
    state = text != nullptr ? strtoull(text, nullptr, 10) : (uint64_t)time(nullptr);
    printf("\n    INGOT_TEST_SEED=%llu ", (unsigned long long)state);
    for (int i = 0; i < 3000; i++) {
        draw_and_check();
    }
    printf("%llu products, %llu hand on ", (unsigned long long)products,
           (unsigned long long)handed);
    CU_ASSERT(products != 0 && handed != 0);
    CU_ASSERT_EQUAL(wrong, 0);
}

/* product.h: workspace never decreases when m grows, up to the rows that read packed weights. */
static void test_growth(void) {
    static const uint64_t sizes[] = {44, 64, 96, 128, 1024, 2048, 4096, 14336, 28672, 57344};
    static const ingot_dtype dtypes[] = {INGOT_F32, INGOT_F16, INGOT_BF16};
    unsigned drops = 0;
    for (int i = 0; i < 3000; i++) {
        const ingot_weight_view storage = draw_storage();
        const uint64_t rows = pick(sizes, 10), cols = pick(sizes, 10);
        const engine_linear w = make_linear(storage, rows, cols),
                            up = make_linear(storage, rows, cols);
        ingot_cuda cuda = draw_device();
        ingot_product job = {};
        job.w = &w.w;
        job.up = below(3) == 0 ? &up.w : nullptr;
        job.has_activation = job.up != nullptr || below(4) == 0;
        job.bias = w.bias;
        job.x_dtype = dtypes[below(3)];
        job.dtype = dtypes[1 + below(2)];
        job.y_dtype = dtypes[below(3)];
        job.norm_weight = below(2) == 0 ? somewhere<float>() : nullptr;
        job.residual = below(2) == 0 ? somewhere<float>() : nullptr;
        const uint64_t most = ingot_max_u64(cuda_product_packed_rows(&cuda, job.w, job.up), 64);
        uint64_t before = 0;
        for (job.m = 1; job.m <= most; job.m++) {
            const uint64_t bytes = cuda_product_workspace_bytes(&cuda, &job);
            if (bytes < before && drops++ < 10) {
                printf("\n    %llu x %llu, %u bits, groups of %llu, %llu outliers%s: %llu bytes "
                       "for %llu "
                       "rows, %llu before",
                       (unsigned long long)rows, (unsigned long long)cols, w.w.bits,
                       (unsigned long long)w.w.group, (unsigned long long)w.w.outlier_count,
                       job.up != nullptr ? ", up" : "", (unsigned long long)bytes,
                       (unsigned long long)job.m, (unsigned long long)before);
            }
            before = bytes;
        }
    }
    CU_ASSERT_EQUAL(drops, 0);
}

int main(void) {
    const CU_TestInfo tests[] = {
        {"products of passes", test_products},
        {"workspace of more rows", test_growth},
        CU_TEST_INFO_NULL,
    };
    return suite_run("engine memory", tests);
}
