/* Preloaded: short reads and writes, EINTR and EAGAIN for the library's
 * descriptors, as often as IPC_FAULT_RATE says (one in so many), in an order
 * that IPC_FAULT_SEED and the process's place in the family fix. What was
 * injected is counted in the file IPC_FAULT_REPORT.
 *
 * It does only what a kernel may do. Packets are whole or not there; a write
 * of up to PIPE_BUF to a pipe is not divided; a poll is interrupted only when
 * nothing is ready; and EINTR, or EAGAIN in the face of readiness, comes only
 * after a poll that waited, select(2) BUGS, and never from eventfd(2). With
 * IPC_FAULT_WILD these two come at any time, and any write is divided: for
 * programs that never use a timeout of 0 and have one writer. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "caller.h"

enum { SHORT_READ, SHORT_WRITE, INTERRUPTED, AGAIN, POLL_INTERRUPTED, COUNTS };

static struct {
  uint64_t random;
  unsigned rate;
  bool wild;
  _Atomic uint64_t *counts;
} shim;

static _Thread_local int shim_polled = -1; /* what the last call waited for */

/* xorshift64*, Vigna 2016. */
static uint64_t shim_random(void) {
  shim.random ^= shim.random >> 12;
  shim.random ^= shim.random << 25;
  shim.random ^= shim.random >> 27;
  return shim.random * UINT64_C(2685821657736338717);
}

static void shim_child(void) { shim_random(); }
static void shim_parent(void) {
  shim_random();
  shim_random();
}

__attribute__((constructor)) static void shim_start(void) {
  const char *seed = getenv("IPC_FAULT_SEED"), *rate = getenv("IPC_FAULT_RATE");
  const char *path = getenv("IPC_FAULT_REPORT");
  shim.random = (seed ? strtoull(seed, NULL, 10) : 1) * 2 + 1;
  shim.wild = getenv("IPC_FAULT_WILD") != NULL;
  int fd = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
  if (fd < 0 || ftruncate(fd, COUNTS * sizeof(uint64_t)))
    return; /* without a count there is no run, so no faults either */
  void *at = mmap(NULL, COUNTS * sizeof(uint64_t), PROT_READ | PROT_WRITE,
                  MAP_SHARED, fd, 0);
  close(fd);
  if (at == MAP_FAILED)
    return;
  shim.counts = at;
  shim.rate = rate ? (unsigned)strtoul(rate, NULL, 10) : 4;
  pthread_atfork(NULL, shim_parent, shim_child);
}

static bool shim_chance(void) {
  return shim.rate && shim_random() % shim.rate == 0;
}

static void shim_count(int what) { atomic_fetch_add(&shim.counts[what], 1); }

/* Whether reading it never says EAGAIN in the face of readiness, nor EINTR:
 * eventfd(2), which is a file of no type. */
static bool shim_is_event(int fd) {
  struct stat st;
  return fstat(fd, &st) == 0 && (st.st_mode & S_IFMT) == 0;
}

/* A fault that is an error: sets errno. */
static bool shim_error(int fd) {
  bool polled = shim_polled == fd;
  shim_polled = -1;
  if (!(polled || shim.wild) || !shim_chance() || shim_is_event(fd))
    return false;
  if (shim_random() % 2) {
    errno = EAGAIN;
    shim_count(AGAIN);
  } else {
    errno = EINTR;
    shim_count(INTERRUPTED);
  }
  return true;
}

/* Pipes of packets, by inode: only their writing end tells by its flags. */
static ino_t shim_packets[1024];
static size_t shim_packets_made;

static bool shim_is_packets(ino_t inode) {
  for (size_t i = 0; i < sizeof shim_packets / sizeof *shim_packets; i++)
    if (shim_packets[i] == inode)
      return true;
  return false;
}

/* Whether the bytes of a transfer may be divided, and a write of how many. */
static bool shim_divides(int fd, size_t *whole) {
  struct stat st;
  *whole = 0;
  if (fstat(fd, &st))
    return false;
  if (S_ISFIFO(st.st_mode)) {
    int flags = fcntl(fd, F_GETFL);
    *whole = shim.wild ? 0 : PIPE_BUF;
    return flags >= 0 && !shim_is_packets(st.st_ino) && (flags & O_NONBLOCK);
  }
  int type = 0;
  socklen_t size = sizeof type;
  return S_ISSOCK(st.st_mode) &&
         getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 &&
         type == SOCK_STREAM;
}

/* How much of `size` bytes to ask for. */
static size_t shim_part(int fd, size_t size, int what) {
  size_t whole;
  if (size < 2 || !shim_chance() || !shim_divides(fd, &whole) ||
      (what == SHORT_WRITE && size <= whole))
    return size;
  shim_count(what);
  /* Small and large parts alike. */
  return 1 + shim_random() % (shim_random() % 2 ? size - 1 : 1 + size / 64);
}

