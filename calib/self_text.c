/* The model's own text (calib/self_text.h). */
#include "calib/self_text.h"

#include "calib/whole_model.h"
#include "common/files.h"
#include "common/random.h"
#include "common/sizes.h"
#include "format/digest.h"

#include <string.h>

#define HOST_CACHE_BYTES   (UINT64_C(1) << 30)
#define DEVICE_CACHE_BYTES (UINT64_C(8) << 30)

ingot_status ingot_self_text_wanted(bool *out, const char *const *texts, uint64_t count,
                                    ingot_error *error) {
    *out = false;
    for (uint64_t i = 0; i < count; i++) {
        *out = *out || strcmp(texts[i], INGOT_SELF_TEXT) == 0;
    }
    return *out && count > 1
               ? ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "give one of them",
                                 "--text " INGOT_SELF_TEXT " stands alone, without files")
               : INGOT_OK;
}

/* What the functions below share. */
typedef struct author {
    ingot_whole_model whole;
    uint64_t length, most, together; /* tokens of a sequence; sequences written at once at most,
                                        and really (0: not known yet) */
    uint64_t *random;                /* [together]: the state of each sequence's generator */
    double *drawn;                   /* [together]: the chance of each sequence's next token */
    uint32_t *next;                  /* [together]: the tokens at hand */
} author;

/* Keys and values of a sequence. */
static uint64_t cache_bytes(const ingot_model *m, uint64_t length) {
    return 2 * m->layers * length * m->kv_heads * m->head_dim * sizeof(float);
}

/* Sequences at once, at most so many: in as few rounds as the cache allows, of equal size. */
static uint64_t sequences_together(const ingot_model *m, uint64_t samples, uint64_t length,
                                   uint64_t most, bool has_own_memory) {
    const uint64_t limit = has_own_memory ? DEVICE_CACHE_BYTES : HOST_CACHE_BYTES;
    most = ingot_max_u64(1, ingot_min_u64(most, limit / cache_bytes(m, length)));
    return ingot_ceil_div(samples, ingot_ceil_div(samples, most));
}

uint64_t ingot_self_text_bytes(uint64_t *least_bytes, const ingot_model *model, uint64_t samples,
                               uint64_t length, bool has_own_memory) {
    *least_bytes = cache_bytes(model, length) + ingot_workspace_token_bytes(model) +
                   sizeof(float) * (2 * model->hidden + model->vocab);
    return *least_bytes * sequences_together(model, samples, length, samples, has_own_memory);
}

static ingot_status make_room(author *a, uint64_t samples, ingot_error *error) {
    a->together = sequences_together(a->whole.model, samples, a->length, a->most,
                                     a->whole.backend->has_own_memory);
    INGOT_TRY(ingot_whole_model_make_room(&a->whole, a->together, a->length, a->together,
                                          a->together, error));
    INGOT_TRY(ingot_alloc_zero((void **)&a->random, a->together, sizeof *a->random));
    INGOT_TRY(ingot_alloc_zero((void **)&a->drawn, a->together, sizeof *a->drawn));
    return ingot_alloc_zero((void **)&a->next, a->together, sizeof *a->next);
}

static void leave(author *a) {
    ingot_whole_model_release(&a->whole);
    ingot_free(a->random);
    ingot_free(a->drawn);
    ingot_free(a->next);
}

/* Feeds the tokens at hand and draws those after them. */
static ingot_status step(author *a, ingot_error *error) {
    const ingot_model *m = a->whole.model;
    INGOT_TRY(ingot_whole_model_pass(&a->whole, a->next, 1, NULL, error));
    INGOT_TRY(ingot_ends_logits(&a->whole.ends, m, a->whole.backend, a->whole.logits, a->whole.x,
                                a->whole.scratch, a->together));
    for (uint64_t i = 0; i < a->together; i++) {
        a->drawn[i] = ingot_random_unit(&a->random[i]);
    }
    INGOT_TRY(a->whole.backend->ops->draw(a->whole.backend->context, a->next, a->drawn,
                                          a->whole.logits, a->together, m->vocab));
    for (uint64_t i = 0; i < a->together; i++) {
        if (a->next[i] == UINT32_MAX) {
            return ingot_error_set(error, INGOT_ERR_NUMERIC, NULL, NULL,
                                   "look for NaN or infinite weights", "a logit is not finite");
        }
    }
    return INGOT_OK;
}

