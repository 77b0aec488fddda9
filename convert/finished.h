/* A conversion that is complete: what --resume finds where the run before was killed behind the
 * final rename, or came to its end (spec/resume.md, section 6). */
#ifndef INGOT_FINISHED_H
#define INGOT_FINISHED_H

#include "convert/plan.h"
#include "format/container_write.h"

/* Opens the whole result of this very conversion: all that follows from the plan is the same
 * (ingot_writer_find, with its may_be_begun), every byte is what its digests say, and the ledger
 * names the tensors of the checkpoint as they are now, all of which are read.  INGOT_ERR_NOT_FOUND:
 * there is none, and the reason says what lies there instead. */
ingot_status ingot_finished_find(ingot_container **out, const char *output, bool may_be_begun,
                                 const ingot_checkpoint *checkpoint, const ingot_plan *plan,
                                 const ingot_writer_plan *writer_plan, unsigned threads,
                                 ingot_error *error) INGOT_MUST_CHECK;

#endif
