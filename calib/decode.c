/* Greedy and sampled decoding of one sequence with a KV cache: on the engine of a backend that has
 * one and covers the model (kernels/engine.h), else operation by operation.  Not here: batches of
 * sequences, chat templates, top-k and other samplers.  The command line is calib/run.c. */
#include "calib/decode.h"

#include "calib/engine_model.h"
#include "calib/whole_model.h"
#include "common/files.h"
#include "common/progress.h"
#include "common/random.h"
#include "common/sizes.h"
#include "kernels/draw.h"

#include <math.h>
#include <string.h>

#define CHUNK_TOKENS 512ull /* of a prompt, per pass through the blocks */

/* ---- the model with its cache ----------------------------------------------------------- */

struct ingot_decoder {
    const char *path;     /* of the source, for errors */
    ingot_engine *engine; /* NULL: operation by operation, with the model that follows */
    ingot_whole_model whole;
    uint64_t chunk; /* tokens per pass */
};

static void show_bytes(void *progress, uint64_t done_bytes, uint64_t total_bytes) {
    (void)ingot_progress_bytes(progress, done_bytes, total_bytes);
}

/* Leaves d->engine NULL where the backend has none that covers the model. */
static ingot_status load_engine(ingot_decoder *d, const ingot_weight_source *source,
                                uint64_t capacity, ingot_progress *progress, ingot_error *error) {
    const ingot_engine_ops *ops = d->whole.backend->ops->engine;
    const ingot_engine_options options = {.sequences = 1,
                                          .capacity = capacity,
                                          .skip_verify = source->skips_verify,
                                          .poll = ingot_interrupt_check,
                                          .progress = show_bytes,
                                          .progress_context = progress};
    ingot_engine_model description = ingot_engine_model_numbers(d->whole.model);
    if (ops == NULL || !ingot_engine_model_is_plain(d->whole.model) ||
        ingot_engine_check_numbers(&description, &options, NULL) == INGOT_ERR_UNSUPPORTED) {
        return INGOT_OK;
    }
    ingot_arena *arena = NULL;
    ingot_status status = INGOT_OK;
    INGOT_GO(ingot_arena_create(&arena));
    INGOT_GO(
        ingot_engine_model_create(&description, d->whole.model, source, arena, progress, error));
    if (progress != NULL && source->container == NULL) { /* these were read just now */
        ingot_progress_end(progress);
        ingot_progress_begin(progress, "to the device", "MB", 0, progress->is_quiet);
    }
    status =
        ops->create(d->whole.backend->context, &d->engine, &description, &options, NULL, error);
done:
    ingot_arena_destroy(arena);
    return status;
}

ingot_status ingot_decoder_create(ingot_decoder **out, const ingot_model *model,
                                  const ingot_weight_source *source, const ingot_backend *backend,
                                  uint64_t capacity, ingot_progress *progress, ingot_error *error) {
    *out = NULL;
    void *memory;
    if (error != NULL) {
        error->status = INGOT_OK;
    }
    ingot_status status = ingot_alloc_zero(&memory, 1, sizeof(ingot_decoder));
    if (status != INGOT_OK) {
        return ingot_error_set(error, status, source->path, NULL, NULL, "no memory");
    }
    ingot_decoder *d = memory;
    d->whole.model = model;
    d->whole.backend = backend;
    d->path = source->path;
    d->chunk = ingot_min_u64(CHUNK_TOKENS, capacity);
    d->whole.cache.capacity = capacity;
    INGOT_GO(load_engine(d, source, capacity, progress, error));
    if (d->engine == NULL) {
        INGOT_GO(ingot_whole_model_load(&d->whole, source, progress, error));
        INGOT_GO(ingot_whole_model_make_room(&d->whole, 1, capacity, d->chunk, 1, error));
    }
    *out = d;
done:
    if (status != INGOT_OK) {
        ingot_decoder_destroy(d);
        if (error != NULL && error->status == INGOT_OK) {
            ingot_error_set(error, status, source->path, NULL, NULL,
                            "the model could not be loaded: %s", ingot_status_text(status));
        }
    }
    return status;
}

