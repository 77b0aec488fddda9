/* The plan of a zoo: what every product will take and give, and what does not fit (spec/zoo.md). */
#ifndef INGOT_ZOO_PLAN_H
#define INGOT_ZOO_PLAN_H

#include "zoo/zoo.h"

/* What is there to fit into; 0: not known, and then not checked. */
typedef struct ingot_zoo_room {
    uint64_t host_bytes, device_bytes;
    uint64_t disk_bytes;                         /* free, or when unused files are gone */
    uint64_t device_free_bytes;                  /* on the cards of the manifest, the least, */
    uint64_t device_free[INGOT_ZOO_MAX_DEVICES]; /* and on each device; 0: not known, or no card */
} ingot_zoo_room;

typedef struct ingot_zoo_need {
    uint64_t file_bytes, disk_bytes, host_bytes, device_bytes;
    uint64_t device_least_bytes;             /* that it cannot do without */
    bool is_host_scoring, is_device_scoring; /* what takes most of these: not its conversion */
    uint64_t statistics_bytes; /* of shared statistics that it is the first to wait for */
    uint64_t former_bytes;     /* of its file on the disk, which goes when the new one is there, */
    uint64_t remaining_bytes;  /* and of what an interrupted conversion keeps, which is used */
    bool is_planned;           /* else the product cannot be made */
    const char *problem;       /* why it cannot, or does not fit; one of the plan's, */
    ingot_status status;       /* and as a status */
} ingot_zoo_need;

typedef struct ingot_forecasts {
    ingot_zoo_need *needs; /* [product_count], of those that were not chosen zeros */
    json_t *products;      /* one object each, in the order of the manifest (spec/zoo.md) */
    json_t *problems;      /* texts: what cannot be made, and what to change */
    bool is_closed;        /* the shelf cannot be written to, which is a problem of its own */
    bool lacks_disk;       /* the last problem: the disk does not hold them all */
    ingot_zoo_room room;
    uint64_t disk_bytes; /* free, of the products that are not finished */
    double rate;         /* operations per second of products here; NaN: no product needs them */
    double seconds;      /* of the products that are not finished, one at a time; NaN likewise */
} ingot_forecasts;

/* What a plan is for. */
#define INGOT_FORECASTS_HERE  1u /* a run on this machine: its memory and its cards count */
#define INGOT_FORECASTS_TIMES 2u /* people: how fast the first device is, is measured */

/* Plans every chosen product; a product that cannot be planned or does not fit is a problem, not a
 * failure.  shelf NULL: there is none yet.  unused: files that go before the first product is begun
 * (zoo/leftovers.h); NULL: none.  Released with ingot_forecasts_free in any case. */
ingot_status ingot_forecasts_make(ingot_forecasts *out, const ingot_manifest *manifest,
                                  const ingot_shelf *shelf, const ingot_zoo_options *options,
                                  const json_t *unused, unsigned use,
                                  ingot_error *error) INGOT_MUST_CHECK;
void ingot_forecasts_free(ingot_forecasts *plan);

#endif
