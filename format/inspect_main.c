/* ingot-inspect: main() over format/inspect.c. */
#include "format/inspect.h"

int main(int argc, char **argv) {
    return ingot_inspect_tool(argc, argv);
}
