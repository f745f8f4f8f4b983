/* Linux: what it alone has. Compiled out elsewhere, and by IPC_PORTABLE, which
 * tries os_posix.c here. No Lua. */
#include "prefix.h"

#if defined(__linux__) && !defined(IPC_PORTABLE)

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "os.h"

/* Newer than some C libraries; the numbers are the kernel's for ever. */
#ifndef RWF_NOWAIT
#define RWF_NOWAIT 0x8
#endif
#ifndef RWF_NOSIGNAL
#define RWF_NOSIGNAL 0x00000100 /* Linux 6.18 */
#endif
#ifndef RWF_NOWAIT
#define RWF_NOWAIT 0x00000008 /* Linux 4.14 */
#endif
#ifndef MFD_HUGETLB
#define MFD_HUGETLB 0x0004U /* Linux 4.14 */
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif

int ipc_os_pipe(int fd[2], bool packets) {
  int flags = O_CLOEXEC | O_NONBLOCK | (packets ? O_DIRECT : 0);
  if (pipe2(fd, flags))
    return errno;
  /* Only the writer's flag matters to the kernel, and only it has one; the
   * reader's tells whoever it is passed to. */
  if (packets)
    (void)fcntl(fd[0], F_SETFL, O_NONBLOCK | O_DIRECT);
  return 0;
}

bool ipc_os_is_packets(int flags) { return (flags & O_DIRECT) != 0; }

bool ipc_os_is_pipe(int fd) { return fcntl(fd, F_GETPIPE_SZ) >= 0; }

int ipc_os_renew(int fd, int flags) {
  int again;
  int err = ipc_os_reopen(
      fd, (flags & O_ACCMODE) | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, &again);
  if (err)
    return err;
  /* Packets are no flag that open(2) takes for a pipe. */
  if ((flags & O_DIRECT) && fcntl(again, F_SETFL, O_NONBLOCK | O_DIRECT))
    err = errno;
  if (!err && dup3(again, fd, O_CLOEXEC) < 0)
    err = errno;
  close(again);
  return err;
}

int ipc_os_capacity(int fd, size_t want, size_t *got) {
  int n = 0;
  if (want > 0 && fcntl(fd, F_SETPIPE_SZ, (int)want) < 0)
    return errno;
  n = fcntl(fd, F_GETPIPE_SZ);
  if (n < 0)
    return errno;
  *got = (size_t)n;
  return 0;
}

int ipc_os_socketpair(int type, int fd[2]) {
  return socketpair(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fd) ? errno
                                                                         : 0;
}

int ipc_os_socket(int family, int type, int *fd) {
  *fd = socket(family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  return *fd < 0 ? errno : 0;
}

int ipc_os_accept(int listener, int *fd) {
  *fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
  return *fd < 0 ? errno : 0;
}

int ipc_os_credentials(int fd, long *pid, long *uid, long *gid) {
  struct ucred c;
  socklen_t size = sizeof c;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &c, &size))
    return errno;
  *pid = c.pid > 0 ? (long)c.pid : -1; /* 0: in another namespace */
  *uid = (long)c.uid;
  *gid = (long)c.gid;
  return 0;
}

int ipc_os_keepalive(int fd, int idle, int interval, int count) {
  return setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle) ||
                 setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval,
                            sizeof interval) ||
                 setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count)
             ? errno
             : 0;
}

int ipc_os_user_timeout(int fd, unsigned ms) {
  return setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof ms) ? errno
                                                                       : 0;
}

const bool ipc_os_abstract = true;
const int ipc_os_cmsg_cloexec = MSG_CMSG_CLOEXEC;

bool ipc_os_is_mark(int level, int type) {
  return level == SOL_SOCKET && type == SCM_CREDENTIALS;
}

int ipc_os_mark_packets(int fd) {
  int on = 1;
  return setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) ? errno : 0;
}

static atomic_int linux_nosignal = -1, linux_nowait = -1;

static bool linux_tries(atomic_int *tries, bool without) {
  int now = !without;
  atomic_store_explicit(tries, now, memory_order_relaxed);
  return now;
}

/* Whether to try RWF_NOSIGNAL, RWF_NOWAIT: the environment is asked once. */
static bool linux_tries_nosignal(void) {
  int now = atomic_load_explicit(&linux_nosignal, memory_order_relaxed);
  return now < 0 ? linux_tries(&linux_nosignal, ipc_os_without("rwf_nosignal"))
                 : now;
}

