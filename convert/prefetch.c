/* Reading ahead (convert/prefetch.h): two arenas of pinned memory, one in use and one being filled.
 */
#include "convert/prefetch.h"

#include "common/memory.h"
#include "common/pool.h"
#include "common/sizes.h"
#include "common/worker.h"
#include "format/digest.h"

#include <assert.h>
#include <stdatomic.h>
#include <string.h>

/* Beside a device the CPU has little to do: one thread copies 4 to 5 GB/s out of the page cache, a
 * tenth of what the bus takes, and digests 10 GB/s of what others have read. */
#define READERS     12u
#define PIECE_BYTES (UINT64_C(256) << 10)

/* One matrix that was read. */
typedef struct entry {
    uint64_t source_index, size;
    uint64_t first_piece, pieces; /* of all pieces of the side */
    char *bytes;
    atomic_bool is_busy; /* a thread is digesting it; it alone touches these two: */
    ingot_digest_stream *stream;
    uint64_t digested; /* pieces, from the first */
    uint8_t digest[16];
} entry;

/* A piece of one of them. */
typedef struct piece {
    entry *of;
    uint64_t number;
} piece;

typedef struct side {
    struct ingot_prefetch *owner;
    ingot_arena *arena;
    entry *entries;       /* [owner->most] */
    piece *order;         /* [owner->most_pieces], as they are read */
    atomic_bool *is_read; /* [owner->most_pieces] */
    uint64_t count, pieces, layer;
} side;

struct ingot_prefetch {
    const ingot_loop_job *job;
    ingot_weight_source source;
    ingot_worker *worker;
    ingot_pool *readers;        /* NULL: the worker alone */
    uint64_t most, most_pieces; /* of a block: matrices, pieces of them */
    side sides[2];              /* block L in side L % 2 */
    uint64_t at;                /* the block at work */
    bool repeats;
    ingot_arena *kept;         /* pinned, where it repeats: */
    ingot_weight_view ends[2]; /* table and head; data NULL: not asked for yet */
};

/* A tensor worth reading ahead: a matrix of a block that comes from the checkpoint. */
static bool is_wanted(const ingot_prefetch *p, const ingot_plan_tensor *t, uint64_t layer) {
    return t->layer == layer && t->origin == INGOT_ORIGIN_QUANTIZE &&
           ingot_checkpoint_at(p->job->checkpoint, t->source_index)->rank == 2;
}

static uint64_t piece_bytes(const entry *e, uint64_t number) {
    return ingot_min_u64(e->size - number * PIECE_BYTES, PIECE_BYTES);
}

/* Digests what of a matrix is read up to the first gap, unless another thread is at it, which then
 * comes upon what was read meanwhile. */
static void digest_read(const side *s, entry *e) {
    uint64_t next = 0;
    do {
        if (atomic_exchange(&e->is_busy, true)) {
            return;
        }
        for (; e->digested < e->pieces && s->is_read[e->first_piece + e->digested]; e->digested++) {
            ingot_digest_stream_update(e->stream, e->bytes + e->digested * PIECE_BYTES,
                                       piece_bytes(e, e->digested));
        }
        next = e->digested;
        atomic_store(&e->is_busy, false);
    } while (next < e->pieces && s->is_read[e->first_piece + next]);
}

static ingot_status read_piece(void *context, size_t index, unsigned worker, ingot_error *error) {
    (void)worker;
    side *s = context;
    entry *e = s->order[index].of;
    const uint64_t number = s->order[index].number, at = number * PIECE_BYTES;
    INGOT_TRY(ingot_checkpoint_read(s->owner->job->checkpoint, e->source_index, at,
                                    piece_bytes(e, number), e->bytes + at, error));
    if (!s->owner->repeats) {
        atomic_store(&s->is_read[e->first_piece + number], true);
        digest_read(s, e);
    }
    return INGOT_OK;
}

/* The order in which all matrices are read to the same share, so that each is digested from the
 * beginning to the end of reading: a digest is one thread's. */
static void order_pieces(side *s) {
    for (uint64_t i = 0; i < s->pieces; i++) {
        entry *least = NULL;
        for (entry *e = s->entries; e < s->entries + s->count; e++) {
            if (e->digested < e->pieces &&
                (least == NULL || e->digested * least->pieces < least->digested * e->pieces)) {
                least = e;
            }
        }
        assert(least != NULL); /* as many pieces as the matrices have together */
        s->order[i] = (piece){.of = least, .number = least->digested++};
        atomic_init(&s->is_read[i], false);
    }
    for (uint64_t i = 0; i < s->count; i++) {
        s->entries[i].digested = 0;
    }
}

