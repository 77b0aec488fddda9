/* ingot-run: text from a container or a checkpoint.  Options, exit codes and the keys of --json:
 * spec/cli.md. */
#ifndef INGOT_RUN_H
#define INGOT_RUN_H

/* The whole tool: parses, runs, reports; returns the exit code. */
int ingot_run_tool(int argc, char **argv);

#endif
