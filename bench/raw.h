/* What the raw C benchmarks have in common: two processes with two connected
 * ends of a kernel medium, the frames and checks that the library has, and its
 * two ways to wait. No Lua and nothing of the library.
 *
 * Waiting is "blocking": read(2) and write(2) sleep; or "learning": descriptors
 * are non-blocking, an attempt that would wait is repeated for 70 us before
 * poll(2), and after one that did not pay the next 1, 3, 7 ... 1023 waits go to
 * poll at once. A System V queue has no descriptor: there the attempts are made
 * with IPC_NOWAIT, and msgrcv(2) or msgsnd(2) without it stands for poll. A
 * ring in shared memory: ring.h. */
#ifndef BENCH_RAW_H
#define BENCH_RAW_H

#include "base.h"
#include "ring.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

/* ------------------------------------------------------------------- ends */

struct End {
  int rfd, wfd; /* of a System V queue the identifier */
  enum { RAW_FILE, RAW_SOCKET, RAW_MQUEUE, RAW_SYSV, RAW_RING } by;
  bool packets, learning;
  bool lossy;   /* what finds no room is dropped */
  bool endless; /* closing tells nobody */
  int flags;    /* of the next msgrcv(2) or msgsnd(2) */
  Wait wait[2];
  char *in; /* read ahead */
  size_t at, size, room;
  Ring ring[2]; /* what it reads, what it writes */
};

/* A word of the list. */
static inline bool raw_is(const char *kind, const char *list) {
  const char *at = strstr(list, kind);
  size_t size = strlen(kind);
  return at && (at == list || at[-1] == ' ') && (at[size] == ' ' || !at[size]);
}

/* A nameless POSIX queue; by system calls, as mq_open(3) may need librt. */
static inline int raw_mqueue(bool learning, bool large) {
  char name[64];
  struct mq_attr attr = {0};
  attr.mq_maxmsg = 10;
  attr.mq_msgsize = large ? RAW_LARGE : 8192;
  snprintf(name, sizeof name, "bench.%ld.%lld", (long)getpid(),
           (long long)raw_now());
  int fd = (int)syscall(SYS_mq_open, name,
                        O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC |
                            (learning ? O_NONBLOCK : 0),
                        0600, &attr);
  if (fd < 0) {
    if (large)
      puts("too large");
    else
      raw_die("mq_open");
    exit(EXIT_FAILURE);
  }
  syscall(SYS_mq_unlink, name);
  return fd;
}

/* System V queues outlive their processes. */
static int raw_queues[2] = {-1, -1};

static void raw_remove(void) {
  for (int i = 0; i < 2; i++)
    msgctl(raw_queues[i], IPC_RMID, NULL);
}

static void raw_stop(int signal) {
  raw_remove();
  _exit(128 + signal);
}

/* Two nameless System V queues, removed when this process ends. */
static inline void raw_sysv(int id[2]) {
  atexit(raw_remove);
  signal(SIGALRM, raw_stop);
  signal(SIGINT, raw_stop);
  signal(SIGTERM, raw_stop);
  for (int i = 0; i < 2; i++) {
    id[i] = raw_queues[i] = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
    if (id[i] < 0)
      raw_die("msgget");
  }
}

/* A named pipe, opened and unlinked. */
static inline void raw_fifo(int fd[2], int flags) {
  char path[] = "/tmp/ipc-bench.XXXXXX";
  int file = mkstemp(path);
  if (file < 0 || close(file) || unlink(path) || mkfifo(path, 0600))
    raw_die("mkfifo");
  fd[0] = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  fd[1] = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
  if (fd[0] < 0 || fd[1] < 0 || unlink(path))
    raw_die("fifo");
  for (int i = 0; i < 2; i++)
    if (fcntl(fd[i], F_SETFL, flags & O_NONBLOCK) < 0)
      raw_die("F_SETFL");
}

static inline void raw_pipe(int fd[2], const char *kind, bool learning,
                            bool large) {
  int flags = O_CLOEXEC | (learning ? O_NONBLOCK : 0);
  if (!strcmp(kind, "fifo"))
    raw_fifo(fd, flags);
  else if (pipe2(fd, flags | (strcmp(kind, "packets") ? 0 : O_DIRECT)))
    raw_die("pipe");
  if (large && fcntl(fd[1], F_SETPIPE_SZ, RAW_LARGE) < 0)
    raw_die("F_SETPIPE_SZ");
}