/* The matrices of the side's block, with memory for them. */
static ingot_status place_entries(side *s) {
    const ingot_prefetch *p = s->owner;
    s->count = s->pieces = 0;
    for (uint64_t i = 0; i < p->job->plan->count; i++) {
        const ingot_plan_tensor *t = &p->job->plan->tensors[i];
        if (!is_wanted(p, t, s->layer)) {
            continue;
        }
        entry *e = &s->entries[s->count];
        const uint64_t size = ingot_checkpoint_at(p->job->checkpoint, t->source_index)->bytes;
        *e = (entry){.source_index = t->source_index,
                     .size = size,
                     .first_piece = s->pieces,
                     .pieces = ingot_ceil_div(size, PIECE_BYTES)};
        INGOT_TRY(ingot_arena_alloc(s->arena, (void **)&e->bytes, e->size));
        s->pieces += e->pieces;
        s->count++;
        INGOT_TRY(p->repeats ? INGOT_OK : ingot_digest_stream_create(&e->stream));
    }
    return INGOT_OK;
}

static ingot_status read_side(void *context, ingot_error *error) {
    side *s = context;
    ingot_arena_reset(s->arena);
    ingot_status status = place_entries(s);
    if (status == INGOT_OK) {
        order_pieces(s);
        status = ingot_pool_try(s->owner->readers, s->pieces, read_piece, s, error);
    }
    for (entry *e = s->entries; e < s->entries + s->count; e++) {
        if (status == INGOT_OK && e->stream != NULL) {
            assert(e->digested == e->pieces);
            ingot_digest_stream_finish(e->stream, e->digest);
        }
        ingot_digest_stream_destroy(e->stream);
        e->stream = NULL;
    }
    return status;
}

static void start(ingot_prefetch *p, uint64_t layer) {
    side *s = &p->sides[layer % 2];
    s->layer = layer;
    ingot_worker_start(p->worker, read_side, s);
}

static const entry *find(const ingot_prefetch *p, uint64_t source_index) {
    const side *s = &p->sides[p->at % 2];
    for (uint64_t i = 0; s->layer == p->at && i < s->count; i++) {
        if (s->entries[i].source_index == source_index) {
            return &s->entries[i];
        }
    }
    return NULL;
}

/* ---- the weight source ---------------------------------------------------------------------- */

static bool describe(void *self, const char *name, ingot_weight_info *info) {
    const ingot_weight_source *below = ((ingot_prefetch *)self)->job->source;
    return below->describe(below->self, name, info);
}

/* Where a table or head that stays has its place; NULL: it is neither. */
static ingot_weight_view *end_of(ingot_prefetch *p, const char *name) {
    const ingot_model *m = p->job->model;
    const char *const names[] = {m->embed_name, m->head_name};
    for (unsigned i = 0; p->repeats && i < 2; i++) {
        if (names[i] != NULL && strcmp(name, names[i]) == 0) {
            return &p->ends[i];
        }
    }
    return NULL;
}

static ingot_status load(void *self, const char *name, ingot_arena *arena, ingot_weight_view *view,
                         ingot_error *error) {
    ingot_prefetch *p = self;
    ingot_weight_view *end = end_of(p, name);
    const ingot_weight_source *below = p->job->source;
    uint64_t index;
    const ingot_st_tensor *tensor = ingot_checkpoint_find(p->job->checkpoint, name, &index);
    const entry *e = tensor != NULL ? find(p, index) : NULL;
    if (end != NULL) {
        if (end->data == NULL) {
            INGOT_TRY(below->load(below->self, name, p->kept, end, error));
        }
        *view = *end;
        return INGOT_OK;
    }
    if (e == NULL) {
        return below->load(below->self, name, arena, view, error);
    }
    *view = (ingot_weight_view){.kind = INGOT_DENSE,
                                .rows = tensor->dim[0],
                                .cols = tensor->dim[1],
                                .dtype = tensor->dtype,
                                .data = e->bytes};
    return INGOT_OK;
}

static const char *file(void *self, const char *name, uint64_t *size) {
    const ingot_weight_source *below = ((ingot_prefetch *)self)->job->source;
    return below->file(below->self, name, size);
}

static const char *name_at(void *self, uint64_t index) {
    const ingot_weight_source *below = ((ingot_prefetch *)self)->job->source;
    return below->name_at(below->self, index);
}

static ingot_status is_same(void *self, const char *a, const char *b, bool *out,
                            ingot_error *error) {
    const ingot_weight_source *below = ((ingot_prefetch *)self)->job->source;
    return below->is_same(below->self, a, b, out, error);
}

/* ---- opening and taking --------------------------------------------------------------------- */

