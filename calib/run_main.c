/* ingot-run: main() over calib/run.c. */
#include "calib/run.h"

int main(int argc, char **argv) {
    return ingot_run_tool(argc, argv);
}