static bool linux_tries_nowait(void) {
  int now = atomic_load_explicit(&linux_nowait, memory_order_relaxed);
  return now < 0 ? linux_tries(&linux_nowait, ipc_os_without("rwf_nowait"))
                 : now;
}

/* Whether the flag is not known here, or not for this kind of file. */
static bool linux_unknown(void) {
  return errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL;
}

/* The offset -1 in both halves: the current position. */
static long linux_write(int fd, const struct iovec *iov, int count, int flags) {
  return syscall(SYS_pwritev2, fd, iov, (long)count, -1L, -1L, (long)flags);
}

/* One system call where the kernel can suppress the signal, five elsewhere. */
int ipc_os_write(int fd, const struct iovec *iov, int count, size_t *put) {
  if (linux_tries_nosignal()) {
    long n = linux_write(fd, iov, count, RWF_NOSIGNAL);
    if (n >= 0) {
      *put = (size_t)n;
      return 0;
    }
    if (errno == EAGAIN || errno == EINTR)
      return EAGAIN;
    if (!linux_unknown())
      return errno;
    atomic_store_explicit(&linux_nosignal, 0, memory_order_relaxed);
  }
  return ipc_os_write_masked(fd, iov, count, put);
}

int ipc_os_read_shared(int fd, void *bytes, size_t room, size_t *got) {
  struct iovec iov = {bytes, room};
  if (linux_tries_nowait()) {
    long n = syscall(SYS_preadv2, fd, &iov, 1L, -1L, -1L, (long)RWF_NOWAIT);
    if (n >= 0) {
      *got = (size_t)n;
      return 0;
    }
    if (!linux_unknown())
      return errno == EINTR ? EAGAIN : errno;
  }
  return ipc_os_read_polled(fd, bytes, room, got);
}

int ipc_os_write_shared(int fd, const struct iovec *iov, int count,
                        size_t *put) {
  if (linux_tries_nowait() && linux_tries_nosignal()) {
    long n = linux_write(fd, iov, count, RWF_NOWAIT | RWF_NOSIGNAL);
    if (n >= 0) {
      *put = (size_t)n;
      return 0;
    }
    if (!linux_unknown())
      return errno == EINTR ? EAGAIN : errno;
  }
  return ipc_os_write_polled(fd, iov, count, put);
}

int ipc_os_poll(struct pollfd *fds, size_t count, int64_t timeout,
                size_t *ready) {
  struct timespec t = {(time_t)(timeout / 1000000000),
                       (long)(timeout % 1000000000)};
  int n = ppoll(fds, (nfds_t)count, timeout == INT64_MAX ? NULL : &t, NULL);
  if (n < 0)
    return errno;
  *ready = (size_t)n;
  return 0;
}

int ipc_os_cores(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0)
    return 2; /* more cores than cpu_set_t holds */
  int n = CPU_COUNT(&set);
  return n > 0 ? n : 1;
}

long ipc_os_switches(void) {
  struct rusage u;
  return getrusage(RUSAGE_THREAD, &u) ? -1 : u.ru_nivcsw;
}

bool ipc_os_watches_processes(void) {
  static atomic_int works = -1;
  int now = atomic_load_explicit(&works, memory_order_relaxed);
  if (now < 0) {
    int fd = ipc_os_process(getpid());
    if (fd >= 0)
      close(fd);
    else if (errno == EMFILE || errno == ENFILE)
      return true; /* ask again next time */
    now = fd >= 0;
    atomic_store_explicit(&works, now, memory_order_relaxed);
  }
  return now;
}

int ipc_os_process(pid_t pid) {
  if (ipc_os_without("pidfd")) {
    errno = ENOSYS;
    return -1;
  }
  return (int)syscall(SYS_pidfd_open, (long)pid, 0L); /* close-on-exec */
}

int ipc_os_kill(pid_t pid, int fd, int signal) {
  if (fd >= 0)
    return syscall(SYS_pidfd_send_signal, fd, signal, NULL, 0) ? errno : 0;
  return kill(pid, signal) ? errno : 0;
}

