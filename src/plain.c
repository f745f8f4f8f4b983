/* Plain files in memory; see plain.h. Nothing is written to one but what its
 * user writes, and none is formatted or removed. */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ipc.h"
#include "os.h"
#include "plain.h"
#include "segment.h"

/* The byte (2^62 further, see os_memory.c) that all who have it open share. */
#define PLAIN_PRESENT ((UINT64_C(1) << 40) + 0x8000)

enum { PLAIN_PATH = 4096, PLAIN_TURNS = 100, PLAIN_RANDOM = 8 };

/* What f is opened with. */
static int plain_flags(const Plain *f) {
  return (f->write && !f->copied ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK |
         O_NOCTTY;
}

/* Whether it is (still) the file of that path. */
static bool plain_is(int fd, const char *path) {
  struct stat is, named;
  return fstat(fd, &is) == 0 && stat(path, &named) == 0 &&
         is.st_dev == named.st_dev && is.st_ino == named.st_ino;
}

/* Opens it again, by its path if need be. */
static int plain_again(const Plain *f, const char *path, int *fd) {
  int err = ipc_os_reopen(f->fd, plain_flags(f), fd);
  if (err != ENOTSUP || !path)
    return err;
  *fd = open(path, plain_flags(f));
  if (*fd < 0)
    return errno;
  if (plain_is(f->fd, path) && plain_is(*fd, path))
    return 0;
  close(*fd);
  return ENOENT;
}

/* ---------------------------------------------------------------- mappings */

/* By a description of its own, where the system can open it again: a mapping,
 * which a child of fork(2) has too, keeps its description's locks. */
static int plain_map(Plain *f, size_t size, bool populate, const char *path) {
  const OsMap map = {size, f->write, f->copied, populate};
  void *base, *guard;
  int again;
  if (size > PTRDIFF_MAX)
    return EFBIG;
  if (plain_again(f, path, &again))
    again = -1;
  int err = ipc_os_map(again < 0 ? f->fd : again, &map, &base);
  if (again >= 0)
    close(again);
  if (err)
    return err;
  err = ipc_os_guard(base, size, f->damaged, &guard);
  if (err) {
    ipc_os_unmap(base, size);
    return err;
  }
  if (f->base) {
    ipc_os_unguard(f->guard);
    ipc_os_unmap(f->base, f->size);
  }
  if (f->huge)
    ipc_os_advise_huge(base, size);
  f->base = base;
  f->guard = guard;
  f->size = size;
  return 0;
}

/* Marks it as open, and maps it. EAGAIN: its size is being changed. */
static int plain_begin(Plain *f, bool populate, const char *path) {
  struct stat is;
  (void)ipc_os_high(&f->fd);
  int err = ipc_os_fork_close(f->fd);
  if (err)
    return err;
  err = ipc_os_byte_share(f->fd, PLAIN_PRESENT);
  if (err && err != ENOTSUP)
    return err;
  f->damaged = calloc(1, sizeof *f->damaged);
  if (!f->damaged)
    return ENOMEM;
  if (fstat(f->fd, &is))
    return errno;
  if ((uint64_t)is.st_size > PTRDIFF_MAX)
    return EFBIG;
  return is.st_size > 0 ? plain_map(f, (size_t)is.st_size, populate, path) : 0;
}

/* The lock is given back at once, wherever else the description may be. */
static void plain_drop(int *fd, bool foreign) {
  if (*fd >= 0 && !foreign) {
    (void)ipc_os_byte_unlock(*fd, PLAIN_PRESENT);
    ipc_os_fork_forget(*fd);
    close(*fd);
  }
  *fd = -1;
}

void ipc_plain_close(Plain *f, bool foreign) {
  if (f->base) {
    ipc_os_unguard(f->guard);
    ipc_os_unmap(f->base, f->size);
  }
  f->base = NULL;
  free(f->damaged); // NOLINT(clang-analyzer-unix.Malloc) ; once each opening
  f->damaged = NULL;
  plain_drop(&f->fd, foreign);
  plain_drop(&f->spare, foreign);
}

/* -------------------------------------------------------------------- make */

/* A file that nobody can see yet, or only by a name that nobody looks for, in
 * `name`; "": it has none. */
static int plain_new(Plain *f, const PlainAsk *ask, char *name) {
  const char *slash = strrchr(ask->path, '/');
  int folder = slash ? (int)(slash - ask->path) + 1 : 0;
  int n = snprintf(name, PLAIN_PATH, "%.*s", folder ? folder : 2,
                   folder ? ask->path : "./");
  if (n < 0 || n >= PLAIN_PATH)
    return ENAMETOOLONG;
  int err = ipc_os_unnamed_file(name, ask->permissions, &f->fd);
  if (err != ENOTSUP) {
    name[0] = '\0';
    return err;
  }
  uint8_t bits[PLAIN_RANDOM];
  ipc_os_random(bits, sizeof bits);
  n = snprintf(name, PLAIN_PATH, "%.*s.%s.", folder, ask->path,
               ask->path + folder);
  if (n < 0 || n + 2 * PLAIN_RANDOM >= PLAIN_PATH)
    return ENAMETOOLONG;
  for (int i = 0; i < PLAIN_RANDOM; i++)
    n += snprintf(name + n, 3, "%02x", bits[i]);
  f->fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  return f->fd < 0 ? errno : 0;
}

/* Its bytes are all there before it has its name. ESTALE: somebody was first.
 */
static int plain_make(Plain *f, const PlainAsk *ask) {
  char name[PLAIN_PATH] = "";
  int err = plain_new(f, ask, name);
  if (f->fd < 0)
    return err;
  if (!err && fchmod(f->fd, ask->permissions)) /* whatever the umask */
    err = errno;
  if (!err)
    err = ipc_os_allocate(f->fd, ask->size);
  if (!err)
    err = plain_begin(f, ask->populate, *name ? name : NULL);
  if (!err && *name)
    err = link(name, ask->path) ? errno : 0;
  else if (!err)
    err = ipc_os_link_file(f->fd, ask->path);
  if (*name)
    (void)unlink(name);
  f->made = !err;
  return err == EEXIST ? ESTALE : err;
}

/* -------------------------------------------------------------------- open */

/* Whether it is a file of bytes, and all of them the user's. */
static int plain_check(int fd, bool own) {
  struct stat is;
  uint64_t head;
  if (fstat(fd, &is))
    return errno;
  if (S_ISDIR(is.st_mode))
    return EISDIR;
  if (!S_ISREG(is.st_mode))
    return ENODEV;
  if (own && is.st_uid != 0 && is.st_uid != geteuid())
    return EACCES;
  int err = ipc_segment_foot(fd, &head);
  if (err != ENOMSG)
    return err ? err : ENOMSG;
  return ipc_segment_is(fd) ? EBADMSG : 0;
}

static int plain_find(Plain *f, const PlainAsk *ask) {
  /* O_NONBLOCK: a FIFO of that name does not hold us. */
  f->fd = open(ask->path, plain_flags(f) | (ask->named ? O_NOFOLLOW : 0));
  if (f->fd < 0)
    return errno;
  int err = plain_check(f->fd, ask->named && ask->create != IPC_ATTACH);
  if (!err)
    err = plain_begin(f, ask->populate, ask->path);
  if (!err &&
      (ask->create == IPC_CREATE_NEW || (ask->size && ask->size != f->size)))
    err = EEXIST;
  return err;
}

/* Once. ESTALE: again. But for f->size nothing is left of a failure. */
static int plain_try(Plain *f, const PlainAsk *ask) {
  *f = PLAIN_NONE;
  f->write = ask->write;
  f->copied = ask->copied;
  f->huge = ask->huge;
  int err = plain_find(f, ask);
  if (err == ENOENT && f->fd < 0 && ask->makes && ask->create != IPC_ATTACH &&
      ask->size)
    err = plain_make(f, ask);
  if (err) {
    ipc_plain_close(f, false);
    f->made = false;
  }
  return err;
}

int ipc_plain_open(Plain *f, const PlainAsk *ask) {
  int err = plain_try(f, ask);
  for (int turn = 1; turn < PLAIN_TURNS && err == ESTALE; turn++)
    err = plain_try(f, ask);
  return err == ESTALE ? EAGAIN : err;
}

int ipc_plain_adopt(Plain *f, int fd, bool write, bool copied) {
  *f = PLAIN_NONE;
  f->write = write;
  f->copied = copied;
  int err = plain_check(fd, false);
  if (!err)
    err = ipc_os_reopen(fd, plain_flags(f), &f->fd);
  if (err == ENOTSUP || err == EACCES || err == EPERM)
    err = ipc_os_dup(fd, &f->fd); /* who sent it may open it, we may not */
  if (!err)
    err = plain_begin(f, false, NULL);
  if (err)
    ipc_plain_close(f, false);
  return err;
}

int ipc_plain_remove(const Plain *f, const char *path) {
  struct stat is, named;
  if (f->fd < 0 || fstat(f->fd, &is) || lstat(path, &named) ||
      is.st_dev != named.st_dev || is.st_ino != named.st_ino)
    return ENOENT;
  return unlink(path) ? errno : 0;
}

/* -------------------------------------------------------------------- grow */

int ipc_plain_look(const Plain *f) {
  struct stat is;
  if (f->fd >= 0 && fstat(f->fd, &is) == 0 && (uint64_t)is.st_size < f->size)
    atomic_store(f->damaged, true);
  return atomic_load(f->damaged) ? EFAULT : 0;
}

int ipc_plain_grow(Plain *f, uint64_t size, const char *path) {
  struct stat is;
  if (size > PTRDIFF_MAX)
    return EFBIG;
  plain_drop(&f->spare, false); /* nobody took it */
  /* In place of our share: whoever else opens it waits, whoever has it open has
   * a share. */
  int err = ipc_os_byte_lock(f->fd, PLAIN_PRESENT);
  if (err)
    return err == EAGAIN ? EBUSY : err;
  if (fstat(f->fd, &is)) {
    err = errno;
  } else if ((uint64_t)is.st_size < f->size) {
    atomic_store(f->damaged, true);
    err = EFAULT;
  } else {
    if ((uint64_t)is.st_size < size)
      err = ipc_os_allocate(f->fd, size);
    if (!err) {
      err = plain_map(f, (size_t)size, false, path);
      if (err && (uint64_t)is.st_size < size && ftruncate(f->fd, is.st_size))
        err = errno;
    }
  }
  (void)ipc_os_byte_share(f->fd, PLAIN_PRESENT);
  return err;
}

/* -------------------------------------------------------------------- fork */

int ipc_plain_spare(Plain *f, const char *path) {
  if (f->spare >= 0)
    return 0;
  if (f->fd < 0)
    return EBADF;
  int err = plain_again(f, path, &f->spare);
  if (err) {
    f->spare = -1;
    return err;
  }
  (void)ipc_os_high(&f->spare);
  (void)ipc_os_byte_share(f->spare, PLAIN_PRESENT);
  err = ipc_os_fork_close(f->spare);
  if (err) {
    close(f->spare);
    f->spare = -1;
  }
  return err;
}

/* Without one the child has the bytes, but takes no locks. */
void ipc_plain_forking(Plain *f, const char *path) {
  if (ipc_plain_spare(f, path) == 0)
    ipc_os_fork_keep(f->spare, true);
}

void ipc_plain_forked(Plain *f, bool child) {
  if (f->spare >= 0)
    ipc_os_fork_keep(f->spare, false);
  if (child) {
    f->fd = f->spare; /* the other was closed */
    f->spare = -1;
  } else if (f->spare >= 0) { /* the child has it, or whom it was sent to */
    ipc_os_fork_forget(f->spare);
    close(f->spare);
    f->spare = -1;
  }
}
