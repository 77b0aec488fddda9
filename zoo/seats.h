/* Which device takes the next product of a run (spec/zoo.md, section 4). */
#ifndef INGOT_ZOO_SEATS_H
#define INGOT_ZOO_SEATS_H

#include "zoo/manifest.h"

typedef struct ingot_seat {
    uint64_t jobs; /* at work there */
    uint64_t card; /* the first seat of the same GPU */
    bool is_card;
    /* of the GPU, by its first seat: for all (0: not known), planned peaks, jobs at work */
    uint64_t room_bytes, used_bytes, processes;
} ingot_seat;

/* One seat for each device in the list of a manifest, which may name a GPU more than once. */
typedef struct ingot_seats {
    ingot_seat seats[INGOT_ZOO_MAX_DEVICES];
    uint64_t count;
} ingot_seats;

/* devices[count] by name; free_bytes[count]: of device memory for one process
 * (ingot_plugin_free_bytes), 0 where it is not known or there is none; limit_bytes: that may be
 * used of a GPU, 0: all. */
void ingot_seats_make(ingot_seats *out, const char *const *devices, const uint64_t *free_bytes,
                      uint64_t limit_bytes, uint64_t count);

/* The device with the fewest jobs of those that have room for a product beside what runs there, by
 * its planned peak of device memory and the context of one more process; on a GPU by itself it
 * always has: it fits, or the plan has refused it.  INGOT_ZOO_NONE: it must wait. */
uint64_t ingot_seats_choose(const ingot_seats *seats, uint64_t device_bytes);
/* A product begins on a device, and ends there. */
void ingot_seats_take(ingot_seats *seats, uint64_t seat, uint64_t device_bytes);
void ingot_seats_leave(ingot_seats *seats, uint64_t seat, uint64_t device_bytes);

#endif
