/* The figures of ingot-bench convert as text (verify/bench_convert_print.h). */
#include "verify/bench_convert_print.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static void print_figure(const char *name, double value, const char *unit) {
    if (isfinite(value)) {
        printf("  %-26s%10.4g %s\n", name, value, unit);
    } else {
        printf("  %-26s%10s\n", name, "-");
    }
}

/* What is read and written runs beside the rest: the phases of those names are the waiting that was
 * left, their floors the whole transfer, and one is no part of the other. */
static void print_beside(const char *name, double seconds, double floor) {
    if (isfinite(floor) && (strcmp(name, "read") == 0 || strcmp(name, "write") == 0)) {
        printf("  %-12s%9.2f s%9.2f s\n", name, seconds, floor);
    } else if (isfinite(floor)) {
        printf("  %-12s%9.2f s%9.2f s%7.0f %%\n", name, seconds, floor, 100 * floor / seconds);
    } else {
        printf("  %-12s%9.2f s%11s\n", name, seconds, "-");
    }
}

void ingot_bench_convert_print_run(const json_t *run) {
    static const char *const names[] = {"plan",     "read",  "collect",   "fold",
                                        "quantize", "write", "propagate", "finish"};
    const char *source = json_string_value(json_object_get(run, "source"));
    const char *devices = json_string_value(json_object_get(run, "devices"));
    printf("\n%s%s%s, the source %s: device %.2f GB, host %.2f GB at most, %.3g GB from %.3g GB\n",
           json_string_value(json_object_get(run, "method")), devices != NULL ? " on " : "",
           devices != NULL ? devices : "",
           strcmp(source, "disk") == 0 ? "on the disk" : "in the page cache",
           ingot_json_number_at(run, "peak_device_bytes") / 1e9,
           ingot_json_number_at(run, "peak_host_bytes") / 1e9,
           ingot_json_number_at(run, "bytes") / 1e9,
           ingot_json_number_at(run, "source_bytes") / 1e9);
    printf("  %-12s%11s%11s%9s\n", "phase", "measured", "floor", "of it");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const json_t *phase = json_object_get(json_object_get(run, "phases"), names[i]);
        print_beside(names[i], ingot_json_number_at(phase, "seconds"),
                     ingot_json_number_at(phase, "floor"));
    }
    print_beside("all", ingot_json_number_at(run, "seconds"),
                 ingot_json_number_at(run, "floor_seconds"));
    (void)fflush(stdout);
}

void ingot_bench_convert_print_summary(const json_t *figures) {
    const json_t *runs = json_object_get(figures, "runs"), *run;
    const json_t *slice = json_object_get(figures, "slice");
    const double speedup = ingot_json_number_at(figures, "devices_speedup");
    size_t i;
    printf("\n  %-16s%-10s%-8s%11s%11s%12s%12s\n", "method", "devices", "source", "measured",
           "floor", "device", "host");
    json_array_foreach((json_t *)(uintptr_t)runs, i, run) {
        const char *devices = json_string_value(json_object_get(run, "devices"));
        printf("  %-16s%-10s%-8s%9.1f s%9.1f s%9.1f GB%9.1f GB\n",
               json_string_value(json_object_get(run, "method")), devices != NULL ? devices : "one",
               json_string_value(json_object_get(run, "source")),
               ingot_json_number_at(run, "seconds"), ingot_json_number_at(run, "floor_seconds"),
               ingot_json_number_at(run, "peak_device_bytes") / 1e9,
               ingot_json_number_at(run, "peak_host_bytes") / 1e9);
    }
    if (isfinite(speedup)) {
        print_figure("devices together", speedup, "times one");
    }
    if (slice != NULL) {
        printf("  %s of %.0f blocks: %.1f s, %.2f s a block, %.1f GB of device memory; all %.0f "
               "blocks "
               "would take %.0f s\n",
               json_string_value(json_object_get(slice, "method")),
               ingot_json_number_at(slice, "blocks"), ingot_json_number_at(slice, "seconds"),
               ingot_json_number_at(slice, "block_seconds"),
               ingot_json_number_at(slice, "peak_device_bytes") / 1e9,
               ingot_json_number_at(slice, "of_blocks"),
               ingot_json_number_at(slice, "whole_seconds"));
    }
}

void ingot_bench_convert_print_limits(const json_t *figures) {
    printf("%s\n", json_string_value(json_object_get(figures, "backend")));
    print_figure("products", ingot_json_number_at(figures, "product_tflops"), "TFLOP/s");
    print_figure("a block's forward pass", 100 * ingot_json_number_at(figures, "forward_fraction"),
                 "% of products");
    print_figure("a block's statistics", 100 * ingot_json_number_at(figures, "statistics_fraction"),
                 "% of products");
    print_figure("host to device", ingot_json_number_at(figures, "upload_gbps"), "GB/s");
    print_figure("disk, reading", ingot_json_number_at(figures, "disk_read_gbps"), "GB/s");
    print_figure("page cache, reading", ingot_json_number_at(figures, "cached_read_gbps"), "GB/s");
    print_figure("disk, writing", ingot_json_number_at(figures, "disk_write_gbps"), "GB/s");
    (void)fflush(stdout);
}
