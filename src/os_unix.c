/* What all systems share: reading and writing without SIGPIPE, children, the
 * end of the process. No Lua. */
#include "prefix.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os.h"

#ifdef __GLIBC__
#include <gnu/lib-names.h>
#endif
#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* macOS: SO_NOSIGPIPE is set on the sockets instead */
#endif
#ifndef RTLD_NOLOAD
#define RTLD_NOLOAD 0 /* older OpenBSD: what is loaded is found again */
#endif

bool ipc_os_without(const char *feature) {
  const char *list = getenv("IPC_WITHOUT");
  size_t n = strlen(feature);
  while (list && *list) {
    if (strncmp(list, feature, n) == 0 && (list[n] == ',' || !list[n]))
      return true;
    list = strchr(list, ',');
    list = list ? list + 1 : NULL;
  }
  return false;
}

int ipc_os_online(void) {
  static atomic_int online;
  int n = atomic_load_explicit(&online, memory_order_relaxed);
  if (n == 0) {
    long now = sysconf(_SC_NPROCESSORS_ONLN);
    n = now > 0 && now < INT_MAX ? (int)now : 1;
    atomic_store_explicit(&online, n, memory_order_relaxed);
  }
  return n;
}

/* ------------------------------------------------------ reading, writing */

static int unix_error(void) {
  return errno == EWOULDBLOCK || errno == EINTR ? EAGAIN : errno;
}

int ipc_os_read(int fd, void *bytes, size_t room, size_t *got) {
  ssize_t n = read(fd, bytes, room);
  if (n < 0)
    return unix_error();
  *got = (size_t)n;
  return 0;
}

int ipc_os_receive(int fd, void *bytes, size_t room, size_t *got) {
  ssize_t n = recv(fd, bytes, room, MSG_DONTWAIT);
  if (n < 0)
    return unix_error();
  *got = (size_t)n;
  return 0;
}

