/* Memory of the machine and of control groups (zoo/room.h).
 *
 * A line of /proc/self/cgroup is NUMBER:CONTROLLERS:PATH; version 2 has number 0 and no
 * controllers.  Inside a container PATH may be what it is outside, where the folder of that name is
 * not mounted: the limit is then at the top, which is read in any case. */
#include "zoo/room.h"

#include "common/sizes.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The number in a file; UINT64_MAX: there is no such file, or no number in it ("max"). */
static uint64_t limit_in(const char *path) {
    unsigned long long value;
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        return UINT64_MAX;
    }
    const bool is_number = fscanf(file, "%llu", &value) == 1;
    (void)fclose(file);
    return is_number ? value : UINT64_MAX;
}

/* The least of MOUNT/HIERARCHY/PATH/NAME over PATH and all above it; path is cut. */
static uint64_t least_limit(const char *mount, const char *hierarchy, char *path,
                            const char *name) {
    char file[2 * PATH_MAX];
    uint64_t least = UINT64_MAX;
    for (;;) {
        (void)snprintf(file, sizeof file, "%s%s%s/%s", mount, hierarchy, path, name);
        least = ingot_min_u64(least, limit_in(file));
        char *slash = strrchr(path, '/');
        if (slash == NULL) {
            return least;
        }
        *slash = '\0';
    }
}

/* Whether a list that is separated by commas has "memory". */
static bool has_memory(char *controllers) {
    char *rest = NULL;
    for (char *name = strtok_r(controllers, ",", &rest); name != NULL;
         name = strtok_r(NULL, ",", &rest)) {
        if (strcmp(name, "memory") == 0) {
            return true;
        }
    }
    return false;
}

uint64_t ingot_zoo_room_groups(const char *membership, const char *mount) {
    char line[PATH_MAX];
    uint64_t least = UINT64_MAX;
    FILE *file = fopen(membership, "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *path = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (path == NULL) {
            continue;
        }
        *controllers++ = '\0';
        *path++ = '\0';
        if (strcmp(line, "0") == 0 && controllers[0] == '\0') {
            least = ingot_min_u64(least, least_limit(mount, "", path, "memory.max"));
        } else if (has_memory(controllers)) {
            least =
                ingot_min_u64(least, least_limit(mount, "/memory", path, "memory.limit_in_bytes"));
        }
    }
    if (file != NULL) {
        (void)fclose(file);
    }
    return least;
}

uint64_t ingot_zoo_room_memory(void) {
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    const uint64_t memory = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0;
    const uint64_t limit = ingot_zoo_room_groups("/proc/self/cgroup", "/sys/fs/cgroup");
    return memory == 0 && limit == UINT64_MAX ? 0
           : memory == 0                      ? limit
                                              : ingot_min_u64(memory, limit);
}