void ingot_decoder_destroy(ingot_decoder *decoder) {
    if (decoder == NULL) {
        return;
    }
    if (decoder->engine != NULL) {
        decoder->whole.backend->ops->engine->destroy(decoder->engine);
    }
    ingot_whole_model_release(&decoder->whole);
    ingot_free(decoder);
}

static ingot_status last_logits(ingot_decoder *d, uint64_t count, float *logits) {
    const ingot_model *model = d->whole.model;
    INGOT_TRY(ingot_ends_logits(&d->whole.ends, model, d->whole.backend, d->whole.logits,
                                d->whole.x + (count - 1) * model->hidden, d->whole.scratch, 1));
    INGOT_TRY(d->whole.backend->ops->download(d->whole.backend->context, logits, d->whole.logits,
                                              model->vocab * sizeof(float)));
    for (uint64_t i = 0; i < model->vocab; i++) {
        if (!isfinite(logits[i])) {
            return INGOT_ERR_NUMERIC;
        }
    }
    return INGOT_OK;
}

/* The error of a forward pass that ended with `status`. */
static ingot_status feed_status(const ingot_decoder *decoder, ingot_status status,
                                ingot_error *error) {
    if (status == INGOT_ERR_NUMERIC) {
        return ingot_error_set(error, status, decoder->path, NULL,
                               decoder->engine == NULL
                                   ? "look for NaN or infinite weights"
                                   : "look for NaN or infinite weights, or use --device cpu: "
                                     "activations beyond 65504 are infinite on a GPU",
                               "a logit is not finite");
    }
    if (status == INGOT_ERR_INPUT) {
        return ingot_error_set(error, status, decoder->path, NULL,
                               "the tokenizer belongs to another model",
                               "a token is beyond the embedding of %llu rows",
                               (unsigned long long)decoder->whole.model->vocab);
    }
    if (status != INGOT_OK) {
        return ingot_error_set(error, status, decoder->path, NULL, NULL,
                               "the forward pass failed: %s", ingot_status_text(status));
    }
    return INGOT_OK;
}

static ingot_status feed(ingot_decoder *decoder, const uint32_t *ids, uint64_t count, float *logits,
                         ingot_progress *progress, ingot_error *error) {
    if (count == 0 || count > decoder->whole.cache.capacity - decoder->whole.cache.length) {
        return ingot_error_set(
            error, INGOT_ERR_USAGE, decoder->path, NULL, "use a shorter prompt or a smaller -n",
            "%llu tokens do not fit into a cache of %llu that holds %llu",
            (unsigned long long)count, (unsigned long long)decoder->whole.cache.capacity,
            (unsigned long long)decoder->whole.cache.length);
    }
    ingot_status status = INGOT_OK;
    for (uint64_t done = 0; done < count && status == INGOT_OK; done += decoder->chunk) {
        const uint64_t m = ingot_min_u64(decoder->chunk, count - done);
        const bool wants_logits = logits != NULL && done + m == count;
        if (decoder->engine != NULL) {
            INGOT_TRY(ingot_interrupt_check(error));
            status = decoder->whole.backend->ops->engine->feed(decoder->engine, 0, ids + done, m,
                                                               wants_logits ? logits : NULL);
            decoder->whole.cache.length += status == INGOT_OK ? m : 0;
            if (progress != NULL) {
                ingot_progress_update(progress, (double)decoder->whole.cache.length);
            }
            continue;
        }
        status = ingot_whole_model_pass(&decoder->whole, ids + done, m, progress, error);
        if (status == INGOT_ERR_INTERRUPTED) {
            return status;
        }
        if (status == INGOT_OK && wants_logits) {
            status = last_logits(decoder, m, logits);
        }
    }
    return feed_status(decoder, status, error);
}

ingot_status ingot_decoder_feed(ingot_decoder *decoder, const uint32_t *ids, uint64_t count,
                                float *logits, ingot_error *error) {
    return feed(decoder, ids, count, logits, NULL, error);
}