/* A megabyte that is mapped anew for every message costs more than copying it.
 * mallopt(3): up to 32 MiB come from the heap, of which 64 MiB unused are kept.
 * Whoever tuned malloc by the environment knows better. */
void ipc_os_expect_large(void) {
#ifdef __GLIBC__
  static atomic_bool done;
  if (atomic_exchange_explicit(&done, true, memory_order_relaxed))
    return;
  if (getenv("MALLOC_MMAP_THRESHOLD_") || getenv("MALLOC_TRIM_THRESHOLD_") ||
      getenv("GLIBC_TUNABLES") || ipc_os_without("mallopt"))
    return;
  (void)mallopt(M_MMAP_THRESHOLD, 32 << 20);
  (void)mallopt(M_TRIM_THRESHOLD, 64 << 20);
#endif
}

int ipc_os_memory_file(int *fd) {
  if (ipc_os_without("memfd"))
    return ENOSYS;
  *fd = memfd_create("ipc", MFD_CLOEXEC);
  return *fd < 0 ? errno : 0;
}

int ipc_os_event(int *fd, int *setter) {
  *fd = *setter = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  return *fd < 0 ? errno : 0;
}

void ipc_os_event_set(int setter) {
  uint64_t one = 1;
  while (write(setter, &one, sizeof one) < 0 && errno == EINTR)
    ;
}

void ipc_os_event_clear(int fd) {
  uint64_t count;
  while (read(fd, &count, sizeof count) < 0 && errno == EINTR)
    ;
}

int ipc_os_timer(int64_t after, int64_t every, int *fd) {
  struct itimerspec t = {
      {(time_t)(every / 1000000000), (long)(every % 1000000000)},
      {(time_t)(after / 1000000000), (long)(after % 1000000000)}};
  *fd = -1;
  if (ipc_os_without("timerfd"))
    return ENOTSUP;
  *fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  if (*fd < 0)
    return errno == ENOSYS ? ENOTSUP : errno;
  if (timerfd_settime(*fd, 0, &t, NULL) == 0)
    return 0;
  int err = errno;
  close(*fd);
  *fd = -1;
  return err;
}

int ipc_os_reopen(int fd, int flags, int *again) {
  char path[32];
  if (ipc_os_without("reopen"))
    return ENOTSUP;
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  *again = open(path, flags);
  if (*again >= 0)
    return 0;
  return errno == ENOENT ? ENOTSUP : errno; /* /proc is not mounted */
}

int ipc_os_path(int fd, char *path, size_t room) {
  char link[32];
  if (ipc_os_without("reopen"))
    return ENOTSUP;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, room);
  if (n < 0 || (size_t)n >= room)
    return n < 0 ? errno : ENAMETOOLONG;
  path[n] = '\0';
  return 0;
}

int ipc_os_sysctl(const char *name, long long *value) {
  char path[128];
  int n = snprintf(path, sizeof path, "/proc/sys/%s", name);
  if (n < 0 || (size_t)n >= sizeof path)
    return ENAMETOOLONG;
  for (char *p = path + strlen("/proc/sys/"); *p; p++)
    if (*p == '.')
      *p = '/';
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    return ENOTSUP;
  char text[64];
  ssize_t got = read(fd, text, sizeof text - 1);
  close(fd);
  if (got <= 0)
    return ENOTSUP;
  text[got] = '\0';
  /* Three figures (net.ipv4.tcp_wmem): the last is the most. */
  char *at = text, *end = text;
  for (errno = 0; *at; at = end) {
    long long next = strtoll(at, &end, 10);
    if (end == at)
      break;
    *value = next;
  }
  return end == text ? ENOTSUP : 0;
}

const int ipc_os_msg_except = MSG_EXCEPT;

size_t ipc_os_msg_bytes(const struct msqid_ds *q) {
  return (size_t)q->msg_cbytes;
}

long long ipc_os_msg_key(const struct msqid_ds *q) { return q->msg_perm.__key; }

const int ipc_os_whole_length = MSG_TRUNC;

/* af_unix refuses a packet longer than SO_SNDBUF less 32 bytes; the value read
 * back is twice what was set. */
