/* A library to preload: the n-th call of one function of the C library goes wrong, so that every
 * path behind a failing call can be walked without hooks in the product.
 *
 *   FAULT_CALL   open pread pwrite fsync ftruncate fallocate rename unlink flock fstat malloc;
 *                rename counts rename, renameat2 and link; malloc counts every kind of allocation
 *                but those of the linear algebra and of the dynamic linker, which do not report
 *                their own failures
 *   FAULT_AT     which call, from 1
 *   FAULT_HOW    EIO ENOSPC EINTR ENOMEM EACCES EOPNOTSUPP: fails with this error
 *                short: moves half of the bytes (pread, pwrite)
 *                end: moves none (pread: the end of the file came too soon)
 *                kill: SIGKILL before the call; killed: after it
 *   FAULT_ALL    1: this call and all that follow
 *   FAULT_MARK   a file that is created when the fault happens: a run without it came to its end
 *                before the n-th call */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { GOES_RIGHT, FAILS, IS_SHORT, IS_END, IS_KILLED_AFTER };

static char faulty_name[16], mark_path[1024];
static unsigned long long fault_at;
static bool is_every_later;
static int fault_errno, fault_kind;
static bool is_kill_before;
static atomic_ullong calls;

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

__attribute__((constructor)) static void read_environment(void) {
    static const struct {
        const char *name;
        int code, kind;
    } ways[] = {{"EIO", EIO, FAILS},
                {"ENOSPC", ENOSPC, FAILS},
                {"EINTR", EINTR, FAILS},
                {"ENOMEM", ENOMEM, FAILS},
                {"EACCES", EACCES, FAILS},
                {"short", 0, IS_SHORT},
                {"end", 0, IS_END},
                {"kill", 0, FAILS},
                {"killed", 0, IS_KILLED_AFTER},
                {"EOPNOTSUPP", EOPNOTSUPP, FAILS}};
    const char *call = getenv("FAULT_CALL"), *at = getenv("FAULT_AT"), *how = getenv("FAULT_HOW");
    const char *all = getenv("FAULT_ALL"), *mark = getenv("FAULT_MARK");
    if (call == NULL || at == NULL || how == NULL) {
        return;
    }
    for (unsigned i = 0; i < sizeof ways / sizeof *ways; i++) {
        if (strcmp(ways[i].name, how) == 0) {
            fault_errno = ways[i].code;
            fault_kind = ways[i].kind;
        }
    }
    is_kill_before = strcmp(how, "kill") == 0;
    is_every_later = all != NULL && all[0] == '1';
    (void)snprintf(mark_path, sizeof mark_path, "%s", mark == NULL ? "" : mark);
    (void)snprintf(faulty_name, sizeof faulty_name, "%s", call);
    fault_at = strtoull(at, NULL, 10);
}

/* What is to happen to this call of `name`; system calls only, so that it may run inside malloc. */
static int fate(const char *name) {
    if (fault_at == 0 || strcmp(name, faulty_name) != 0) {
        return GOES_RIGHT;
    }
    const unsigned long long number = atomic_fetch_add(&calls, 1) + 1;
    if (number < fault_at || (number > fault_at && !is_every_later)) {
        return GOES_RIGHT;
    }
    if (mark_path[0] != '\0') {
        const long fd = syscall(SYS_openat, AT_FDCWD, mark_path, O_WRONLY | O_CREAT, 0600);
        if (fd >= 0) {
            (void)syscall(SYS_close, fd);
        }
    }
    if (is_kill_before) {
        (void)raise(SIGKILL);
    }
    errno = fault_errno;
    return fault_kind;
}

/* The next function of that name behind this library. */
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define FAIL_OR_CALL(label, result_type, failure, call)                                            \
    do {                                                                                           \
        const int what = fate(label);                                                              \
        if (what == FAILS) {                                                                       \
            return failure;                                                                        \
        }                                                                                          \
        const result_type result = call;                                                           \
        if (what == IS_KILLED_AFTER) {                                                             \
            (void)raise(SIGKILL);                                                                  \
        }                                                                                          \
        return result;                                                                             \
    } while (0)

/* ---- files ----------------------------------------------------------------------------------- */

int open(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    FAIL_OR_CALL("open", int, -1, REAL(open)(path, flags, mode));
}

ssize_t pread(int fd, void *buffer, size_t size, off_t offset) {
    const int what = fate("pread");
    if (what == FAILS || what == IS_END) {
        return what == IS_END ? 0 : -1;
    }
    return REAL(pread)(fd, buffer, what == IS_SHORT ? (size + 1) / 2 : size, offset);
}

