/* Sockets that have a name; see dial.h. A path is bound under a lock, so that
 * of any number of servers that find a dead one's path exactly one takes it
 * over; the lock's file is gone when the path is bound. No Lua. */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "dial.h"
#include "os.h"

/* 0: *lock is held. EAGAIN: somebody else holds it. */
static int bind_lock(const char *path, char *file, size_t room, int *lock) {
  struct stat held, named;
  int n = snprintf(file, room, "%s" IPC_BINDING, path);
  if (n < 0 || (size_t)n >= room)
    return ENAMETOOLONG;
  *lock = open(file, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (*lock < 0)
    return errno;
  int err = 0;
  if (flock(*lock, LOCK_EX | LOCK_NB))
    err = errno == EWOULDBLOCK || errno == EINTR ? EAGAIN : errno;
  /* Whoever held it removed the file: the lock on it means nothing now. */
  if (!err && (fstat(*lock, &held) || lstat(file, &named) ||
               held.st_ino != named.st_ino || held.st_dev != named.st_dev))
    err = EAGAIN;
  /* Somebody else's that is called so is left alone. */
  if (!err &&
      (!S_ISREG(held.st_mode) || held.st_size > 0 || held.st_uid != geteuid()))
    err = EEXIST;
  if (err)
    close(*lock);
  return err;
}

/* Whether somebody is there: a refused connection means that nobody is. */
static bool bind_lives(const Sockaddr *a, int type) {
  int fd;
  if (ipc_os_socket(AF_UNIX, type, &fd))
    return true;
  bool dead = connect(fd, (const struct sockaddr *)&a->s, a->size) != 0 &&
              errno == ECONNREFUSED;
  close(fd);
  return !dead;
}

/* Takes away what a dead process left. */
static int bind_reclaim(const Setup *s, const Sockaddr *a, const char *path) {
  struct stat found;
  if (lstat(path, &found))
    return errno == ENOENT ? 0 : errno;
  if (!S_ISSOCK(found.st_mode) || s->create == IPC_CREATE_NEW)
    return EEXIST;
  if (bind_lives(a, s->type))
    return EADDRINUSE;
  return unlink(path) && errno != ENOENT ? errno : 0;
}

static int bind_listen(const Setup *s, int fd) {
  if (s->type == SOCK_DGRAM || s->backlog == 0)
    return 0;
  return listen(fd, s->backlog) ? errno : 0;
}

static int bind_path(const Setup *s, const Sockaddr *a, const char *path,
                     int fd, Bound *b) {
  struct stat made;
  memset(&made, 0, sizeof made);
  int err = bind_reclaim(s, a, path);
  if (err)
    return err;
  /* Where the system takes it so, nobody gets in between bind and chmod. */
  (void)fchmod(fd, (mode_t)(s->mode & 0777));
  if (bind(fd, (const struct sockaddr *)&a->s, a->size))
    return errno;
  if (chmod(path, (mode_t)s->mode) || lstat(path, &made))
    err = errno;
  if (!err)
    err = bind_listen(s, fd);
  if (err) {
    (void)unlink(path);
    return err;
  }
  b->there = true;
  b->device = (uint64_t)made.st_dev;
  b->inode = (uint64_t)made.st_ino;
  snprintf(b->path, sizeof b->path, "%s", path);
  return 0;
}

int ipc_bind(const Setup *s, const Sockaddr *a, int *fd, Bound *b) {
  char file[PATH_MAX];
  int lock = -1, on = 1;
  const char *path = ipc_sockaddr_path(a);
  memset(b, 0, sizeof *b);
  int err = path ? bind_lock(path, file, sizeof file, &lock) : 0;
  if (err)
    return err;
  err = ipc_os_socket(a->s.ss_family, s->type, fd);
  if (!err && path) {
    err = bind_path(s, a, path, *fd, b);
  } else if (!err) {
    if (s->type == SOCK_STREAM && a->s.ss_family != AF_UNIX)
      (void)setsockopt(*fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (a->s.ss_family == AF_INET6) /* as the address says, and no more */
      (void)setsockopt(*fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (bind(*fd, (const struct sockaddr *)&a->s, a->size))
      err = errno;
    if (!err)
      err = bind_listen(s, *fd);
  }
  if (err && *fd >= 0)
    close(*fd);
  if (path) {
    (void)unlink(file);
    close(lock);
  }
  return err;
}

void ipc_bound_remove(Bound *b) {
  struct stat now;
  if (b->there && lstat(b->path, &now) == 0 &&
      (uint64_t)now.st_dev == b->device && (uint64_t)now.st_ino == b->inode)
    (void)unlink(b->path);
  b->there = false;
}