int ipc_os_sendmsg(int fd, const struct msghdr *m, size_t *put) {
  ssize_t n = sendmsg(fd, m, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (n < 0)
    return unix_error();
  *put = (size_t)n;
  return 0;
}

int ipc_os_send(int fd, const struct iovec *iov, int count, size_t *put) {
  ssize_t n;
  if (count == 1) {
    n = send(fd, iov->iov_base, iov->iov_len, MSG_DONTWAIT | MSG_NOSIGNAL);
  } else {
    struct msghdr m;
    memset(&m, 0, sizeof m);
    m.msg_iov = (struct iovec *)(uintptr_t)iov;
    m.msg_iovlen = (__typeof__(m.msg_iovlen))count; /* size_t or an int */
    return ipc_os_sendmsg(fd, &m, put);
  }
  if (n < 0)
    return unix_error();
  *put = (size_t)n;
  return 0;
}

int ipc_os_end_sending(int fd) {
  return shutdown(fd, SHUT_WR) && errno != ENOTCONN ? errno : 0;
}

int ipc_os_end_receiving(int fd) {
  return shutdown(fd, SHUT_RD) && errno != ENOTCONN ? errno : 0;
}

/* An empty packet and the end both read as 0 bytes; only a packet comes with
 * the credentials that ipc_os_mark_packets asked for, and these are reported as
 * cut off, since there is no room for them. Descriptors that nobody asked for
 * never arrive, for the same reason (unix(7), recvmsg(2)). */
int ipc_os_receive_packet(int fd, void *bytes, size_t room, size_t *got,
                          bool *end) {
  struct iovec iov = {bytes, room};
  struct msghdr m;
  memset(&m, 0, sizeof m);
  m.msg_iov = &iov;
  m.msg_iovlen = 1;
  ssize_t n = recvmsg(fd, &m, MSG_DONTWAIT | ipc_os_whole_length);
  if (n < 0)
    return unix_error();
  *got = (size_t)n;
  *end = n == 0 && !(m.msg_flags & MSG_CTRUNC);
  if (!(m.msg_flags & MSG_TRUNC))
    return 0;
  if (*got <= room)
    *got = room + 1;
  return EMSGSIZE;
}

/* Where no flag suppresses the signal: it is blocked around the write, and one
 * that the write itself raised is taken away again (pthread_sigmask(3); the
 * signal of a failed write goes to the writing thread, pipe(7)). */
int ipc_os_write_masked(int fd, const struct iovec *iov, int count,
                        size_t *put) {
  sigset_t pipe_only, before, pending;
  sigemptyset(&pipe_only);
  sigaddset(&pipe_only, SIGPIPE);
  sigpending(&pending);
  bool was = sigismember(&pending, SIGPIPE) == 1;
  int err = pthread_sigmask(SIG_BLOCK, &pipe_only, &before);
  if (err)
    return err;
  ssize_t n = count == 1 ? write(fd, iov->iov_base, iov->iov_len)
                         : writev(fd, iov, count);
  err = n < 0 ? unix_error() : 0;
  if (err == EPIPE) {
    sigpending(&pending);
    if (sigismember(&pending, SIGPIPE) == 1) {
      int taken;
      sigwait(&pipe_only, &taken);
    }
    /* The write's own and one that was there before may have been one. */
    sigpending(&pending);
    if (was && sigismember(&pending, SIGPIPE) != 1)
      pthread_kill(pthread_self(), SIGPIPE);
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (!err)
    *put = (size_t)n;
  return err;
}

int ipc_os_write_file(int fd, const char *bytes, size_t size) {
  sigset_t only, before, pending;
  sigemptyset(&only);
  sigaddset(&only, SIGXFSZ);
  sigpending(&pending);
  bool was = sigismember(&pending, SIGXFSZ) == 1;
  int err = pthread_sigmask(SIG_BLOCK, &only, &before);
  if (err)
    return err;
  for (size_t at = 0; !err && at < size;) {
    ssize_t n = write(fd, bytes + at, size - at);
    if (n < 0 && errno != EINTR)
      err = errno;
    at += n > 0 ? (size_t)n : 0;
  }
  sigpending(&pending);
  if (err == EFBIG && !was && sigismember(&pending, SIGXFSZ) == 1) {
    int taken;
    sigwait(&only, &taken);
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return err;
}

static int unix_polled(int fd, short events) {
  struct pollfd p = {fd, events, 0};
  int n = poll(&p, 1, 0);
  if (n < 0)
    return unix_error();
  return n > 0 ? 0 : EAGAIN;
}

int ipc_os_read_polled(int fd, void *bytes, size_t room, size_t *got) {
  int err = unix_polled(fd, POLLIN);
  return err ? err : ipc_os_read(fd, bytes, room, got);
}

/* What a pipe that is ready surely takes is PIPE_BUF bytes, pipe(7). */
int ipc_os_write_polled(int fd, const struct iovec *iov, int count,
                        size_t *put) {
  struct iovec some = {iov->iov_base, iov->iov_len};
  int err = unix_polled(fd, POLLOUT);
  if (err)
    return err;
  if (some.iov_len == 0 && count > 1)
    some = iov[1];
  if (some.iov_len > PIPE_BUF)
    some.iov_len = PIPE_BUF;
  return ipc_os_write_masked(fd, &some, 1, put);
}

/* ----------------------------------------------------------------- limits */

/* glibc has an enumeration for it, others an int. */
#if defined(__GLIBC__)
typedef __rlimit_resource_t UnixResource;
#else
typedef int UnixResource;
#endif

int ipc_os_limit(const char *name, long long *value) {
  static const struct {
    const char *name;
    int resource;
  } resources[] = {{"RLIMIT_NOFILE", RLIMIT_NOFILE},
#ifdef RLIMIT_MSGQUEUE
                   {"RLIMIT_MSGQUEUE", RLIMIT_MSGQUEUE},
#endif
                   {"RLIMIT_STACK", RLIMIT_STACK}};
  for (size_t i = 0; i < sizeof resources / sizeof *resources; i++) {
    struct rlimit r;
    if (strcmp(resources[i].name, name) != 0)
      continue;
    if (getrlimit((UnixResource)resources[i].resource, &r))
      return errno;
    *value = r.rlim_cur == RLIM_INFINITY ? -1 : (long long)r.rlim_cur;
    return 0;
  }
  return strncmp(name, "RLIMIT_", 7) == 0 ? ENOTSUP
                                          : ipc_os_sysctl(name, value);
}

/* ------------------------------------------------------------ descriptors */

int ipc_os_dup(int fd, int *copy) {
  *copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  return *copy < 0 ? errno : 0;
}

static int unix_take_standard(int fd[2]) {
  fd[1] = -1;
  fd[0] = fcntl(0, F_DUPFD_CLOEXEC, 3);
  if (fd[0] >= 0)
    fd[1] = fcntl(1, F_DUPFD_CLOEXEC, 3);
  int null = fd[1] < 0 ? -1 : open("/dev/null", O_RDWR | O_CLOEXEC);
  int err = null < 0 ? errno : 0;
  fflush(stdout); /* what was said before goes where it was meant to */
  if (!err &&
      (dup2(null, 0) < 0 || dup2(fcntl(2, F_GETFD) < 0 ? null : 2, 1) < 0))
    err = errno;
  for (int i = 0; err && i < 2; i++) {
    if (fd[i] < 0)
      continue;
    (void)dup2(fd[i], i);
    close(fd[i]);
  }
  if (null >= 0)
    close(null);
  if (!err) /* what is said now appears at once, line by line */
    (void)setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
  return err;
}

int ipc_os_take_standard(int fd[2]) {
  static bool taken;
  ipc_os_lock();
  int err = taken ? EBUSY : unix_take_standard(fd);
  taken = taken || !err;
  ipc_os_unlock();
  return err;
}

int ipc_os_lock_file(int fd, bool alone) {
  if (flock(fd, (alone ? LOCK_EX : LOCK_SH) | LOCK_NB) == 0)
    return 0;
  if (errno == EWOULDBLOCK || errno == EINTR)
    return EAGAIN;
  return errno == EOPNOTSUPP || errno == EINVAL ? ENOTSUP : errno;
}

void ipc_os_unlock_file(int fd) { (void)flock(fd, LOCK_UN); }

/* Not F_SETLK: that lock ends with any descriptor of the process on the file,
 * and where there is no other kind, flock(2) of writers would meet it. */
int ipc_os_claim(int fd) {
#ifdef F_OFD_SETLK
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  if (ipc_os_without("ofd"))
    return ENOTSUP;
  if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
    return 0;
  if (errno == EAGAIN || errno == EACCES)
    return EAGAIN;
  return errno == EOPNOTSUPP || errno == EINVAL ? ENOTSUP : errno;
#else
  (void)fd;
  return ENOTSUP;
#endif
}

int ipc_os_nameless(int *fd) {
  if (ipc_os_memory_file(fd) == 0)
    return 0;
  const char *folder = getenv("TMPDIR");
  char path[256];
  int n = snprintf(path, sizeof path, "%s/ipc.XXXXXX",
                   folder && *folder ? folder : "/tmp");
  if (n < 0 || (size_t)n >= sizeof path)
    return ENAMETOOLONG;
  *fd = mkstemp(path);
  if (*fd < 0)
    return errno;
  (void)unlink(path);
  (void)fcntl(*fd, F_SETFD, FD_CLOEXEC);
  return 0;
}

/* --------------------------------------------------------------- children */

static pthread_mutex_t unix_mutex = PTHREAD_MUTEX_INITIALIZER;

void ipc_os_lock(void) { pthread_mutex_lock(&unix_mutex); }
void ipc_os_unlock(void) { pthread_mutex_unlock(&unix_mutex); }

/* Children whose handle was dropped while they ran. */
typedef struct Orphan {
  struct Orphan *next;
  pid_t pid;
  int life; /* closed when it has ended; -1 */
} Orphan;

static void orphan_let_go(int life) {
  if (life < 0)
    return;
  ipc_os_fork_forget(life);
  close(life);
}

static Orphan *orphans;
static atomic_bool orphaned; /* there are some */

void ipc_os_orphan(pid_t pid, int life) {
  int status;
  OsUsage usage;
  if (ipc_os_reap(pid, &status, &usage) != EAGAIN) {
    orphan_let_go(life);
    return;
  }
  Orphan *o = malloc(sizeof *o);
  if (!o)
    return; /* init reaps it when this process ends */
  o->pid = pid;
  o->life = life;
  ipc_os_lock();
  o->next = orphans;
  orphans = o;
  atomic_store_explicit(&orphaned, true, memory_order_relaxed);
  ipc_os_unlock();
}

void ipc_os_sweep(void) {
  if (!atomic_load_explicit(&orphaned, memory_order_relaxed))
    return;
  Orphan *ended = NULL;
  ipc_os_lock();
  for (Orphan **at = &orphans, *o; (o = *at);) {
    int status;
    OsUsage usage;
    if (ipc_os_reap(o->pid, &status, &usage) == EAGAIN) {
      at = &o->next;
    } else {
      *at = o->next;
      o->next = ended;
      ended = o;
    }
  }
  atomic_store_explicit(&orphaned, orphans != NULL, memory_order_relaxed);
  ipc_os_unlock();
  for (Orphan *o; (o = ended);) { /* which takes the lock */
    ended = o->next;
    orphan_let_go(o->life);
    free(o);
  }
}

static int unix_held[2] = {-1, -1};

void ipc_os_hold(const int fd[2]) {
  for (int i = 0; i < 2; i++) {
    if (unix_held[i] >= 0)
      close(unix_held[i]);
    unix_held[i] = fd[i];
  }
}

/* ----------------------------------------------------------- the process */

static struct {
  void (*at_exit)(void);
  void (*in_child)(void);
  int err;
} unix_calls;

/* The parent's lock and its children are not the child's. */
static void unix_in_child(void) {
  pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
  unix_mutex = fresh;
  while (orphans) {
    Orphan *o = orphans;
    orphans = o->next;
    free(o);
  }
  ipc_os_life_forget();
  ipc_os_fork_done();
  unix_calls.in_child();
  ipc_os_signals_in_child(); /* may end it */
}

/* Handlers at fork and exit outlive the Lua state, so the code must too. */
static void unix_pin(void) {
  Dl_info info;
  static const char here;
  if (dladdr(&here, &info) && info.dli_fname)
    // cppcheck-suppress leakReturnValNotUsed ; never closed: that is the point
    (void)dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
}

/* The GNU C library loads what unwinds a thread at the first cancellation, and
 * aborts the process if it cannot, for want of a descriptor, say. Loaded before
 * and never closed it is found again without a look at the file. */
int ipc_os_cancellable(void) {
#ifdef __GLIBC__
  static atomic_bool loaded;
  if (atomic_load_explicit(&loaded, memory_order_acquire))
    return 0;
  errno = 0;
  // cppcheck-suppress leakReturnValNotUsed ; never closed: that is the point
  if (!dlopen(LIBGCC_S_SO, RTLD_NOW))
    return errno ? errno : ENOTSUP;
  atomic_store_explicit(&loaded, true, memory_order_release);
#endif
  return 0;
}

static void unix_start(void) {
  unix_pin();
  unix_calls.err = pthread_atfork(ipc_os_lock, ipc_os_unlock, unix_in_child);
  if (!unix_calls.err && atexit(unix_calls.at_exit) != 0)
    unix_calls.err = ENOMEM;
}

int ipc_os_start(void (*at_exit)(void), void (*in_child)(void)) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  unix_calls.at_exit = at_exit;
  unix_calls.in_child = in_child;
  int err = pthread_once(&once, unix_start);
  return err ? err : unix_calls.err;
}

/* ------------------------------------------------------------------- disks */

int ipc_os_sync_file(int fd) {
  int err;
  do {
#ifdef F_FULLFSYNC
    err = fcntl(fd, F_FULLFSYNC) == -1 ? errno : 0; /* fsync(2) stops short */
    if (err == ENOTSUP || err == ENOTTY || err == EINVAL)
      err = fsync(fd) ? errno : 0;
#else
    err = fsync(fd) ? errno : 0;
#endif
  } while (err == EINTR);
  return err;
}

int ipc_os_sync_bytes(int fd) {
#if defined(_POSIX_SYNCHRONIZED_IO) && _POSIX_SYNCHRONIZED_IO > 0 &&           \
    !defined(F_FULLFSYNC)
  int err;
  do
    err = fdatasync(fd) ? errno : 0;
  while (err == EINTR);
  return err;
#else
  return ipc_os_sync_file(fd);
#endif
}

void ipc_os_sync_forget(int fd) {
#ifdef POSIX_FADV_DONTNEED
  (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
#else
  (void)fd;
#endif
}
