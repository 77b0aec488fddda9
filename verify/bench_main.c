/* ingot-bench: main() over verify/bench.c. */
#include "verify/bench.h"

int main(int argc, char **argv) {
    return ingot_bench_tool(argc, argv);
}