int ipc_os_packet_room(int fd, size_t want, size_t *got) {
  enum { OVERHEAD = 32 };
  int room = 0;
  socklen_t size = sizeof room;
  if (want > 0) {
    /* Room for four, so that sender and receiver need not take turns. */
    int half = want > (INT32_MAX - OVERHEAD) / 4
                   ? INT32_MAX / 2
                   : (int)((want * 4 + OVERHEAD) / 2);
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &half, sizeof half))
      (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &half, sizeof half);
  }
  if (getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, &size))
    return errno;
  *got = room > OVERHEAD ? (size_t)room - OVERHEAD : 0;
  return 0;
}

/* -------------------------------------------- memory that processes share */

static atomic_int linux_futex = -1, linux_membarrier = -1;

static bool linux_has_futex(void) {
  int now = atomic_load_explicit(&linux_futex, memory_order_relaxed);
  return now < 0 ? linux_tries(&linux_futex, ipc_os_without("futex")) : now;
}

enum { LINUX_FUTEX_WAIT = 0, LINUX_FUTEX_WAKE = 1 }; /* not process-private */

/* On machines of 32 bits the older call has a time of 32 bits. */
static long linux_word_wait(_Atomic uint32_t *word, uint32_t value,
                            int64_t ns) {
  struct timespec t = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
#ifdef SYS_futex_time64
  if (sizeof(long) < sizeof(int64_t)) {
    int64_t wide[2] = {ns / 1000000000, ns % 1000000000};
    long n =
        syscall(SYS_futex_time64, word, LINUX_FUTEX_WAIT, value, wide, NULL, 0);
    if (n == 0 || errno != ENOSYS)
      return n;
#ifdef SYS_futex
    int32_t narrow[2] = {wide[0] < INT32_MAX ? (int32_t)wide[0] : INT32_MAX,
                         (int32_t)wide[1]};
    return syscall(SYS_futex, word, LINUX_FUTEX_WAIT, value, narrow, NULL, 0);
#endif
  }
#endif
#ifdef SYS_futex
  return syscall(SYS_futex, word, LINUX_FUTEX_WAIT, value, &t, NULL, 0);
#else
  (void)t;
  return -1;
#endif
}

int ipc_os_word_wait(_Atomic uint32_t *word, uint32_t value, int64_t ns) {
  if (!linux_has_futex())
    return ipc_os_word_look(word, value, ns);
  if (linux_word_wait(word, value, ns > 0 ? ns : 0) == 0)
    return 0;
  switch (errno) {
  case ETIMEDOUT:
  case EINTR:
    return errno;
  case EAGAIN:
  case EFAULT: /* the file has lost the page: whoever looks takes the fault */
    return 0;
  default: /* forbidden, seccomp(2) */
    return ipc_os_word_look(word, value, ns);
  }
}

/* futex_waitv(2), Linux 5.16; the time is the kernel's own timespec, 64 bits on
 * all machines. */
#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

enum { LINUX_WORD_32 = 2 }; /* not process-private */

typedef struct LinuxWord {
  uint64_t value, word;
  uint32_t flags, reserved;
} LinuxWord;

static atomic_int linux_waitv = -1;

/* One of no words at all is an invalid argument where there is the call. */
static bool linux_has_waitv(void) {
  int now = atomic_load_explicit(&linux_waitv, memory_order_relaxed);
  if (now < 0) {
    now = !ipc_os_without("waitv") &&
          syscall(SYS_futex_waitv, NULL, 0, 0, NULL, CLOCK_MONOTONIC) < 0 &&
          errno == EINVAL;
    atomic_store_explicit(&linux_waitv, now, memory_order_relaxed);
  }
  return now;
}

size_t ipc_os_words(void) {
  if (!linux_has_futex())
    return 0;
  return linux_has_waitv() ? OS_WORDS : 1;
}

int ipc_os_words_wait(const OsWord *words, size_t count, int64_t ns,
                      size_t *which) {
  LinuxWord list[OS_WORDS];
  struct timespec now;
  *which = count;
  if (count == 1)
    return ipc_os_word_wait(words->word, words->value, ns);
  for (size_t i = 0; i < count; i++)
    list[i] =
        (LinuxWord){words[i].value, (uintptr_t)words[i].word, LINUX_WORD_32, 0};
  clock_gettime(CLOCK_MONOTONIC, &now);
  int64_t until = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec + ns;
  int64_t t[2] = {until / 1000000000, until % 1000000000};
  long n =
      syscall(SYS_futex_waitv, list, (unsigned)count, 0, t, CLOCK_MONOTONIC);
  if (n >= 0) {
    *which = (size_t)n;
    return 0;
  }
  switch (errno) {
  case ETIMEDOUT:
  case EINTR:
    return errno;
  case EAGAIN:
  case EFAULT: /* as above */
    return 0;
  default: /* no memory */
    return ipc_os_word_look(words->word, words->value,
                            ns < 1000000 ? ns : 1000000);
  }
}

