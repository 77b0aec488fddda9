/* Starting the tools beside this program (common/child.h). */
#include "common/child.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define CAPTURE_LIMIT_BYTES (64u << 20)

ingot_status ingot_child_begin(ingot_child *child, const char *tool, ingot_error *error) {
    *child =
        (ingot_child){.out_descriptor = -1, .log_descriptor = -1, .lock_descriptors = {-1, -1}};
    const ssize_t length = readlink("/proc/self/exe", child->tool, sizeof child->tool - 64);
    char *end = length > 0 ? memrchr(child->tool, '/', (size_t)length) : NULL;
    if (end == NULL) {
        return ingot_error_set(error, INGOT_ERR_IO, NULL, NULL, "mount /proc",
                               "the place of this program is not known");
    }
    (void)snprintf(end, 64, "/%.60s", tool);
    if (access(child->tool, X_OK) != 0) {
        return ingot_error_set(error, INGOT_ERR_NOT_FOUND, child->tool, NULL,
                               "install it beside this program", "the tool is not there");
    }
    ingot_child_word(child, child->tool);
    return INGOT_OK;
}

void ingot_child_word(ingot_child *child, const char *word) {
    assert(child->count + 1 < INGOT_CHILD_MAX_WORDS);
    child->words[child->count++] = word;
}

void ingot_child_option(ingot_child *child, const char *option, const char *value) {
    ingot_child_word(child, option);
    ingot_child_word(child, value);
}

void ingot_child_number(ingot_child *child, const char *option, double value) {
    assert(child->number_count < sizeof child->numbers / sizeof *child->numbers);
    char *text = child->numbers[child->number_count++];
    const bool is_whole = value == floor(value) && fabs(value) < 9e15;
    (void)snprintf(text, sizeof *child->numbers, is_whole ? "%.0f" : "%.17g", value);
    ingot_child_option(child, option, text);
}

/* Between fork and exec: calls that are safe there only.  Never returns. */
static void become(const ingot_child *child, int out, int log, pid_t parent) {
    const int nothing = open("/dev/null", O_RDONLY);
    sigset_t none;
    out = fcntl(out, F_DUPFD_CLOEXEC, 3); /* out of the way of the three */
    log = fcntl(log, F_DUPFD_CLOEXEC, 3);
    (void)sigemptyset(&none);
    (void)setpgid(0, 0);
    /* A parent that died before it was asked for gives no signal: then the parent is another. */
    if (nothing < 0 || dup2(nothing, 0) < 0 || dup2(out, 1) < 0 || dup2(log, 2) < 0 ||
        prctl(PR_SET_PDEATHSIG, SIGTERM) != 0 || getppid() != parent) {
        _exit(127);
    }
    for (unsigned i = 0; i < 2; i++) {
        const int lock = child->lock_descriptors[i];
        if (lock >= 0 && fcntl(lock, F_SETFD, 0) != 0) {
            _exit(127);
        }
    }
    (void)signal(SIGINT, SIG_DFL);
    (void)signal(SIGTERM, SIG_DFL);
    (void)signal(SIGHUP, SIG_DFL);
    (void)signal(SIGPIPE, SIG_DFL);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)execv(child->tool, (char *const *)(uintptr_t)child->words);
    _exit(127);
}

/* What cannot be opened is an error with its reason here, not an exit code of the child. */
static ingot_status open_file(int *out, const char *path, int mode, ingot_error *error) {
    *out = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | mode, 0666);
    if (*out >= 0) {
        return INGOT_OK;
    }
    const bool is_full = errno == ENOSPC || errno == EDQUOT;
    return ingot_error_set(error, is_full ? INGOT_ERR_NO_SPACE : INGOT_ERR_IO, path, NULL,
                           is_full ? "make room" : "check its permissions", "cannot be written: %s",
                           strerror(errno));
}

