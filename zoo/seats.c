/* Devices of a run and the memory of its GPUs (zoo/seats.h). */
#include "zoo/seats.h"

#include "kernels/device_name.h"
#include "kernels/plugin.h"

/* Of a second process on a GPU and all others, beside their peaks. */
#define PROCESS_BYTES (INGOT_PLUGIN_CONTEXT_BYTES + INGOT_PLUGIN_KERNEL_BYTES)

/* The number of a GPU; -1: of another device, or of one that is found when a tool opens it. */
static int card_of(const char *device) {
    int ordinal;
    if (!ingot_device_ordinal(&ordinal, device)) {
        return -1;
    }
    return ordinal < 0 ? 0 : ordinal;
}

void ingot_seats_make(ingot_seats *out, const char *const *devices, const uint64_t *free_bytes,
                      uint64_t limit_bytes, uint64_t count) {
    *out = (ingot_seats){.count = count};
    for (uint64_t i = 0; i < count; i++) {
        const int card = card_of(devices[i]);
        uint64_t first = 0;
        while (card_of(devices[first]) != card) {
            first++;
        }
        const bool is_limited =
            limit_bytes != 0 && (free_bytes[i] == 0 || limit_bytes < free_bytes[i]);
        out->seats[i] = (ingot_seat){.card = first,
                                     .is_card = card >= 0,
                                     .room_bytes = is_limited ? limit_bytes : free_bytes[i]};
    }
}

static bool has_room(const ingot_seats *s, const ingot_seat *seat, uint64_t device_bytes) {
    const ingot_seat *card = &s->seats[seat->card];
    const uint64_t used_bytes = card->used_bytes + card->processes * PROCESS_BYTES;
    return !seat->is_card || card->room_bytes == 0 || card->processes == 0 ||
           (used_bytes <= card->room_bytes && device_bytes <= card->room_bytes - used_bytes);
}

uint64_t ingot_seats_choose(const ingot_seats *seats, uint64_t device_bytes) {
    uint64_t best = INGOT_ZOO_NONE;
    for (uint64_t i = 0; i < seats->count; i++) {
        if (has_room(seats, &seats->seats[i], device_bytes) &&
            (best == INGOT_ZOO_NONE || seats->seats[i].jobs < seats->seats[best].jobs)) {
            best = i;
        }
    }
    return best;
}

void ingot_seats_take(ingot_seats *seats, uint64_t seat, uint64_t device_bytes) {
    ingot_seat *card = &seats->seats[seats->seats[seat].card];
    seats->seats[seat].jobs++;
    card->processes++;
    card->used_bytes += device_bytes;
}

void ingot_seats_leave(ingot_seats *seats, uint64_t seat, uint64_t device_bytes) {
    ingot_seat *card = &seats->seats[seats->seats[seat].card];
    seats->seats[seat].jobs--;
    card->processes--;
    card->used_bytes -= device_bytes;
}
