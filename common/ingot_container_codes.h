/* The stable error codes of the container format, one per rule of spec/container.md, in the order
 * in which a reader checks them.  Included by ingot_status.h and status.c with
 * INGOT_CONTAINER_CODE(NAME, number, "text") defined; the public code is "E_NAME". */
INGOT_CONTAINER_CODE(TOO_SHORT, 101, "the file is shorter than a superblock and a trailer")
INGOT_CONTAINER_CODE(MAGIC, 102, "the file does not begin with the Ingot magic")
