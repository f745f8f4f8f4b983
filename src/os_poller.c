/* Sets of descriptors of which some are waited for: epoll(7), and where there
 * is none poll(2) on all of them. No Lua. */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "os.h"

#if defined(__linux__) && !defined(IPC_PORTABLE)
#define SET_EPOLL 1
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#endif

struct OsSet {
  int fd; /* of epoll; -1: the list is what there is */
  struct pollfd *list;
  size_t count, room;
  int *places; /* by descriptor: where it is in the list, or -1 */
  size_t known;
  size_t next; /* where the next search begins, so that all have their turn */
  void *events;
  size_t event_room;
};

/* ------------------------------------------------------------ all systems */

static int set_place(const OsSet *s, int fd) {
  return (size_t)fd < s->known ? s->places[fd] : -1;
}

static int set_reserve(OsSet *s, int fd) {
  if (s->count == s->room) {
    size_t room = s->room ? s->room * 2 : 16;
    struct pollfd *list = realloc(s->list, room * sizeof *list);
    if (!list)
      return ENOMEM;
    s->list = list;
    s->room = room;
  }
  if ((size_t)fd >= s->known) {
    size_t known = s->known ? s->known : 64;
    while (known <= (size_t)fd)
      known *= 2;
    int *places = realloc(s->places, known * sizeof *places);
    if (!places)
      return ENOMEM;
    for (size_t i = s->known; i < known; i++)
      places[i] = -1;
    s->places = places;
    s->known = known;
  }
  return 0;
}

static void set_drop(OsSet *s, int fd) {
  int at = set_place(s, fd);
  if (at < 0)
    return;
  struct pollfd last = s->list[--s->count];
  s->list[at] = last;
  s->places[last.fd] = at;
  s->places[fd] = -1;
}

static int set_change(OsSet *s, int fd, short events) {
  if (!events) {
    set_drop(s, fd);
    return 0;
  }
  if (fcntl(fd, F_GETFD) < 0)
    return errno;
  int at = set_place(s, fd);
  if (at < 0) {
    int err = set_reserve(s, fd);
    if (err)
      return err;
    at = (int)s->count++;
    s->places[fd] = at;
  }
  s->list[at] = (struct pollfd){fd, events, 0};
  return 0;
}

/* One that was closed without a word leaves, as it does from epoll(7). */
static size_t set_gather(OsSet *s, OsReady *ready, size_t most) {
  size_t n = 0, seen = 0, at = s->next;
  for (; seen < s->count && n < most; seen++) {
    at = at < s->count ? at : 0;
    struct pollfd *p = &s->list[at];
    if (p->revents & POLLNVAL) {
      set_drop(s, p->fd);
      continue;
    }
    if (p->revents)
      ready[n++] = (OsReady){p->fd, p->revents};
    at++;
  }
  s->next = at;
  return n;
}

static int set_wait(OsSet *s, OsReady *ready, size_t most, int64_t timeout,
                    size_t *count) {
  size_t some = 0;
  int err = ipc_os_poll(s->list, s->count, timeout, &some);
  *count = err || !some ? 0 : set_gather(s, ready, most);
  return err;
}

/* ------------------------------------------------------------------ epoll */

#ifdef SET_EPOLL

#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441 /* Linux 5.11 */
#endif

_Static_assert(EPOLLIN == POLLIN && EPOLLOUT == POLLOUT &&
                   EPOLLERR == POLLERR && EPOLLHUP == POLLHUP,
               "events pass through as they are");

static int set_open(OsSet *s) {
  if (ipc_os_without("epoll"))
    return 0;
  s->fd = epoll_create1(EPOLL_CLOEXEC);
  return s->fd < 0 ? errno : 0;
}

/* What it is now may be another file than the one that was told about under
 * this number, or the same again. */
static int set_control(const OsSet *s, int fd, short events) {
  struct epoll_event e;
  memset(&e, 0, sizeof e);
  e.events = (uint32_t)(unsigned short)events;
  e.data.fd = fd;
  if (!events)
    return epoll_ctl(s->fd, EPOLL_CTL_DEL, fd, &e) && errno != ENOENT &&
                   errno != EBADF
               ? errno
               : 0;
  if (epoll_ctl(s->fd, EPOLL_CTL_MOD, fd, &e) == 0)
    return 0;
  if (errno != ENOENT)
    return errno;
  return epoll_ctl(s->fd, EPOLL_CTL_ADD, fd, &e) ? errno : 0;
}

