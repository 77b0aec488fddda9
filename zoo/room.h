/* What memory there is for jobs on this machine. */
#ifndef INGOT_ZOO_ROOM_H
#define INGOT_ZOO_ROOM_H

#include <stdint.h>

/* Memory of the machine in bytes, or what the control groups of this process leave of it (as of a
 * container or of a task of Slurm); 0: not known. */
uint64_t ingot_zoo_room_memory(void);
/* The least limit of the control groups that the file `membership` (as /proc/self/cgroup) names,
 * and of those above them, below the folder `mount` (as /sys/fs/cgroup), of either version;
 * UINT64_MAX: there is none. */
uint64_t ingot_zoo_room_groups(const char *membership, const char *mount);

#endif