ssize_t pwrite(int fd, const void *buffer, size_t size, off_t offset) {
    const int what = fate("pwrite");
    if (what == FAILS) {
        return -1;
    }
    const ssize_t result =
        REAL(pwrite)(fd, buffer, what == IS_SHORT ? (size + 1) / 2 : size, offset);
    if (what == IS_KILLED_AFTER) {
        (void)raise(SIGKILL);
    }
    return result;
}

int fsync(int fd) {
    FAIL_OR_CALL("fsync", int, -1, REAL(fsync)(fd));
}

int ftruncate(int fd, off_t size) {
    FAIL_OR_CALL("ftruncate", int, -1, REAL(ftruncate)(fd, size));
}

int fallocate(int fd, int mode, off_t offset, off_t size) {
    FAIL_OR_CALL("fallocate", int, -1, REAL(fallocate)(fd, mode, offset, size));
}

int rename(const char *from, const char *to) {
    FAIL_OR_CALL("rename", int, -1, REAL(rename)(from, to));
}

int link(const char *from, const char *to) {
    FAIL_OR_CALL("rename", int, -1, REAL(link)(from, to));
}

int unlink(const char *path) {
    FAIL_OR_CALL("unlink", int, -1, REAL(unlink)(path));
}

int flock(int fd, int operation) {
    FAIL_OR_CALL("flock", int, -1, REAL(flock)(fd, operation));
}

int fstat(int fd, struct stat *info) {
    FAIL_OR_CALL("fstat", int, -1, REAL(fstat)(fd, info));
}

/* renameat2 is called this way, for the libraries that do not know it. */
long syscall(long number, ...) {
    long a[6];
    va_list arguments;
    va_start(arguments, number);
    for (int i = 0; i < 6; i++) {
        a[i] = va_arg(arguments, long);
    }
    va_end(arguments);
    if (number == SYS_renameat2) {
        FAIL_OR_CALL("rename", long, -1, REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]));
    }
    return REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* Whether the code at this address is held to report a failed allocation; answers are kept, since
 * the linker's is slow. */
static bool is_held_to_report(void *caller) {
    static struct {
        _Atomic(void *) caller;
        atomic_bool is_held;
    } known[4096];
    const size_t at = ((uintptr_t)caller >> 2) % (sizeof known / sizeof *known);
    if (atomic_load(&known[at].caller) == caller) {
        return atomic_load(&known[at].is_held);
    }
    static const char *const exempt[] = {"blas",     "lapack", "gfortran", "quadmath",
                                         "ld-linux", "libgcc", "libm.so",  "cuda"};
    Dl_info info;
    bool is_held = dladdr(caller, &info) != 0 && info.dli_fname != NULL;
    for (unsigned i = 0; is_held && i < sizeof exempt / sizeof *exempt; i++) {
        is_held = strstr(info.dli_fname, exempt[i]) == NULL;
    }
    atomic_store(&known[at].is_held, is_held);
    atomic_store(&known[at].caller, caller);
    return is_held;
}

static _Thread_local bool is_inside; /* dladdr may allocate */

/* Spared: where its own allocation fails, the C library frees what it never had. */
char *dlerror(void) {
    is_inside = true;
    char *text = REAL(dlerror)();
    is_inside = false;
    return text;
}

static bool fails_to_allocate(void *caller) {
    if (fault_at == 0 || is_inside || strcmp(faulty_name, "malloc") != 0) {
        return false;
    }
    is_inside = true;
    const bool result = is_held_to_report(caller) && fate("malloc") == FAILS;
    is_inside = false;
    return result;
}

#define ALLOCATE(call)                                                                             \
    (fails_to_allocate(__builtin_return_address(0)) ? (errno = ENOMEM, NULL) : (call))

void *malloc(size_t size) {
    return ALLOCATE(__libc_malloc(size));
}

void *calloc(size_t count, size_t size) {
    return ALLOCATE(__libc_calloc(count, size));
}

void *realloc(void *old, size_t size) {
    return ALLOCATE(__libc_realloc(old, size));
}

void *aligned_alloc(size_t alignment, size_t size) {
    return ALLOCATE(__libc_memalign(alignment, size));
}

int posix_memalign(void **out, size_t alignment, size_t size) {
    *out = ALLOCATE(__libc_memalign(alignment, size));
    return *out == NULL ? ENOMEM : 0;
}
