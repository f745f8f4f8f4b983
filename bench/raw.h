/* What the raw C benchmarks have in common: two processes with two connected
 * ends of a kernel medium, the frames and checks that the library has, and its
 * two ways to wait. No Lua and nothing of the library.
 *
 * Waiting is "blocking": read(2) and write(2) sleep; or "learning": descriptors
 * are non-blocking, an attempt that would wait is repeated for 70 us before
 * poll(2), and after one that did not pay the next 1, 3, 7 ... 1023 waits go to
 * poll at once. */
#ifndef BENCH_RAW_H
#define BENCH_RAW_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
  RAW_HEAD = 4,
  RAW_AHEAD = 64 << 10, /* bytes read at once */
  RAW_LIMIT = 64 << 20, /* bytes of a message */
  RAW_SMALL = 64,       /* the small message of every benchmark */
  RAW_LARGE = 1 << 20,  /* and the large one */
  RAW_PATIENCE = 60,    /* seconds until a benchmark counts as hung */
  RAW_BATCHES = 100000  /* measured at most */
};

static inline void raw_die(const char *what) {
  fprintf(stderr, "bench: %s: %s\n", what, strerror(errno));
  exit(EXIT_FAILURE);
}

static inline int64_t raw_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void raw_pin(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET((size_t)core, &set);
  if (sched_setaffinity(0, sizeof set, &set))
    raw_die("sched_setaffinity");
}

/* ------------------------------------------------------------------- ends */

typedef struct Wait {
  unsigned skip, penalty;
} Wait;

typedef struct End {
  int rfd, wfd;
  bool packets, socket, learning;
  Wait wait[2];
  char *in; /* read ahead */
  size_t at, size, room;
} End;

/* Two ends of "pipe" (two pipes), "packets" (the same with O_DIRECT), "stream"
 * or "seqpacket" (unix sockets), with room for large messages if asked. */