static int set_enter(const OsSet *s, int fd, short events) {
  struct epoll_event e;
  memset(&e, 0, sizeof e);
  e.events = (uint32_t)(unsigned short)events;
  e.data.fd = fd;
  if (epoll_ctl(s->fd, EPOLL_CTL_ADD, fd, &e) == 0)
    return 0;
  return errno == EEXIST ? set_control(s, fd, events) : errno;
}

static atomic_int set_precise = -1;

/* epoll_wait(2) with nanoseconds. */
static int set_sleep(const OsSet *s, struct epoll_event *e, int most,
                     int64_t timeout) {
  int precise = atomic_load_explicit(&set_precise, memory_order_relaxed);
  if (precise < 0) {
    precise = !ipc_os_without("epoll_pwait2");
    atomic_store_explicit(&set_precise, precise, memory_order_relaxed);
  }
  if (timeout == 0 || timeout == INT64_MAX)
    return epoll_wait(s->fd, e, most, timeout == 0 ? 0 : -1);
  if (precise) { /* the kernel's own timespec, 64 bits on all machines */
    int64_t t[2] = {timeout / 1000000000, timeout % 1000000000};
    long n = syscall(SYS_epoll_pwait2, s->fd, e, most, t, NULL, 0);
    if (n >= 0 || (errno != ENOSYS && errno != EPERM))
      return (int)n;
    atomic_store_explicit(&set_precise, 0, memory_order_relaxed);
  }
  struct pollfd p = {s->fd, POLLIN, 0};
  size_t ready = 0;
  int err = ipc_os_poll(&p, 1, timeout, &ready);
  errno = err;
  return err ? -1 : ready ? epoll_wait(s->fd, e, most, 0) : 0;
}

static int set_kernel(OsSet *s, OsReady *ready, size_t most, int64_t timeout,
                      size_t *count) {
  if (s->event_room < most) {
    void *events = realloc(s->events, most * sizeof(struct epoll_event));
    if (!events)
      return ENOMEM;
    s->events = events;
    s->event_room = most;
  }
  struct epoll_event *e = s->events;
  int n = set_sleep(s, e, (int)most, timeout);
  *count = n > 0 ? (size_t)n : 0;
  for (int i = 0; i < n; i++)
    ready[i] = (OsReady){e[i].data.fd, (short)(e[i].events & 0x7fff)};
  return n < 0 ? errno : 0;
}

#else

static int set_open(OsSet *s) {
  (void)s;
  return 0;
}

static int set_enter(const OsSet *s, int fd, short events) {
  (void)s, (void)fd, (void)events;
  return ENOTSUP;
}

static int set_control(const OsSet *s, int fd, short events) {
  return set_enter(s, fd, events);
}

static int set_kernel(OsSet *s, OsReady *ready, size_t most, int64_t timeout,
                      size_t *count) {
  return set_wait(s, ready, most, timeout, count);
}

#endif

/* --------------------------------------------------------------- the calls */

int ipc_os_set_open(OsSet **set) {
  OsSet *s = calloc(1, sizeof *s);
  *set = NULL;
  if (!s)
    return ENOMEM;
  s->fd = -1;
  int err = set_open(s);
  if (err)
    free(s);
  else
    *set = s;
  return err;
}

void ipc_os_set_close(OsSet *s) {
  if (s->fd >= 0)
    close(s->fd);
  free(s->list);
  free(s->places);
  free(s->events);
  free(s);
}

int ipc_os_set_descriptor(const OsSet *s) { return s->fd; }

int ipc_os_set_change(OsSet *s, int fd, short events, bool fresh) {
  if (s->fd < 0)
    return set_change(s, fd, events);
  return fresh && events ? set_enter(s, fd, events)
                         : set_control(s, fd, events);
}

int ipc_os_set_wait(OsSet *s, OsReady *ready, size_t most, int64_t timeout,
                    size_t *count) {
  *count = 0;
  return s->fd < 0 ? set_wait(s, ready, most, timeout, count)
                   : set_kernel(s, ready, most, timeout, count);
}

size_t ipc_os_set_polls(const OsSet *s, struct pollfd *list, size_t room) {
  if (s->fd >= 0) {
    if (room > 0)
      list[0] = (struct pollfd){s->fd, POLLIN, 0};
    return 1;
  }
  for (size_t i = 0; i < s->count && i < room; i++)
    list[i] = s->list[i];
  return s->count;
}
