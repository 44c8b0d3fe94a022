/* Windows' paths for a program on Linux, by LD_PRELOAD: for the PowerShell engine in the lab's guest.
 *
 *   C:\dir\file, c:/dir/file, /anything/C:\dir\file (as .NET makes it absolute)  ->  $LAB_ROOT/dir/file
 *   $LAB_ROOT\dir/FILE                                                           ->  $LAB_ROOT/dir/file
 *   D:\dir\file, where there is a folder ${LAB_DRIVES}d                           ->  ${LAB_DRIVES}d/dir/file
 *
 * Below LAB_ROOT and in a drive a name is found whatever its case, as NTFS has it. Other paths are left alone.
 * Hooked is what libSystem.Native.so imports; a call that is not hooked sees no such file, which is loud. */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REAL(type, name, ...) static type (*real_##name)(__VA_ARGS__)
REAL(int, open64, const char *, int, ...);
REAL(int, __xstat64, int, const char *, struct stat64 *);
REAL(int, __lxstat64, int, const char *, struct stat64 *);
REAL(int, stat64, const char *, struct stat64 *);
REAL(int, lstat64, const char *, struct stat64 *);
REAL(int, access, const char *, int);
REAL(int, chdir, const char *);
REAL(int, chmod, const char *, mode_t);
REAL(int, execve, const char *, char *const *, char *const *);
REAL(int, inotify_add_watch, int, const char *, uint32_t);
REAL(int, link, const char *, const char *);
REAL(int, symlink, const char *, const char *);
REAL(int, rename, const char *, const char *);
REAL(int, mkdir, const char *, mode_t);
REAL(int, rmdir, const char *);
REAL(int, unlink, const char *);
REAL(DIR *, opendir, const char *);
REAL(ssize_t, readlink, const char *, char *, size_t);
REAL(char *, realpath, const char *, char *);
REAL(int, statfs64, const char *, struct statfs64 *);
REAL(int, utimensat, int, const char *, const struct timespec[2], int);
static const char *root, *drives;
static int begun;

/* At the first call, which may come before any constructor of ours. */
__attribute__((constructor)) static void begin(void) {
  if (begun) return;
#define FIND(name) real_##name = dlsym(RTLD_NEXT, #name)
  FIND(open64); FIND(__xstat64); FIND(__lxstat64); FIND(stat64); FIND(lstat64); FIND(access); FIND(chdir); FIND(chmod);
  FIND(execve); FIND(inotify_add_watch); FIND(link); FIND(symlink); FIND(rename); FIND(mkdir); FIND(rmdir); FIND(unlink);
  FIND(opendir); FIND(readlink); FIND(realpath); FIND(statfs64); FIND(utimensat);
  root = getenv("LAB_ROOT");
  drives = getenv("LAB_DRIVES");
  begun = 1;
}

static int there(const char *path) {
  struct stat found;
  return syscall(SYS_newfstatat, AT_FDCWD, path, &found, AT_SYMLINK_NOFOLLOW) == 0;
}

static int is_end(char c) { return c == 0 || c == '/' || c == '\\'; }

/* What follows the drive or the root, whose folder is written to `base`; NULL for a path of Linux'. */
static const char *inside(const char *path, char *base) {
  const char *found = NULL;
  for (const char *at = path; *at; at++)
    if ((at == path || is_end(at[-1])) && isalpha((unsigned char)*at) && at[1] == ':' && is_end(at[2])) {
      char folder[PATH_MAX];
      int letter = tolower((unsigned char)*at);
      if (letter == 'c') snprintf(folder, PATH_MAX, "%s", root);
      else if (!drives || snprintf(folder, PATH_MAX, "%s%c", drives, letter) >= PATH_MAX || !there(folder)) continue;
      strcpy(base, folder);
      found = at + 2;
    }
  size_t length = strlen(root);
  if (!found && strncmp(path, root, length) == 0 && is_end(path[length])) {
    strcpy(base, root);
    found = path + length;
  }
  return found;
}

static const char *translated(const char *path, char *made) {
  const char *rest;
  char folder[PATH_MAX];
  if (!path || !root || !(rest = inside(path, folder))) return path;
  size_t base = strlen(folder), length = base;
  if (base + strlen(rest) + 2 > PATH_MAX) return path;
  strcpy(made, folder);
  while (*rest) {
    while (*rest && is_end(*rest)) rest++;
    size_t size = 0;
    while (!is_end(rest[size])) size++;
    if (!size) break;
    if (size == 1 && *rest == '.') { rest += size; continue; }
    if (size == 2 && rest[0] == '.' && rest[1] == '.') {
      while (length > base && made[--length] != '/') {}
      made[length] = 0;
      rest += size;
      continue;
    }
    made[length] = '/';
    memcpy(made + length + 1, rest, size);
    made[length + 1 + size] = 0;
    if (!there(made)) {
      made[length] = 0;
      DIR *folder = real_opendir(made);
      made[length] = '/';
      struct dirent *entry;
      while (folder && (entry = readdir(folder)))
        if (strlen(entry->d_name) == size && strncasecmp(entry->d_name, rest, size) == 0) {
          memcpy(made + length + 1, entry->d_name, size);
          break;
        }
      if (folder) closedir(folder);
    }
    length += 1 + size;
    rest += size;
  }
  return made;
}

#define WITH(path) char made[PATH_MAX]; begin(); path = translated(path, made)
int open64(const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  mode_t mode = va_arg(rest, mode_t);
  va_end(rest);
  WITH(path);
  return real_open64(path, flags, mode);
}
int __xstat64(int version, const char *path, struct stat64 *found) { WITH(path); return real___xstat64(version, path, found); }
int __lxstat64(int version, const char *path, struct stat64 *found) { WITH(path); return real___lxstat64(version, path, found); }
int stat64(const char *path, struct stat64 *found) { WITH(path); return real_stat64(path, found); }
int lstat64(const char *path, struct stat64 *found) { WITH(path); return real_lstat64(path, found); }
int access(const char *path, int mode) { WITH(path); return real_access(path, mode); }
int chdir(const char *path) { WITH(path); return real_chdir(path); }
int chmod(const char *path, mode_t mode) { WITH(path); return real_chmod(path, mode); }
int execve(const char *path, char *const *words, char *const *variables) { WITH(path); return real_execve(path, words, variables); }
int inotify_add_watch(int on, const char *path, uint32_t mask) { WITH(path); return real_inotify_add_watch(on, path, mask); }
/* .NET makes the folders of a path one by one, cutting it at slashes: those before a backslash are made here. */
int mkdir(const char *path, mode_t mode) {
  const char *given = path;
  WITH(path);
  if (path == made && strchr(given, '\\'))
    for (char *cut = made + strlen(root) + 1; (cut = strchr(cut, '/')); *cut++ = '/') {
      *cut = 0;
      if (!there(made)) real_mkdir(made, mode);
    }
  return real_mkdir(path, mode);
}
int rmdir(const char *path) { WITH(path); return real_rmdir(path); }
int unlink(const char *path) { WITH(path); return real_unlink(path); }
DIR *opendir(const char *path) { WITH(path); return real_opendir(path); }
ssize_t readlink(const char *path, char *to, size_t size) { WITH(path); return real_readlink(path, to, size); }
char *realpath(const char *path, char *to) { WITH(path); return real_realpath(path, to); }
int statfs64(const char *path, struct statfs64 *found) { WITH(path); return real_statfs64(path, found); }
int utimensat(int at, const char *path, const struct timespec times[2], int flags) { WITH(path); return real_utimensat(at, path, times, flags); }
#define TWO(name) \
  int name(const char *from, const char *to) { \
    char first[PATH_MAX], second[PATH_MAX]; \
    begin(); \
    return real_##name(translated(from, first), translated(to, second)); \
  }
TWO(link)
TWO(symlink)
TWO(rename)
