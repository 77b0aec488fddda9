/* The seam between files and arithmetic: tensor by name -> ingot_weight_view.  A checkpoint folder,
 * a container, or one laid over the other look the same to the forward pass. */
#ifndef INGOT_WEIGHT_SOURCE_H
#define INGOT_WEIGHT_SOURCE_H

#include "common/memory.h"
#include "format/checkpoint.h"
#include "format/ingot.h"

/* Shape and storage of a tensor, without its bytes. */
typedef struct ingot_weight_info {
    unsigned rank;
    uint64_t dim[INGOT_MAX_RANK];
    ingot_kind kind; /* INGOT_DENSE or INGOT_GROUPED (an alias reports its target) */
    ingot_dtype dtype;
    bool is_float;       /* F32, F16, BF16 or grouped: something to compute with */
    bool is_alias;       /* of a container: the bytes of another tensor (tied weights) */
    unsigned bits;       /* grouped */
    uint64_t load_bytes; /* memory that load takes from the arena */
} ingot_weight_info;

typedef struct ingot_weight_source {
    void *self;
    const char *path; /* for error texts */
    /* False when there is no such tensor. */
    bool (*describe)(void *self, const char *name, ingot_weight_info *info);
    /* Reads the tensor into the arena; the view is valid as long as the arena's allocation.
     * INGOT_ERR_NOT_FOUND names the tensor. */
    ingot_status (*load)(void *self, const char *name, ingot_arena *arena, ingot_weight_view *view,
                         ingot_error *error);
    /* Bytes of a verbatim file (config.json, tokenizer.json), owned by the source; NULL when
     * there is none. */
    const char *(*file)(void *self, const char *name, uint64_t *size);
    /* Names of all model tensors (not auxiliary), index order; NULL past the end. */
    const char *(*name_at)(void *self, uint64_t index);
    /* Whether two tensors have the same dtype, shape and bytes.  NULL in a container, where such
     * tensors are aliases. */
    ingot_status (*is_same)(void *self, const char *a, const char *b, bool *out,
                            ingot_error *error);
    /* The container behind it, for those who read many tensors at once; NULL for others. */
    const ingot_container *container;
    bool skips_verify; /* load checks no digests */
    void (*close)(void *self);
} ingot_weight_source;

/* ingot_open where a checkpoint's folder would do as well: of a file that is one of a checkpoint
 * the error, with the code of ingot_open, says to name the folder. */
ingot_status ingot_weight_container_open(ingot_container **out, const char *path,
                                         ingot_error *error) INGOT_MUST_CHECK;
/* Opens a folder as a checkpoint or a file as a container.  verify: digests while loading. Release
 * with ingot_weight_source_close. */
ingot_status ingot_weight_source_open(ingot_weight_source *out, const char *path, bool verify,
                                      ingot_error *error) INGOT_MUST_CHECK;
/* Over handles the caller keeps and closes. */
void ingot_weight_source_from_checkpoint(ingot_weight_source *out,
                                         const ingot_checkpoint *checkpoint);
void ingot_weight_source_from_container(ingot_weight_source *out, const ingot_container *container,
                                        bool verify);
void ingot_weight_source_close(ingot_weight_source *source);

#endif
