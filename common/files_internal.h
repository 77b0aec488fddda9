/* What common/files.c and common/output.c share.  Private to them. */
#ifndef INGOT_FILES_INTERNAL_H
#define INGOT_FILES_INTERNAL_H

#include "common/files.h"

/* Linux moves at most 2 GiB - 4 KiB per call; smaller pieces also bound the wait for a signal. */
#define TRANSFER_BYTES_MAX (UINT64_C(1) << 30)

/* *out = path and suffix in one, released with ingot_free. */
ingot_status files_copy_path(char **out, const char *path, const char *suffix) INGOT_MUST_CHECK;
ingot_status files_no_memory(const char *path, ingot_error *error);
/* True if offset + size is a valid file position. */
bool files_is_valid_extent(uint64_t size, uint64_t offset);

#endif
