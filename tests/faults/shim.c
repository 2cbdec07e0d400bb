/* Counts the calls that change files below given folders, and makes one of them fail.

   It is loaded with LD_PRELOAD. The memory that MTPACK_FAULTS names is shared by the test and all
   processes of a run, so calls are counted over all of them. tests/faults/machine.py has the same
   struct. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { OPEN = 1, WRITE = 2, FSYNC = 4, RENAME = 8, UNLINK = 16, MKDIR = 32 };
enum action { COUNT, KILL_ALL, KILL_ONE, FAIL, FAIL_ON, SHORT, TEAR };

#define MAX_FILES 1024
#define MAX_CALLS 8192

struct shared {
    _Atomic uint64_t calls;   /* of the kinds that count */
    uint64_t target;          /* the call to fail, counted from 1 */
    uint32_t action, kinds;
    int32_t error;
    _Atomic uint32_t hits;
    uint32_t track;           /* whether to keep a list of files that are not synced */
    _Atomic uint32_t lock;    /* of that list */
    char roots[2][256];
    struct call { uint32_t kind, process; char path[248]; } log[MAX_CALLS];
    uint32_t num_files;
    struct { uint64_t inode, size; } unsynced[MAX_FILES];
};

static struct shared *shared;

__attribute__((constructor)) static void map_shared(void) {
    const char *name = getenv("MTPACK_FAULTS");
    int file = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *memory = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory != MAP_FAILED) shared = memory;
    close(file);
}

static int is_below_a_root(const char *path) {
    for (int i = 0; i < 2; i++) {
        size_t length = strlen(shared->roots[i]);
        if (length && !strncmp(path, shared->roots[i], length)
            && (path[length] == '/' || !path[length])) return 1;
    }
    return 0;
}

static int path_of_descriptor(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return 1;
}

/* Find the full path of `name`; a NULL name stands for the folder itself. */
static int full_path(int folder, const char *name, char *path) {
    if (name && name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return 1;
    }
    if (folder == AT_FDCWD ? !getcwd(path, PATH_MAX) : !path_of_descriptor(folder, path)) return 0;
    size_t length = strlen(path);
    if (name) snprintf(path + length, PATH_MAX - length, "/%s", name);
    return 1;
}

/* Count a call. Return 0 to go on as usual, -1 to fail with errno, 1 to write the half. */
static int count(enum kind kind, int folder, const char *name) {
    char path[PATH_MAX];
    int saved = errno;
    if (!shared || !shared->roots[0][0] || !(shared->kinds & kind)
        || !full_path(folder, name, path) || !is_below_a_root(path)) {
        errno = saved;
        return 0;
    }
    errno = saved;
    uint64_t number = atomic_fetch_add(&shared->calls, 1) + 1;
    if (number <= MAX_CALLS) {
        struct call *call = &shared->log[number - 1];
        call->process = getpid();
        snprintf(call->path, sizeof call->path, "%.*s", (int)sizeof call->path - 1, path);
        call->kind = kind;
    }
    if (number != shared->target && !(shared->action == FAIL_ON && number > shared->target))
        return 0;
    if (shared->action == COUNT) return 0;
    atomic_fetch_add(&shared->hits, 1);
    switch (shared->action) {
    case KILL_ALL: kill(0, SIGKILL); for (;;) pause();
    case KILL_ONE: kill(getpid(), SIGKILL); for (;;) pause();
    case SHORT: case TEAR: return kind == WRITE;
    default: errno = shared->error; return -1;
    }
}

static void end_torn_write(void) {
    if (shared->action == TEAR) { kill(0, SIGKILL); for (;;) pause(); }
}

/* Note that a file has bytes that are not synced, or (synced) that it has none. */
static void note_file(int descriptor, int synced) {
    struct stat stat;
    char path[PATH_MAX];
    int saved = errno;
    if (shared && shared->track && !fstat(descriptor, &stat) && S_ISREG(stat.st_mode)
        && path_of_descriptor(descriptor, path) && is_below_a_root(path)) {
        while (atomic_exchange(&shared->lock, 1)) usleep(10);
        uint32_t i = 0;
        while (i < shared->num_files && shared->unsynced[i].inode != stat.st_ino) i++;
        if (synced && i < shared->num_files)
            shared->unsynced[i] = shared->unsynced[--shared->num_files];
        else if (!synced && i == shared->num_files && i < MAX_FILES) {
            shared->unsynced[i].inode = stat.st_ino;
            shared->unsynced[i].size = stat.st_size;
            shared->num_files++;
        }
        atomic_store(&shared->lock, 0);
    }
    errno = saved;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define OPEN_AT(name, folder, parameters, arguments) \
    int name parameters { \
        REAL(name); \
        mode_t mode = 0; \
        if (flags & (O_CREAT | __O_TMPFILE)) { \
            va_list more; \
            va_start(more, flags); \
            mode = va_arg(more, mode_t); \
            va_end(more); \
        } \
        if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && count(OPEN, folder, path) < 0) return -1; \
        return real arguments; \
    }

