/* Names, connections and what connected sockets have; see dial.h. No Lua. */
#include "prefix.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dial.h"
#include "os.h"

enum {
  DIAL_NAP = 1000,   /* us between tries, to begin with, */
  DIAL_DOZE = 50000, /* and at the most */
  KEEP_IDLE = 30,    /* s of silence until a peer is asked, */
  KEEP_EVERY = 10,   /* how often, */
  KEEP_COUNT = 3     /* and how many times */
};

/* ------------------------------------------------------------------ setup */

int ipc_setup_allows(const Setup *s, int fd) {
  long pid = -1, uid = -1, gid = -1;
  if (!s->uids_checked || s->type == SOCK_DGRAM)
    return 0;
  int err = ipc_os_credentials(fd, &pid, &uid, &gid);
  for (unsigned i = 0; !err && i < s->uid_count; i++)
    if (s->uids[i] == uid)
      return 0;
  return err ? err : EACCES;
}

static int setup_flag(int fd, int level, int name, int value) {
  return setsockopt(fd, level, name, &value, sizeof value) ? errno : 0;
}

int ipc_setup_apply(const Setup *s, int fd) {
  int err = 0;
  if (s->capacity > 0) {
    err = setup_flag(fd, SOL_SOCKET, SO_SNDBUF, (int)s->capacity);
    if (!err)
      err = setup_flag(fd, SOL_SOCKET, SO_RCVBUF, (int)s->capacity);
  }
  if (strcmp(s->scheme, "tcp") != 0)
    return err;
  if (!err && s->nodelay)
    err = setup_flag(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  if (!err && s->keepalive)
    err = setup_flag(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  if (!err && s->keepalive)
    err = ipc_os_keepalive(fd, KEEP_IDLE, KEEP_EVERY, KEEP_COUNT);
  if (!err && s->user_timeout > 0)
    err = ipc_os_user_timeout(fd, s->user_timeout);
  /* One that the peer has already ended says so when it is read. */
  return err == EINVAL || err == ECONNRESET ? 0 : err;
}

/* ----------------------------------------------------------------- target */

int ipc_target_parse(Target *t, const Setup *s, const char *text, size_t size) {
  memset(t, 0, sizeof *t);
  int err;
  if (strcmp(s->scheme, "unix") == 0) {
    err = ipc_sockaddr_unix(text, size, &t->list[0]);
  } else {
    err = ipc_sockaddr_split(text, size, t->host, t->port);
    if (!err)
      err = ipc_sockaddr_inet(t->host, t->port, &t->list[0]);
    if (err == EAGAIN)
      return 0;
  }
  t->count = err ? 0 : 1;
  return err;
}

int ipc_target_step(Target *t, const Setup *s, Wanted *w) {
  int err;
  if (t->count > 0)
    return 0;
  if (!t->lookup) {
    err = ipc_lookup_start(t->host, t->port, s->type, &t->lookup);
    if (err)
      return err;
  }
  err = ipc_lookup_result(t->lookup, t->list, &t->count, &t->why);
  if (err == EAGAIN)
    *w = (Wanted){ipc_lookup_fd(t->lookup), IPC_READ, 0};
  return err;
}

void ipc_target_end(Target *t, bool forked) {
  ipc_lookup_drop(t->lookup, forked);
  t->lookup = NULL;
}

/* ------------------------------------------------------------- connecting */

/* A connection to a free port of this machine may meet itself: both ends are
 * the same socket, and the server that comes later finds its port taken. */
static bool dial_is_itself(int fd) {
  Sockaddr here, there;
  memset(&here, 0, sizeof here);
  memset(&there, 0, sizeof there);
  here.size = there.size = sizeof here.s;
  return getsockname(fd, (struct sockaddr *)&here.s, &here.size) == 0 &&
         getpeername(fd, (struct sockaddr *)&there.s, &there.size) == 0 &&
         here.s.ss_family != AF_UNIX && ipc_sockaddr_equal(&here, &there);
}

static int dial_open(Dial *d, const Setup *s, const Sockaddr *a) {
  int err = 0, on = 1;
  if (ipc_sockaddr_path(&d->local)) { /* where answers go: as a listener's */
    Setup named = *s;
    named.backlog = 0;
    ipc_bound_remove(&d->bound);
    err = ipc_bind(&named, &d->local, &d->fd, &d->bound);
    if (err)
      d->fd = -1;
    d->misplaced = err != 0;
    return err;
  }
  err = ipc_os_socket(a->s.ss_family, s->type, &d->fd);
  if (err)
    return err;
  if (d->local.size > 0 && d->local.s.ss_family == a->s.ss_family) {
    if (a->s.ss_family != AF_UNIX)
      (void)setsockopt(d->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(d->fd, (const struct sockaddr *)&d->local.s, d->local.size))
      err = errno;
    d->misplaced = err != 0;
  }
  return err;
}

/* One try. 0: connected. EINPROGRESS: the kernel will tell. EAGAIN: a full
 * backlog, nobody will. */
static int dial_try(Dial *d, const Setup *s) {
  const Sockaddr *a = &d->to.list[d->at];
  if (d->waits) {
    struct pollfd p = {d->fd, POLLOUT, 0};
    int err = 0;
    socklen_t size = sizeof err;
    if (poll(&p, 1, 0) < 1)
      return EINPROGRESS;
    d->waits = false;
    if (getsockopt(d->fd, SOL_SOCKET, SO_ERROR, &err, &size))
      return errno;
    return err;
  }
  int err = d->fd < 0 ? dial_open(d, s, a) : 0;
  if (err)
    return err;
  if (connect(d->fd, (const struct sockaddr *)&a->s, a->size) == 0)
    return 0;
  err = errno == EINTR ? EINPROGRESS : errno;
  d->waits = err == EINPROGRESS;
  return err;
}

/* Whether a listener may yet come to be there. */
static bool dial_absent(int err) {
  return err == ECONNREFUSED || err == ENOENT || err == ECONNRESET ||
         err == ENXIO;
}

int ipc_dial_step(Dial *d, const Setup *s, Nanos now, Wanted *w, int *fd,
                  int *stale) {
  *stale = -1;
  int err = ipc_target_step(&d->to, s, w);
  if (err)
    return err;
  if (d->until == 0)
    d->until = d->retry == IPC_FOREVER ? IPC_FOREVER : now + d->retry;
  err = dial_try(d, s);
  if (err == EINPROGRESS) {
    *w = (Wanted){d->fd, IPC_WRITE, 0};
    return EAGAIN;
  }
  if (!err && s->type == SOCK_STREAM && dial_is_itself(d->fd))
    err = ECONNREFUSED;
  if (!err)
    err = ipc_setup_allows(s, d->fd);
  if (!err) {
    *fd = d->fd;
    d->fd = -1;
    return ipc_setup_apply(s, *fd);
  }
  bool full = err == EAGAIN;
  if (!full) {
    *stale = d->fd;
    d->fd = -1;
    d->at++;
    if (d->at < d->to.count) { /* the next one at once */
      *w = (Wanted){-1, IPC_WRITE, 1};
      return EAGAIN;
    }
    d->at = 0;
    if (!dial_absent(err) || now >= d->until)
      return dial_absent(err) && d->retry > 0 ? ETIMEDOUT : err;
  }
  d->nap = d->nap == 0 ? DIAL_NAP : d->nap * 2;
  if (d->nap > DIAL_DOZE)
    d->nap = DIAL_DOZE;
  *w = (Wanted){-1, IPC_WRITE, d->nap};
  return EAGAIN;
}

void ipc_dial_end(Dial *d, bool forked) {
  ipc_target_end(&d->to, forked);
  if (d->fd >= 0)
    close(d->fd);
  d->fd = -1;
}
