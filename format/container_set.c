/* Opening a container, one file or a set of them: step 23 of the reader algorithm of
 * spec/container.md, and the memory for all steps.
 *
 * Everything an open container needs lies in one block.  Its size follows from the section tables
 * of all files, which are checked first and without memory; the files of a set are opened a second
 * time for the rest, since there may be thousands.  What goes wrong while they are measured is not
 * reported then, but when the file's turn comes, so that the first error stays the first. */
#include "format/container_internal.h"

#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

#if defined(__has_feature) /* clang's way to say __SANITIZE_ADDRESS__ */
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define GUARD_BYTES 16u /* pieces of the block are kept apart like allocations */
#else
#define GUARD_BYTES                              0u
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)0)
#endif

#define TRANSFER "copy or download the file again"

void *block_take(block *memory, uint64_t bytes) {
    const uint64_t at = memory->used;
    memory->used = (at + bytes + 15) / 16 * 16 + GUARD_BYTES;
    if (!block_is_enough(memory)) {
        return NULL;
    }
    ASAN_POISON_MEMORY_REGION(memory->start + at + bytes, memory->used - at - bytes);
    return memory->start + at;
}

/* ---- measuring --------------------------------------------------------------------------------
 */

/* What the files of a set have in common, in the order it is taken. */
static ingot_container *take_container(block *memory, uint32_t shard_count) {
    ingot_container *container = block_take(memory, sizeof *container);
    shard *shards = block_take(memory, shard_count * sizeof *shards);
    file_entry *files = block_take(memory, MAX_SECTIONS * sizeof *files);
    if (block_is_enough(memory)) {
        container->shards = shards;
        container->files = files;
    }
    return container;
}

/* Adds what the other files of a set need, up to the first that will not be opened; returns the
 * number of their tensors. */
static uint64_t measure_siblings(block *memory, const char *path, uint32_t place, uint32_t count) {
    uint64_t tensors = 0;
    for (uint32_t i = 0; i < count; i++) {
        char sibling[PATH_MAX]; /* path was opened, and is shorter than this */
        section sections[MAX_SECTIONS];
        shard part;
        if (i == place) {
            continue;
        }
        shard_path_sibling(sibling, path, i);
        const ingot_status status = shard_open_table(&part, sibling, sections, NULL);
        if (part.fd >= 0) {
            (void)close(part.fd);
        }
        if (status != INGOT_OK) {
            break;
        }
        shard_take_memory(&part, memory);
        tensors += part.tensor_count;
    }
    return tensors;
}

/* The block for the container whose file `named` is open, measured and made. */
static ingot_container *make_container(block *memory, const shard *named, uint32_t place) {
    const uint32_t count = named->super.shard_count;
    block measure = {0};
    shard copy = *named;
    (void)take_container(&measure, count);
    shard_take_memory(&copy, &measure);
    if (count > 1 && place != NO_PLACE) {
        const uint64_t tensors =
            named->tensor_count + measure_siblings(&measure, named->path, place, count);
        (void)block_take(&measure, tensors * sizeof(uint32_t)); /* the common index, */
        (void)block_take(&measure, tensors * sizeof(uint32_t)); /* and room to make it */
    }
    *memory = (block){.start = calloc(1, (size_t)measure.used), .size = measure.used};
    if (memory->start == NULL) {
        return NULL;
    }
    ingot_container *container = take_container(memory, count);
    container->shard_count = count;
    for (uint32_t i = 0; i < count; i++) {
        container->shards[i].fd = -1;
    }
    return container;
}

/* ---- the files of a set -----------------------------------------------------------------------
 */

static ingot_status open_sibling(ingot_container *container, uint32_t index, const char *path,
                                 block *memory, ingot_error *error) {
    char sibling[PATH_MAX];
    section sections[MAX_SECTIONS];
    shard *part = &container->shards[index];
    shard_path_sibling(sibling, path, index);
    const ingot_status status = shard_open_table(part, sibling, sections, error);
    if (status == INGOT_ERR_NOT_FOUND) {
        return ingot_error_set(error, INGOT_BAD_SHARD_MISSING, sibling, NULL,
                               "put all shards of the set into one folder under their own names",
                               "shard %u of %u is missing", index + 1, container->shard_count);
    }
    INGOT_TRY(status);
    return shard_open_rest(part, memory, error);
}

