/* A Hugging Face checkpoint folder as save_pretrained writes it: config.json, one
 * model.safetensors or shards with model.safetensors.index.json, tokenizer files.
 * Refused by name: quantized checkpoints (quantization_config, FP8 dtypes), .bin weights. */
#ifndef INGOT_CHECKPOINT_H
#define INGOT_CHECKPOINT_H

#include "format/ingot.h"
#include "format/safetensors.h"

typedef struct ingot_checkpoint ingot_checkpoint;

/* Whether path is a folder that can be gone into: INGOT_ERR_NOT_FOUND, INGOT_ERR_INPUT (no folder),
 * INGOT_ERR_IO (not allowed).  ingot_checkpoint_open does so too. */
ingot_status ingot_checkpoint_check_folder(const char *path, ingot_error *error) INGOT_MUST_CHECK;

/* Opens the folder, parses all headers, checks the index against the shards (missing shard, tensor
 * named but absent, in two shards, ...).  Everything in *error on failure. */
ingot_status ingot_checkpoint_open(ingot_checkpoint **out, const char *folder,
                                   ingot_error *error) INGOT_MUST_CHECK;
/* A checkpoint without weights, for plans: tensors[count] as they would be there (names are
 * copied; offsets do not matter), no shards and no files.  Reading from it is INGOT_ERR_NOT_FOUND.
 * path is for errors. */
ingot_status ingot_checkpoint_describe(ingot_checkpoint **out, const char *path,
                                       const ingot_st_tensor *tensors, uint64_t count,
                                       ingot_error *error) INGOT_MUST_CHECK;
bool ingot_checkpoint_has_weights(const ingot_checkpoint *checkpoint);
void ingot_checkpoint_close(ingot_checkpoint *checkpoint); /* NULL is fine */
const char *ingot_checkpoint_path(const ingot_checkpoint *checkpoint);

/* All tensors of all shards, in order of shard and offset. */
uint64_t ingot_checkpoint_count(const ingot_checkpoint *checkpoint);
const ingot_st_tensor *ingot_checkpoint_at(const ingot_checkpoint *checkpoint, uint64_t index);
/* NULL when there is none. */
const ingot_st_tensor *ingot_checkpoint_find(const ingot_checkpoint *checkpoint, const char *name,
                                             uint64_t *index);
/* Path of the shard that holds tensor `index`; of the checkpoint where it has no weights. */
const char *ingot_checkpoint_shard_path(const ingot_checkpoint *checkpoint, uint64_t index);
/* Reads size bytes from byte `offset` of tensor `index`. Thread safe. */
ingot_status ingot_checkpoint_read(const ingot_checkpoint *checkpoint, uint64_t index,
                                   uint64_t offset, uint64_t size, void *buffer,
                                   ingot_error *error) INGOT_MUST_CHECK;
/* XXH3-128 of the bytes of tensor `index`, as the ledger has it. */
ingot_status ingot_checkpoint_digest(uint8_t digest[16], const ingot_checkpoint *checkpoint,
                                     uint64_t index, ingot_error *error) INGOT_MUST_CHECK;

uint64_t ingot_checkpoint_shard_count(const ingot_checkpoint *checkpoint);
const ingot_safetensors *ingot_checkpoint_shard(const ingot_checkpoint *checkpoint, uint64_t shard);

/* The small files that travel verbatim (config.json, tokenizer*.json, generation_config.json,
 * special_tokens_map.json, chat_template.jinja, vocab/merges, README and licence files ...), sorted
 * by name, those that exist.  Bytes are owned by the checkpoint. */
uint64_t ingot_checkpoint_file_count(const ingot_checkpoint *checkpoint);
const char *ingot_checkpoint_file_name(const ingot_checkpoint *checkpoint, uint64_t index);
const char *ingot_checkpoint_file(const ingot_checkpoint *checkpoint, const char *name,
                                  uint64_t *size); /* NULL, *size as it was: none */

/* Whether path names (device and inode) an existing file of the folder that a checkpoint is read
 * from: what an output must never replace.  For a folder that is not opened yet. */
bool ingot_checkpoint_is_input(const char *folder, const char *path);

#endif
