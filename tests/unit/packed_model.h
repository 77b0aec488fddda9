/* Random models of tiny_model.h whose matrices are quantized, or BF16: a source of weights for the
 * tests of the CUDA engine. */
#ifndef INGOT_PACKED_MODEL_H
#define INGOT_PACKED_MODEL_H

#include "tiny_model.h"

static uint64_t seed; /* of the weights */

typedef struct packed_model {
    tiny_model *tiny;
    ingot_weight_source source;
    int storage;
} packed_model;

enum {
    DENSE,
    HALVES,
    W4,
    W4_STORED,
    W3,
    W8,
    MIXED,
    OUTLIERS,
    STORAGES,
    W4_LONG, /* in groups of 128, as products of many rows take them packed */
    W3_LONG,
    W8_LONG,
    OUTLIERS_LONG,
    MIXED_LONG
};

static ingot_quant_format format_of(int storage, unsigned number) {
    static const unsigned widths[] = {4, 3, 8, 5, 2, 6, 7};
    ingot_quant_format format = {.bits = 4, .group = 8, .scale_dtype = INGOT_F16};
    switch (storage) {
    case W4_STORED:
        format.zero_mode = INGOT_ZERO_STORED;
        format.scale_dtype = INGOT_BF16;
        break;
    case W3:
        format.bits = 3;
        break;
    case W8:
        format.bits = 8;
        format.scale_dtype = INGOT_F32;
        break;
    case W4_LONG:
    case OUTLIERS_LONG:
        format.group = 128;
        break;
    case W3_LONG:
        format.bits = 3;
        format.group = 128;
        break;
    case W8_LONG:
        format.bits = 8;
        format.group = 128;
        break;
    case MIXED_LONG: /* of these some cannot take what others can */
        format.bits = number % 3 == 0 ? widths[number % 4] : 4;
        format.group = 128;
        break;
    case MIXED: /* no two neighbours alike */
        format.bits = widths[number % 7];
        break;
    default:
        break;
    }
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
    const float *w = view->data;
    const ingot_quant_format format =
        format_of(p->storage, (unsigned)(tiny_find(p->tiny, name) - p->tiny->tensor));
    ingot_quantized q;
    INGOT_TRY(ingot_quantized_create(&q, view->rows, view->cols, &format, arena));
    ingot_quantize_rtn(&q, w, NULL);
    if (p->storage == OUTLIERS || p->storage == OUTLIERS_LONG) {
        INGOT_TRY(ingot_outliers_choose(&q, w, NULL, view->rows, INGOT_F16, arena, arena, NULL));
        INGOT_TRY(ingot_quantize_search(&q, w, NULL, arena, NULL));
    }
    return ingot_quantized_pack(view, &q, arena, NULL);
}

static packed_model pack_model(unsigned flags, const tiny_shape *shape, int storage) {
    packed_model p = {.tiny = tiny_create_shaped(flags, seed, shape), .storage = storage};
    p.source = p.tiny->source;
    p.source.load = packed_load;
    return p;
}

/* packed_describe: names are those of the tiny model. */
static bool packed_describe(void *self, const char *name, ingot_weight_info *info) {
    return tiny_describe(((packed_model *)self)->tiny, name, info);
}

static void bind(packed_model *p) {
    p->source.self = p;
    p->source.describe = packed_describe;
}

#endif
