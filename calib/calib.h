/* ingot-calib: activation statistics of a checkpoint on text.  Options and exit codes: spec/cli.md;
 * the file: spec/statistics.md. */
#ifndef INGOT_CALIB_H
#define INGOT_CALIB_H

/* The whole tool: parses, runs, reports; returns the exit code. */
int ingot_calib_tool(int argc, char **argv);

#endif
