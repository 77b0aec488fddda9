/* Memory that control groups leave, in trees of files as the kernel shows them. */
#include "zoo/room.h"

#include "checkpoint_folder.h"

#include <stdlib.h>
#include <unistd.h>

static void put(const char *name, const char *text) {
    char path[512];
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    CU_ASSERT_PTR_NOT_NULL_FATAL(file);
    CU_ASSERT(fputs(text, file) >= 0);
    CU_ASSERT_EQUAL(fclose(file), 0);
}

static uint64_t limit_of(const char *membership) {
    char path[512];
    put("membership", membership);
    (void)snprintf(path, sizeof path, "%s/membership", folder);
    return ingot_zoo_room_groups(path, folder);
}

static void make(const char *name) {
    char path[512];
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    CU_ASSERT_EQUAL_FATAL(mkdir(path, 0777), 0);
}

/* The group, those above it, and a path of the outside: the least counts. */
static void test_version_2(void) {
    make("job");
    make("job/step");
    CU_ASSERT_EQUAL(limit_of("0::/job/step\n"), UINT64_MAX);
    put("job/step/memory.max", "max\n");
    CU_ASSERT_EQUAL(limit_of("0::/job/step\n"), UINT64_MAX);
    put("job/memory.max", "3000000000\n");
    CU_ASSERT_EQUAL(limit_of("0::/job/step\n"), 3000000000u);
    put("job/step/memory.max", "2000000000\n");
    CU_ASSERT_EQUAL(limit_of("0::/job/step\n"), 2000000000u);
    put("memory.max", "1000000000\n");
    CU_ASSERT_EQUAL(limit_of("0::/outside/name\n"), 1000000000u);
    CU_ASSERT_EQUAL(limit_of("0::/\n"), 1000000000u);
    CU_ASSERT_EQUAL(limit_of(""), UINT64_MAX);
    CU_ASSERT_EQUAL(limit_of("nonsense\n7\n1:x\n"), UINT64_MAX);
}

static void test_version_1(void) {
    make("memory");
    make("memory/job");
    put("memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("memory/job/memory.limit_in_bytes", "500000000\n");
    CU_ASSERT_EQUAL(limit_of("4:cpu,memory:/job\n3:cpuset:/job\n"), 500000000u);
    CU_ASSERT_EQUAL(limit_of("4:memory:/other\n"), 9223372036854771712u);
    CU_ASSERT_EQUAL(limit_of("4:memory_other:/job\n"), UINT64_MAX);
}

static void test_here(void) {
    CU_ASSERT(ingot_zoo_room_memory() > 1000000);
    CU_ASSERT_EQUAL(ingot_zoo_room_groups("/none", folder), UINT64_MAX);
}

int main(void) {
    const CU_TestInfo tests[] = {{"control groups, version 2", test_version_2},
                                 {"control groups, version 1", test_version_1},
                                 {"this machine", test_here},
                                 CU_TEST_INFO_NULL};
    folder_make();
    const int result = suite_run("room", tests);
    char command[256];
    (void)snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command) != 0 ? 2 : result;
}
