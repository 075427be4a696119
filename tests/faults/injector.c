/* Counts what a process does to files under one folder, and makes the N-th such operation fail.
 *
 * Loaded with LD_PRELOAD; armed by faults_arm() from inside the process (Python calls it through ctypes), so that
 * one process can import everything once and be forked for every point. Operations: open for writing, write, writev,
 * pwrite, fsync, fdatasync, ftruncate, rename, mkdir, unlink, rmdir. What is done to a file under the folder counts,
 * whoever opened it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { COUNT, KILL, TORN, FULL, BROKEN };

static char folder[PATH_MAX];
static size_t folder_length;
static enum mode mode = COUNT;
static long point, done;
static int armed, log_handle = -1;

#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name); real; })

void faults_arm(const char *where, int how, long at, const char *log_path) {
    folder_length = (size_t)snprintf(folder, sizeof folder, "%s", where);
    mode = (enum mode)how;
    point = at;
    done = 0;
    log_handle = log_path && *log_path ? REAL(open)(log_path, O_WRONLY | O_CREAT | O_APPEND, 0644) : -1;
    armed = 1;
}

long faults_done(void) { return done; }

static int inside(const char *path) {
    char whole[PATH_MAX * 2];
    if (!armed || !path) return 0;
    if (path[0] != '/') {
        if (!getcwd(whole, PATH_MAX)) return 0;
        size_t length = strlen(whole);
        snprintf(whole + length, sizeof whole - length, "/%s", path);
        path = whole;
    }
    return !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
}

static int inside_at(int directory, const char *path, char *whole) {
    if (!armed || !path) return 0;
    if (path[0] == '/' || directory == AT_FDCWD) {
        snprintf(whole, PATH_MAX, "%s", path);
        return inside(path);
    }
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t length = readlink(link, whole, PATH_MAX / 2);
    if (length < 0) return 0;
    snprintf(whole + length, PATH_MAX / 2, "/%s", path);
    return inside(whole);
}

static int inside_handle(int handle, char *path) {
    if (!armed) return 0;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return inside(path);
}

/* What to do with an operation on a path under the folder: 0 go ahead, 1 write half and die, else an errno. */
static int judge(const char *name, const char *path, int takes_space) {
    int saved = errno, verdict = 0;
    done++;
    if (log_handle >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%ld %s %s\n", done, name, path + (inside(path) && path[0] == '/' ? folder_length : 0));
        if (REAL(write)(log_handle, line, (size_t)length) < 0) abort();
    }
    if (mode == KILL && done == point) kill(getpid(), SIGKILL);
    if (mode == TORN && done == point) {
        if (!strcmp(name, "write")) verdict = 1;
        else kill(getpid(), SIGKILL);
    }
    if (mode == FULL && done >= point && takes_space) verdict = ENOSPC;
    if (mode == BROKEN && done >= point) verdict = EIO;
    errno = saved;
    return verdict;
}

#define REFUSE(verdict) do { int v_ = (verdict); if (v_) { errno = v_; return -1; } } while (0)

#define OPENED(real_call, path, flags)                                                       \
    if (((flags) & O_ACCMODE) != O_RDONLY && inside(path)) REFUSE(judge("open", path, (flags) & O_CREAT)); \
    return real_call;

int open(const char *path, int flags, ...) {
    mode_t bits = 0;
    if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); bits = va_arg(rest, mode_t); va_end(rest); }
    OPENED(REAL(open)(path, flags, bits), path, flags)
}

int open64(const char *path, int flags, ...) {
    mode_t bits = 0;
    if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); bits = va_arg(rest, mode_t); va_end(rest); }
    OPENED(REAL(open64)(path, flags, bits), path, flags)
}

static int openat_any(int wide, int directory, const char *path, int flags, mode_t bits) {
    char whole[PATH_MAX];
    if ((flags & O_ACCMODE) != O_RDONLY && inside_at(directory, path, whole))
        REFUSE(judge("open", whole, flags & O_CREAT));
    return wide ? REAL(openat64)(directory, path, flags, bits) : REAL(openat)(directory, path, flags, bits);
}

int openat(int directory, const char *path, int flags, ...) {
    mode_t bits = 0;
    if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); bits = va_arg(rest, mode_t); va_end(rest); }
    return openat_any(0, directory, path, flags, bits);
}

