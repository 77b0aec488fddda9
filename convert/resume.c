/* The state of a conversion (convert/resume.h). */
#include "convert/resume.h"

#include "common/cli.h"
#include "common/files.h"
#include "common/json.h"
#include "common/memory.h"
#include "common/worker.h"
#include "format/digest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define KIND         "conversion-state"
#define SUFFIX       ".resume"
#define NAME_BYTES   32
#define STEP_BYTES   56u      /* the members of ingot_steps_taken as binary64 */
#define TUNING_BYTES 40u      /* before, after, both divergences as binary64, step as u64 */
#define OUTPUT       "output" /* of names of pieces: the file an image is of */
#define WAITING      "waiting"
#define OTHER_PIECES 3u /* done, steps, tuning */

/* A part of the state: bytes of the conversion, or a copy of them. */
typedef struct piece {
    char name[NAME_BYTES];
    uint8_t *bytes;
    uint64_t size;
} piece;

struct ingot_resume {
    ingot_resume_job job;
    char path[4096];
    ingot_worker *worker;
    piece *pieces; /* [piece_count], what is being saved; bytes are owned */
    uint64_t piece_count;
    char *meta;            /* of the state being saved */
    uint64_t saving, kept; /* blocks of that state, and of the last one that is durable */
};

ingot_status ingot_resume_path(char path[4096], const char *output, ingot_error *error) {
    char target[INGOT_PATH_BYTES];
    INGOT_TRY(ingot_output_target(target, output, error));
    return snprintf(path, 4096, "%s%s", target, SUFFIX) < 4096
               ? INGOT_OK
               : ingot_error_set(error, INGOT_ERR_USAGE, output, NULL, "use a shorter path",
                                 "the path is too long");
}

bool ingot_resume_is_state(const char *path) {
    ingot_container *container = NULL;
    ingot_info info = {.profile = INGOT_PROFILE_STATE};
    if (!ingot_is_container(path)) {
        return false;
    }
    if (ingot_open(&container, path, NULL) == INGOT_OK) {
        ingot_get_info(container, &info);
    }
    ingot_close(container);
    return info.profile == INGOT_PROFILE_STATE;
}

/* ---- what the conversion is ----------------------------------------------------------------- */

static void digest_u64(ingot_digest_stream *stream, uint64_t value) {
    uint8_t bytes[8];
    for (unsigned i = 0; i < 8; i++) {
        bytes[i] = (uint8_t)(value >> (8 * i));
    }
    ingot_digest_stream_update(stream, bytes, sizeof bytes);
}

/* Everything of the plan that shows in the bytes of the output. */
static ingot_status digest_plan(char text[33], const ingot_plan *plan) {
    ingot_digest_stream *stream = NULL;
    uint8_t digest[16];
    INGOT_TRY(ingot_digest_stream_create(&stream));
    for (uint64_t i = 0; i < plan->count; i++) {
        const ingot_plan_tensor *t = &plan->tensors[i];
        const ingot_tensor_spec *spec = &plan->specs[i];
        const uint64_t values[] = {t->origin,
                                   t->method,
                                   t->source_index,
                                   spec->kind,
                                   spec->rank,
                                   spec->dim[0],
                                   spec->rank > 1 ? spec->dim[1] : 0,
                                   spec->dtype,
                                   spec->bits,
                                   spec->scale_dtype,
                                   spec->zero_mode,
                                   spec->group,
                                   spec->outlier_count};
        digest_u64(stream, strlen(t->name));
        ingot_digest_stream_update(stream, t->name, strlen(t->name));
        for (size_t k = 0; k < sizeof values / sizeof *values; k++) {
            digest_u64(stream, values[k]);
        }
    }
    ingot_digest_stream_finish(stream, digest);
    ingot_digest_stream_destroy(stream);
    ingot_digest_hex(text, digest);
    return INGOT_OK;
}

