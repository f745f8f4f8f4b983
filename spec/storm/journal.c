/* Power cuts without a plug: between a program and its C library it notes what
 * is done to the files of one directory, in order; then it makes the directory
 * as a power cut at any of these moments may leave it. What was not synced is
 * there or not: each sector of 512 bytes as it was at some moment since the
 * last sync of its file, each change of a name done or not since the last sync
 * of the directory. Preloaded, and a Lua module at the same time. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SECTOR = 512, FILES = 4096, FDS = 4096, NAMES = 256 };

enum Kind { WRITE, SIZE, SYNC, NAME, SYNC_NAMES, NOTE };

typedef struct Op {
  enum Kind kind;
  int file;
  uint64_t at, size; /* NOTE: the number is `at` */
  char *bytes;
  char name[2][64]; /* NAME: the first is no more, the second is `file` */
} Op;

/* What the disk has for sure. */
typedef struct File {
  ino_t inode;
  bool known;
  char *bytes;
  uint64_t size, room;
} File;

typedef struct Entry {
  char name[64];
  int file;
} Entry;

static struct {
  bool on;
  dev_t device;
  ino_t directory;
  Op *ops;
  size_t count, room;
  File base[FILES]; /* when noting began */
  int files;
  Entry names[NAMES];
  size_t named;
  int fd[FDS]; /* file + 1 */
  int fail;    /* fdatasync and fsync: so many go well first; -1: all */
  int error;
} S = {.fail = -1};

/* The state at S.at operations. */
static struct {
  size_t at;
  bool valid;
  File files[FILES];
  Entry names[NAMES];
  size_t named;
} D;

#define REAL(name, ...)                                                        \
  static __typeof__(&name) real;                                               \
  if (!real)                                                                   \
  *(void **)&real = dlsym(RTLD_NEXT, #name)

/* ---------------------------------------------------------------- noting */

static Op *note(enum Kind kind, int file) {
  if (S.count == S.room) {
    S.room = S.room ? S.room * 2 : 1024;
    S.ops = realloc(S.ops, S.room * sizeof *S.ops);
    if (!S.ops)
      abort();
  }
  Op *op = &S.ops[S.count++];
  memset(op, 0, sizeof *op);
  op->kind = kind;
  op->file = file;
  return op;
}

static int file_of(int fd) {
  return S.on && fd >= 0 && fd < FDS ? S.fd[fd] - 1 : -1;
}

static bool is_directory(int fd) {
  struct stat is;
  return S.on && fd >= 0 && fstat(fd, &is) == 0 && is.st_dev == S.device &&
         is.st_ino == S.directory;
}

static int file_by(ino_t inode) {
  for (int i = 0; i < S.files; i++)
    if (S.base[i].inode == inode)
      return i;
  if (S.files == FILES)
    abort();
  S.base[S.files] = (File){.inode = inode};
  return S.files++;
}

static void put_name(char *to, const char *from) {
  snprintf(to, 64, "%s", from ? from : "");
}

static void opened(int dir, const char *name, int flags, int fd, bool existed) {
  struct stat is;
  if (fd < 0 || fd >= FDS)
    return;
  S.fd[fd] = 0;
  if (!is_directory(dir) || fstat(fd, &is) || !S_ISREG(is.st_mode) ||
      (flags & O_TMPFILE) == O_TMPFILE)
    return;
  /* Numbers of removed files are used again. */
  int file;
  if (!existed) {
    for (int i = 0; i < S.files; i++)
      if (S.base[i].inode == is.st_ino)
        S.base[i].inode = 0;
    file = file_by(is.st_ino);
    put_name(note(NAME, file)->name[1], name);
  } else {
    file = file_by(is.st_ino);
  }
  S.fd[fd] = file + 1;
}

static int do_openat(__typeof__(&openat) real, int dir, const char *name,
                     int flags, mode_t mode) {
  struct stat is;
  bool existed = !S.on || fstatat(dir, name, &is, AT_SYMLINK_NOFOLLOW) == 0;
  int fd = real(dir, name, flags, mode);
  int err = errno;
  if (S.on)
    opened(dir, name, flags, fd, existed);
  errno = err;
  return fd;
}

#define OPENAT(openat)                                                         \
  int openat(int dir, const char *name, int flags, ...);                       \
  int openat(int dir, const char *name, int flags, ...) {                      \
    REAL(openat);                                                              \
    mode_t mode = 0;                                                           \
    if (flags & (O_CREAT | O_TMPFILE)) {                                       \
      __builtin_va_list more;                                                  \
      __builtin_va_start(more, flags);                                         \
      mode = __builtin_va_arg(more, mode_t);                                   \
      __builtin_va_end(more);                                                  \
    }                                                                          \
    return do_openat(real, dir, name, flags, mode);                            \
  }

#define PWRITE(pwrite, off)                                                    \
  ssize_t pwrite(int fd, const void *bytes, size_t size, off at) {             \
    REAL(pwrite);                                                              \
    ssize_t n = real(fd, bytes, size, at);                                     \
    if (n > 0 && file_of(fd) >= 0) {                                           \
      Op *op = note(WRITE, file_of(fd));                                       \
      op->at = (uint64_t)at;                                                   \
      op->size = (uint64_t)n;                                                  \
      op->bytes = malloc((size_t)n);                                           \
      if (!op->bytes)                                                          \
        abort();                                                               \
      memcpy(op->bytes, bytes, (size_t)n);                                     \
    }                                                                          \
    return n;                                                                  \
  }

#define ALLOCATE(posix_fallocate, off)                                         \
  int posix_fallocate(int fd, off at, off size) {                              \
    REAL(posix_fallocate);                                                     \
    int err = real(fd, at, size);                                              \
    if (!err && file_of(fd) >= 0)                                              \
      note(SIZE, file_of(fd))->size = (uint64_t)(at + size);                   \
    return err;                                                                \
  }

OPENAT(openat)
OPENAT(openat64)
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)
ALLOCATE(posix_fallocate, off_t)
ALLOCATE(posix_fallocate64, off64_t)

