/* Random models of tiny_model.h whose matrices are quantized, or BF16: a source of weights for the
 * tests of the engine, and containers of them. */
#ifndef INGOT_PACKED_MODEL_H
#define INGOT_PACKED_MODEL_H

#include "tiny_model.h"

#include "format/container_write.h"

static uint64_t seed; /* of the weights */

typedef struct packed_model {
    tiny_model *tiny;
    ingot_weight_source source;
    int storage;
    ingot_arena *arena; /* of views of matrices, made when they are first asked for: */
    ingot_weight_view views[TINY_TENSORS];
} packed_model;

/* How matrices are stored.  SHORT ones have groups that no kernel reads packed, the others a kernel
 * where columns are a multiple of 32 (kernels/cuda/product.h). */
enum {
    DENSE,
    HALVES,
    W4,
    W4_STORED,
    W4_ROWS,
    W4_LONG,
    W3_LONG,
    W8,
    W8_STORED,
    W8_LONG,
    W2,
    W5,
    W6,
    W7,
    MIXED,
    MIXED_LONG,
    OUTLIERS,
    SHORT,
    SHORT_OUTLIERS,
    STORAGES
};

#define WHOLE_ROWS 0 /* as a group */

static const struct {
    const char *name;
    ingot_quant_format format;
    bool has_outliers;
} storages[STORAGES] = {
    [HALVES] = {"BF16", {0}, false},
    [W4] = {"W4 g32", {4, 32, INGOT_ZERO_SYMMETRIC, INGOT_F16}, false},
    [W4_STORED] = {"W4 g64 asymmetric", {4, 64, INGOT_ZERO_STORED, INGOT_BF16}, false},
    [W4_ROWS] = {"W4 rows", {4, WHOLE_ROWS, INGOT_ZERO_SYMMETRIC, INGOT_F16}, false},
    [W4_LONG] = {"W4 g128", {4, 128, INGOT_ZERO_SYMMETRIC, INGOT_F16}, false},
    [W3_LONG] = {"W3 g128", {3, 128, INGOT_ZERO_SYMMETRIC, INGOT_F16}, false},
    [W8] = {"W8 g64", {8, 64, INGOT_ZERO_SYMMETRIC, INGOT_F32}, false},
    [W8_STORED] = {"W8 g32 asymmetric", {8, 32, INGOT_ZERO_STORED, INGOT_F16}, false},
    [W8_LONG] = {"W8 g128", {8, 128, INGOT_ZERO_SYMMETRIC, INGOT_F16}, false},
    [W2] = {"W2 g64 asymmetric", {2, 64, INGOT_ZERO_STORED, INGOT_F16}, false},
    [W5] = {"W5 g128", {5, 128, INGOT_ZERO_SYMMETRIC, INGOT_F16}, false},
    [W6] = {"W6 rows asymmetric", {6, WHOLE_ROWS, INGOT_ZERO_STORED, INGOT_F16}, false},
    [W7] = {"W7 g32", {7, 32, INGOT_ZERO_SYMMETRIC, INGOT_BF16}, false},
    [MIXED] = {"mixed", {0}, false},
    [MIXED_LONG] = {"mixed g128", {4, 128, INGOT_ZERO_SYMMETRIC, INGOT_F16}, false},
    [OUTLIERS] = {"W4 g128 outliers", {4, 128, INGOT_ZERO_SYMMETRIC, INGOT_F16}, true},
    [SHORT] = {"mixed g8", {0}, false},
    [SHORT_OUTLIERS] = {"W4 g8 outliers", {4, 8, INGOT_ZERO_SYMMETRIC, INGOT_F16}, true},
};

/* Of the number-th tensor of a model. */
static ingot_quant_format format_of(int storage, unsigned number, uint64_t cols) {
    static const unsigned widths[] = {4, 3, 8, 5, 2, 6, 7};
    static const uint64_t groups[] = {32, 64, 128, WHOLE_ROWS};
    ingot_quant_format format = storages[storage].format;
    if (storage == MIXED || storage == SHORT) { /* no two neighbours alike */
        format.bits = widths[number % 7];
        format.group = storage == MIXED ? groups[number % 4] : 8;
        format.zero_mode = number % 3 == 0 ? INGOT_ZERO_STORED : INGOT_ZERO_SYMMETRIC;
        format.scale_dtype = INGOT_F16;
    } else if (storage == MIXED_LONG && number % 3 == 0) { /* cannot take what others can */
        format.bits = widths[number % 4];
    }
    format.group = format.group == WHOLE_ROWS || format.group > cols ? cols : format.group;
    return format;
}