uint64_t ingot_decoder_length(const ingot_decoder *decoder) {
    return decoder->whole.cache.length;
}

void ingot_decoder_rewind(ingot_decoder *decoder) {
    if (decoder->engine != NULL) {
        /* what fails here fails again in the call that follows */
        (void)decoder->whole.backend->ops->engine->rewind(decoder->engine, 0);
    }
    decoder->whole.cache.length = 0;
}

/* ---- choosing a token ------------------------------------------------------------------- */

uint32_t ingot_sampler_next(ingot_sampler *sampler, const float *logits, uint64_t vocab) {
    if (sampler->temperature <= 0) {
        return (uint32_t)ingot_draw_best(logits, vocab);
    }
    return (uint32_t)ingot_draw_token(logits, vocab, sampler->temperature,
                                      ingot_random_unit(&sampler->state));
}

/* ---- tokens into text as they come ------------------------------------------------------ */

struct ingot_text_stream {
    const ingot_tokenizer *tokenizer;
    ingot_text_sink sink;
    void *context;
    uint32_t *ids; /* [count], of which those before `start` are settled and dropped in time */
    uint64_t count, room;
    /* Decoding is repeated on a short tail: ids[start, end) is text that was handed out, needed so
     * that what follows is decoded in its context; ids[end, count) waits. */
    uint64_t start, end;
};

/* Tokens of the prompt that are enough context for its continuation, unless they begin in the
 * middle of a character or give no text, as special tokens do: what comes next would be the first.
 */
#define CONTEXT_TOKENS 16ull

static const char lost[] = "\xEF\xBF\xBD"; /* U+FFFD */
#define LOST_BYTES (sizeof lost - 1)

static ingot_status count_context(const ingot_tokenizer *tokenizer, const uint32_t *prompt,
                                  uint64_t count, uint64_t *context, ingot_error *error) {
    bool is_cut = true;
    for (*context = ingot_min_u64(count, CONTEXT_TOKENS); is_cut && *context < count;) {
        char *text;
        uint64_t size;
        INGOT_TRY(ingot_tokenizer_decode(tokenizer, prompt + (count - *context), *context, true,
                                         &text, &size, error));
        is_cut = size == 0 || (size >= LOST_BYTES && memcmp(text, lost, LOST_BYTES) == 0);
        ingot_free(text);
        *context = is_cut ? ingot_min_u64(count, 2 * *context) : *context;
    }
    return INGOT_OK;
}

ingot_status ingot_text_stream_create(ingot_text_stream **out, const ingot_tokenizer *tokenizer,
                                      const uint32_t *prompt, uint64_t count, ingot_text_sink sink,
                                      void *context, ingot_error *error) {
    *out = NULL;
    void *memory;
    ingot_status status = INGOT_OK;
    ingot_text_stream *s = NULL;
    uint64_t kept;
    INGOT_TRY(count_context(tokenizer, prompt, count, &kept, error));
    INGOT_GO(ingot_alloc_zero(&memory, 1, sizeof *s));
    s = memory;
    s->tokenizer = tokenizer;
    s->sink = sink;
    s->context = context;
    s->count = s->end = kept;
    s->room = kept + 256;
    INGOT_GO(ingot_alloc_zero(&memory, s->room, sizeof *s->ids));
    s->ids = memory;
    if (s->count != 0) {
        memcpy(s->ids, prompt + (count - s->count), s->count * sizeof *s->ids);
    }
    *out = s;
done:
    if (status != INGOT_OK) {
        ingot_text_stream_destroy(s);
        return ingot_error_set(error, status, NULL, NULL, NULL, "no memory for the output text");
    }
    return status;
}

void ingot_text_stream_destroy(ingot_text_stream *stream) {
    if (stream != NULL) {
        ingot_free(stream->ids);
        ingot_free(stream);
    }
}