static int sync_fails(void) {
  if (S.fail < 0)
    return 0;
  if (S.fail > 0) {
    S.fail--;
    return 0;
  }
  return S.error;
}

static int synced(int fd, int result) {
  int err = errno;
  if (result == 0 && file_of(fd) >= 0)
    note(SYNC, file_of(fd));
  else if (result == 0 && is_directory(fd))
    note(SYNC_NAMES, 0);
  errno = err;
  return result;
}

int fsync(int fd) {
  REAL(fsync);
  if (sync_fails())
    return errno = S.error, -1;
  return synced(fd, S.on && file_of(fd) >= 0 ? 0 : real(fd));
}

int fdatasync(int fd) {
  REAL(fdatasync);
  if (sync_fails())
    return errno = S.error, -1;
  return synced(fd, S.on && file_of(fd) >= 0 ? 0 : real(fd));
}

static int closes;

int close(int fd) {
  REAL(close);
  closes++;
  if (fd >= 0 && fd < FDS)
    S.fd[fd] = 0;
  return real(fd);
}

int unlinkat(int dir, const char *name, int flags) {
  REAL(unlinkat);
  int n = real(dir, name, flags);
  int err = errno;
  if (n == 0 && is_directory(dir)) {
    Op *op = note(NAME, -1);
    put_name(op->name[0], name);
  }
  errno = err;
  return n;
}

int renameat(int from, const char *name, int to, const char *other) {
  REAL(renameat);
  struct stat is;
  bool ours = is_directory(from) && fstatat(from, name, &is, 0) == 0;
  int n = real(from, name, to, other);
  if (n == 0 && ours) {
    Op *op = note(NAME, file_by(is.st_ino));
    put_name(op->name[0], name);
    put_name(op->name[1], other);
  }
  return n;
}

/* --------------------------------------------------------------- replaying */

static void reach(File *f, uint64_t size) {
  if (size > f->room) {
    f->bytes = realloc(f->bytes, size);
    if (!f->bytes)
      abort();
    memset(f->bytes + f->room, 0, size - f->room);
    f->room = size;
  }
}

static void apply(File *f, const Op *op) {
  if (op->kind == WRITE) {
    reach(f, op->at + op->size);
    memcpy(f->bytes + op->at, op->bytes, op->size);
    if (op->at + op->size > f->size)
      f->size = op->at + op->size;
  } else if (op->kind == SIZE && op->size > f->size) {
    reach(f, op->size);
    f->size = op->size;
  }
}

static void apply_name(Entry *names, size_t *named, const Op *op) {
  for (int i = 0; i < 2; i++)
    for (size_t k = 0; op->name[i][0] && k < *named; k++)
      if (strcmp(names[k].name, op->name[i]) == 0)
        names[k--] = names[--*named];
  if (op->name[1][0]) {
    if (*named == NAMES)
      abort();
    put_name(names[*named].name, op->name[1]);
    names[(*named)++].file = op->file;
  }
}

