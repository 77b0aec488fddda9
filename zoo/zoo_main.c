/* ingot-zoo (zoo/zoo.h). */
#include "zoo/zoo.h"

int main(int argc, char **argv) {
    return ingot_zoo_tool(argc, argv);
}