/* Room for one more id: settled ones are dropped first. */
static ingot_status make_room(ingot_text_stream *s) {
    if (s->count < s->room) {
        return INGOT_OK;
    }
    if (s->start > 0) {
        memmove(s->ids, s->ids + s->start, (s->count - s->start) * sizeof *s->ids);
        s->count -= s->start;
        s->end -= s->start;
        s->start = 0;
        return INGOT_OK;
    }
    void *memory;
    INGOT_TRY(ingot_alloc_zero(&memory, 2 * s->room, sizeof *s->ids));
    memcpy(memory, s->ids, s->count * sizeof *s->ids);
    ingot_free(s->ids);
    s->ids = memory;
    s->room *= 2;
    return INGOT_OK;
}

static bool ends_incomplete(const char *text, uint64_t size) {
    return size >= LOST_BYTES && memcmp(text + size - LOST_BYTES, lost, LOST_BYTES) == 0;
}

static ingot_status decode_tail(const ingot_text_stream *s, uint64_t start, uint64_t end,
                                char **text, uint64_t *size, ingot_error *error) {
    return ingot_tokenizer_decode(s->tokenizer, s->ids + start, end - start, true, text, size,
                                  error);
}

static ingot_status hand_out(ingot_text_stream *s, bool is_last, ingot_error *error) {
    char *before = NULL;
    char *now = NULL;
    char *alone = NULL;
    uint64_t before_size, size, alone_size;
    ingot_status status = INGOT_OK;
    INGOT_GO(decode_tail(s, s->start, s->end, &before, &before_size, error));
    INGOT_GO(decode_tail(s, s->start, s->count, &now, &size, error));
    if (size < before_size || memcmp(now, before, before_size) != 0) {
        /* Bytes of a run were text so far, and with what followed they are no UTF-8: they stay what
         * they were, and what followed stands for itself. */
        ingot_free(now);
        now = NULL;
        before_size = 0;
        INGOT_GO(decode_tail(s, s->end, s->count, &now, &size, error));
    }
    if (!is_last && ends_incomplete(now, size)) {
        goto done;
    }
    if (size > before_size) {
        status = s->sink(s->context, now + before_size, size - before_size);
        if (status != INGOT_OK) {
            ingot_error_set(error, status, NULL, NULL, NULL, "the text could not be written");
            goto done;
        }
        /* What gives no text at the beginning, as a space that is stripped there, says nothing
         * about what becomes of it with more bytes behind it. */
        INGOT_GO(decode_tail(s, s->end, s->count, &alone, &alone_size, error));
        s->start = alone_size != 0 ? s->end : s->start;
    }
    s->end = s->count;
done:
    ingot_free(before);
    ingot_free(now);
    ingot_free(alone);
    return status;
}

ingot_status ingot_text_stream_put(ingot_text_stream *stream, uint32_t id, ingot_error *error) {
    if (make_room(stream) != INGOT_OK) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, NULL, NULL, NULL,
                               "no memory for the output text");
    }
    stream->ids[stream->count++] = id;
    return hand_out(stream, false, error);
}

ingot_status ingot_text_stream_flush(ingot_text_stream *stream, ingot_error *error) {
    return stream->count == stream->end ? INGOT_OK : hand_out(stream, true, error);
}

/* ---- a whole generation ----------------------------------------------------------------- */

static bool is_end(const ingot_model *model, uint32_t id) {
    for (unsigned i = 0; i < model->eos_count; i++) {
        if (model->eos_ids[i] == id) {
            return true;
        }
    }
    return false;
}

/* Takes a token; *is_done: it was the last. */
static ingot_status keep_token(ingot_generation *out, const ingot_decoder *d, uint32_t id,
                               uint64_t limit, ingot_text_stream *stream, bool *is_done,
                               ingot_error *error) {
    *is_done = true;
    if (is_end(d->whole.model, id)) {
        out->is_ended = true;
        return INGOT_OK;
    }
    out->ids[out->count++] = id;
    *is_done = out->count == limit || d->whole.cache.length == d->whole.cache.capacity;
    return stream == NULL ? INGOT_OK : ingot_text_stream_put(stream, id, error);
}