static bool is_linear(const char *name) {
    return strstr(name, "_proj.weight") != NULL || strstr(name, "lm_head") != NULL ||
           strstr(name, "embed") != NULL;
}

static void to_halves(ingot_weight_view *view, ingot_arena *arena) {
    void *memory;
    CU_ASSERT_EQUAL_FATAL(ingot_arena_array(arena, &memory, view->rows * view->cols, 2), INGOT_OK);
    const float *from = view->data;
    uint16_t *to = memory;
    for (uint64_t i = 0; i < view->rows * view->cols; i++) {
        uint32_t bits;
        memcpy(&bits, &from[i], sizeof bits);
        to[i] = (uint16_t)(bits >> 16); /* BF16, cut off */
    }
    view->data = to;
    view->dtype = INGOT_BF16;
}

/* Of matrix `number` with values w. */
static ingot_status quantize(packed_model *p, unsigned number, const ingot_weight_view *w) {
    const ingot_quant_format format = format_of(p->storage, number, w->cols);
    ingot_arena *arena = p->arena;
    ingot_quantized q;
    INGOT_TRY(ingot_quantized_create(&q, w->rows, w->cols, &format, arena));
    ingot_quantize_rtn(&q, w->data, NULL);
    if (storages[p->storage].has_outliers) {
        INGOT_TRY(ingot_outliers_choose(&q, w->data, NULL, w->rows, INGOT_F16, arena, arena, NULL));
        INGOT_TRY(ingot_quantize_search(&q, w->data, NULL, arena, NULL));
    }
    return ingot_quantized_pack(&p->views[number], &q, arena, NULL);
}

static ingot_status packed_load(void *self, const char *name, ingot_arena *arena,
                                ingot_weight_view *view, ingot_error *error) {
    packed_model *p = self;
    INGOT_TRY(tiny_load(p->tiny, name, arena, view, error));
    if (!is_linear(name) || p->storage == DENSE) {
        return INGOT_OK;
    }
    if (p->storage == HALVES) {
        to_halves(view, arena);
        return INGOT_OK;
    }
    const unsigned number = (unsigned)(tiny_find(p->tiny, name) - p->tiny->tensor);
    if (p->views[number].codes == NULL) {
        INGOT_TRY(quantize(p, number, view));
    }
    *view = p->views[number];
    return INGOT_OK;
}

static packed_model pack_model(unsigned flags, const tiny_shape *shape, int storage) {
    packed_model p = {.tiny = tiny_create_shaped(flags, seed, shape), .storage = storage};
    p.source = p.tiny->source;
    p.source.load = packed_load;
    CU_ASSERT_EQUAL_FATAL(ingot_arena_create(&p.arena), INGOT_OK);
    return p;
}

static void packed_destroy(packed_model *p) {
    tiny_destroy(p->tiny);
    ingot_arena_destroy(p->arena);
}

/* packed_describe: names are those of the tiny model. */
static bool packed_describe(void *self, const char *name, ingot_weight_info *info) {
    return tiny_describe(((packed_model *)self)->tiny, name, info);
}

static void bind(packed_model *p) {
    p->source.self = p;
    p->source.describe = packed_describe;
}

/* One weight so large that its copy in binary16 has no room unless scaled, of a column of which the
 * norm in front leaves little, so that nothing else is lost in what comes of it. */
static inline void enlarge(const packed_model *p, const char *norm, const char *name, float large) {
    tiny_tensor *weights = tiny_find(p->tiny, name);
    tiny_find(p->tiny, norm)->data[11] /= large;
    weights->data[3 * weights->cols + 11] = large;
}