/* NULL, or why the file is not the one of its place in this set. */
static const char *find_stranger(const ingot_container *container, uint32_t index) {
    const shard *first = &container->shards[0];
    const shard *part = &container->shards[index];
    if (part->super.shard_count != container->shard_count) {
        return "the file belongs to a set of another size";
    }
    if (part->super.shard_index != index) {
        return "the file is another shard than its name says";
    }
    if (index > 0 && (part->super.profile != first->super.profile ||
                      memcmp(part->super.set_id, first->super.set_id, 16) != 0 ||
                      part->meta_size != first->meta_size ||
                      memcmp(part->meta, first->meta, (size_t)first->meta_size) != 0)) {
        return "the file belongs to another set than the first shard";
    }
    if (index > 0 && memcmp(part->super.root, first->shard_roots + (index - 1) * 16, 16) != 0) {
        return "the file is not the one that the first shard names";
    }
    return NULL;
}

/* The file at `place`, from which `path` comes, is open; now all others, in their order. */
static ingot_status open_siblings(ingot_container *container, uint32_t place, const char *path,
                                  block *memory, ingot_error *error) {
    if (place == NO_PLACE) {
        return ingot_error_set(error, INGOT_BAD_SHARD_MISSING, path, NULL,
                               "put all shards of the set into one folder under their own names",
                               "the name is not that of a shard of %u, so the others are not found",
                               container->shard_count);
    }
    for (uint32_t i = 0; i < container->shard_count; i++) {
        if (i != place) {
            INGOT_TRY(open_sibling(container, i, path, memory, error));
        }
        const char *reason = find_stranger(container, i);
        if (reason != NULL) {
            return shard_error(error, INGOT_BAD_SHARD, &container->shards[i], NULL,
                               "do not mix shards of different sets", reason);
        }
    }
    return INGOT_OK;
}

/* ---- what the files give together -------------------------------------------------------------
 */

static ingot_status count_tensors(ingot_container *container, ingot_error *error) {
    for (uint32_t i = 0; i < container->shard_count; i++) {
        shard *part = &container->shards[i];
        part->first_tensor = container->tensor_count;
        container->tensor_count += part->tensor_count;
        for (uint64_t t = 0; t < part->tensor_count; t++) {
            /* From here on targets are counted over the whole set. */
            if (part->tensors[t].kind == INGOT_ALIAS) {
                part->tensors[t].alias_of += part->first_tensor;
            }
        }
    }
    if (container->tensor_count > MAX_TENSORS) {
        return shard_error(error, INGOT_BAD_SHARD, &container->shards[0], NULL, TRANSFER,
                           "the set holds more tensors than the format allows");
    }
    return INGOT_OK;
}

static int compare_names(const ingot_container *container, uint32_t a, uint32_t b) {
    return strcmp(ingot_tensor_at(container, a)->name, ingot_tensor_at(container, b)->name);
}

/* Two neighbouring sorted runs of `from` become one of `to`. */
static void merge_runs(const ingot_container *container, uint32_t *to, const uint32_t *from,
                       uint64_t start, uint64_t middle, uint64_t end) {
    uint64_t left = start;
    uint64_t right = middle;
    for (uint64_t at = start; at < end; at++) {
        const bool is_left = right == end || (left < middle && compare_names(container, from[left],
                                                                             from[right]) <= 0);
        to[at] = is_left ? from[left++] : from[right++];
    }
}

static uint64_t run_start(const ingot_container *container, uint32_t index) {
    return index < container->shard_count ? container->shards[index].first_tensor
                                          : container->tensor_count;
}

/* Within a shard its own index proves that names are unique; over the set a common index does,
 * merged from those of the shards, which are sorted. */