/* The files that travel along: config.json, tokenizer and others. */
static ingot_status digest_files(char text[33], const ingot_writer_plan *plan) {
    ingot_digest_stream *stream = NULL;
    uint8_t digest[16];
    INGOT_TRY(ingot_digest_stream_create(&stream));
    for (uint64_t i = 0; i < plan->file_count; i++) {
        const ingot_file_spec *file = &plan->files[i];
        digest_u64(stream, strlen(file->name));
        ingot_digest_stream_update(stream, file->name, strlen(file->name));
        digest_u64(stream, file->size);
        ingot_digest_stream_update(stream, file->bytes, file->size);
    }
    ingot_digest_stream_finish(stream, digest);
    ingot_digest_stream_destroy(stream);
    ingot_digest_hex(text, digest);
    return INGOT_OK;
}

static ingot_status describe(json_t **out, const ingot_resume_job *job, uint64_t blocks) {
    const ingot_writer_plan *plan = job->writer_plan;
    char plan_digest[33], files_digest[33];
    json_t *conversion = NULL, *root = json_object();
    *out = root;
    INGOT_TRY(digest_plan(plan_digest, job->plan));
    INGOT_TRY(digest_files(files_digest, plan));
    INGOT_TRY(ingot_json_parse(&conversion, plan->meta, plan->meta_size, "META", NULL));
    int failed = json_object_set_new(root, "conversion", conversion);
    failed |= json_object_set_new(root, "kind", json_string(KIND));
    failed |= json_object_set_new(root, "tool", json_string("ingot-convert"));
    failed |= json_object_set_new(root, "version", json_string(INGOT_VERSION));
    failed |= json_object_set_new(root, "blocks", json_integer((json_int_t)blocks));
    failed |= json_object_set_new(root, "files", json_string(files_digest));
    failed |= json_object_set_new(root, "plan", json_string(plan_digest));
    failed |= json_object_set_new(root, "zstd", json_boolean(plan->is_compressed));
    failed |=
        json_object_set_new(root, "shard_size", json_integer((json_int_t)plan->shard_size_bytes));
    return failed == 0 ? INGOT_OK : INGOT_ERR_NO_MEMORY;
}

static ingot_status refuse(const ingot_resume *r, ingot_error *error, const char *reason,
                           const char *detail) {
    return ingot_error_set(error, INGOT_ERR_STATE, r->path, NULL,
                           "run without --resume to start over", "cannot go on: %s%s%s%s", reason,
                           detail != NULL ? " (" : "", detail != NULL ? detail : "",
                           detail != NULL ? ")" : "");
}

/* The first member that differs between two objects; NULL: none. */
static const char *first_difference(const json_t *now, json_t *then) {
    const char *key;
    json_t *value;
    json_object_foreach(then, key, value) {
        if (!json_equal(json_object_get(now, key), value)) {
            return key;
        }
    }
    return json_object_size(now) != json_object_size(then) ? "options" : NULL;
}

/* Compares the conversion that the state is of with this one, the most telling member first. */
static ingot_status compare(const ingot_resume *r, const json_t *now, const json_t *then,
                            ingot_error *error) {
    static const struct {
        const char *key, *reason;
        bool is_of_state, has_detail;
    } members[] = {
        {"version", "it is of another version", true, true},
        {"arithmetic", "it is of a build that computes otherwise", false, false},
        {"backend", "it was made on another backend or instruction set", false, true},
        {"source", "the checkpoint has changed", false, false},
        {"files", "config.json, the tokenizer or another file of the checkpoint has changed", true,
         false},
        {"calibration", "the calibration text, its windows or statistics have changed", false,
         false},
        {"recipe", "the recipe has changed", false, false},
        {"method", "the method has changed", false, true},
        {"seed", "--seed has changed", false, false},
        {"zstd", "--zstd has changed", true, false},
        {"shard_size", "--shard-size has changed", true, false},
        {"conversion", "the options have changed", true, false},
        {"plan", "the plan has changed", true, false},
    };
    const json_t *new_meta = json_object_get(now, "conversion"),
                 *old_meta = json_object_get(then, "conversion");
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) {
        const char *key = members[i].key;
        json_t *a = json_object_get(members[i].is_of_state ? now : new_meta, key),
               *b = json_object_get(members[i].is_of_state ? then : old_meta, key);
        if (json_equal(a, b)) {
            continue;
        }
        const char *detail = NULL;
        if (members[i].has_detail) {
            detail = json_string_value(b);
        } else if (strcmp(key, "recipe") == 0 || strcmp(key, "calibration") == 0) {
            json_t *x = json_object_get(a, "defaults"), *y = json_object_get(b, "defaults");
            detail = first_difference(a, b);
            detail =
                detail != NULL && strcmp(detail, "defaults") == 0 ? first_difference(x, y) : detail;
        }
        return refuse(r, error, members[i].reason, detail);
    }
    return INGOT_OK;
}