/* Writes the model's tensors; names become the tensors' names. */
static inline void write_container(packed_model *p, const char *path, bool is_compressed) {
    ingot_tensor_spec specs[TINY_TENSORS];
    ingot_weight_view views[TINY_TENSORS];
    ingot_arena *arena;
    ingot_writer *writer;
    ingot_error error;
    CU_ASSERT_EQUAL_FATAL(ingot_arena_create(&arena), INGOT_OK);
    memset(specs, 0, sizeof specs);
    for (unsigned i = 0; i < p->tiny->count; i++) {
        const tiny_tensor *t = &p->tiny->tensor[i];
        ingot_weight_view *v = &views[i];
        CU_ASSERT_EQUAL_FATAL(packed_load(p, t->name, arena, v, &error), INGOT_OK);
        specs[i] = (ingot_tensor_spec){
            .name = t->name, .kind = v->kind, .rank = t->rank, .dtype = v->dtype};
        specs[i].dim[0] = t->rank == 2 ? t->rows : t->cols;
        specs[i].dim[1] = t->rank == 2 ? t->cols : 0;
        if (v->kind == INGOT_GROUPED) {
            specs[i].bits = v->bits;
            specs[i].scale_dtype = v->scale_dtype;
            specs[i].zero_mode = v->zero_mode;
            specs[i].group = v->group;
            specs[i].outlier_count = v->outlier_count;
            specs[i].dtype = v->outlier_count != 0 ? v->dtype : INGOT_F16;
        }
    }
    const ingot_writer_plan plan = {.tensors = specs,
                                    .tensor_count = p->tiny->count,
                                    .meta = "{}",
                                    .meta_size = 2,
                                    .is_compressed = is_compressed};
    ingot_status status = ingot_writer_create(&writer, path, true, &plan, &error);
    if (status != INGOT_OK) {
        printf("\n    %s\n", error.reason);
    }
    CU_ASSERT_EQUAL_FATAL(status, INGOT_OK);
    for (unsigned i = 0; i < p->tiny->count; i++) {
        ingot_ledger ledger = {.weight_error = NAN,
                               .weight_error_rtn = NAN,
                               .output_error = NAN,
                               .output_error_rtn = NAN,
                               .damping = NAN};
        CU_ASSERT_EQUAL_FATAL(ingot_writer_put(writer, i, &views[i], &ledger, &error), INGOT_OK);
    }
    status = ingot_writer_finish(writer, 1, NULL, NULL, &error);
    if (status != INGOT_OK) {
        printf("\n    %s\n", error.reason);
    }
    CU_ASSERT_EQUAL_FATAL(status, INGOT_OK);
    ingot_arena_destroy(arena);
}

/* Changes a byte of the codes of a matrix. */
static inline void damage(const char *path, const char *name) {
    ingot_container *container;
    ingot_error error;
    CU_ASSERT_EQUAL_FATAL(ingot_open(&container, path, &error), INGOT_OK);
    uint64_t index;
    const ingot_tensor *t = ingot_tensor_find(container, name, &index);
    uint8_t codes[16];
    CU_ASSERT_EQUAL_FATAL(
        ingot_part_read(container, index, INGOT_PART_CODES, 0, 16, false, codes, &error), INGOT_OK);
    CU_ASSERT_FATAL(t != NULL);
    ingot_close(container);
    FILE *file = fopen(path, "r+b");
    CU_ASSERT_FATAL(file != NULL);
    /* Find them: the offset of DATA is the reader's secret. */
    CU_ASSERT_EQUAL_FATAL(fseek(file, 0, SEEK_END), 0);
    const long size = ftell(file);
    uint8_t *bytes = malloc((size_t)size);
    rewind(file);
    CU_ASSERT_EQUAL_FATAL(fread(bytes, 1, (size_t)size, file), (size_t)size);
    long at = -1;
    for (long i = 0; i + 16 <= size && at < 0; i++) {
        at = memcmp(bytes + i, codes, 16) == 0 ? i : at;
    }
    CU_ASSERT_FATAL(at >= 0);
    CU_ASSERT_EQUAL_FATAL(fseek(file, at, SEEK_SET), 0);
    CU_ASSERT(fputc(codes[0] ^ 0x11, file) != EOF);
    CU_ASSERT_EQUAL(fclose(file), 0);
    free(bytes);
}

#endif
