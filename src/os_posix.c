/* Systems without what os_linux.c uses: macOS, the BSDs, and any other POSIX
 * system. No Lua. */
#include "prefix.h"

#if !defined(__linux__) || defined(IPC_PORTABLE)

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#if defined(__APPLE__) || defined(__FreeBSD__) || defined(__NetBSD__)
#include <sys/sysctl.h>
#endif
#include <unistd.h>

#include "os.h"

static int posix_set(int fd, int get, int set, int flag) {
  int flags = fcntl(fd, get);
  return flags < 0 || fcntl(fd, set, flags | flag) < 0 ? errno : 0;
}

/* Between creation and here a fork in another thread can take the descriptors
 * along; these systems offer nothing better in common. */
static int posix_prepare(const int fd[2]) {
  int err = 0;
  for (int i = 0; i < 2 && !err; i++) {
    err = posix_set(fd[i], F_GETFD, F_SETFD, FD_CLOEXEC);
    if (!err)
      err = posix_set(fd[i], F_GETFL, F_SETFL, O_NONBLOCK);
#ifdef SO_NOSIGPIPE
    int on = 1;
    (void)setsockopt(fd[i], SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
#ifdef F_SETNOSIGPIPE
    /* macOS and NetBSD send the signal to the process: any thread may get it,
     * whatever the writing one blocks. */
    (void)fcntl(fd[i], F_SETNOSIGPIPE, 1);
#endif
  }
  if (err) {
    close(fd[0]);
    close(fd[1]);
  }
  return err;
}

int ipc_os_pipe(int fd[2], bool packets) {
  if (packets)
    return ENOTSUP;
  return pipe(fd) ? errno : posix_prepare(fd);
}

int ipc_os_capacity(int fd, size_t want, size_t *got) {
  (void)fd;
  *got = 0; /* not told, not settable */
  return want ? ENOTSUP : 0;
}

int ipc_os_socketpair(int type, int fd[2]) {
  if (socketpair(AF_UNIX, type, 0, fd)) /* macOS has no seqpacket */
    return errno == EPROTONOSUPPORT ? ENOTSUP : errno;
  return posix_prepare(fd);
}

int ipc_os_mark_packets(int fd) {
#ifdef SO_PASSCRED
  int on = 1;
  return setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) ? errno : 0;
#else
  (void)fd;
  return ENOTSUP;
#endif
}

int ipc_os_write(int fd, const struct iovec *iov, int count, size_t *put) {
  return ipc_os_write_masked(fd, iov, count, put);
}

int ipc_os_poll(struct pollfd *fds, size_t count, int64_t timeout,
                size_t *ready) {
  int ms = -1;
  if (timeout != INT64_MAX) {
    int64_t up = timeout / 1000000 + (timeout % 1000000 != 0);
    ms = up > 1000000000 ? 1000000000 : (int)up;
  }
  int n = poll(fds, (nfds_t)count, ms);
  if (n < 0)
    return errno;
  *ready = (size_t)n;
  return 0;
}

int ipc_os_cores(void) {
  long n = sysconf(_SC_NPROCESSORS_ONLN);
  return n > 0 ? (int)n : 1;
}

bool ipc_os_watches_processes(void) { return false; }

int ipc_os_process(pid_t pid) {
  (void)pid;
  return -1;
}

int ipc_os_kill(pid_t pid, int fd, int signal) {
  (void)fd;
  return kill(pid, signal) ? errno : 0;
}

void ipc_os_expect_large(void) {}

int ipc_os_memory_file(int *fd) {
  (void)fd;
  return ENOSYS;
}

int ipc_os_event(int *fd, int *setter) {
  int both[2];
  int err = ipc_os_pipe(both, false);
  *fd = err ? -1 : both[0];
  *setter = err ? -1 : both[1];
  return err;
}

void ipc_os_event_set(int setter) {
  while (write(setter, "", 1) < 0 && errno == EINTR)
    ;
}

void ipc_os_event_clear(int fd) {
  char bytes[64];
  while (read(fd, bytes, sizeof bytes) > 0 || errno == EINTR)
    errno = 0;
}

int ipc_os_sysctl(const char *name, long long *value) {
#if defined(__APPLE__) || defined(__FreeBSD__) || defined(__NetBSD__)
  long long number = 0;
  size_t size = sizeof number;
  if (sysctlbyname(name, &number, &size, NULL, 0))
    return ENOTSUP;
  int narrow;
  memcpy(&narrow, &number, sizeof narrow);
  *value = size == sizeof narrow ? narrow : number;
  return 0;
#else
  (void)name, (void)value;
  return ENOTSUP;
#endif
}

/* The BSDs hand MSG_TRUNC back among the flags whenever it was asked for. */
const int ipc_os_whole_length = 0;

int ipc_os_packet_room(int fd, size_t want, size_t *got) {
  int room = want > INT32_MAX ? INT32_MAX : (int)want;
  socklen_t size = sizeof room;
  if (want > 0)
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
  if (getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, &size))
    return errno;
  *got = room > 64 ? (size_t)room - 64 : 0;
  return 0;
}

#else
typedef int os_posix_is_empty;
#endif