/* Operations that the disk had all of when number `at` was begun. */
static void advance(size_t at) {
  if (!D.valid || D.at > at) {
    for (int i = 0; i < S.files; i++) {
      File *f = &D.files[i];
      free(f->bytes);
      *f = (File){.size = S.base[i].size};
      reach(f, f->size);
      if (f->size)
        memcpy(f->bytes, S.base[i].bytes, f->size);
    }
    memcpy(D.names, S.names, sizeof D.names);
    D.named = S.named;
    D.at = 0;
    D.valid = true;
  }
  for (size_t i = D.at; i < at; i++) {
    const Op *op = &S.ops[i];
    if (op->kind != SYNC && op->kind != SYNC_NAMES)
      continue;
    for (size_t k = 0; k < i; k++) {
      Op *done = &S.ops[k];
      if (op->kind == SYNC && done->file == op->file &&
          (done->kind == WRITE || done->kind == SIZE) && !done->name[0][0]) {
        apply(&D.files[op->file], done);
        done->name[0][0] = 's'; /* synced */
      } else if (op->kind == SYNC_NAMES && done->kind == NAME &&
                 done->size == 0) {
        apply_name(D.names, &D.named, done);
        done->size = 1;
      }
    }
  }
  D.at = at;
}

static uint64_t seed;

static uint32_t chance(uint32_t below) {
  seed ^= seed << 13;
  seed ^= seed >> 7;
  seed ^= seed << 17;
  return below ? (uint32_t)(seed >> 16) % below : 0;
}

/* Writes what became of one file. */
static void write_file(int dir, const char *name, const File *f) {
  int fd = openat(dir, name, O_RDWR | O_CREAT | O_TRUNC, 0600);
  if (fd < 0)
    abort();
  if (ftruncate(fd, (off_t)f->size))
    abort();
  static const char zeros[4096];
  for (uint64_t at = 0; at < f->size; at += sizeof zeros) {
    size_t some =
        f->size - at < sizeof zeros ? (size_t)(f->size - at) : sizeof zeros;
    if (memcmp(f->bytes + at, zeros, some) != 0 &&
        pwrite(fd, f->bytes + at, some, (off_t)at) != (ssize_t)some)
      abort();
  }
  close(fd);
}

/* A file as the cut leaves it: `odds` of 4 that a sector is as new as can be,
 * as many that it is as old; else anything between. */
static File cut_file(int file, size_t at, uint32_t odds) {
  const File *stable = &D.files[file];
  File f = {.size = stable->size};
  uint64_t most = stable->size;
  for (size_t i = 0; i < at; i++) {
    const Op *op = &S.ops[i];
    if (op->file == file && (op->kind == WRITE || op->kind == SIZE)) {
      uint64_t end = op->kind == WRITE ? op->at + op->size : op->size;
      most = end > most ? end : most;
    }
  }
  reach(&f, most + SECTOR);
  if (stable->size)
    memcpy(f.bytes, stable->bytes, stable->size);
  size_t sectors = most / SECTOR + 1;
  uint16_t *touched = calloc(sectors, sizeof *touched),
           *limit = calloc(sectors, sizeof *limit);
  if (!touched || !limit)
    abort();
  for (int pass = 0; pass < 2; pass++) {
    for (size_t i = 0; i < at; i++) {
      const Op *op = &S.ops[i];
      if (op->file != file || op->name[0][0])
        continue;
      if (op->kind == SIZE && pass && chance(4) && op->size > f.size)
        f.size = op->size;
      if (op->kind != WRITE)
        continue;
      for (uint64_t s = op->at / SECTOR; s <= (op->at + op->size - 1) / SECTOR;
           s++) {
        uint64_t from = s * SECTOR > op->at ? s * SECTOR : op->at;
        uint64_t to = (s + 1) * SECTOR < op->at + op->size ? (s + 1) * SECTOR
                                                           : op->at + op->size;
        if (pass == 0) {
          touched[s]++;
        } else if (limit[s] > 0) {
          limit[s]--;
          memcpy(f.bytes + from, op->bytes + (from - op->at), to - from);
          if (to > f.size)
            f.size = to;
        }
      }
    }
    for (size_t s = 0; pass == 0 && s < sectors; s++)
      limit[s] = chance(4) < odds ? (chance(2) ? touched[s] : 0)
                                  : (uint16_t)chance(touched[s] + 1U);
  }
  free(touched);
  free(limit);
  return f;
}

/* ---------------------------------------------------------------- from Lua */

static void forget(void) {
  S.on = false;
  for (size_t i = 0; i < S.count; i++)
    free(S.ops[i].bytes);
  S.count = 0;
  for (int i = 0; i < S.files; i++) {
    free(S.base[i].bytes);
    S.base[i] = (File){.inode = 0};
  }
  for (int i = 0; i < FILES; i++) {
    free(D.files[i].bytes);
    D.files[i] = (File){.inode = 0};
  }
  S.files = 0;
  S.named = 0;
  D.valid = false;
}