/* ---- pieces --------------------------------------------------------------------------------- */

static void store_double(uint8_t *bytes, double value) {
    memcpy(bytes, &value, sizeof value); /* little-endian, like all of the file */
}

static double load_double(const uint8_t *bytes) {
    double value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static uint64_t step_bytes(const ingot_resume *r) {
    return r->job.plan->count * STEP_BYTES;
}

static uint64_t tuning_bytes(const ingot_resume *r) {
    return r->job.tunings != NULL ? r->job.layers * TUNING_BYTES : 0;
}

/* Copies of all that is to be saved, in place of those of the state before. */
static void drop_pieces(ingot_resume *r) {
    for (uint64_t i = 0; i < r->piece_count; i++) {
        ingot_free(r->pieces[i].bytes);
    }
    r->piece_count = 0;
    free(r->meta);
    r->meta = NULL;
}

static ingot_status add_piece(ingot_resume *r, uint8_t **bytes, uint64_t size, const char *name) {
    piece *p = &r->pieces[r->piece_count];
    void *memory;
    INGOT_TRY(ingot_alloc_zero(&memory, size, 1));
    (void)snprintf(p->name, sizeof p->name, "%s", name);
    p->bytes = memory;
    p->size = size;
    r->piece_count++;
    *bytes = memory;
    return INGOT_OK;
}

static const char *const image_names[INGOT_IMAGE_COUNT] = {"chunks", "ledger", "zmap"};

static void image_name(char name[NAME_BYTES], const char *file, uint32_t shard, unsigned image) {
    (void)snprintf(name, NAME_BYTES, "%s.%u.%s", file, (unsigned)shard, image_names[image]);
}

static ingot_status copy_images(ingot_resume *r, const char *file, ingot_writer *writer) {
    for (uint32_t s = 0; s < ingot_writer_shard_count(writer); s++) {
        for (unsigned k = 0; k < INGOT_IMAGE_COUNT; k++) {
            char name[NAME_BYTES];
            uint8_t *image, *copy;
            uint64_t size;
            ingot_writer_get_image(&image, &size, writer, s, (ingot_writer_image)k);
            if (size != 0) {
                image_name(name, file, s, k);
                INGOT_TRY(add_piece(r, &copy, size, name));
                memcpy(copy, image, size);
            }
        }
    }
    return INGOT_OK;
}

static ingot_status copy_all(ingot_resume *r) {
    uint8_t *bytes;
    INGOT_TRY(copy_images(r, OUTPUT, r->job.writer));
    if (r->job.waiting != NULL) {
        INGOT_TRY(copy_images(r, WAITING, ingot_waiting_writer(r->job.waiting)));
    }
    INGOT_TRY(add_piece(r, &bytes, r->job.plan->count, "done"));
    for (uint64_t i = 0; i < r->job.plan->count; i++) {
        bytes[i] = ingot_writer_is_put(r->job.writer, i);
    }
    INGOT_TRY(add_piece(r, &bytes, step_bytes(r), "steps"));
    for (uint64_t i = 0; i < r->job.plan->count; i++) {
        const ingot_steps_taken *steps = &r->job.steps[i];
        uint8_t *to = bytes + i * STEP_BYTES;
        store_double(to, steps->share);
        store_double(to + 8, steps->gain);
        store_double(to + 16, steps->gptq);
        store_double(to + 24, steps->polished);
        store_double(to + 32, steps->outliers);
        store_double(to + 40, steps->groups);
        store_double(to + 48, steps->left_out);
    }
    if (r->job.tunings != NULL) {
        INGOT_TRY(add_piece(r, &bytes, tuning_bytes(r), "tuning"));
        for (uint64_t i = 0; i < r->job.layers; i++) {
            const uint64_t step = r->job.tunings[i].step;
            store_double(bytes + i * TUNING_BYTES, r->job.tunings[i].before);
            store_double(bytes + i * TUNING_BYTES + 8, r->job.tunings[i].after);
            store_double(bytes + i * TUNING_BYTES + 16, r->job.tunings[i].divergence[1]);
            store_double(bytes + i * TUNING_BYTES + 24, r->job.tunings[i].divergence[0]);
            memcpy(bytes + i * TUNING_BYTES + 32, &step, sizeof step);
        }
    }
    return INGOT_OK;
}

/* ---- saving --------------------------------------------------------------------------------- */

static ingot_status put_pieces(const ingot_resume *r, ingot_writer *writer, ingot_error *error) {
    ingot_ledger ledger;
    ingot_ledger_copy(&ledger);
    for (uint64_t i = 0; i < r->piece_count; i++) {
        const ingot_weight_view view = {.kind = INGOT_DENSE,
                                        .rows = 1,
                                        .cols = r->pieces[i].size,
                                        .dtype = INGOT_U8,
                                        .data = r->pieces[i].bytes};
        INGOT_TRY(ingot_writer_put(writer, i, &view, &ledger, error));
    }
    return INGOT_OK;
}

/* In the worker's thread. */
static ingot_status write_state(void *context, ingot_error *error) {
    ingot_resume *r = context;
    ingot_tensor_spec *specs = NULL;
    ingot_writer *writer = NULL;
    ingot_status status = INGOT_OK;
    INGOT_GO(ingot_alloc_zero((void **)&specs, r->piece_count, sizeof *specs));
    for (uint64_t i = 0; i < r->piece_count; i++) {
        specs[i] = (ingot_tensor_spec){.name = r->pieces[i].name,
                                       .kind = INGOT_DENSE,
                                       .rank = 1,
                                       .dim = {r->pieces[i].size},
                                       .dtype = INGOT_U8};
    }
    const ingot_writer_plan plan = {.profile = INGOT_PROFILE_STATE,
                                    .tensors = specs,
                                    .tensor_count = r->piece_count,
                                    .meta = r->meta,
                                    .meta_size = strlen(r->meta)};
    INGOT_GO(ingot_writer_sync(r->job.writer, error));
    INGOT_GO(r->job.waiting != NULL ? ingot_writer_sync(ingot_waiting_writer(r->job.waiting), error)
                                    : INGOT_OK);
    INGOT_GO(ingot_writer_create(&writer, r->path, true, &plan, error));
    status = put_pieces(r, writer, error);
    if (status != INGOT_OK) {
        ingot_writer_abort(writer);
        goto done;
    }
    INGOT_GO(ingot_writer_finish(writer, 1, NULL, NULL, error));
    r->kept = r->saving;
done:
    ingot_free(specs);
    return status;
}

ingot_status ingot_resume_create(ingot_resume **out, const ingot_resume_job *job,
                                 ingot_error *error) {
    void *memory;
    *out = NULL;
    ingot_status status = ingot_alloc_zero(&memory, 1, sizeof(ingot_resume));
    if (status == INGOT_OK) {
        ingot_resume *r = memory;
        const uint64_t files = ingot_writer_shard_count(job->writer) + (job->waiting != NULL);
        const uint64_t most = files * INGOT_IMAGE_COUNT + OTHER_PIECES;
        r->job = *job;
        (void)snprintf(r->path, sizeof r->path, "%s", job->path);
        *out = r;
        status = ingot_alloc_zero((void **)&r->pieces, most, sizeof *r->pieces);
        status = status == INGOT_OK ? ingot_worker_create(&r->worker) : status;
    }
    if (status != INGOT_OK) {
        ingot_resume_destroy(*out);
        *out = NULL;
        return ingot_error_set(error, status, job->path, NULL, NULL, "%s",
                               ingot_status_text(status));
    }
    return INGOT_OK;
}

void ingot_resume_destroy(ingot_resume *resume) {
    if (resume != NULL) {
        ingot_worker_destroy(resume->worker); /* first: it may be writing the pieces */
        drop_pieces(resume);
        ingot_free(resume->pieces);
        ingot_free(resume);
    }
}

ingot_status ingot_resume_wait(ingot_resume *resume, ingot_error *error) {
    return resume->worker != NULL ? ingot_worker_wait(resume->worker, error) : INGOT_OK;
}

uint64_t ingot_resume_blocks(const ingot_resume *resume) {
    return resume->kept;
}

ingot_status ingot_resume_save(ingot_resume *resume, uint64_t blocks, ingot_error *error) {
    json_t *meta = NULL;
    INGOT_TRY(ingot_resume_wait(resume, error));
    drop_pieces(resume);
    ingot_status status = describe(&meta, &resume->job, blocks);
    resume->meta = status == INGOT_OK ? ingot_json_canonical(meta) : NULL;
    json_decref(meta);
    INGOT_TRY(status);
    if (resume->meta == NULL) {
        return INGOT_ERR_NO_MEMORY;
    }
    INGOT_TRY(copy_all(resume));
    resume->saving = blocks;
    ingot_worker_start(resume->worker, write_state, resume);
    return INGOT_OK;
}

/* ---- loading -------------------------------------------------------------------------------- */

/* bytes[size] of a piece, which must have just this size. */
static ingot_status load_piece(const ingot_resume *r, const ingot_container *state,
                               const char *name, uint8_t *bytes, uint64_t size,
                               ingot_error *error) {
    uint64_t index;
    const ingot_tensor *t = ingot_tensor_find(state, name, &index);
    if (t == NULL || t->kind != INGOT_DENSE || t->dtype != INGOT_U8 || t->rank != 1 ||
        t->dim[0] != size) {
        return refuse(r, error, "the state lacks a part or has another size", name);
    }
    return ingot_part_read(state, index, INGOT_PART_CODES, 0, size, true, bytes, error);
}

static ingot_status load_images(const ingot_resume *r, const ingot_container *state,
                                const char *file, ingot_writer *writer, ingot_error *error) {
    for (uint32_t s = 0; s < ingot_writer_shard_count(writer); s++) {
        for (unsigned k = 0; k < INGOT_IMAGE_COUNT; k++) {
            char name[NAME_BYTES];
            uint8_t *image;
            uint64_t size;
            ingot_writer_get_image(&image, &size, writer, s, (ingot_writer_image)k);
            image_name(name, file, s, k);
            if (size != 0) {
                INGOT_TRY(load_piece(r, state, name, image, size, error));
            }
        }
    }
    return INGOT_OK;
}

/* Whether a tensor of a finished block waits: it is not in the partial output yet. */
static bool is_waiting(const ingot_resume *r, uint64_t index) {
    return r->job.waiting != NULL && ingot_waiting_is_of(r->job.plan, index);
}

/* The tensors that count as put: all of the finished blocks must be among them. */
static ingot_status load_done(const ingot_resume *r, const ingot_container *state, uint64_t blocks,
                              bool *is_put, ingot_error *error) {
    const ingot_plan *plan = r->job.plan;
    void *memory;
    INGOT_TRY(ingot_alloc_zero(&memory, plan->count, 1));
    uint8_t *done = memory;
    ingot_status status = load_piece(r, state, "done", done, plan->count, error);
    for (uint64_t i = 0; status == INGOT_OK && i < plan->count; i++) {
        const ingot_plan_tensor *t = &plan->tensors[i];
        const bool is_in_block = t->layer != INGOT_PLAN_NONE && t->origin != INGOT_ORIGIN_ALIAS;
        const bool waits = is_waiting(r, i);
        is_put[i] = done[i] != 0 && !waits && (t->layer == INGOT_PLAN_NONE || t->layer < blocks);
        if (is_in_block && t->layer < blocks && !is_put[i] && !waits) {
            status = refuse(r, error, "a finished block lacks a tensor", t->name);
        }
    }
    ingot_free(done);
    return status;
}

static ingot_status load_figures(const ingot_resume *r, const ingot_container *state,
                                 ingot_error *error) {
    ingot_status status = INGOT_OK;
    uint8_t *bytes = NULL;
    void *memory;
    INGOT_GO(ingot_alloc_zero(&memory, step_bytes(r) + tuning_bytes(r), 1));
    bytes = memory;
    INGOT_GO(load_piece(r, state, "steps", bytes, step_bytes(r), error));
    for (uint64_t i = 0; i < r->job.plan->count; i++) {
        const uint8_t *from = bytes + i * STEP_BYTES;
        r->job.steps[i] = (ingot_steps_taken){.share = load_double(from),
                                              .gain = load_double(from + 8),
                                              .gptq = load_double(from + 16),
                                              .polished = load_double(from + 24),
                                              .outliers = load_double(from + 32),
                                              .groups = load_double(from + 40),
                                              .left_out = load_double(from + 48)};
    }
    if (r->job.tunings != NULL) {
        INGOT_GO(load_piece(r, state, "tuning", bytes, tuning_bytes(r), error));
    }
    for (uint64_t i = 0; r->job.tunings != NULL && i < r->job.layers; i++) {
        const uint8_t *from = bytes + i * TUNING_BYTES;
        uint64_t step;
        memcpy(&step, from + 32, sizeof step);
        r->job.tunings[i] =
            (ingot_tune_result){.before = load_double(from),
                                .after = load_double(from + 8),
                                .divergence = {load_double(from + 24), load_double(from + 16)},
                                .step = (unsigned)step};
    }
done:
    ingot_free(bytes);
    return status;
}

/* A finished tensor's source must be what it was: the bytes of the output are then those of a
 * conversion of the checkpoint as it is now, whatever happened to the rest of it meanwhile. */
static ingot_status check_source(const ingot_resume *r, uint64_t index, ingot_error *error) {
    const ingot_plan_tensor *t = &r->job.plan->tensors[index];
    uint8_t digest[16];
    INGOT_TRY(ingot_checkpoint_digest(digest, r->job.checkpoint, t->source_index, error));
    return memcmp(digest, r->job.ledgers[index].source_digest, sizeof digest) == 0
               ? INGOT_OK
               : refuse(r, error, "the checkpoint has changed", t->name);
}

/* The matrices of finished blocks that wait. */
static ingot_status load_waiting(const ingot_resume *r, const ingot_container *state,
                                 uint64_t blocks, ingot_error *error) {
    ingot_writer *writer;
    void *memory;
    if (r->job.waiting == NULL) {
        return INGOT_OK;
    }
    writer = ingot_waiting_writer(r->job.waiting);
    INGOT_TRY(load_images(r, state, WAITING, writer, error));
    INGOT_TRY(ingot_alloc_zero(&memory, r->job.plan->count, sizeof(bool)));
    bool *is_put = memory;
    for (uint64_t i = 0; i < r->job.plan->count; i++) {
        if (is_waiting(r, i) && r->job.plan->tensors[i].layer < blocks) {
            is_put[ingot_waiting_number(r->job.waiting, i)] = true;
        }
    }
    const ingot_status status = ingot_writer_restore(writer, is_put, error);
    ingot_free(is_put);
    return status;
}

static ingot_status take_ledgers(const ingot_resume *r, const bool *is_put, uint64_t blocks,
                                 ingot_error *error) {
    for (uint64_t i = 0; i < r->job.plan->count; i++) {
        const ingot_plan_tensor *t = &r->job.plan->tensors[i];
        const bool waits = is_waiting(r, i) && t->layer < blocks;
        if (waits) {
            ingot_writer_get_ledger(&r->job.ledgers[i], ingot_waiting_writer(r->job.waiting),
                                    ingot_waiting_number(r->job.waiting, i));
        } else if (is_put[i]) {
            ingot_writer_get_ledger(&r->job.ledgers[i], r->job.writer, i);
        }
        if ((waits || is_put[i]) && t->source_index != INGOT_PLAN_NONE) {
            INGOT_TRY(check_source(r, i, error));
        }
    }
    return INGOT_OK;
}

static ingot_status check_state(const ingot_resume *r, const ingot_container *state,
                                uint64_t *blocks, ingot_error *error) {
    uint64_t size;
    json_t *now = NULL, *then = NULL;
    const char *meta = ingot_meta(state, &size);
    ingot_status status = INGOT_OK;
    const char *kind = NULL;
    INGOT_GO(ingot_json_parse(&then, meta, size, r->path, error));
    INGOT_GO(describe(&now, &r->job, 0));
    kind = json_string_value(json_object_get(then, "kind"));
    if (kind == NULL || strcmp(kind, KIND) != 0) {
        INGOT_GO(refuse(r, error, "this is no state of a conversion", NULL));
    }
    INGOT_GO(compare(r, now, then, error));
    const json_int_t count = json_integer_value(json_object_get(then, "blocks"));
    if (count < 1 || (uint64_t)count > r->job.layers) {
        INGOT_GO(refuse(r, error, "it names blocks that the model has not", NULL));
    }
    *blocks = (uint64_t)count;
done:
    json_decref(now);
    json_decref(then);
    return status;
}

static ingot_status read_state(const ingot_resume *r, const ingot_container *state,
                               uint64_t *blocks, ingot_error *error) {
    ingot_info info;
    ingot_get_info(state, &info);
    if (info.profile != INGOT_PROFILE_STATE) {
        return refuse(r, error, "this is no state of a conversion", NULL);
    }
    INGOT_TRY(ingot_check_full(state, 1, NULL, NULL, error));
    return check_state(r, state, blocks, error);
}

static ingot_status take_over(ingot_resume *r, const ingot_container *state, uint64_t blocks,
                              ingot_error *error) {
    void *memory;
    INGOT_TRY(ingot_alloc_zero(&memory, r->job.plan->count, sizeof(bool)));
    bool *is_put = memory;
    ingot_status status = INGOT_OK;
    INGOT_GO(load_done(r, state, blocks, is_put, error));
    INGOT_GO(load_images(r, state, OUTPUT, r->job.writer, error));
    INGOT_GO(ingot_writer_restore(r->job.writer, is_put, error));
    INGOT_GO(load_waiting(r, state, blocks, error));
    INGOT_GO(take_ledgers(r, is_put, blocks, error));
    INGOT_GO(load_figures(r, state, error));
    r->kept = blocks;
done:
    ingot_free(is_put);
    return status;
}

/* takes: what the state says is taken over as well. */
static ingot_status open_state(ingot_resume *r, uint64_t *blocks, bool takes, ingot_error *error) {
    ingot_container *state = NULL;
    ingot_error found;
    memset(&found, 0, sizeof found);
    ingot_status status = ingot_open(&state, r->path, &found);
    if (status == INGOT_OK) {
        status = read_state(r, state, blocks, &found);
    }
    if (status == INGOT_OK && takes) {
        status = take_over(r, state, *blocks, &found);
    }
    ingot_close(state);
    if (status >= INGOT_BAD_FIRST && status <= INGOT_BAD_LAST) {
        return refuse(r, error, "the state is damaged", found.reason);
    }
    if (status != INGOT_OK && error != NULL) {
        *error = found;
    }
    return status;
}

ingot_status ingot_resume_check(const ingot_resume_job *job, ingot_error *error) {
    ingot_resume r = {.job = *job};
    uint64_t blocks;
    (void)snprintf(r.path, sizeof r.path, "%s", job->path);
    return open_state(&r, &blocks, false, error);
}

ingot_status ingot_resume_load(ingot_resume *resume, uint64_t *blocks, ingot_error *error) {
    return open_state(resume, blocks, true, error);
}