/* The same where the engine chooses: it works ahead while tokens are decoded here. */
static ingot_status generate_on_engine(ingot_generation *out, ingot_decoder *d,
                                       ingot_sampler *sampler, uint64_t limit,
                                       ingot_text_stream *stream, ingot_error *error) {
    const ingot_engine_ops *ops = d->whole.backend->ops->engine;
    const double start = ingot_clock_seconds();
    ingot_status status = INGOT_OK;
    bool is_done = limit == 0;
    INGOT_GO(ops->sampler(d->engine, sampler->temperature, &sampler->state));
    for (uint64_t made = 0; !is_done; made++) {
        uint32_t id = 0;
        INGOT_GO(ingot_interrupt_check(error));
        INGOT_GO(feed_status(d, ops->next(d->engine, limit - made - 1, &id), error));
        if (sampler->temperature > 0) { /* the engine drew with a copy of it */
            (void)ingot_random_bits(&sampler->state);
        }
        d->whole.cache.length += made != 0;
        out->decode_steps = made;
        INGOT_GO(keep_token(out, d, id, limit, stream, &is_done, error));
    }
    if (stream != NULL) {
        INGOT_GO(ingot_text_stream_flush(stream, error));
    }
done:
    out->decode_seconds = ingot_clock_seconds() - start;
    if (status == INGOT_OK) {
        status = feed_status(d, ops->saturated(d->engine, &out->is_saturated), error);
    }
    return status;
}

/* Generates after the prompt, whose logits are given. */
static ingot_status generate_tokens(ingot_generation *out, ingot_decoder *d, ingot_sampler *sampler,
                                    uint64_t limit, float *logits, ingot_text_stream *stream,
                                    ingot_error *error) {
    const double start = ingot_clock_seconds();
    ingot_status status = INGOT_OK;
    bool is_done = limit == 0;
    while (!is_done) {
        const uint32_t id = ingot_sampler_next(sampler, logits, d->whole.model->vocab);
        INGOT_GO(keep_token(out, d, id, limit, stream, &is_done, error));
        if (!is_done) {
            INGOT_GO(ingot_decoder_feed(d, &id, 1, logits, error));
            out->decode_steps++;
        }
    }
    if (stream != NULL) {
        INGOT_GO(ingot_text_stream_flush(stream, error));
    }
done:
    out->decode_seconds = ingot_clock_seconds() - start;
    return status;
}

ingot_status ingot_generate(ingot_generation *out, ingot_decoder *decoder, ingot_sampler *sampler,
                            const uint32_t *prompt, uint64_t prompt_count, uint64_t limit,
                            ingot_text_stream *stream, ingot_progress *progress,
                            ingot_error *error) {
    memset(out, 0, sizeof *out);
    void *logits = NULL;
    void *ids = NULL;
    ingot_status status = ingot_alloc_zero(&logits, decoder->whole.model->vocab, sizeof(float));
    if (status == INGOT_OK) {
        status = ingot_alloc_zero(&ids, limit, sizeof(uint32_t));
    }
    if (status != INGOT_OK) {
        ingot_error_set(error, status, decoder->path, NULL, "use a smaller -n",
                        "no memory for %llu tokens", (unsigned long long)limit);
        goto done;
    }
    out->ids = ids;
    const double start = ingot_clock_seconds();
    status = feed(decoder, prompt, prompt_count, logits, progress, error);
    if (progress != NULL) {
        ingot_progress_end(progress);
    }
    INGOT_GO(status);
    out->prompt_count = prompt_count;
    out->prompt_seconds = ingot_clock_seconds() - start;
    INGOT_GO(decoder->engine != NULL
                 ? generate_on_engine(out, decoder, sampler, limit, stream, error)
                 : generate_tokens(out, decoder, sampler, limit, logits, stream, error));
done:
    ingot_free(logits);
    return status;
}

void ingot_generation_free(ingot_generation *generation) {
    ingot_free(generation->ids);
    memset(generation, 0, sizeof *generation);
}
