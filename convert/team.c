/* Ranks that meet (convert/team.h): a mutex, a signal, and what each rank has laid open. */
#include "convert/team.h"

#include "common/memory.h"
#include "common/sizes.h"

#include <pthread.h>
#include <string.h>

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
    ingot_weight_view view[INGOT_ROLE_COUNT];
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

/* Multiply-adds of a column that a matrix takes beside those with other columns: the search. */
#define SEARCH_COST 8192.0

typedef struct shares {
    double load[INGOT_MAX_DEVICES];
    unsigned size;
} shares;

static unsigned give(shares *s, double cost) {
    unsigned idle = 0;
    for (unsigned r = 1; r < s->size; r++) {
        idle = s->load[r] < s->load[idle] ? r : idle;
    }
    s->load[idle] += cost;
    return idle;
}

static unsigned largest_of(const double *cost, unsigned count) {
    unsigned largest = 0;
    for (unsigned i = 1; i < count; i++) {
        largest = cost[i] > cost[largest] ? i : largest;
    }
    return largest;
}

/* The linears of one input, largest first. */
static void deal(unsigned *owner, const ingot_rank *rank, const ingot_model *model,
                 const bool *is_present, ingot_input input) {
    shares s = {.size = rank->size};
    double cost[INGOT_ROLE_COUNT];
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const ingot_linear_desc *d = &model->linear[role];
        cost[role] = is_present[role] && d->input == input ? (double)d->rows * (double)d->cols : -1;
    }
    for (unsigned role; cost[role = largest_of(cost, INGOT_ROLE_COUNT)] >= 0; cost[role] = -1) {
        owner[role] = give(&s, cost[role]);
    }
}

void ingot_team_share(unsigned owner[INGOT_ROLE_COUNT], const ingot_rank *rank,
                      const ingot_model *model, const bool is_present[INGOT_ROLE_COUNT],
                      bool is_sequential) {
    shares s = {.size = rank->size};
    double cost[INGOT_INPUT_COUNT] = {0};
    memset(owner, 0, INGOT_ROLE_COUNT * sizeof *owner);
    for (unsigned i = 0; is_sequential && i < INGOT_INPUT_COUNT; i++) {
        deal(owner, rank, model, is_present, (ingot_input)i);
    }
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const ingot_linear_desc *d = &model->linear[role];
        const double cols = (double)d->cols;
        if (is_present[role]) {
            cost[d->input] += cost[d->input] > 0 ? 0 : cols * cols * cols; /* the factor */
            cost[d->input] += (double)d->rows * cols * (cols + SEARCH_COST);
        }
    }
    for (unsigned round = 0; !is_sequential && round < INGOT_INPUT_COUNT; round++) {
        const unsigned input = largest_of(cost, INGOT_INPUT_COUNT);
        const unsigned to = give(&s, cost[input]);
        cost[input] = -1;
        for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
            owner[role] = is_present[role] && model->linear[role].input == input ? to : owner[role];
        }
    }
}

void ingot_team_show(const ingot_rank *rank, ingot_role role, const ingot_weight_view *view) {
    if (rank->team != NULL) {
        rank->team->view[role] = *view;
    }
}

const ingot_weight_view *ingot_team_shown(const ingot_rank *rank, ingot_role role) {
    return &rank->team->view[role];
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
