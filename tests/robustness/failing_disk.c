/* Loaded before the C library (LD_PRELOAD): writes below the folder FAILING_FOLDER fail with the error
   whose number stands in the file FAILING_WHEN, as long as that file is there. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int refuses(const char *path) {
  const char *folder = getenv("FAILING_FOLDER"), *when = getenv("FAILING_WHEN");
  char number[8] = "";
  if (!folder || !when || strncmp(path, folder, strlen(folder))) return 0;
  int file = syscall(SYS_openat, AT_FDCWD, when, O_RDONLY | O_CLOEXEC, 0);
  if (file < 0) return 0;
  ssize_t length = syscall(SYS_read, file, number, sizeof number - 1);
  syscall(SYS_close, file);
  if (length <= 0) return 0;
  errno = atoi(number);
  return 1;
}

static int refuses_file(int file) {
  char link[32], path[PATH_MAX] = "";
  int before = errno;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  if (readlink(link, path, sizeof path - 1) > 0 && refuses(path)) return 1;
  errno = before;
  return 0;
}

static int opens(int folder, const char *path, int flags, va_list rest) {
  int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0;
  if (flags & (O_WRONLY | O_RDWR | O_CREAT) && refuses(path)) return -1;
  return syscall(SYS_openat, folder, path, flags, mode);
}

#define OPEN(name)                                                    \
  int name(const char *path, int flags, ...) {                        \
    va_list rest;                                                     \
    va_start(rest, flags);                                            \
    int found = opens(AT_FDCWD, path, flags, rest);                   \
    va_end(rest);                                                     \
    return found;                                                     \
  }
#define OPENAT(name)                                                  \
  int name(int folder, const char *path, int flags, ...) {            \
    va_list rest;                                                     \
    va_start(rest, flags);                                            \
    int found = opens(folder, path, flags, rest);                     \
    va_end(rest);                                                     \
    return found;                                                     \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int file, const void *data, size_t size) {
  return refuses_file(file) ? -1 : syscall(SYS_write, file, data, size);
}
ssize_t pwrite64(int file, const void *data, size_t size, off_t at) {
  return refuses_file(file) ? -1 : syscall(SYS_pwrite64, file, data, size, at);
}
ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
  return pwrite64(file, data, size, at);
}
int fsync(int file) { return refuses_file(file) ? -1 : syscall(SYS_fsync, file); }
int mkdir(const char *path, mode_t mode) {
  return refuses(path) ? -1 : syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}
int rename(const char *from, const char *to) {
  return refuses(to) ? -1 : syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}