/* Two connected sockets of the loopback interface. */
static inline void raw_inet(bool udp, int fd[2]) {
  struct sockaddr_in a[2];
  socklen_t size = sizeof a[0];
  int on = 1, listener = -1;
  memset(a, 0, sizeof a);
  for (int i = 0; i < 2; i++) {
    a[i].sin_family = AF_INET;
    a[i].sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    fd[i] = socket(AF_INET, (udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC, 0);
    if (fd[i] < 0 || bind(fd[i], (struct sockaddr *)&a[i], size) ||
        getsockname(fd[i], (struct sockaddr *)&a[i], &size))
      raw_die("socket");
  }
  if (!udp) {
    listener = fd[1];
    if (listen(listener, 1))
      raw_die("listen");
  }
  if (connect(fd[0], (struct sockaddr *)&a[1], size))
    raw_die("connect");
  if (!udp) {
    fd[1] = accept(listener, NULL, NULL);
    close(listener);
    for (int i = 0; i < 2; i++)
      if (setsockopt(fd[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on))
        raw_die("TCP_NODELAY");
  } else if (connect(fd[1], (struct sockaddr *)&a[0], size)) {
    raw_die("connect");
  }
}

static inline void raw_unix(int type, int fd[2], bool large) {
  if (socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fd))
    raw_die("socketpair");
  for (int i = 0; large && i < 2; i++) {
    int room = 4 << 20;
    if (setsockopt(fd[i], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room))
      setsockopt(fd[i], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
  }
}

static inline void raw_sockets(int fd[2], const char *kind, bool learning,
                               bool large) {
  if (raw_is(kind, "tcp udp"))
    raw_inet(!strcmp(kind, "udp"), fd);
  else
    raw_unix(!strcmp(kind, "stream")     ? SOCK_STREAM
             : !strcmp(kind, "datagram") ? SOCK_DGRAM
                                         : SOCK_SEQPACKET,
             fd, large);
  for (int i = 0; learning && i < 2; i++)
    if (fcntl(fd[i], F_SETFL, O_NONBLOCK))
      raw_die("F_SETFL");
}

/* Two ends of "pipe" (two pipes), "fifo" (two named ones), "packets" (the same
 * with O_DIRECT), "stream", "seqpacket", "datagram" (unix sockets), "tcp",
 * "udp", "sysv" or "mqueue" (two System V or POSIX queues) or "ring" (two in
 * shared memory), with room for large messages if asked. */
static inline void raw_pair(End *a, End *b, const char *kind, bool learning,
                            bool large) {
  int ab[2], ba[2];
  if (raw_is(kind, "sysv")) {
    raw_sysv(ab);
    *a = (End){.rfd = ab[0], .wfd = ab[1], .by = RAW_SYSV};
    *b = (End){.rfd = ab[1], .wfd = ab[0], .by = RAW_SYSV};
  } else if (raw_is(kind, "mqueue")) {
    ab[0] = raw_mqueue(learning, large);
    ab[1] = raw_mqueue(learning, large);
    *a = (End){.rfd = ab[0], .wfd = ab[1], .by = RAW_MQUEUE};
    *b = (End){.rfd = dup(ab[1]), .wfd = dup(ab[0]), .by = RAW_MQUEUE};
  } else if (raw_is(kind, "ring")) {
    *a = (End){.rfd = -1, .wfd = -1, .by = RAW_RING};
    for (int i = 0; i < 2; i++)
      ring_new(&a->ring[i], large ? 4 * RAW_LARGE : RAW_RING_SIZE, false, 1,
               learning);
    *b = *a;
    b->ring[0] = a->ring[1];
    b->ring[1] = a->ring[0];
  } else if (raw_is(kind, "stream seqpacket datagram tcp udp")) {
    raw_sockets(ab, kind, learning, large);
    *a = (End){.rfd = ab[0], .wfd = ab[0], .by = RAW_SOCKET};
    *b = (End){.rfd = ab[1], .wfd = ab[1], .by = RAW_SOCKET};
  } else if (raw_is(kind, "pipe fifo packets")) {
    raw_pipe(ab, kind, learning, large);
    raw_pipe(ba, kind, learning, large);
    *a = (End){.rfd = ba[0], .wfd = ab[1], .by = RAW_FILE};
    *b = (End){.rfd = ab[0], .wfd = ba[1], .by = RAW_FILE};
  } else {
    errno = EINVAL;
    raw_die(kind);
  }
  a->packets = b->packets =
      raw_is(kind, "packets seqpacket datagram udp sysv mqueue ring");
  a->lossy = b->lossy = raw_is(kind, "udp");
  a->endless = b->endless = raw_is(kind, "datagram udp sysv mqueue ring");
  a->learning = b->learning = learning;
  a->flags = b->flags = learning ? IPC_NOWAIT : 0;
}

static inline void raw_close(End *e) {
  if (e->by == RAW_SYSV || e->by == RAW_RING)
    return;
  close(e->rfd);
  if (e->wfd != e->rfd)
    close(e->wfd);
}

/* ---------------------------------------------------------------- waiting */

/* After an attempt that would have to wait; until as raw_tired has it. */
static inline void raw_wait(End *e, bool writing, int64_t *until) {
  if (!raw_tired(&e->wait[writing], until))
    return;
  if (e->by == RAW_SYSV) {
    e->flags = 0; /* the next attempt sleeps */
    return;
  }
  struct pollfd p = {writing ? e->wfd : e->rfd, writing ? POLLOUT : POLLIN, 0};
  if (poll(&p, 1, RAW_PATIENCE * 1000) != 1)
    raw_die("poll");
}

static inline ssize_t raw_try_read(End *e, char *bytes, size_t room) {
  switch (e->by) {
  case RAW_SOCKET:
    return recv(e->rfd, bytes, room, e->packets ? MSG_TRUNC : 0);
  case RAW_MQUEUE:
    return syscall(SYS_mq_timedreceive, e->rfd, bytes, room, NULL, NULL);
  case RAW_SYSV: {
    ssize_t n = msgrcv(e->rfd, bytes, room - sizeof(long), 0, e->flags);
    if (n < 0 && errno == ENOMSG)
      errno = EAGAIN;
    return n;
  }
  default:
    return read(e->rfd, bytes, room);
  }
}

static inline ssize_t raw_try_write(End *e, const struct iovec *iov,
                                    int count) {
  if (count > 1)
    return writev(e->wfd, iov, count);
  switch (e->by) {
  case RAW_SOCKET:
    return send(e->wfd, iov->iov_base, iov->iov_len, MSG_NOSIGNAL);
  case RAW_MQUEUE:
    return syscall(SYS_mq_timedsend, e->wfd, iov->iov_base, iov->iov_len, 0,
                   NULL);
  case RAW_SYSV:
    return msgsnd(e->wfd, iov->iov_base, iov->iov_len - sizeof(long), e->flags);
  default:
    return write(e->wfd, iov->iov_base, iov->iov_len);
  }
}

/* After an attempt that worked. */
static inline void raw_worked(End *e, bool writing, int64_t until) {
  if (until)
    e->wait[writing].penalty = 0;
  e->flags = e->learning ? IPC_NOWAIT : 0;
}

/* One read; 0 is the end. */
static inline size_t raw_read(End *e, char *bytes, size_t room) {
  int64_t until = 0;
  for (;;) {
    ssize_t n = raw_try_read(e, bytes, room);
    if (n >= 0) {
      raw_worked(e, false, until);
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
    ssize_t n = raw_try_write(e, iov, count);
    if (n >= 0) {
      raw_worked(e, true, until);
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
  if (e->by == RAW_RING) {
    ring_send(&e->ring[1], bytes, size);
  } else if (e->by == RAW_SYSV) {
    struct {
      long type;
      char bytes[RAW_SMALL];
    } m = {.type = 1};
    if (size > sizeof m.bytes)
      raw_die("too big");
    memcpy(m.bytes, bytes, size);
    struct iovec iov = {&m, sizeof m.type + size};
    raw_write(e, &iov, 1);
  } else if (e->packets) {
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

/* From a ring: copied, as the others do, so that its space is free again. */
static inline const char *raw_take(End *e, size_t *size) {
  raw_room(e, RAW_LARGE);
  const char *at = ring_peek(&e->ring[0], size);
  if (*size > e->room)
    raw_die("too big");
  memcpy(e->in, at, *size);
  ring_release(&e->ring[0], *size);
  return *size ? e->in : NULL;
}

/* The next message, valid until the next call; NULL at the end. */
static inline const char *raw_recv(End *e, size_t *size) {
  if (e->by == RAW_RING)
    return raw_take(e, size);
  if (e->packets) {
    raw_room(e, RAW_LARGE);
    *size = raw_read(e, e->in, e->room);
    if (*size > e->room)
      raw_die("too big");
    return *size ? e->in + (e->by == RAW_SYSV ? sizeof(long) : 0) : NULL;
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

/* ------------------------------------------------------------ processes */

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
    for (int i = 0; its->by == RAW_RING && i < 2; i++)
      ring_attach(&its->ring[i]);
    serve(its);
    _exit(0);
  }
  raw_close(its);
  return pid;
}

static inline int raw_join(pid_t pid, End *mine) {
  int status;
  char nothing[1] = "";
  if (mine->endless)
    raw_send(mine, nothing, 0);
  raw_close(mine);
  return waitpid(pid, &status, 0) == pid && status == 0 ? EXIT_SUCCESS
                                                        : EXIT_FAILURE;
}

#endif
