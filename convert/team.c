/* Ranks that meet (convert/team.h): a mutex, a signal, and what each rank has laid open. */
#include "convert/team.h"

#include "common/memory.h"
#include "common/sizes.h"

#include <pthread.h>
#include <string.h>

#define PARTS 3 /* of a packed matrix without outliers */

struct ingot_team {
    pthread_mutex_t mutex; /* guards the four below */
    pthread_cond_t changed;
    unsigned arrived;
    uint64_t meetings;
    int left;
    unsigned size;
    /* laid open by the rank of that number before a meeting, read by others after it */
    void *values[INGOT_MAX_DEVICES];
    const ingot_backend *backend[INGOT_MAX_DEVICES];
    ingot_weight_view view; /* by rank 0, */
    char *view_part[PARTS]; /* and its parts */
};

ingot_status ingot_team_create(ingot_team **out, unsigned size) {
    void *memory;
    *out = NULL;
    INGOT_TRY(ingot_alloc_zero(&memory, 1, sizeof(ingot_team)));
    *out = memory;
    (void)pthread_mutex_init(&(*out)->mutex, NULL);
    (void)pthread_cond_init(&(*out)->changed, NULL);
    (*out)->size = size;
    (*out)->left = -1;
    return INGOT_OK;
}

void ingot_team_destroy(ingot_team *team) {
    if (team != NULL) {
        (void)pthread_cond_destroy(&team->changed);
        (void)pthread_mutex_destroy(&team->mutex);
        ingot_free(team);
    }
}

ingot_status ingot_team_meet(const ingot_rank *rank) {
    ingot_team *t = rank->team;
    if (t == NULL) {
        return INGOT_OK;
    }
    (void)pthread_mutex_lock(&t->mutex);
    const uint64_t meeting = t->meetings;
    if (++t->arrived == t->size) {
        t->arrived = 0;
        t->meetings++;
        (void)pthread_cond_broadcast(&t->changed);
    }
    while (t->meetings == meeting && t->left < 0) {
        (void)pthread_cond_wait(&t->changed, &t->mutex);
    }
    const bool has_met = t->meetings != meeting;
    (void)pthread_mutex_unlock(&t->mutex);
    return has_met ? INGOT_OK : INGOT_ERR_INTERRUPTED;
}

void ingot_team_leave(const ingot_rank *rank) {
    ingot_team *t = rank->team;
    if (t != NULL) {
        (void)pthread_mutex_lock(&t->mutex);
        t->left = t->left < 0 ? (int)rank->number : t->left;
        (void)pthread_cond_broadcast(&t->changed);
        (void)pthread_mutex_unlock(&t->mutex);
    }
}

int ingot_team_left(const ingot_team *team) {
    return team->left;
}

/* ---- sums ----------------------------------------------------------------------------------- */

/* Piece of `count` that a rank adds up. */
static uint64_t piece_begin(const ingot_rank *rank, unsigned number, uint64_t count) {
    const uint64_t piece = ingot_ceil_div(count, rank->size);
    return ingot_min_u64(piece * number, count);
}

static ingot_status fetch(const ingot_rank *rank, float *to, unsigned from, uint64_t first,
                          uint64_t count) {
    const ingot_team *t = rank->team;
    const float *values = t->values[from];
    return rank->backend->ops->fetch(rank->backend->context, to, t->backend[from]->context,
                                     values + first, count * sizeof *to);
}

ingot_status ingot_team_sum(const ingot_rank *rank, float *values, uint64_t count,
                            ingot_arena *scratch) {
    ingot_team *t = rank->team;
    if (t == NULL) {
        return INGOT_OK;
    }
    const ingot_backend_ops *ops = rank->backend->ops;
    void *context = rank->backend->context;
    const uint64_t first = piece_begin(rank, rank->number, count);
    const uint64_t own = piece_begin(rank, rank->number + 1, count) - first;
    float *sum, *part;
    INGOT_TRY(ingot_arena_array(scratch, (void **)&sum, own, sizeof *sum));
    INGOT_TRY(ingot_arena_array(scratch, (void **)&part, own, sizeof *part));
    t->values[rank->number] = values;
    t->backend[rank->number] = rank->backend;
    INGOT_TRY(ops->wait(context));
    INGOT_TRY(ingot_team_meet(rank));
    for (unsigned r = 0; own != 0 && r < rank->size; r++) {
        INGOT_TRY(fetch(rank, r == 0 ? sum : part, r, first, own));
        if (r != 0) {
            INGOT_TRY(ops->add(context, sum, part, 1.0f, own));
        }
    }
    INGOT_TRY(ops->copy(context, values + first, sum, own * sizeof *sum));
    INGOT_TRY(ops->wait(context));
    INGOT_TRY(ingot_team_meet(rank));
    for (unsigned r = 0; r < rank->size; r++) {
        const uint64_t at = piece_begin(rank, r, count);
        const uint64_t size = piece_begin(rank, r + 1, count) - at;
        if (r != rank->number && size != 0) {
            INGOT_TRY(fetch(rank, values + at, r, at, size));
        }
    }
    INGOT_TRY(ops->wait(context));
    return ingot_team_meet(rank);
}