/* start(directory): what is in it is on the disk. */
static int cut_start(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  struct stat is;
  forget();
  DIR *d = opendir(path);
  if (!d || fstat(dirfd(d), &is))
    return luaL_error(L, "%s: %s", path, strerror(errno));
  S.device = is.st_dev;
  S.directory = is.st_ino;
  memset(S.fd, 0, sizeof S.fd);
  const struct dirent *e;
  while ((e = readdir(d)) != NULL) {
    int fd = openat(dirfd(d), e->d_name, O_RDONLY | O_NOFOLLOW);
    if (fd >= 0 && fstat(fd, &is) == 0 && S_ISREG(is.st_mode) &&
        strcmp(e->d_name, "control") != 0) {
      int i = file_by(is.st_ino);
      File *f = &S.base[i];
      f->size = (uint64_t)is.st_size;
      f->bytes = malloc(f->size + 1);
      if (!f->bytes || pread(fd, f->bytes, f->size, 0) != (ssize_t)f->size)
        abort();
      put_name(S.names[S.named].name, e->d_name);
      S.names[S.named++].file = i;
    }
    if (fd >= 0)
      close(fd);
  }
  closedir(d);
  S.on = true;
  return 0;
}

/* note(number): from here on so much is promised. */
static int cut_note(lua_State *L) {
  if (S.on)
    note(NOTE, -1)->at = (uint64_t)luaL_checkinteger(L, 1);
  return 0;
}

/* stop() -> how many operations. */
static int cut_stop(lua_State *L) {
  S.on = false;
  for (int i = 0; i < S.files; i++)
    D.files[i].bytes = NULL;
  lua_pushinteger(L, (lua_Integer)S.count);
  return 1;
}

/* cut(directory, at, seed) -> the last number noted before. The directory is
 * there, and empty. At a later place than before it is quick. */
static int cut_cut(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  size_t at = (size_t)luaL_checkinteger(L, 2);
  seed = (uint64_t)luaL_checkinteger(L, 3) * 0x9e3779b97f4a7c15u | 1;
  luaL_argcheck(L, at <= S.count, 2, "there are not so many");
  if (D.valid && D.at > at) { /* from the start */
    for (size_t i = 0; i < S.count; i++) {
      if (S.ops[i].kind == WRITE || S.ops[i].kind == SIZE)
        S.ops[i].name[0][0] = 0;
      if (S.ops[i].kind == NAME)
        S.ops[i].size = 0;
    }
  }
  advance(at);
  for (int i = 0; i < 8; i++)
    (void)chance(2);
  Entry names[NAMES];
  size_t named = D.named;
  lua_Integer promised = 0;
  memcpy(names, D.names, sizeof names);
  uint32_t odds = chance(5), lost = chance(4);
  for (size_t i = 0; i < at; i++) {
    const Op *op = &S.ops[i];
    if (op->kind == NOTE)
      promised = (lua_Integer)op->at;
    if (op->kind == NAME && op->size == 0 && chance(4) >= lost)
      apply_name(names, &named, op);
  }
  int dir = open(path, O_RDONLY | O_DIRECTORY);
  if (dir < 0)
    return luaL_error(L, "%s: %s", path, strerror(errno));
  for (size_t i = 0; i < named; i++) {
    File f = cut_file(names[i].file, at, odds);
    write_file(dir, names[i].name, &f);
    free(f.bytes);
  }
  close(dir);
  lua_pushinteger(L, promised);
  return 1;
}

/* tell() -> a list of what was noted, for who looks for a fault. */
static int cut_tell(lua_State *L) {
  static const char *const kinds[] = {"write", "size",       "sync",
                                      "name",  "sync names", "note"};
  lua_newtable(L);
  for (size_t i = 0; i < S.count; i++) {
    const Op *op = &S.ops[i];
    lua_pushfstring(L, "%s %d at %d size %d %s %s", kinds[op->kind], op->file,
                    (int)op->at, (int)op->size, op->name[0], op->name[1]);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 1;
}

/* fail(n, errno): the n-th sync from now on fails, and all later; nil: none. */
static int cut_fail(lua_State *L) {
  S.fail = lua_isnoneornil(L, 1) ? -1 : (int)luaL_checkinteger(L, 1);
  S.error = (int)luaL_optinteger(L, 2, EIO);
  return 0;
}

/* empty(directory): removes its files. */
static int cut_empty(lua_State *L) {
  DIR *d = opendir(luaL_checkstring(L, 1));
  const struct dirent *e;
  while (d && (e = readdir(d)) != NULL)
    if (e->d_name[0] != '.')
      (void)unlinkat(dirfd(d), e->d_name, 0);
  if (d)
    closedir(d);
  return 0;
}

int luaopen_journal(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"start", cut_start}, {"note", cut_note}, {"stop", cut_stop},
      {"cut", cut_cut},     {"fail", cut_fail}, {"empty", cut_empty},
      {"tell", cut_tell},   {NULL, NULL}};
  luaL_newlib(L, functions);
  /* Whether it stands between the program and its library. */
  closes = 0;
  (void)close(-1); /* as any other part of the program would */
  lua_pushboolean(L, closes > 0);
  lua_setfield(L, -2, "between");
  return 1;
}
