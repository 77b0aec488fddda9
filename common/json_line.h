/* Where in a JSON text a value stands: jansson keeps no lines, and an error that names one saves
 * its reader a search. */
#ifndef INGOT_JSON_LINE_H
#define INGOT_JSON_LINE_H

#include <stddef.h>
#include <stdint.h>

/* A step from the root of a document, kept by the functions that walk it: a chain of these on the
 * stack is the path of the value at hand. */
typedef struct ingot_json_place {
    const struct ingot_json_place *parent; /* NULL: a member or element of the root */
    const char *key;                       /* of an object, or NULL: */
    size_t index;                          /* of an array */
} ingot_json_place;

/* The line (from 1) on which the member's key or the element begins; where the path leaves the
 * document, of the last value that is there.  text[size] is valid JSON; place NULL: the root. */
unsigned ingot_json_line(const char *text, uint64_t size, const ingot_json_place *place);

#endif