OPEN_AT(open, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPEN_AT(open64, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPEN_AT(openat, folder, (int folder, const char *path, int flags, ...),
        (folder, path, flags, mode))
OPEN_AT(openat64, folder, (int folder, const char *path, int flags, ...),
        (folder, path, flags, mode))

ssize_t write(int file, const void *data, size_t size) {
    REAL(write);
    int what = count(WRITE, file, NULL);
    if (what < 0) return -1;
    note_file(file, 0);
    ssize_t done = real(file, data, what > 0 && size > 1 ? size / 2 : size);
    if (what > 0) end_torn_write();
    return done;
}

#define PWRITE(name, offset_type) \
    ssize_t name(int file, const void *data, size_t size, offset_type at) { \
        REAL(name); \
        int what = count(WRITE, file, NULL); \
        if (what < 0) return -1; \
        note_file(file, 0); \
        ssize_t done = real(file, data, what > 0 && size > 1 ? size / 2 : size, at); \
        if (what > 0) end_torn_write(); \
        return done; \
    }

PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int file, const struct iovec *parts, int number) {
    REAL(writev);
    int what = count(WRITE, file, NULL);
    if (what < 0) return -1;
    note_file(file, 0);
    ssize_t done = real(file, parts, what > 0 && number > 1 ? number / 2 : number);
    if (what > 0) end_torn_write();
    return done;
}

/* Return half of what can be copied: callers ask for more than there is. */
static size_t half_of_file(int from, size_t size) {
    struct stat stat;
    if (!fstat(from, &stat) && (size_t)stat.st_size < size) size = stat.st_size;
    return size > 1 ? size / 2 : size;
}

#define COPY(name, parameters, arguments) \
    ssize_t name parameters { \
        REAL(name); \
        int what = count(WRITE, to, NULL); \
        if (what < 0) return -1; \
        note_file(to, 0); \
        if (what > 0) size = half_of_file(from, size); \
        ssize_t done = real arguments; \
        if (what > 0) end_torn_write(); \
        return done; \
    }

COPY(sendfile, (int to, int from, off_t *at, size_t size), (to, from, at, size))
COPY(sendfile64, (int to, int from, off64_t *at, size_t size), (to, from, at, size))
COPY(copy_file_range, (int from, off64_t *at, int to, off64_t *start, size_t size, unsigned flags),
     (from, at, to, start, size, flags))

#define CHANGE(name, kind, folder, path, parameters, arguments) \
    int name parameters { \
        REAL(name); \
        if (count(kind, folder, path) < 0) return -1; \
        return real arguments; \
    }

CHANGE(ftruncate, WRITE, file, NULL, (int file, off_t size), (file, size))
CHANGE(ftruncate64, WRITE, file, NULL, (int file, off64_t size), (file, size))
CHANGE(rename, RENAME, AT_FDCWD, to, (const char *from, const char *to), (from, to))
CHANGE(renameat, RENAME, folder, to, (int start, const char *from, int folder, const char *to),
       (start, from, folder, to))
CHANGE(renameat2, RENAME, folder, to,
       (int start, const char *from, int folder, const char *to, unsigned flags),
       (start, from, folder, to, flags))
CHANGE(link, RENAME, AT_FDCWD, to, (const char *from, const char *to), (from, to))
CHANGE(linkat, RENAME, folder, to,
       (int start, const char *from, int folder, const char *to, int flags),
       (start, from, folder, to, flags))
CHANGE(unlink, UNLINK, AT_FDCWD, path, (const char *path), (path))
CHANGE(unlinkat, UNLINK, folder, path, (int folder, const char *path, int flags),
       (folder, path, flags))
CHANGE(rmdir, UNLINK, AT_FDCWD, path, (const char *path), (path))
CHANGE(mkdir, MKDIR, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
CHANGE(mkdirat, MKDIR, folder, path, (int folder, const char *path, mode_t mode),
       (folder, path, mode))

#define SYNC(name) \
    int name(int file) { \
        REAL(name); \
        if (count(FSYNC, file, NULL) < 0) return -1; \
        int done = real(file); \
        if (!done) note_file(file, 1); \
        return done; \
    }

SYNC(fsync)
SYNC(fdatasync)
