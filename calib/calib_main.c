/* ingot-calib: main() over calib/calib.c. */
#include "calib/calib.h"

int main(int argc, char **argv) {
    return ingot_calib_tool(argc, argv);
}