/* Sequences first .. first + together-1; of those beyond `samples` nothing is kept. */
static ingot_status write_sequences(author *a, ingot_text *out, uint64_t first, uint64_t samples,
                                    uint64_t seed, ingot_progress *progress, ingot_error *error) {
    const ingot_model *m = a->whole.model;
    a->whole.cache.length = 0;
    for (uint64_t i = 0; i < a->together; i++) {
        a->random[i] = seed ^ (first + i + 1) * UINT64_C(0xD1B54A32D192ED03);
        a->next[i] = m->has_bos /* else any token is as likely as any other */
                         ? m->bos_id
                         : (uint32_t)(ingot_random_unit(&a->random[i]) * (double)m->vocab);
    }
    for (uint64_t at = 0;; at++) {
        for (uint64_t i = 0; i < a->together && first + i < samples; i++) {
            out->ids[(first + i) * a->length + at] = a->next[i];
        }
        if (progress != NULL) {
            const uint64_t done = ingot_min_u64(samples - first, a->together) * (at + 1);
            ingot_progress_update(progress, (double)(first * a->length + done));
        }
        if (at + 1 == a->length) {
            return INGOT_OK;
        }
        INGOT_TRY(step(a, error));
    }
}

static ingot_status write_all(author *a, ingot_text *out, const ingot_weight_source *source,
                              uint64_t samples, uint64_t seed, ingot_progress *progress,
                              ingot_error *error) {
    INGOT_TRY(ingot_whole_model_load(&a->whole, source, NULL, error));
    INGOT_TRY(make_room(a, samples, error));
    for (uint64_t first = 0; first < samples; first += a->together) {
        INGOT_TRY(write_sequences(a, out, first, samples, seed, progress, error));
    }
    return INGOT_OK;
}

/* Out of memory begins anew with half as many sequences at once: each has its own seed, whatever
 * is written beside it. */
static ingot_status write_in_room(ingot_text *out, const author *plan,
                                  const ingot_weight_source *source, uint64_t samples,
                                  uint64_t seed, ingot_progress *progress, unsigned *shortages,
                                  ingot_error *error) {
    author a = *plan;
    for (a.most = samples;;) {
        const ingot_status status = write_all(&a, out, source, samples, seed, progress, error);
        const uint64_t together = a.together, most = together / 2;
        leave(&a);
        if (status != INGOT_ERR_NO_MEMORY || most == 0) {
            return status;
        }
        if (shortages != NULL) {
            (*shortages)++;
        }
        if (progress != NULL) {
            ingot_progress_line(progress, "%s: %llu sequences at once instead of %llu",
                                ingot_backend_failure(plan->whole.backend, status),
                                (unsigned long long)most, (unsigned long long)together);
        }
        *error = (ingot_error){0};
        a = *plan;
        a.most = most;
    }
}

ingot_status ingot_self_text_write(ingot_text *out, const ingot_model *model,
                                   const ingot_weight_source *source, const ingot_backend *backend,
                                   uint64_t samples, uint64_t length, uint64_t seed,
                                   ingot_progress *progress, unsigned *shortages,
                                   ingot_error *error) {
    const author plan = {.whole = {.model = model, .backend = backend}, .length = length};
    ingot_error local = {0};
    uint64_t bytes;
    *out = (ingot_text){0};
    ingot_status status = INGOT_ERR_NO_MEMORY;
    if (ingot_size_mul(&bytes, samples, length) &&
        ingot_size_mul(&bytes, bytes, sizeof *out->ids)) {
        status = ingot_alloc((void **)&out->ids, bytes);
    }
    if (status == INGOT_OK) {
        *out = (ingot_text){.ids = out->ids, .count = samples * length, .bytes = bytes};
        status = write_in_room(out, &plan, source, samples, seed, progress, shortages, &local);
    }
    if (status != INGOT_OK) {
        ingot_text_free(out);
        if (local.status != status) {
            ingot_error_set(&local, status, source->path, NULL, "give --text FILE",
                            "the model could not write its own text: %s",
                            ingot_status_text(status));
        }
        if (error != NULL) {
            *error = local;
        }
        return status;
    }
    ingot_digest128(out->digest, out->ids, bytes);
    return INGOT_OK;
}
