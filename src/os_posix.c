/* Systems without what os_linux.c uses: macOS, the BSDs, and any other POSIX
 * system. No Lua. */
#include "prefix.h"

#if !defined(__linux__) || defined(IPC_PORTABLE)

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/msg.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
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

bool ipc_os_is_packets(int flags) {
  (void)flags;
  return false;
}

bool ipc_os_is_pipe(int fd) {
  struct stat st;
  return fstat(fd, &st) == 0 && S_ISFIFO(st.st_mode);
}

/* /dev/fd gives the same open pipe again, flags and all. */
int ipc_os_renew(int fd, int flags) {
  (void)fd, (void)flags;
  return ENOTSUP;
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

static int posix_prepare_one(int fd) {
  int err = posix_set(fd, F_GETFD, F_SETFD, FD_CLOEXEC);
  if (!err)
    err = posix_set(fd, F_GETFL, F_SETFL, O_NONBLOCK);
#ifdef SO_NOSIGPIPE
  int on = 1;
  (void)setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
  if (err)
    close(fd);
  return err;
}

int ipc_os_socket(int family, int type, int *fd) {
  *fd = socket(family, type, 0);
  if (*fd < 0)
    return errno == EPROTONOSUPPORT ? ENOTSUP : errno;
  return posix_prepare_one(*fd);
}

int ipc_os_accept(int listener, int *fd) {
  *fd = accept(listener, NULL, NULL);
  return *fd < 0 ? errno : posix_prepare_one(*fd);
}

int ipc_os_credentials(int fd, long *pid, long *uid, long *gid) {
#if defined(__APPLE__) || defined(__FreeBSD__) || defined(__NetBSD__) ||       \
    defined(__OpenBSD__) || defined(__DragonFly__)
  uid_t u;
  gid_t g;
  if (getpeereid(fd, &u, &g))
    return errno;
  *uid = (long)u;
  *gid = (long)g;
  *pid = -1;
#ifdef LOCAL_PEERPID
  pid_t p;
  socklen_t size = sizeof p;
  if (getsockopt(fd, SOL_LOCAL, LOCAL_PEERPID, &p, &size) == 0)
    *pid = (long)p;
#endif
  return 0;
#elif defined(__linux__)
  struct ucred c;
  socklen_t size = sizeof c;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &c, &size))
    return errno;
  *pid = -1; /* as most other systems tell it */
  *uid = (long)c.uid;
  *gid = (long)c.gid;
  return 0;
#else
  (void)fd, (void)pid, (void)uid, (void)gid;
  return ENOTSUP;
#endif
}

int ipc_os_keepalive(int fd, int idle, int interval, int count) {
#ifdef TCP_KEEPINTVL
#ifdef TCP_KEEPIDLE
  int name = TCP_KEEPIDLE;
#else
  int name = TCP_KEEPALIVE;
#endif
  return setsockopt(fd, IPPROTO_TCP, name, &idle, sizeof idle) ||
                 setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval,
                            sizeof interval) ||
                 setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count)
             ? errno
             : 0;
#else
  (void)fd, (void)idle, (void)interval, (void)count;
  return 0; /* OpenBSD: one setting for the whole system */
#endif
}

int ipc_os_user_timeout(int fd, unsigned ms) {
  (void)fd, (void)ms;
  return ENOTSUP;
}

const bool ipc_os_abstract = false;
const int ipc_os_cmsg_cloexec = 0;

bool ipc_os_is_mark(int level, int type) {
#ifdef SCM_CREDENTIALS
  return level == SOL_SOCKET && type == SCM_CREDENTIALS;
#else
  (void)level, (void)type;
  return false;
#endif
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

int ipc_os_read_shared(int fd, void *bytes, size_t room, size_t *got) {
  return ipc_os_read_polled(fd, bytes, room, got);
}

int ipc_os_write_shared(int fd, const struct iovec *iov, int count,
                        size_t *put) {
  return ipc_os_write_polled(fd, iov, count, put);
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

int ipc_os_timer(int64_t after, int64_t every, int *fd) {
  (void)after, (void)every;
  *fd = -1;
  return ENOTSUP;
}

/* Opening /dev/fd/N is dup(2) on these systems. */
int ipc_os_reopen(int fd, int flags, int *again) {
  (void)fd, (void)flags;
  *again = -1;
  return ENOTSUP;
}

int ipc_os_path(int fd, char *path, size_t room) {
#ifdef F_GETPATH
  char text[PATH_MAX];
  if (fcntl(fd, F_GETPATH, text))
    return errno;
  int n = snprintf(path, room, "%s", text);
  return n < 0 || (size_t)n >= room ? ENAMETOOLONG : 0;
#else
  (void)fd, (void)path, (void)room;
  return ENOTSUP;
#endif
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

const int ipc_os_msg_except = 0;

size_t ipc_os_msg_bytes(const struct msqid_ds *q) {
#ifdef __NetBSD__
  return (size_t)q->_msg_cbytes;
#else
  return (size_t)q->msg_cbytes;
#endif
}

long long ipc_os_msg_key(const struct msqid_ds *q) {
#if defined(__linux__)
  return q->msg_perm.__key;
#elif defined(__APPLE__) || defined(__NetBSD__)
  return q->msg_perm._key;
#else
  return q->msg_perm.key;
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

/* -------------------------------------------- memory that processes share */

int ipc_os_word_wait(_Atomic uint32_t *word, uint32_t value, int64_t ns) {
  return ipc_os_word_look(word, value, ns);
}

int ipc_os_words_wait(const OsWord *words, size_t count, int64_t ns,
                      size_t *which) {
  *which = count;
  return ipc_os_word_look(words->word, words->value, ns);
}

size_t ipc_os_words(void) { return 0; }

void ipc_os_word_wake(_Atomic uint32_t *word, bool all) {
  (void)word, (void)all;
}

int ipc_os_word_wake_some(_Atomic uint32_t *word, int most) {
  (void)word, (void)most;
  return 0;
}

bool ipc_os_barrier_join(void) { return false; }
void ipc_os_barrier(void) {}
long ipc_os_switches(void) { return -1; }

int ipc_os_core(void) { return -1; }

int ipc_os_unnamed_file(const char *directory, unsigned permissions, int *fd) {
  (void)directory, (void)permissions;
  *fd = -1;
  return ENOTSUP;
}

int ipc_os_link_file(int fd, const char *path) {
  (void)fd, (void)path;
  return ENOTSUP;
}

static char posix_directory[256];

static void posix_find_directory(void) {
  static const char *const memory = "/dev/shm/";
  struct stat st;
  const char *folder = getenv("TMPDIR");
  int n = -1;
  if (stat(memory, &st) == 0 && S_ISDIR(st.st_mode))
    folder = memory;
  if (folder && *folder) {
    bool slash = folder[strlen(folder) - 1] == '/';
    n = snprintf(posix_directory, sizeof posix_directory, "%s%s", folder,
                 slash ? "" : "/");
  }
  if (n < 0 || (size_t)n >= sizeof posix_directory)
    memcpy(posix_directory, "/tmp/", sizeof "/tmp/");
}

const char *ipc_os_memory_directory(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  (void)pthread_once(&once, posix_find_directory);
  return posix_directory;
}

int ipc_os_memory_sealable(bool huge, int *fd, size_t *page) {
  (void)huge, (void)page;
  *fd = -1;
  return ENOSYS;
}

int ipc_os_memory_seal(int fd) {
  (void)fd;
  return ENOTSUP;
}

bool ipc_os_memory_sealed(int fd) {
  (void)fd;
  return false;
}

#else
typedef int os_posix_is_empty;
#endif
