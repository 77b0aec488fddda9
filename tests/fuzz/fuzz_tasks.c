/* Fuzz target: files of task items, one JSON object a line (spec/quality.md, "Task accuracy"). What
 * is accepted must hold items within the limits, each on a line of its own, and their texts. */
#include "calib/tasks.h"
#include "format/digest.h"
#include "input_file.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define require(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static void check(const ingot_tasks *tasks, const uint8_t *data, size_t size) {
    uint64_t line = 0, choices = 0, lines = 1;
    uint8_t digest[16];
    for (size_t i = 0; i < size; i++) {
        lines += data[i] == '\n';
    }
    for (uint64_t i = 0; i < tasks->count; i++) {
        const ingot_item *item = &tasks->items[i];
        const json_t *texts = json_object_get(item->json, "choices");
        require(item->line > line && item->line <= lines);
        require(item->context_bytes > 0 && strlen(item->context) == item->context_bytes);
        require(item->choice_count >= 2 && item->choice_count <= INGOT_TASK_CHOICES_MAX);
        require(item->choice_count == json_array_size(texts) && item->answer < item->choice_count);
        for (uint64_t c = 0; c < item->choice_count; c++) {
            require(json_string_length(json_array_get(texts, (size_t)c)) > 0);
        }
        line = item->line;
        choices += item->choice_count;
    }
    require(tasks->count >= 1 && tasks->count <= INGOT_TASK_ITEMS_MAX);
    require(tasks->choices == choices);
    ingot_digest128(digest, data, size);
    require(memcmp(digest, tasks->digest, sizeof digest) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ingot_tasks tasks;
    ingot_error error = {0};
    const ingot_status status = ingot_tasks_read(&tasks, input_file(data, size), &error);
    if (status == INGOT_OK) {
        check(&tasks, data, size);
    } else {
        require(error.status == status && error.reason[0] != '\0');
        require(tasks.items == NULL && tasks.count == 0);
    }
    ingot_tasks_free(&tasks);
    return 0;
}