int ipc_os_word_wake_some(_Atomic uint32_t *word, int most) {
#ifdef SYS_futex
  const long number = SYS_futex;
#else
  const long number = SYS_futex_time64;
#endif
  long n = linux_has_futex()
               ? syscall(number, word, LINUX_FUTEX_WAKE, most, NULL, NULL, 0)
               : 0;
  return n > 0 ? (int)n : 0;
}

void ipc_os_word_wake(_Atomic uint32_t *word, bool all) {
  (void)ipc_os_word_wake_some(word, all ? INT32_MAX : 1);
}

/* membarrier(2); the numbers of its commands. A child of fork(2) is registered
 * as its parent was: that is a property of the memory, and copied with it. */
enum { LINUX_BARRIER = 1 << 1, LINUX_BARRIER_JOIN = 1 << 2 };

static bool linux_barrier(int command) {
#ifdef SYS_membarrier
  return syscall(SYS_membarrier, command, 0, 0) == 0;
#else
  (void)command;
  return false;
#endif
}

bool ipc_os_barrier_join(void) {
  int now = atomic_load_explicit(&linux_membarrier, memory_order_acquire);
  if (now < 0) {
    now = !ipc_os_without("membarrier") && linux_barrier(LINUX_BARRIER_JOIN);
    atomic_store_explicit(&linux_membarrier, now, memory_order_release);
  }
  return now;
}

void ipc_os_barrier(void) { (void)linux_barrier(LINUX_BARRIER); }

int ipc_os_core(void) { return sched_getcpu(); }

int ipc_os_unnamed_file(const char *directory, unsigned permissions, int *fd) {
  *fd = -1;
  if (ipc_os_without("otmpfile"))
    return ENOTSUP;
  *fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, (mode_t)permissions);
  if (*fd >= 0)
    return 0;
  /* The last two: kernels that do not know the flag. */
  return errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL ? ENOTSUP
                                                                   : errno;
}

int ipc_os_link_file(int fd, const char *path) {
  char from[32];
  if (ipc_os_without("otmpfile"))
    return ENOTSUP;
  snprintf(from, sizeof from, "/proc/self/fd/%d", fd);
  if (linkat(AT_FDCWD, from, AT_FDCWD, path, AT_SYMLINK_FOLLOW) == 0)
    return 0;
  int err = errno;
  return err == ENOENT && access("/proc/self/fd", F_OK) ? ENOTSUP : err;
}

const char *ipc_os_memory_directory(void) { return "/dev/shm/"; }

int ipc_os_memory_sealable(bool huge, int *fd, size_t *page) {
  struct statfs s;
  *fd = -1;
  if (ipc_os_without("memfd"))
    return ENOSYS;
  *fd = memfd_create("ipc", MFD_CLOEXEC | MFD_ALLOW_SEALING |
                                (huge ? MFD_HUGETLB : 0));
  if (*fd < 0)
    return huge && (errno == EINVAL || errno == ENOENT || errno == ENODEV)
               ? ENOTSUP
               : errno;
  *page = (size_t)sysconf(_SC_PAGESIZE);
  if (!huge)
    return 0;
  if (fstatfs(*fd, &s) == 0) {
    *page = (size_t)s.f_bsize;
    return 0;
  }
  int err = errno;
  close(*fd);
  *fd = -1;
  return err;
}

enum { LINUX_SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL };

int ipc_os_memory_seal(int fd) {
  return fcntl(fd, F_ADD_SEALS, LINUX_SEALS) ? errno : 0;
}

bool ipc_os_memory_sealed(int fd) {
  int seals = fcntl(fd, F_GET_SEALS);
  return seals >= 0 && (seals & LINUX_SEALS) == LINUX_SEALS;
}

#else
typedef int os_linux_is_empty;
#endif
