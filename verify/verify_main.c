/* ingot-verify: is this container right?  Everything is in verify/command.c. */
#include "verify/verify.h"

int main(int argc, char **argv) {
    return ingot_verify_command(argc, argv);
}
