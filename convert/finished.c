/* A conversion that is complete (convert/finished.h). */
#include "convert/finished.h"

#include "common/progress.h"

#include <string.h>

static ingot_status check_sources(const ingot_container *found, const ingot_checkpoint *checkpoint,
                                  const ingot_plan *plan, ingot_error *error) {
    for (uint64_t i = 0; i < plan->count; i++) {
        const ingot_plan_tensor *t = &plan->tensors[i];
        ingot_ledger ledger;
        uint8_t digest[16];
        uint64_t index;
        if (t->source_index == INGOT_PLAN_NONE || t->origin == INGOT_ORIGIN_ALIAS ||
            ingot_tensor_find(found, t->name, &index) == NULL) {
            continue;
        }
        ingot_ledger_at(found, index, &ledger);
        INGOT_TRY(ingot_checkpoint_digest(digest, checkpoint, t->source_index, error));
        if (memcmp(digest, ledger.source_digest, sizeof digest) != 0) {
            return ingot_error_set(error, INGOT_ERR_NOT_FOUND, ingot_path(found), t->name, NULL,
                                   "%s of the checkpoint has changed", t->name);
        }
    }
    return INGOT_OK;
}

ingot_status ingot_finished_find(ingot_container **out, const char *output, bool may_be_begun,
                                 const ingot_checkpoint *checkpoint, const ingot_plan *plan,
                                 const ingot_writer_plan *writer_plan, unsigned threads,
                                 ingot_error *error) {
    ingot_status status = ingot_writer_find(out, output, may_be_begun, writer_plan, error);
    if (status == INGOT_OK) {
        status = check_sources(*out, checkpoint, plan, error);
    }
    if (status == INGOT_OK) {
        status = ingot_check_full(*out, threads, ingot_progress_bytes, NULL, error);
    }
    if (status != INGOT_OK) {
        ingot_close(*out);
        *out = NULL;
    }
    /* a file that is damaged, or of another format, is no result either */
    const bool is_other =
        (status >= INGOT_BAD_FIRST && status <= INGOT_BAD_LAST) || status == INGOT_ERR_UNSUPPORTED;
    return is_other ? INGOT_ERR_NOT_FOUND : status;
}
