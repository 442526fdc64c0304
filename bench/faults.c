/* Fails or kills a process at its n-th system call under a folder.  Loaded with LD_PRELOAD by robustness.py; Linux, glibc.

   Counted: open, read, write, close, stat, opendir, readdir, fsync, rename, unlink, mkdir, rmdir, ftruncate, flock, with their
   variants; of a full disk what needs space, of a signal what changes anything.  The fault comes in place of the call (an error) or before it (a signal), so
   every state between two calls is met.  A full disk stays full: from there on whatever needs space fails, and the write that
   hits it stores half of what it was given. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[4096], hit[4200];
static long target = -1, count;
static int action, full;

void fault_arm(const char *folder, long n, int what) {    /* an errno, or minus a signal; n 0: count alone */
    snprintf(root, sizeof root, "%s", folder);
    target = n, action = what, count = 0, full = 0, hit[0] = 0;
}
long fault_count(void) { return count; }
const char *fault_hit(void) { return hit; }

static int under(const char *path) { return target >= 0 && path && root[0] && !strncmp(path, root, strlen(root)); }

enum { READS, CHANGES, NEEDS_SPACE };

static int at(const char *name, const char *path, int kind) { /* 1: fail now with errno set */
    int space = kind == NEEDS_SPACE;
    if (!under(path)) return 0;
    if (full && space) { errno = ENOSPC; return 1; }
    if ((action < 0 && kind == READS) || (action == ENOSPC && !space)) return 0;
    if (++count != target) return 0;
    snprintf(hit, sizeof hit, "%s %s", name, path + strlen(root));
    if (action < 0) { kill(getpid(), -action); return 0; }
    full = action == ENOSPC;
    errno = action;
    return 1;
}

static const char *of(int fd) {
    static __thread char path[4096];
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return path;
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)
#define OPEN(fn) int fn(const char *path, int flags, ...) { \
    va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
    REAL(int, #fn, const char *, int, ...); \
    return at(flags & O_CREAT ? "open to write" : "open to read", path, flags & O_CREAT ? NEEDS_SPACE : READS) ? -1 : real(path, flags, mode); }
OPEN(open)
OPEN(open64)
#define OPENAT(fn) int fn(int dir, const char *path, int flags, ...) { \
    va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
    REAL(int, #fn, int, const char *, int, ...); \
    return at(flags & O_CREAT ? "open to write" : "open to read", path, flags & O_CREAT ? NEEDS_SPACE : READS) ? -1 : real(dir, path, flags, mode); }
OPENAT(openat)
OPENAT(openat64)

ssize_t read(int fd, void *to, size_t n) {
    REAL(ssize_t, "read", int, void *, size_t);
    return target >= 0 && at("read", of(fd), READS) ? -1 : real(fd, to, n);
}
ssize_t write(int fd, const void *from, size_t n) {
    REAL(ssize_t, "write", int, const void *, size_t);
    int before = full;
    if (target < 0 || !at("write", of(fd), NEEDS_SPACE)) return real(fd, from, n);
    if (errno == ENOSPC && !before && n > 1) return real(fd, from, n / 2);
    return -1;
}
int fsync(int fd) {
    REAL(int, "fsync", int);
    return target >= 0 && at("fsync", of(fd), NEEDS_SPACE) ? -1 : real(fd);
}
int rename(const char *a, const char *b) {
    REAL(int, "rename", const char *, const char *);
    return at("rename", a, NEEDS_SPACE) ? -1 : real(a, b);
}
int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    return at("unlink", path, CHANGES) ? -1 : real(path);
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    return at("mkdir", path, NEEDS_SPACE) ? -1 : real(path, mode);
}
int rmdir(const char *path) {
    REAL(int, "rmdir", const char *);
    return at("rmdir", path, CHANGES) ? -1 : real(path);
}
int ftruncate(int fd, off_t n) {
    REAL(int, "ftruncate", int, off_t);
    return target >= 0 && at("ftruncate", of(fd), CHANGES) ? -1 : real(fd, n);
}
int ftruncate64(int fd, off64_t n) {
    REAL(int, "ftruncate64", int, off64_t);
    return target >= 0 && at("ftruncate", of(fd), CHANGES) ? -1 : real(fd, n);
}
int flock(int fd, int how) {
    REAL(int, "flock", int, int);
    return target >= 0 && at("flock", of(fd), CHANGES) ? -1 : real(fd, how);
}
int close(int fd) {                                       /* an error comes after it, as from a disk that is written later */
    REAL(int, "close", int);
    int failed = target >= 0 && at("close", of(fd), READS), why = errno;
    int done = real(fd);
    if (failed) errno = why;
    return failed ? -1 : done;
}
#define STAT(fn) int fn(const char *path, struct stat64 *into) { \
    REAL(int, #fn, const char *, struct stat64 *); \
    return at("stat", path, READS) ? -1 : real(path, into); }
STAT(stat64)
STAT(lstat64)
int fstat64(int fd, struct stat64 *into) {
    REAL(int, "fstat64", int, struct stat64 *);
    return target >= 0 && at("stat", of(fd), READS) ? -1 : real(fd, into);
}
int fstatat64(int dir, const char *path, struct stat64 *into, int flags) {
    REAL(int, "fstatat64", int, const char *, struct stat64 *, int);
    return at("stat", path, READS) ? -1 : real(dir, path, into, flags);
}
static DIR *fresh;                                        /* opened, and nothing read from it yet */
DIR *opendir(const char *path) {
    REAL(DIR *, "opendir", const char *);
    return at("opendir", path, READS) ? 0 : (fresh = real(path));
}
struct dirent64 *readdir64(DIR *dir) {
    REAL(struct dirent64 *, "readdir64", DIR *);
    int first = dir == fresh;
    if (first) fresh = 0;
    return first && target >= 0 && at("readdir", of(dirfd(dir)), READS) ? 0 : real(dir);
}