ingot_status ingot_child_start(pid_t *out, const ingot_child *child, ingot_error *error) {
    const pid_t parent = getpid();
    int opened[2] = {-1, -1};
    ingot_status status = INGOT_OK;
    if (child->out != NULL) {
        INGOT_GO(open_file(&opened[0], child->out, O_TRUNC, error));
    }
    if (child->log != NULL) {
        INGOT_GO(open_file(&opened[1], child->log, O_APPEND, error));
    }
    *out = fork();
    if (*out == 0) {
        become(child, child->out != NULL ? opened[0] : child->out_descriptor,
               child->log != NULL ? opened[1] : child->log_descriptor, parent);
    }
    if (*out < 0) {
        status = ingot_error_set(error, errno == ENOMEM ? INGOT_ERR_NO_MEMORY : INGOT_ERR_IO,
                                 child->tool, NULL, "run fewer jobs", "cannot be started: %s",
                                 strerror(errno));
    }
done:
    for (unsigned i = 0; i < 2; i++) {
        if (opened[i] >= 0) {
            (void)close(opened[i]);
        }
    }
    return status;
}

void ingot_child_describe(char *text, size_t size, const char *tool, int wait_status) {
    if (WIFSIGNALED(wait_status)) {
        const int number = WTERMSIG(wait_status);
        (void)snprintf(text, size, "%s was killed by signal %d (%s)%s", tool, number,
                       strsignal(number),
                       number == SIGKILL ? ": by hand, or by the system for want of memory" : "");
    } else {
        (void)snprintf(text, size, "%s ended with exit code %d and left no report", tool,
                       WEXITSTATUS(wait_status));
    }
}

ingot_status ingot_child_status(const char *code, int wait_status) {
    for (int i = INGOT_ERR_USAGE; code != NULL && i <= INGOT_FAIL_GATE; i++) {
        if (strcmp(ingot_status_code((ingot_status)i), code) == 0) {
            return (ingot_status)i;
        }
    }
    return WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 1 ? INGOT_FAIL_SOURCE
                                                                   : INGOT_ERR_INTERNAL;
}

/* ---- programs of PATH ----------------------------------------------------------------------- */

/* All of a descriptor until its end; NULL when out of memory or beyond the limit. */
static char *read_all(int descriptor) {
    size_t size = 0, capacity = 4096;
    char *text = malloc(capacity);
    while (text != NULL) {
        const ssize_t count = read(descriptor, text + size, capacity - size - 1);
        if (count < 0 && errno == EINTR) {
            continue;
        }
        if (count <= 0) {
            text[size] = '\0';
            return text;
        }
        size += (size_t)count;
        if (capacity - size < 2) {
            char *grown = capacity < CAPTURE_LIMIT_BYTES ? realloc(text, 2 * capacity) : NULL;
            if (grown == NULL) {
                break;
            }
            text = grown;
            capacity *= 2;
        }
    }
    free(text);
    return NULL;
}

ingot_status ingot_child_capture(char **out, const char *const *words, ingot_error *error) {
    int ends[2], wait_status = 0;
    posix_spawn_file_actions_t actions;
    pid_t child = 0;
    *out = NULL;
    if (pipe2(ends, O_CLOEXEC) != 0) {
        return ingot_error_set(error, INGOT_ERR_IO, words[0], NULL, NULL, "no pipe: %s",
                               strerror(errno));
    }
    int code = posix_spawn_file_actions_init(&actions);
    if (code == 0) {
        code = posix_spawn_file_actions_adddup2(&actions, ends[1], 1) +
               posix_spawn_file_actions_adddup2(&actions, ends[1], 2) +
               posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
        code = code != 0 ? code
                         : posix_spawnp(&child, words[0], &actions, NULL,
                                        (char *const *)(uintptr_t)words, environ);
        (void)posix_spawn_file_actions_destroy(&actions);
    }
    (void)close(ends[1]);
    if (code != 0) {
        (void)close(ends[0]);
        return ingot_error_set(error, INGOT_ERR_NOT_FOUND, words[0], NULL,
                               "install Slurm's commands, or use ingot-zoo run",
                               "cannot be started: %s", strerror(code));
    }
    *out = read_all(ends[0]);
    (void)close(ends[0]);
    while (waitpid(child, &wait_status, 0) < 0 && errno == EINTR) {
    }
    if (*out == NULL) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, words[0], NULL, NULL, "out of memory");
    }
    if (!WIFEXITED(wait_status) || WEXITSTATUS(wait_status) != 0) {
        (*out)[strcspn(*out, "\n")] = '\0';
        return ingot_error_set(error, INGOT_ERR_UNSUPPORTED, words[0], NULL,
                               "see whether sinfo answers, and what the site asks for", "%.300s",
                               *out);
    }
    return INGOT_OK;
}
