/* Descriptors beside bytes; see cmsg.h. No Lua. */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cmsg.h"
#include "os.h"

/* Room for all that the kernel may send: what does not fit is closed by it,
 * and one descriptor too many hides in the padding of CMSG_SPACE (64-bit). */
enum { CMSG_ROOM = 1280 };

_Static_assert(CMSG_ROOM >= CMSG_MOST * sizeof(int) + 128, "room for all");

void ipc_parcel_start(Parcel *p, unsigned limit, unsigned most) {
  p->limit = limit;
  p->most = most;
  p->count = 0;
  p->strangers = 0;
  p->cut = false;
  p->taken = 0;
  memset(p->batch, 0, sizeof p->batch);
}

void ipc_cmsg_discard(int fd) {
  const struct linger none = {0, 0};
  (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
  close(fd);
}

unsigned ipc_parcel_cut(Parcel *p, unsigned from, unsigned count) {
  unsigned closed = 0;
  if (from > p->count)
    from = p->count;
  if (count > p->count - from)
    count = p->count - from;
  int *fd = p->fd + from;
  for (unsigned i = 0; i < count; i++)
    if (fd[i] >= 0) {
      ipc_cmsg_discard(fd[i]);
      closed++;
    }
  p->count -= count;
  memmove(fd, fd + count, (p->count - from) * sizeof *fd);
  return closed;
}

unsigned ipc_parcel_drop(Parcel *p, unsigned count) {
  return ipc_parcel_cut(p, 0, count);
}

static void parcel_add(Parcel *p, const unsigned char *data, size_t size) {
  unsigned n = 0;
  for (; size >= sizeof(int); size -= sizeof(int), data += sizeof(int), n++) {
    int fd;
    memcpy(&fd, data, sizeof fd);
    if (n >= p->limit || p->count >= p->most) {
      ipc_cmsg_discard(fd);
      p->strangers++;
      p->cut = true;
      continue;
    }
    if (!ipc_os_cmsg_cloexec)
      (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    p->fd[p->count++] = fd;
  }
}

int ipc_cmsg_receive(int fd, void *bytes, size_t room, size_t *got, int *flags,
                     Parcel *p, Sockaddr *from, bool *marked) {
  union {
    struct cmsghdr align;
    char bytes[CMSG_ROOM];
  } control;
  struct iovec iov = {bytes, room};
  struct msghdr m;
  memset(&m, 0, sizeof m);
  m.msg_iov = &iov;
  m.msg_iovlen = 1;
  if (p) {
    m.msg_control = control.bytes;
    m.msg_controllen = sizeof control.bytes;
  }
  if (from) {
    m.msg_name = &from->s;
    m.msg_namelen = sizeof from->s;
  }
  ssize_t n =
      recvmsg(fd, &m, MSG_DONTWAIT | ipc_os_whole_length | ipc_os_cmsg_cloexec);
  if (n < 0)
    return errno == EWOULDBLOCK || errno == EINTR ? EAGAIN : errno;
  *got = (size_t)n;
  *flags = m.msg_flags;
  if (from)
    from->size = m.msg_namelen;
  /* Without room for them, marks are what was cut off. */
  if (marked)
    *marked = !p && (m.msg_flags & MSG_CTRUNC);
  for (struct cmsghdr *c = p ? CMSG_FIRSTHDR(&m) : NULL; c;
       c = CMSG_NXTHDR(&m, c)) {
    if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
      parcel_add(p, CMSG_DATA(c),
                 (size_t)c->cmsg_len -
                     (size_t)(CMSG_DATA(c) - (unsigned char *)c));
    else if (marked && ipc_os_is_mark(c->cmsg_level, c->cmsg_type))
      *marked = true;
  }
  if (p && (m.msg_flags & MSG_CTRUNC))
    p->cut = true;
  return 0;
}

int ipc_cmsg_send(int fd, const struct iovec *iov, int count, size_t *put,
                  const Sockaddr *to, const int *fds, unsigned fd_count) {
  union {
    struct cmsghdr align;
    char bytes[CMSG_ROOM];
  } control;
  struct msghdr m;
  memset(&m, 0, sizeof m);
  m.msg_iov = (struct iovec *)(uintptr_t)iov;
  m.msg_iovlen = (__typeof__(m.msg_iovlen))count;
  if (to) {
    m.msg_name = (void *)(uintptr_t)&to->s;
    m.msg_namelen = to->size;
  }
  if (fd_count) {
    size_t size = fd_count * sizeof *fds;
    memset(&control, 0, CMSG_SPACE(size));
    m.msg_control = control.bytes;
    m.msg_controllen = (__typeof__(m.msg_controllen))CMSG_SPACE(size);
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = (__typeof__(c->cmsg_len))CMSG_LEN(size);
    memcpy(CMSG_DATA(c), fds, size);
  }
  return ipc_os_sendmsg(fd, &m, put);
}