int openat64(int directory, const char *path, int flags, ...) {
    mode_t bits = 0;
    if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); bits = va_arg(rest, mode_t); va_end(rest); }
    return openat_any(1, directory, path, flags, bits);
}

/* C++ streams open through fopen, whose own open is out of reach. */
static FILE *fopen_any(int wide, const char *path, const char *how) {
    if (strpbrk(how, "wa+") && inside(path)) {
        int verdict = judge("open", path, 1);
        if (verdict) { errno = verdict == 1 ? EIO : verdict; return NULL; }
    }
    return wide ? REAL(fopen64)(path, how) : REAL(fopen)(path, how);
}

FILE *fopen(const char *path, const char *how) { return fopen_any(0, path, how); }
FILE *fopen64(const char *path, const char *how) { return fopen_any(1, path, how); }

static void die(void) { kill(getpid(), SIGKILL); }

ssize_t write(int handle, const void *bytes, size_t count) {
    char path[PATH_MAX];
    if (inside_handle(handle, path)) {
        int verdict = judge("write", path, 1);
        if (verdict == 1) { if (REAL(write)(handle, bytes, count / 2) < 0) {} die(); }
        REFUSE(verdict);
    }
    return REAL(write)(handle, bytes, count);
}

ssize_t writev(int handle, const struct iovec *parts, int count) {
    char path[PATH_MAX];
    if (inside_handle(handle, path)) {
        int verdict = judge("write", path, 1);
        if (verdict == 1) { if (REAL(write)(handle, parts[0].iov_base, parts[0].iov_len / 2) < 0) {} die(); }
        REFUSE(verdict);
    }
    return REAL(writev)(handle, parts, count);
}

#define PWRITE(symbol, offset_type)                                                                \
    ssize_t symbol(int handle, const void *bytes, size_t count, offset_type offset) {              \
        char path[PATH_MAX];                                                                       \
        if (inside_handle(handle, path)) {                                                         \
            int verdict = judge("write", path, 1);                                                 \
            if (verdict == 1) { if (REAL(symbol)(handle, bytes, count / 2, offset) < 0) {} die(); } \
            REFUSE(verdict);                                                                       \
        }                                                                                          \
        return REAL(symbol)(handle, bytes, count, offset);                                         \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define ON_HANDLE(symbol, name, space, parameters, arguments)               \
    int symbol parameters {                                                 \
        char path[PATH_MAX];                                                \
        if (inside_handle(handle, path)) REFUSE(judge(name, path, space));  \
        return REAL(symbol) arguments;                                      \
    }
ON_HANDLE(fsync, "fsync", 1, (int handle), (handle))
ON_HANDLE(fdatasync, "fsync", 1, (int handle), (handle))
ON_HANDLE(ftruncate, "truncate", 1, (int handle, off_t size), (handle, size))
ON_HANDLE(ftruncate64, "truncate", 1, (int handle, off64_t size), (handle, size))

#define ON_PATH(symbol, name, space, parameters, path, arguments)       \
    int symbol parameters {                                             \
        if (inside(path)) REFUSE(judge(name, path, space));             \
        return REAL(symbol) arguments;                                  \
    }
ON_PATH(rename, "rename", 1, (const char *from, const char *to), to, (from, to))
ON_PATH(mkdir, "mkdir", 1, (const char *path, mode_t bits), path, (path, bits))
ON_PATH(unlink, "unlink", 0, (const char *path), path, (path))
ON_PATH(rmdir, "rmdir", 0, (const char *path), path, (path))

#define ON_PATH_AT(symbol, name, space, parameters, directory, path, arguments)        \
    int symbol parameters {                                                            \
        char whole[PATH_MAX];                                                          \
        if (inside_at(directory, path, whole)) REFUSE(judge(name, whole, space));      \
        return REAL(symbol) arguments;                                                 \
    }
ON_PATH_AT(unlinkat, "unlink", 0, (int at, const char *path, int flags), at, path, (at, path, flags))
ON_PATH_AT(mkdirat, "mkdir", 1, (int at, const char *path, mode_t bits), at, path, (at, path, bits))
ON_PATH_AT(renameat, "rename", 1, (int from_at, const char *from, int to_at, const char *to), to_at, to, (from_at, from, to_at, to))
ON_PATH_AT(renameat2, "rename", 1, (int from_at, const char *from, int to_at, const char *to, unsigned flags), to_at, to,
           (from_at, from, to_at, to, flags))
