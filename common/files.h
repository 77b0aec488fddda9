/* Files: positioned reads, whole small files, and outputs that appear under their final name only
 * when they are complete.  Inputs are read with pread, never mapped: a file truncated under a
 * mapping would be a signal, here it is a status. */
#ifndef INGOT_FILES_H
#define INGOT_FILES_H

#include "ingot_status.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct ingot_file ingot_file;

/* Opens a regular file for reading.  INGOT_ERR_NOT_FOUND, INGOT_ERR_IO, INGOT_ERR_INPUT (not a
 * regular file). */
ingot_status ingot_file_open(ingot_file **out, const char *path,
                             ingot_error *error) INGOT_MUST_CHECK;
void ingot_file_close(ingot_file *file); /* NULL is fine */
uint64_t ingot_file_size(const ingot_file *file);
const char *ingot_file_path(const ingot_file *file);
/* Reads exactly size bytes at offset; a short read is INGOT_ERR_IO ("file is truncated"). Thread
 * safe. */
ingot_status ingot_file_read_at(const ingot_file *file, void *buffer, uint64_t size,
                                uint64_t offset, ingot_error *error) INGOT_MUST_CHECK;

/* Reads a whole file of at most limit_bytes; *bytes is NUL-terminated beyond *size, owned by the
 * caller, released with ingot_free. */
ingot_status ingot_file_read_all(const char *path, uint64_t limit_bytes, char **bytes,
                                 uint64_t *size, ingot_error *error) INGOT_MUST_CHECK;

/* Raises the limit of open files to `count` where it is lower; false where that is not allowed. */
bool ingot_files_allow(uint64_t count);

/* INGOT_ERR_INPUT where bytes[size] of an input begin as a pointer of Git LFS does: a clone that
 * has not fetched its large files has a few lines of text in the place of each. */
ingot_status ingot_file_refuse_pointer(const void *bytes, uint64_t size, const char *path,
                                       ingot_error *error) INGOT_MUST_CHECK;

bool ingot_path_is_directory(const char *path);
bool ingot_path_exists(const char *path);
/* True when both paths name the same existing file (device and inode). */
bool ingot_path_same(const char *a, const char *b);
/* Joins with one slash into out[size]; INGOT_ERR_INPUT if it does not fit. */
ingot_status ingot_path_join(char *out, size_t size, const char *folder,
                             const char *name) INGOT_MUST_CHECK;

/* An output under construction: PATH.partial in the same folder, exclusively locked (flock).
 * A stale unlocked partial file of an earlier run is reported on stderr and replaced.  Where the
 * name is a symbolic link it is the file behind it that is made or replaced, in that one's folder:
 * PATH below is that file. */
typedef struct ingot_output ingot_output;
#define INGOT_PARTIAL_SUFFIX ".partial"
#define INGOT_PATH_BYTES     4096u

/* out = PATH of an output of that name: what its links lead to, whether that is there or not, or
 * the name itself.  INGOT_ERR_USAGE or INGOT_ERR_EXISTS where it names no file, but a folder, a
 * device or a stream; INGOT_ERR_IO where links lead in a circle. */
ingot_status ingot_output_target(char out[INGOT_PATH_BYTES], const char *name,
                                 ingot_error *error) INGOT_MUST_CHECK;
/* Whether PATH is there: a link that leads to nothing is none. */
bool ingot_output_exists(const char *name);

/* Whether an output could be begun under this path, to be known before hours of work: it names a
 * file, and its folder is there and may be written to.  Whether it exists is not asked. */
ingot_status ingot_output_check(const char *path, ingot_error *error) INGOT_MUST_CHECK;

/* From here on whoever stops reading the messages does not end the run, and leaves no partial file;
 * what is written for nobody fails with EPIPE.  ingot_output_create does so too. */
void ingot_output_outlive_readers(void);

/* INGOT_ERR_EXISTS if PATH exists and !force; INGOT_ERR_LOCKED if another process writes it. */
ingot_status ingot_output_create(ingot_output **out, const char *path, bool force,
                                 ingot_error *error) INGOT_MUST_CHECK;
/* The same for the partial file that an interrupted run left, with what is in it:
 * INGOT_ERR_NOT_FOUND where there is none.  It is kept (ingot_output_keep). */
ingot_status ingot_output_reopen(ingot_output **out, const char *path, bool force,
                                 ingot_error *error) INGOT_MUST_CHECK;
/* From now on a failure or ingot_output_abort leaves the partial file where it is. */
void ingot_output_keep(ingot_output *output);
/* For reading what was written; the output's own. */
int ingot_output_descriptor(const ingot_output *output);
/* Writes exactly size bytes at offset; INGOT_ERR_NO_SPACE or INGOT_ERR_IO.  Thread safe. */
ingot_status ingot_output_write_at(ingot_output *output, const void *bytes, uint64_t size,
                                   uint64_t offset, ingot_error *error) INGOT_MUST_CHECK;
/* Extends the file to at least size bytes (zeros) and reserves them on the disk where the file
 * system can (fallocate).  What is being reserved in the background goes on to there. */
ingot_status ingot_output_reserve(ingot_output *output, uint64_t size,
                                  ingot_error *error) INGOT_MUST_CHECK;
/* The same in the background: whatever is done with the output next waits for the part that it
 * needs, and has its error. */
void ingot_output_reserve_behind(ingot_output *output, uint64_t size);
/* How many bytes were asked to be reserved. */
uint64_t ingot_output_reserved(const ingot_output *output);
/* That up to `threads` threads will write at once.  Returns how many of them are of use: a file
 * takes one write at a time, but one in memory, to which they copy by mappings. */
unsigned ingot_output_share(ingot_output *output, unsigned threads);
/* Cuts or extends the file to exactly size bytes. */
ingot_status ingot_output_truncate(ingot_output *output, uint64_t size,
                                   ingot_error *error) INGOT_MUST_CHECK;
ingot_status ingot_output_sync(ingot_output *output, ingot_error *error) INGOT_MUST_CHECK;
const char *ingot_output_partial_path(const ingot_output *output);
/* fsync, rename to the final name (without force: never over a file that appeared meanwhile),
 * fsync of the folder; releases the output in every case.  On failure the partial is removed,
 * unless it is kept. */
ingot_status ingot_output_commit(ingot_output *output, ingot_error *error) INGOT_MUST_CHECK;
/* Removes the partial file, unless it is kept, and releases the output; NULL is fine. */
void ingot_output_abort(ingot_output *output);

/* Writes a small file atomically (partial + fsync + rename). */
ingot_status ingot_file_write_all(const char *path, const void *bytes, uint64_t size, bool force,
                                  ingot_error *error) INGOT_MUST_CHECK;

/* Fault injection for tests: the n-th change of an output from now (reserve, write, truncate, sync,
 * rename) and all that follow fail as if the disk were full; 0 turns it off.  Also set at start-up
 * by INGOT_TEST_FAIL_WRITE; INGOT_TEST_KILL_WRITE raises SIGKILL at the n-th change instead. */
void ingot_output_fail_after(uint64_t n);

/* SIGINT, SIGTERM and SIGHUP set a flag that long loops poll between units of work. */
void ingot_interrupt_install(void);
bool ingot_interrupted(void);
/* INGOT_ERR_INTERRUPTED (with a filled error) if the flag is set, else INGOT_OK. */
ingot_status ingot_interrupt_check(ingot_error *error) INGOT_MUST_CHECK;

#endif
