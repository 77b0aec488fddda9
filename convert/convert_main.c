/* ingot-convert (convert/convert.h). */
#include "convert/convert.h"

int main(int argc, char **argv) {
    return ingot_convert_tool(argc, argv);
}