#define SHIM_REAL(name)                                                        \
  static __typeof__(name) *real;                                               \
  if (!real)                                                                   \
  *(void **)&real = dlsym(RTLD_NEXT, #name)

int pipe2(int fd[2], int flags) {
  SHIM_REAL(pipe2);
  struct stat st;
  int failed = real(fd, flags);
  shim_polled = -1; /* descriptors come back */
  if (!failed && (flags & O_DIRECT) && fstat(fd[0], &st) == 0)
    shim_packets[shim_packets_made++ % 1024] = st.st_ino;
  return failed;
}

int socketpair(int family, int type, int protocol, int fd[2]) {
  SHIM_REAL(socketpair);
  shim_polled = -1;
  return real(family, type, protocol, fd);
}

ssize_t read(int fd, void *bytes, size_t size) {
  SHIM_REAL(read);
  if (!FROM_CORE)
    return real(fd, bytes, size);
  if (shim_error(fd))
    return -1;
  return real(fd, bytes, shim_part(fd, size, SHORT_READ));
}

ssize_t recv(int fd, void *bytes, size_t size, int flags) {
  SHIM_REAL(recv);
  if (!FROM_CORE)
    return real(fd, bytes, size, flags);
  if (shim_error(fd))
    return -1;
  return real(fd, bytes, shim_part(fd, size, SHORT_READ), flags);
}

ssize_t recvmsg(int fd, struct msghdr *m, int flags) {
  SHIM_REAL(recvmsg);
  return FROM_CORE && shim_error(fd) ? -1 : real(fd, m, flags);
}

ssize_t send(int fd, const void *bytes, size_t size, int flags) {
  SHIM_REAL(send);
  if (!FROM_CORE)
    return real(fd, bytes, size, flags);
  if (shim_error(fd))
    return -1;
  return real(fd, bytes, shim_part(fd, size, SHORT_WRITE), flags);
}

/* The first part of a vector, which is changed; *count is how many of it. */
static void shim_cut(int fd, struct iovec *iov, int *count) {
  size_t size = 0;
  for (int i = 0; i < *count; i++)
    size += iov[i].iov_len;
  size_t left = shim_part(fd, size, SHORT_WRITE);
  for (int i = 0; i < *count; i++) {
    if (iov[i].iov_len >= left) {
      iov[i].iov_len = left;
      *count = i + 1;
      return;
    }
    left -= iov[i].iov_len;
  }
}

enum { VECTOR = 8 }; /* the library never gathers more */

ssize_t sendmsg(int fd, const struct msghdr *m, int flags) {
  SHIM_REAL(sendmsg);
  if (!FROM_CORE || m->msg_iovlen > VECTOR)
    return real(fd, m, flags);
  if (shim_error(fd))
    return -1;
  struct iovec iov[VECTOR];
  struct msghdr part = *m;
  int count = (int)m->msg_iovlen;
  memcpy(iov, m->msg_iov, (size_t)count * sizeof *iov);
  part.msg_iov = iov;
  shim_cut(fd, iov, &count);
  part.msg_iovlen = (size_t)count;
  return real(fd, &part, flags);
}

ssize_t write(int fd, const void *bytes, size_t size) {
  SHIM_REAL(write);
  struct stat st;
  if (!FROM_CORE)
    return real(fd, bytes, size);
  /* A file never says EAGAIN. */
  if (fstat(fd, &st) == 0 && !S_ISREG(st.st_mode) && shim_error(fd))
    return -1;
  return real(fd, bytes, shim_part(fd, size, SHORT_WRITE));
}

ssize_t writev(int fd, const struct iovec *all, int count) {
  SHIM_REAL(writev);
  struct iovec iov[VECTOR];
  if (!FROM_CORE || count > VECTOR)
    return real(fd, all, count);
  if (shim_error(fd))
    return -1;
  memcpy(iov, all, (size_t)count * sizeof *iov);
  shim_cut(fd, iov, &count);
  return real(fd, iov, count);
}

long syscall(long number, ...) {
  SHIM_REAL(syscall);
  long a[6];
  struct iovec iov[VECTOR];
  va_list args;
  va_start(args, number);
  for (int i = 0; i < 6; i++)
    a[i] = va_arg(args, long);
  va_end(args);
  if (number == SYS_pwritev2 && FROM_CORE && a[2] <= VECTOR) {
    int count = (int)a[2];
    if (shim_error((int)a[0]))
      return -1;
    memcpy(iov, (const void *)a[1], (size_t)count * sizeof *iov);
    shim_cut((int)a[0], iov, &count);
    a[1] = (long)iov;
    a[2] = count;
  }
  return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout,
          const sigset_t *mask) {
  SHIM_REAL(ppoll);
  if (!FROM_CORE)
    return real(fds, count, timeout, mask);
  if (shim_chance()) {
    const struct timespec now = {0, 0};
    int ready = real(fds, count, &now, mask);
    if (ready != 0)
      return ready;
    shim_count(POLL_INTERRUPTED);
    errno = EINTR;
    return -1;
  }
  int ready = real(fds, count, timeout, mask);
  shim_polled = -1;
  if (!timeout || timeout->tv_sec || timeout->tv_nsec)
    for (nfds_t i = 0; ready > 0 && i < count; i++)
      if (fds[i].revents)
        shim_polled = fds[i].fd;
  return ready;
}