static ingot_status merge_index(ingot_container *container, block *memory, ingot_error *error) {
    const uint64_t count = container->tensor_count;
    uint32_t *from = block_take(memory, count * sizeof *from);
    uint32_t *to = block_take(memory, count * sizeof *to);
    if (!block_is_enough(memory)) {
        return ingot_error_set(error, INGOT_ERR_IO, container->shards[0].path, NULL, "try again",
                               "the set changed while it was opened");
    }
    for (uint32_t i = 0; i < container->shard_count; i++) {
        const shard *part = &container->shards[i];
        for (uint64_t t = 0; t < part->tensor_count; t++) {
            from[part->first_tensor + t] =
                (uint32_t)(part->first_tensor + load_le(part->sorted + 4 * t, 4));
        }
    }
    for (uint32_t width = 1; width < container->shard_count; width *= 2) {
        for (uint32_t i = 0; i < container->shard_count; i += 2 * width) {
            merge_runs(container, to, from, run_start(container, i),
                       run_start(container, i + width), run_start(container, i + 2 * width));
        }
        uint32_t *merged = to;
        to = from;
        from = merged;
    }
    container->sorted = from;
    for (uint64_t i = 1; i < count; i++) {
        if (compare_names(container, from[i - 1], from[i]) == 0) {
            const shard *part = shard_of_tensor(container, ingot_max_u64(from[i - 1], from[i]));
            return shard_error(error, INGOT_BAD_SHARD, part,
                               ingot_tensor_at(container, from[i])->name, TRANSFER,
                               "a tensor stands in two shards");
        }
    }
    return INGOT_OK;
}

static void collect_files(ingot_container *container) {
    const shard *part = &container->shards[0];
    const char *name = part->name_store;
    for (uint64_t i = 0; i < part->tensor_count; i++) {
        name += strlen(name) + 1;
    }
    for (uint32_t i = 0; i < part->super.section_count; i++) {
        const section *record = &part->sections[i];
        if (record->fourcc == FOURCC_FILE) {
            container->files[container->file_count++] =
                (file_entry){name, part->front + record->offset, record->size};
            name += strlen(name) + 1;
        }
    }
}

/* ---- public -----------------------------------------------------------------------------------
 */

ingot_status ingot_open(ingot_container **out, const char *path, ingot_error *error) {
    section sections[MAX_SECTIONS];
    shard named;
    *out = NULL;
    ingot_status status = shard_open_table(&named, path, sections, error);
    const uint32_t count = named.super.shard_count;
    const uint32_t place = count > 1 ? shard_path_place(path, count) : 0;
    ingot_container *container = NULL;
    block memory;
    if (status == INGOT_OK) {
        container = make_container(&memory, &named, place);
    }
    if (container == NULL) {
        if (named.fd >= 0) {
            (void)close(named.fd);
        }
        return status != INGOT_OK
                   ? status
                   : ingot_error_set(error, INGOT_ERR_NO_MEMORY, path, NULL, NULL, "out of memory");
    }
    shard *part = &container->shards[place == NO_PLACE ? 0 : place];
    *part = named;
    INGOT_GO(shard_open_rest(part, &memory, error));
    if (count > 1) {
        INGOT_GO(open_siblings(container, place, path, &memory, error));
    }
    INGOT_GO(count_tensors(container, error));
    if (count > 1) {
        INGOT_GO(merge_index(container, &memory, error));
    }
    collect_files(container);
    content_id_compute(container->content_id, container->shards, container->shard_count);
    *out = container;
done:
    if (status != INGOT_OK) {
        ingot_close(container);
    }
    return status;
}

void ingot_close(ingot_container *container) {
    if (container == NULL) {
        return;
    }
    for (uint32_t i = 0; i < container->shard_count; i++) {
        if (container->shards[i].fd >= 0) {
            (void)close(container->shards[i].fd);
        }
    }
    free(container); /* the block */
}

bool ingot_is_container(const char *path) {
    uint8_t bytes[8];
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) {
        return false;
    }
    const ssize_t got = pread(fd, bytes, sizeof bytes, 0);
    (void)close(fd);
    return got == (ssize_t)sizeof bytes && memcmp(bytes, ingot_container_magic, 8) == 0;
}