ingot_status ingot_team_sum_host(const ingot_rank *rank, double *values, uint64_t count) {
    ingot_team *t = rank->team;
    double *sum;
    if (t == NULL) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_alloc_zero((void **)&sum, count, sizeof *sum));
    t->values[rank->number] = values;
    ingot_status status = ingot_team_meet(rank);
    for (unsigned r = 0; status == INGOT_OK && r < rank->size; r++) {
        const double *part = t->values[r];
        for (uint64_t i = 0; i < count; i++) {
            sum[i] += part[i];
        }
    }
    if (status == INGOT_OK) {
        status = ingot_team_meet(rank);
    }
    if (status == INGOT_OK) {
        memcpy(values, sum, count * sizeof *sum);
    }
    ingot_free(sum);
    return status;
}

/* ---- shares --------------------------------------------------------------------------------- */

#define ROWS_TOGETHER 16u /* a share is a multiple of this */

bool ingot_team_rows(uint64_t *first, uint64_t *count, const ingot_rank *rank, uint64_t rows) {
    const uint64_t pieces = ingot_ceil_div(rows, ROWS_TOGETHER);
    const bool is_shared = rank->team != NULL && pieces >= rank->size;
    const uint64_t begin = pieces * rank->number / rank->size * ROWS_TOGETHER;
    const uint64_t end = pieces * (rank->number + 1) / rank->size * ROWS_TOGETHER;
    *first = is_shared ? begin : 0;
    *count = (is_shared ? ingot_min_u64(end, rows) : rows) - *first;
    return is_shared;
}

/* One part of a packed matrix. */
typedef struct part {
    const void **pointer;
    uint64_t row_bytes;
} part;

static void list_parts(part parts[PARTS], ingot_weight_view *v) {
    const uint64_t groups = v->groups_per_row;
    parts[0] = (part){(const void **)&v->codes, v->row_stride_bytes};
    parts[1] = (part){&v->scales, groups * ingot_dtype_bytes(v->scale_dtype)};
    parts[2] = (part){(const void **)&v->zeros, v->zeros != NULL ? groups : 0};
}

ingot_status ingot_team_gather(ingot_weight_view *whole, const ingot_rank *rank, uint64_t rows,
                               uint64_t first_row, const ingot_weight_view *own,
                               ingot_arena *arena) {
    ingot_team *t = rank->team;
    ingot_weight_view from = *own;
    part to[PARTS], piece[PARTS];
    list_parts(piece, &from);
    if (rank->number == 0) {
        t->view = *own;
        t->view.rows = rows;
        list_parts(to, &t->view);
        for (unsigned i = 0; i < PARTS; i++) {
            void *memory = NULL;
            if (to[i].row_bytes != 0) {
                INGOT_TRY(ingot_arena_array(arena, &memory, rows, to[i].row_bytes));
            }
            *to[i].pointer = t->view_part[i] = memory;
        }
    }
    INGOT_TRY(ingot_team_meet(rank));
    *whole = t->view;
    list_parts(to, whole);
    for (unsigned i = 0; i < PARTS; i++) {
        if (to[i].row_bytes != 0) {
            INGOT_TRY(rank->backend->ops->download(rank->backend->context,
                                                   t->view_part[i] + first_row * to[i].row_bytes,
                                                   *piece[i].pointer, own->rows * to[i].row_bytes));
        }
    }
    return ingot_team_meet(rank);
}

ingot_status ingot_team_windows(ingot_windows *out, const ingot_rank *rank,
                                const ingot_windows *all, uint64_t judges) {
    const uint64_t shared = all->count - judges;
    const uint64_t first = shared * rank->number / rank->size;
    const uint64_t own = shared * (rank->number + 1) / rank->size - first;
    *out = (ingot_windows){.count = own + judges, .length = all->length};
    INGOT_TRY(ingot_alloc_zero((void **)&out->ids, out->count * out->length, sizeof *out->ids));
    memcpy(out->ids, all->ids + first * all->length, own * all->length * sizeof *out->ids);
    memcpy(out->ids + own * all->length, all->ids + shared * all->length,
           judges * all->length * sizeof *out->ids);
    return INGOT_OK;
}