static ingot_status fill(ingot_prefetch *p, uint64_t first) {
    for (uint64_t layer = 0; layer < p->job->model->layers; layer++) {
        uint64_t count = 0, pieces = 0;
        for (uint64_t i = 0; i < p->job->plan->count; i++) {
            const ingot_plan_tensor *t = &p->job->plan->tensors[i];
            if (is_wanted(p, t, layer)) {
                const uint64_t size =
                    ingot_checkpoint_at(p->job->checkpoint, t->source_index)->bytes;
                pieces += ingot_ceil_div(size, PIECE_BYTES);
                count++;
            }
        }
        p->most = ingot_max_u64(p->most, count);
        p->most_pieces = ingot_max_u64(p->most_pieces, pieces);
    }
    for (unsigned i = 0; i < 2; i++) {
        p->sides[i] = (side){.owner = p, .layer = UINT64_MAX};
    }
    for (unsigned i = 0; i < 2; i++) {
        void *memory;
        INGOT_TRY(ingot_backend_host_arena_create(&p->sides[i].arena, p->job->backend));
        INGOT_TRY(ingot_alloc_zero(&memory, p->most + 1, sizeof(entry)));
        p->sides[i].entries = memory;
        INGOT_TRY(ingot_alloc_zero(&memory, p->most_pieces + 1, sizeof(piece)));
        p->sides[i].order = memory;
        INGOT_TRY(ingot_alloc_zero(&memory, p->most_pieces + 1, sizeof(atomic_bool)));
        p->sides[i].is_read = memory;
    }
    const unsigned threads = ingot_pool_threads(p->job->backend->pool);
    if (p->job->backend->has_own_memory && threads > 1) {
        INGOT_TRY(ingot_pool_create(&p->readers, threads < READERS ? threads : READERS));
    }
    INGOT_TRY(ingot_backend_host_arena_create(&p->kept, p->job->backend));
    INGOT_TRY(ingot_worker_create(&p->worker));
    if (first < p->job->model->layers) {
        start(p, first);
    }
    return INGOT_OK;
}

ingot_status ingot_prefetch_create(ingot_prefetch **out, const ingot_loop_job *job, uint64_t first,
                                   bool repeats) {
    void *memory;
    *out = NULL;
    INGOT_TRY(ingot_alloc_zero(&memory, 1, sizeof(ingot_prefetch)));
    ingot_prefetch *p = memory;
    p->job = job;
    p->repeats = repeats;
    p->source = (ingot_weight_source){.self = p,
                                      .path = job->source->path,
                                      .describe = describe,
                                      .load = load,
                                      .file = file,
                                      .name_at = name_at,
                                      .is_same = job->source->is_same != NULL ? is_same : NULL};
    const ingot_status status = fill(p, first);
    if (status != INGOT_OK) {
        ingot_prefetch_destroy(p);
        return status;
    }
    *out = p;
    return INGOT_OK;
}

void ingot_prefetch_destroy(ingot_prefetch *prefetch) {
    if (prefetch == NULL) {
        return;
    }
    ingot_worker_destroy(prefetch->worker);
    ingot_pool_destroy(prefetch->readers);
    ingot_arena_destroy(prefetch->kept);
    for (unsigned i = 0; i < 2; i++) {
        ingot_arena_destroy(prefetch->sides[i].arena);
        ingot_free(prefetch->sides[i].entries);
        ingot_free(prefetch->sides[i].order);
        ingot_free(prefetch->sides[i].is_read);
    }
    ingot_free(prefetch);
}

ingot_status ingot_prefetch_take(ingot_prefetch *prefetch, uint64_t layer, ingot_error *error) {
    INGOT_TRY(ingot_worker_wait(prefetch->worker, error));
    prefetch->at = layer;
    if (layer + 1 < prefetch->job->model->layers) {
        start(prefetch, layer + 1);
    }
    return INGOT_OK;
}

ingot_status ingot_prefetch_begin(ingot_prefetch *prefetch, uint64_t layer, ingot_error *error) {
    INGOT_TRY(ingot_worker_wait(prefetch->worker, error));
    prefetch->at = UINT64_MAX;
    if (layer < prefetch->job->model->layers) {
        start(prefetch, layer);
    }
    return INGOT_OK;
}

const ingot_weight_source *ingot_prefetch_source(const ingot_prefetch *prefetch) {
    return &prefetch->source;
}

const void *ingot_prefetch_bytes(const ingot_prefetch *prefetch, uint64_t source_index,
                                 uint8_t digest[16]) {
    const entry *e = find(prefetch, source_index);
    if (e == NULL) {
        return NULL;
    }
    memcpy(digest, e->digest, sizeof e->digest);
    return e->bytes;
}
