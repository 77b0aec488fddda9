/* Files: exact reads, outputs that appear whole or not at all, locks, full disks, interruption.
 * INV n refers to the invariants at the top of common/files.c. */
#include "common/files.h"

#include "common/memory.h"
#include "suite.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

static char folder[] = "/tmp/ingot-files-XXXXXX";
static char path[64];
static char partial[80];
static ingot_error error;

static void start(const char *name) {
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    (void)snprintf(partial, sizeof partial, "%s.partial", path);
    (void)unlink(path);
    (void)unlink(partial);
    memset(&error, 0, sizeof error);
}

/* The whole file as a string (valid until the next call), or NULL. */
static const char *content(const char *name) {
    static char text[4096];
    FILE *file = fopen(name, "rb");
    if (file == NULL) {
        return NULL;
    }
    const size_t size = fread(text, 1, sizeof text - 1, file);
    text[size] = '\0';
    (void)fclose(file);
    return text;
}

static void put(const char *name, const char *text) {
    FILE *file = fopen(name, "wb");
    CU_ASSERT_PTR_NOT_NULL_FATAL(file);
    CU_ASSERT(fputs(text, file) >= 0);
    CU_ASSERT_EQUAL(fclose(file), 0);
}

static void test_read(void) {
    start("read");
    put(path, "0123456789");
    ingot_file *file = NULL;
    CU_ASSERT_EQUAL_FATAL(ingot_file_open(&file, path, &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_file_size(file), 10);
    CU_ASSERT_STRING_EQUAL(ingot_file_path(file), path);
    char buffer[16] = "";
    CU_ASSERT_EQUAL(ingot_file_read_at(file, buffer, 4, 6, &error), INGOT_OK);
    CU_ASSERT_EQUAL(memcmp(buffer, "6789", 4), 0);
    CU_ASSERT_EQUAL(ingot_file_read_at(file, buffer, 0, 10, &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_file_read_at(file, buffer, 5, 6, &error), INGOT_ERR_IO);
    CU_ASSERT_PTR_NOT_NULL(strstr(error.reason, "truncated"));
    CU_ASSERT_STRING_EQUAL(error.file, path);
    CU_ASSERT_EQUAL(ingot_file_read_at(file, buffer, 1, UINT64_MAX, &error), INGOT_ERR_IO);
    CU_ASSERT_EQUAL(ingot_file_read_at(file, buffer, UINT64_MAX, 1, &error), INGOT_ERR_IO);
    /* Cut behind our back: a status, not a signal. */
    CU_ASSERT_EQUAL(truncate(path, 5), 0);
    CU_ASSERT_EQUAL(ingot_file_read_at(file, buffer, 4, 4, &error), INGOT_ERR_IO);
    ingot_file_close(file);
    ingot_file_close(NULL);
}

static void test_open_errors(void) {
    ingot_file *file = (ingot_file *)&error;
    start("missing");
    CU_ASSERT_EQUAL(ingot_file_open(&file, path, &error), INGOT_ERR_NOT_FOUND);
    CU_ASSERT_PTR_NULL(file);
    CU_ASSERT_EQUAL(ingot_file_open(&file, folder, &error), INGOT_ERR_INPUT);
    CU_ASSERT_EQUAL(ingot_file_open(&file, "/dev/null", &error), INGOT_ERR_INPUT);
    CU_ASSERT_EQUAL(mkfifo(path, 0600), 0); /* must not wait for a writer */
    CU_ASSERT_EQUAL(ingot_file_open(&file, path, &error), INGOT_ERR_INPUT);
    start("secret");
    put(path, "x");
    CU_ASSERT_EQUAL(chmod(path, 0), 0);
    if (geteuid() != 0) { /* root may read everything */
        CU_ASSERT_EQUAL(ingot_file_open(&file, path, &error), INGOT_ERR_IO);
    }
}

static void test_read_all(void) {
    start("all");
    put(path, "hello");
    char *bytes = NULL;
    uint64_t size = 0;
    CU_ASSERT_EQUAL(ingot_file_read_all(path, 5, &bytes, &size, &error), INGOT_OK);
    CU_ASSERT_EQUAL(size, 5);
    CU_ASSERT_STRING_EQUAL(bytes, "hello");
    ingot_free(bytes);
    CU_ASSERT_EQUAL(ingot_file_read_all(path, 4, &bytes, &size, &error), INGOT_ERR_INPUT);
    CU_ASSERT_PTR_NULL(bytes);
    put(path, "");
    CU_ASSERT_EQUAL(ingot_file_read_all(path, 4, &bytes, &size, &error), INGOT_OK);
    CU_ASSERT_EQUAL(size, 0);
    CU_ASSERT_STRING_EQUAL(bytes, "");
    ingot_free(bytes);
    ingot_memory_fail_after(3); /* the handle, its path, then the bytes */
    CU_ASSERT_EQUAL(ingot_file_read_all(path, 4, &bytes, &size, &error), INGOT_ERR_NO_MEMORY);
    ingot_memory_fail_after(0);
}

static void test_paths(void) {
    char joined[12];
    CU_ASSERT_EQUAL(ingot_path_join(joined, sizeof joined, "a/b", "c.txt"), INGOT_OK);
    CU_ASSERT_STRING_EQUAL(joined, "a/b/c.txt");
    CU_ASSERT_EQUAL(ingot_path_join(joined, sizeof joined, "a//", "c"), INGOT_OK);
    CU_ASSERT_STRING_EQUAL(joined, "a/c");
    CU_ASSERT_EQUAL(ingot_path_join(joined, sizeof joined, "/", "c"), INGOT_OK);
    CU_ASSERT_STRING_EQUAL(joined, "/c");
    CU_ASSERT_EQUAL(ingot_path_join(joined, sizeof joined, "", "c"), INGOT_OK);
    CU_ASSERT_STRING_EQUAL(joined, "c");
    CU_ASSERT_EQUAL(ingot_path_join(joined, sizeof joined, "abcde", "fghij"), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_path_join(joined, sizeof joined, "abcde", "fghijk"), INGOT_ERR_INPUT);
    start("same");
    put(path, "x");
    char other[64];
    (void)snprintf(other, sizeof other, "%s/./same", folder);
    CU_ASSERT_TRUE(ingot_path_same(path, other));
    CU_ASSERT_FALSE(ingot_path_same(path, folder));
    CU_ASSERT_FALSE(ingot_path_same("no/such", "no/such"));
    CU_ASSERT_TRUE(ingot_path_is_directory(folder));
    CU_ASSERT_FALSE(ingot_path_is_directory(path));
    CU_ASSERT_TRUE(ingot_path_exists(path));
    CU_ASSERT_FALSE(ingot_path_exists("no/such"));
}

static void test_output(void) { /* INV 1 */
    start("out");
    ingot_output *output = NULL;
    CU_ASSERT_EQUAL_FATAL(ingot_output_create(&output, path, false, &error), INGOT_OK);
    CU_ASSERT_STRING_EQUAL(ingot_output_partial_path(output), partial);
    CU_ASSERT_EQUAL(ingot_output_reserve(output, 10, &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_output_write_at(output, "world", 5, 5, &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_output_write_at(output, "hello", 5, 0, &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_output_truncate(output, 8, &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_output_sync(output, &error), INGOT_OK);
    CU_ASSERT_FALSE(ingot_path_exists(path));
    CU_ASSERT_EQUAL(ingot_output_commit(output, &error), INGOT_OK);
    CU_ASSERT_STRING_EQUAL(content(path), "hellowor");
    CU_ASSERT_FALSE(ingot_path_exists(partial));
    CU_ASSERT_EQUAL(ingot_output_create(&output, path, false, &error), INGOT_ERR_EXISTS);
    CU_ASSERT_FALSE(ingot_path_exists(partial));
    CU_ASSERT_EQUAL(ingot_file_write_all(path, "new", 3, true, &error), INGOT_OK);
    CU_ASSERT_STRING_EQUAL(content(path), "new");
}

static void test_reserving_behind(void) {
    ingot_output *output = NULL;
    start("behind");
    CU_ASSERT_EQUAL_FATAL(ingot_output_create(&output, path, false, &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_output_reserved(output), 0);
    ingot_output_reserve_behind(output, 1 << 20);
    CU_ASSERT_EQUAL(ingot_output_reserved(output), 1 << 20);
    CU_ASSERT_EQUAL(ingot_output_reserve(output, 3 << 20, &error), INGOT_OK); /* over or not */
    CU_ASSERT_EQUAL(ingot_output_reserved(output), 3 << 20);
    CU_ASSERT_EQUAL(ingot_output_write_at(output, "!", 1, (3 << 20) - 1, &error), INGOT_OK);
    struct stat info;
    CU_ASSERT_EQUAL_FATAL(fstat(ingot_output_descriptor(output), &info), 0);
    CU_ASSERT_EQUAL(info.st_size, 3 << 20);
    CU_ASSERT_EQUAL(ingot_output_write_at(output, "world", 5, 5, &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_output_write_at(output, "hello", 5, 0, &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_output_truncate(output, 10, &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_output_commit(output, &error), INGOT_OK);
    CU_ASSERT_STRING_EQUAL(content(path), "helloworld");
    /* The error is that of everything that follows; nothing is left. */
    start("behind2");
    CU_ASSERT_EQUAL_FATAL(ingot_output_create(&output, path, false, &error), INGOT_OK);
    ingot_output_fail_after(1);
    ingot_output_reserve_behind(output, 1 << 20);
    CU_ASSERT_EQUAL(ingot_output_write_at(output, "a", 1, 0, &error), INGOT_ERR_NO_SPACE);
    CU_ASSERT_STRING_EQUAL(error.file, path);
    ingot_output_fail_after(0);
    CU_ASSERT_EQUAL(ingot_output_write_at(output, "a", 1, 0, &error), INGOT_ERR_NO_SPACE);
    CU_ASSERT_EQUAL(ingot_output_commit(output, &error), INGOT_ERR_NO_SPACE);
    CU_ASSERT_FALSE(ingot_path_exists(partial));
    CU_ASSERT_FALSE(ingot_path_exists(path));
    /* An output that is given up meanwhile. */
    start("behind3");
    CU_ASSERT_EQUAL_FATAL(ingot_output_create(&output, path, false, &error), INGOT_OK);
    ingot_output_reserve_behind(output, 16 << 20);
    ingot_output_abort(output);
    CU_ASSERT_FALSE(ingot_path_exists(partial));
}

static void test_no_replacing(void) { /* INV 2 */
    start("race");
    ingot_output *output = NULL;
    CU_ASSERT_EQUAL_FATAL(ingot_output_create(&output, path, false, &error), INGOT_OK);
    put(path, "theirs");
    CU_ASSERT_EQUAL(ingot_output_commit(output, &error), INGOT_ERR_EXISTS);
    CU_ASSERT_STRING_EQUAL(content(path), "theirs");
    CU_ASSERT_FALSE(ingot_path_exists(partial));
}

/* Links are followed: what they lead to is made or replaced, in its own folder, and they stay. */
static void test_links(void) {
    ingot_output *output = (ingot_output *)&error;
    char other[80], linked[80], target[INGOT_PATH_BYTES], name[160];
    struct stat info;
    start("linked");
    (void)snprintf(linked, sizeof linked, "%s", path);
    (void)snprintf(other, sizeof other, "%s/other", folder);
    CU_ASSERT_EQUAL(mkdir(other, 0777), 0);
    (void)snprintf(name, sizeof name, "%s/second", folder);
    CU_ASSERT_EQUAL(symlink("second", linked), 0);   /* relative to where it lies, */
    CU_ASSERT_EQUAL(symlink("other/file", name), 0); /* over another one, to nothing yet */
    (void)snprintf(name, sizeof name, "%s/file", other);
    CU_ASSERT_EQUAL(ingot_output_target(target, linked, &error), INGOT_OK);
    CU_ASSERT_STRING_EQUAL(target, name);
    CU_ASSERT_FALSE(ingot_output_exists(linked));
    CU_ASSERT_EQUAL(ingot_output_check(linked, &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_file_write_all(linked, "one", 3, false, &error), INGOT_OK);
    CU_ASSERT_STRING_EQUAL(content(name), "one");
    CU_ASSERT(ingot_output_exists(linked));
    CU_ASSERT_EQUAL(ingot_file_write_all(linked, "two", 3, false, &error), INGOT_ERR_EXISTS);
    CU_ASSERT_EQUAL(ingot_output_create(&output, linked, true, &error), INGOT_OK);
    (void)snprintf(name, sizeof name, "%s/file" INGOT_PARTIAL_SUFFIX, other);
    CU_ASSERT_STRING_EQUAL(ingot_output_partial_path(output), name);
    CU_ASSERT_EQUAL(ingot_output_write_at(output, "three", 5, 0, &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_output_commit(output, &error), INGOT_OK);
    CU_ASSERT_STRING_EQUAL(content(target), "three");
    CU_ASSERT(lstat(linked, &info) == 0 && S_ISLNK(info.st_mode));

    /* links that an output cannot be made behind */
    static const char *const bad[] = {"circle", "/dev/stdout", "/dev/null", "other", "none/file"};
    static const ingot_status status[] = {INGOT_ERR_IO, INGOT_ERR_EXISTS, INGOT_ERR_EXISTS,
                                          INGOT_ERR_EXISTS, INGOT_ERR_NOT_FOUND};
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        start("circle");
        CU_ASSERT_EQUAL(symlink(bad[i], path), 0);
        CU_ASSERT_EQUAL(ingot_output_check(path, &error), status[i]);
        CU_ASSERT_EQUAL(ingot_output_create(&output, path, true, &error), status[i]);
        CU_ASSERT_EQUAL(unlink(path), 0);
    }
}

static void test_bad_outputs(void) {
    ingot_output *output = (ingot_output *)&error;
    char where[80];
    (void)snprintf(where, sizeof where, "%s/none/out", folder);
    CU_ASSERT_EQUAL(ingot_output_create(&output, where, false, &error), INGOT_ERR_NOT_FOUND);
    CU_ASSERT_PTR_NULL(output);
    CU_ASSERT_EQUAL(ingot_output_create(&output, folder, true, &error), INGOT_ERR_EXISTS);
    CU_ASSERT_EQUAL(ingot_output_create(&output, "/dev/null", true, &error), INGOT_ERR_EXISTS);
    CU_ASSERT_EQUAL(ingot_output_create(&output, "", true, &error), INGOT_ERR_USAGE);
    (void)snprintf(where, sizeof where, "%s/", folder);
    CU_ASSERT_EQUAL(ingot_output_create(&output, where, true, &error), INGOT_ERR_USAGE);
    CU_ASSERT_EQUAL(ingot_output_create(&output, "/proc/no", true, &error), INGOT_ERR_NOT_FOUND);
    start("link");
    CU_ASSERT_EQUAL(symlink("/tmp/ingot-must-not-appear", partial), 0);
    CU_ASSERT_EQUAL(ingot_output_create(&output, path, false, &error), INGOT_ERR_IO);
    CU_ASSERT_FALSE(ingot_path_exists("/tmp/ingot-must-not-appear"));
    ingot_output_abort(NULL);
}

/* Runs body in a child process; returns its wait status. */
static int in_child(void (*body)(void)) {
    (void)fflush(NULL);
    const pid_t child = fork();
    if (child == 0) {
        body();
        _exit(99); /* bodies leave by themselves */
    }
    int status = -1;
    CU_ASSERT_EQUAL(waitpid(child, &status, 0), child);
    return status;
}

static void create_here(void) {
    ingot_output *output = NULL;
    _exit((int)ingot_output_create(&output, path, true, NULL));
}

static void test_lock(void) { /* INV 3 */
    start("locked");
    ingot_output *output = NULL;
    CU_ASSERT_EQUAL_FATAL(ingot_output_create(&output, path, false, &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_output_write_at(output, "mine", 4, 0, &error), INGOT_OK);
    ingot_output *second = NULL;
    CU_ASSERT_EQUAL(ingot_output_create(&second, path, false, &error), INGOT_ERR_LOCKED);
    CU_ASSERT_EQUAL(in_child(create_here), INGOT_ERR_LOCKED << 8);
    CU_ASSERT_STRING_EQUAL(content(partial), "mine"); /* the loser removed nothing */
    ingot_output_abort(output);
    CU_ASSERT_FALSE(ingot_path_exists(partial));
}

/* Owns the output many times; a token file, created exclusively, tells if somebody else does too.
 */
static void compete(void) {
    char token[80];
    (void)snprintf(token, sizeof token, "%s.token", path);
    for (int i = 0; i < 4000; i++) {
        ingot_output *output = NULL;
        const ingot_status status = ingot_output_create(&output, path, true, NULL);
        if (status == INGOT_ERR_LOCKED) {
            continue;
        }
        const int descriptor = open(token, O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (status != INGOT_OK || descriptor < 0) {
            _exit(1);
        }
        (void)close(descriptor);
        (void)sched_yield();
        if (unlink(token) != 0) {
            _exit(2);
        }
        if (i % 2 == 0) {
            ingot_output_abort(output);
        } else if (ingot_output_commit(output, NULL) != INGOT_OK) {
            _exit(3);
        }
    }
    _exit(0);
}

static void test_competition(void) { /* INV 3, many processes */
    enum { processes = 6 };
    start("contested");
    (void)fflush(NULL);
    pid_t children[processes];
    for (int i = 0; i < processes; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            const int sink = open("/dev/null", O_WRONLY);
            (void)dup2(sink, STDERR_FILENO);
            compete();
        }
    }
    for (int i = 0; i < processes; i++) {
        int status = -1;
        CU_ASSERT_EQUAL(waitpid(children[i], &status, 0), children[i]);
        CU_ASSERT_EQUAL(status, 0);
    }
    CU_ASSERT_FALSE(ingot_path_exists(partial));
}

static void die_while_writing(void) {
    ingot_output *output = NULL;
    (void)!ingot_output_create(&output, path, false, NULL);
    (void)!ingot_output_write_at(output, "half a file", 11, 0, NULL);
    (void)raise(SIGKILL);
}

static void test_stale_partial(void) { /* INV 4 */
    start("stale");
    const int status = in_child(die_while_writing);
    CU_ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    CU_ASSERT_STRING_EQUAL(content(partial), "half a file");
    CU_ASSERT_FALSE(ingot_path_exists(path));

    char log[64];
    (void)snprintf(log, sizeof log, "%s/log", folder);
    (void)fflush(stderr);
    const int saved = dup(STDERR_FILENO);
    const int captured = open(log, O_CREAT | O_WRONLY | O_TRUNC, 0600);
    (void)dup2(captured, STDERR_FILENO);
    ingot_output *output = NULL;
    const ingot_status created = ingot_output_create(&output, path, false, &error);
    (void)dup2(saved, STDERR_FILENO);
    (void)close(saved);
    (void)close(captured);
    CU_ASSERT_EQUAL_FATAL(created, INGOT_OK);
    CU_ASSERT_PTR_NOT_NULL(
        strstr(content(log), "a partial file of an interrupted run was found and replaced"));
    CU_ASSERT_EQUAL(ingot_output_write_at(output, "ok", 2, 0, &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_output_commit(output, &error), INGOT_OK);
    CU_ASSERT_STRING_EQUAL(content(path), "ok"); /* nothing of the stale file is left */
}

static ingot_status write_something(void) {
    ingot_output *output = NULL;
    INGOT_TRY(ingot_output_create(&output, path, false, &error));
    ingot_status status = INGOT_OK;
    INGOT_GO(ingot_output_reserve(output, 6, &error));
    INGOT_GO(ingot_output_write_at(output, "abc", 3, 0, &error));
    INGOT_GO(ingot_output_write_at(output, "def", 3, 3, &error));
    INGOT_GO(ingot_output_truncate(output, 6, &error));
    return ingot_output_commit(output, &error);
done:
    ingot_output_abort(output);
    return status;
}

static void test_full_disk(void) { /* INV 4, at every change of the output */
    unsigned failures = 0;
    for (uint64_t n = 1; n <= 20; n++) {
        start("full");
        ingot_output_fail_after(n);
        const ingot_status status = write_something();
        CU_ASSERT_FALSE(ingot_path_exists(partial));
        if (status == INGOT_OK) {
            break;
        }
        failures++;
        CU_ASSERT_EQUAL(status, INGOT_ERR_NO_SPACE);
        CU_ASSERT_STRING_EQUAL(error.file, path);
        CU_ASSERT_FALSE(ingot_path_exists(path));
    }
    ingot_output_fail_after(0);
    CU_ASSERT_EQUAL(failures, 6); /* reserve, two writes, truncate, sync, rename */
    CU_ASSERT_STRING_EQUAL(content(path), "abcdef");
}

static void test_no_memory(void) {
    unsigned failures = 0;
    for (uint64_t n = 1; n <= 20; n++) {
        start("memory");
        ingot_memory_fail_after(n);
        const ingot_status status = write_something();
        ingot_memory_fail_after(0);
        CU_ASSERT_FALSE(ingot_path_exists(partial));
        if (ingot_path_exists(path)) {
            /* Once renamed, the output is there and says so. */
            CU_ASSERT_EQUAL(status, INGOT_OK);
        } else {
            failures++;
            CU_ASSERT_EQUAL(status, INGOT_ERR_NO_MEMORY);
        }
    }
    CU_ASSERT_EQUAL(failures, 3);
}

/* RLIMIT_FSIZE: the write fails, the process lives, nothing stays. */
static void exceed_size_limit(void) {
    ingot_interrupt_install();
    const struct rlimit limit = {4, 4};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) {
        _exit(98);
    }
    _exit((int)write_something());
}

static void test_size_limit(void) {
    start("limited");
    CU_ASSERT_EQUAL(in_child(exceed_size_limit), INGOT_ERR_IO << 8);
    CU_ASSERT_FALSE(ingot_path_exists(path));
    CU_ASSERT_FALSE(ingot_path_exists(partial));
}

static void interrupt_twice(void) {
    ingot_interrupt_install();
    if (ingot_interrupted() || ingot_interrupt_check(&error) != INGOT_OK) {
        _exit(1);
    }
    (void)raise(SIGTERM);
    if (!ingot_interrupted() || ingot_interrupt_check(&error) != INGOT_ERR_INTERRUPTED ||
        strstr(error.reason, "SIGTERM") == NULL) {
        _exit(2);
    }
    (void)raise(SIGTERM); /* the second one ends the process */
    _exit(3);
}

static void test_interrupt(void) {
    const int status = in_child(interrupt_twice);
    CU_ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
}

static void remove_folder(void) {
    char command[128];
    (void)snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (system(command) != 0) {
        (void)fprintf(stderr, "could not remove %s\n", folder);
    }
}

int main(void) {
    if (mkdtemp(folder) == NULL) {
        perror(folder);
        return 2;
    }
    const CU_TestInfo tests[] = {{"read", test_read},
                                 {"open errors", test_open_errors},
                                 {"read all", test_read_all},
                                 {"paths", test_paths},
                                 {"output", test_output},
                                 {"reserving in the background", test_reserving_behind},
                                 {"no replacing", test_no_replacing},
                                 {"outputs that are links", test_links},
                                 {"bad outputs", test_bad_outputs},
                                 {"lock", test_lock},
                                 {"competition", test_competition},
                                 {"stale partial", test_stale_partial},
                                 {"full disk", test_full_disk},
                                 {"no memory", test_no_memory},
                                 {"size limit", test_size_limit},
                                 {"interrupt", test_interrupt},
                                 CU_TEST_INFO_NULL};
    const int result = suite_run("files", tests);
    remove_folder();
    return result;
}