static inline void raw_pair(End *a, End *b, const char *kind, bool learning,
                            bool large) {
  int ab[2], ba[2], flags = O_CLOEXEC | (learning ? O_NONBLOCK : 0);
  bool packets = !strcmp(kind, "packets") || !strcmp(kind, "seqpacket");
  bool socket = !strcmp(kind, "stream") || !strcmp(kind, "seqpacket");
  if (socket) {
    int type = (packets ? SOCK_SEQPACKET : SOCK_STREAM) | SOCK_CLOEXEC |
               (learning ? SOCK_NONBLOCK : 0);
    if (socketpair(AF_UNIX, type, 0, ab))
      raw_die("socketpair");
    for (int i = 0; large && i < 2; i++) {
      int room = 4 << 20;
      if (setsockopt(ab[i], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room))
        setsockopt(ab[i], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    }
    *a = (End){.rfd = ab[0], .wfd = ab[0]};
    *b = (End){.rfd = ab[1], .wfd = ab[1]};
  } else if (!strcmp(kind, "pipe") || packets) {
    if (pipe2(ab, flags | (packets ? O_DIRECT : 0)) ||
        pipe2(ba, flags | (packets ? O_DIRECT : 0)))
      raw_die("pipe");
    if (large && (fcntl(ab[1], F_SETPIPE_SZ, RAW_LARGE) < 0 ||
                  fcntl(ba[1], F_SETPIPE_SZ, RAW_LARGE) < 0))
      raw_die("F_SETPIPE_SZ");
    *a = (End){.rfd = ba[0], .wfd = ab[1]};
    *b = (End){.rfd = ab[0], .wfd = ba[1]};
  } else {
    errno = EINVAL;
    raw_die(kind);
  }
  a->packets = b->packets = packets;
  a->socket = b->socket = socket;
  a->learning = b->learning = learning;
}

static inline void raw_close(End *e) {
  close(e->rfd);
  if (e->wfd != e->rfd)
    close(e->wfd);
}

/* ---------------------------------------------------------------- waiting */

/* After an attempt that would have to wait. *until: when repeating it ends; 0
 * before the first time. */
static inline void raw_wait(End *e, bool writing, int64_t *until) {
  Wait *w = &e->wait[writing];
  int64_t now = raw_now();
  if (*until == 0 && w->skip == 0) {
    *until = now + 70000;
    return;
  }
  if (*until && now < *until)
    return;
  if (*until) {
    w->penalty = w->penalty * 2 + 1 < 1023 ? w->penalty * 2 + 1 : 1023;
    w->skip = w->penalty;
    *until = 0;
  } else {
    w->skip--;
  }
  struct pollfd p = {writing ? e->wfd : e->rfd, writing ? POLLOUT : POLLIN, 0};
  if (poll(&p, 1, RAW_PATIENCE * 1000) != 1)
    raw_die("poll");
}

/* One read; 0 is the end. */
static inline size_t raw_read(End *e, char *bytes, size_t room) {
  int64_t until = 0;
  for (;;) {
    ssize_t n = e->socket
                    ? recv(e->rfd, bytes, room, e->packets ? MSG_TRUNC : 0)
                    : read(e->rfd, bytes, room);
    if (n >= 0) {
      if (until)
        e->wait[0].penalty = 0;
      return (size_t)n;
    }
    if (errno != EAGAIN && errno != EINTR)
      raw_die("read");
    if (errno == EAGAIN)
      raw_wait(e, false, &until);
  }
}

static inline size_t raw_write(End *e, const struct iovec *iov, int count) {
  int64_t until = 0;
  for (;;) {
    ssize_t n;
    if (count > 1)
      n = writev(e->wfd, iov, count);
    else if (e->socket)
      n = send(e->wfd, iov->iov_base, iov->iov_len, MSG_NOSIGNAL);
    else
      n = write(e->wfd, iov->iov_base, iov->iov_len);
    if (n >= 0) {
      if (until)
        e->wait[1].penalty = 0;
      return (size_t)n;
    }
    if (errno != EAGAIN && errno != EINTR)
      raw_die("write");
    if (errno == EAGAIN)
      raw_wait(e, true, &until);
  }
}

/* --------------------------------------------------------------- messages */

static inline void raw_head(char *head, size_t size) {
  head[0] = (char)(size >> 24);
  head[1] = (char)(size >> 16);
  head[2] = (char)(size >> 8);
  head[3] = (char)size;
}

static inline size_t raw_length(const char *head) {
  const unsigned char *h = (const unsigned char *)head;
  return (size_t)h[0] << 24 | (size_t)h[1] << 16 | (size_t)h[2] << 8 | h[3];
}

static inline void raw_write_all(End *e, char *bytes, size_t size) {
  while (size > 0) {
    struct iovec iov = {bytes, size};
    size_t put = raw_write(e, &iov, 1);
    bytes += put;
    size -= put;
  }
}

static inline void raw_send(End *e, char *bytes, size_t size) {
  char small[RAW_HEAD + 4096];
  if (e->packets) {
    struct iovec iov = {bytes, size};
    raw_write(e, &iov, 1);
  } else if (size <= 4096) {
    raw_head(small, size);
    memcpy(small + RAW_HEAD, bytes, size);
    raw_write_all(e, small, RAW_HEAD + size);
  } else {
    raw_head(small, size);
    struct iovec iov[2] = {{small, RAW_HEAD}, {bytes, size}};
    size_t put = raw_write(e, iov, 2);
    if (put < RAW_HEAD)
      raw_die("a header cut in two");
    raw_write_all(e, bytes + (put - RAW_HEAD), size - (put - RAW_HEAD));
  }
}

static inline void raw_room(End *e, size_t room) {
  if (room <= e->room)
    return;
  e->in = realloc(e->in, room);
  if (!e->in)
    raw_die("realloc");
  e->room = room;
}

/* The next message, valid until the next call; NULL at the end. */
static inline const char *raw_recv(End *e, size_t *size) {
  if (e->packets) {
    raw_room(e, RAW_LARGE);
    *size = raw_read(e, e->in, e->room);
    if (*size > e->room)
      raw_die("too big");
    return *size ? e->in : NULL;
  }
  for (;;) {
    size_t have = e->size - e->at, need = RAW_AHEAD;
    if (have >= RAW_HEAD) {
      size_t n = raw_length(e->in + e->at);
      if (n > RAW_LIMIT)
        raw_die("too big");
      if (have - RAW_HEAD >= n) {
        const char *found = e->in + e->at + RAW_HEAD;
        *size = n;
        e->at += RAW_HEAD + n;
        if (e->at == e->size)
          e->at = e->size = 0; /* the bytes stay until they are read over */
        return found;
      }
      need = RAW_HEAD + n;
    }
    if (e->at > 0) {
      memmove(e->in, e->in + e->at, have);
      e->at = 0;
      e->size = have;
    }
    raw_room(e, need > RAW_AHEAD ? need : RAW_AHEAD);
    size_t got = raw_read(e, e->in + e->size, e->room - e->size);
    if (got == 0)
      return NULL;
    e->size += got;
  }
}

static inline void raw_expect(End *e, size_t size) {
  size_t got;
  if (!raw_recv(e, &got) || got != size) {
    errno = EBADMSG;
    raw_die("an answer");
  }
}

/* -------------------------------------------------------------- measuring */

static inline int raw_order(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x > y) - (x < y);
}

/* Calls batch(end), which does `count` of something, for so many seconds after
 * a tenth of that as warm-up; prints the median, in ns for each of the count.
 */
static inline void raw_measure(void (*batch)(End *e), End *e, size_t count,
                               double seconds) {
  static int64_t took[RAW_BATCHES];
  size_t n = 0;
  int64_t begin = raw_now(), length = (int64_t)(seconds * 1e9);
  do
    batch(e);
  while (raw_now() - begin < length / 10);
  begin = raw_now();
  int64_t last = begin;
  while (n < 3 || (last - begin < length && n < RAW_BATCHES)) {
    batch(e);
    int64_t now = raw_now();
    took[n++] = now - last;
    last = now;
  }
  qsort(took, n, sizeof *took, raw_order);
  printf("%.1f\n", (double)took[n / 2] / (double)count);
}

/* Forks: the child serves its end until that is closed, on core 1 ("across")
 * or, as the parent, on core 0 ("one"). */
static inline pid_t raw_fork(End *mine, End *its, const char *place,
                             void (*serve)(End *e)) {
  pid_t pid = fork();
  if (pid < 0)
    raw_die("fork");
  alarm(RAW_PATIENCE);
  raw_pin(pid == 0 && !strcmp(place, "across") ? 1 : 0);
  if (pid == 0) {
    raw_close(mine);
    serve(its);
    _exit(0);
  }
  raw_close(its);
  return pid;
}

static inline int raw_join(pid_t pid, End *mine) {
  int status;
  raw_close(mine);
  return waitpid(pid, &status, 0) == pid && status == 0 ? EXIT_SUCCESS
                                                        : EXIT_FAILURE;
}

#endif
