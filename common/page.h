/* The look of our HTML pages: light and dark, phone and desktop; no scripts, nothing fetched. */
#ifndef INGOT_PAGE_H
#define INGOT_PAGE_H

/* A style sheet, for the inside of <style>; a page may add rules of its own after it. */
extern const char ingot_page_style[];

#endif
