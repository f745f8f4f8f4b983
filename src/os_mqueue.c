/* POSIX message queues as descriptors. By system calls, since the functions of
 * the C library may stand in a library of their own (librt), and mqd_t need not
 * be a descriptor; FreeBSD has other names for them. macOS and OpenBSD have no
 * such queues. No Lua. */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "os.h"

#if defined(__linux__) && defined(IPC_PORTABLE)
/* The functions, tried where mqd_t is a descriptor. */
#define MQ_EXISTS 1
#elif defined(SYS_kmq_open) /* FreeBSD */
#define MQ_EXISTS 1
#define MQ_NAME(name) (name)
#define MQ_OPEN SYS_kmq_open
#define MQ_UNLINK SYS_kmq_unlink
#define MQ_NOTIFY SYS_kmq_notify
#define MQ_SETATTR SYS_kmq_setattr
#define MQ_SEND SYS_kmq_timedsend
#define MQ_RECEIVE SYS_kmq_timedreceive
#elif defined(SYS_mq_open) /* Linux, NetBSD, DragonFly */
#define MQ_EXISTS 1
#define MQ_OPEN SYS_mq_open
#define MQ_UNLINK SYS_mq_unlink
#define MQ_NOTIFY SYS_mq_notify
#ifdef __linux__
#define MQ_NAME(name) ((name) + 1) /* the C library takes the slash away */
#define MQ_SETATTR SYS_mq_getsetattr
#ifdef SYS_mq_timedsend
#define MQ_SEND SYS_mq_timedsend
#define MQ_RECEIVE SYS_mq_timedreceive
#else /* newer 32-bit machines; the same without a time */
#define MQ_SEND SYS_mq_timedsend_time64
#define MQ_RECEIVE SYS_mq_timedreceive_time64
#endif
#else
#define MQ_NAME(name) (name)
#define MQ_SEND SYS_mq_send
#define MQ_RECEIVE SYS_mq_receive
#endif
#endif

#if defined(__FreeBSD__)
#define MQ_SYSCTL(linux, freebsd, other) "kern.mqueue." freebsd
#elif defined(__NetBSD__) || defined(__DragonFly__)
#define MQ_SYSCTL(linux, freebsd, other) "kern.mqueue." other
#else
#define MQ_SYSCTL(linux, freebsd, other) "fs.mqueue." linux
#endif

const char ipc_os_mqueue_messages[] =
    MQ_SYSCTL("msg_max", "maxmsg", "mq_max_maxmsg");
const char ipc_os_mqueue_bytes[] =
    MQ_SYSCTL("msgsize_max", "maxmsgsize", "mq_max_msgsize");
const char ipc_os_mqueue_queues[] =
    MQ_SYSCTL("queues_max", "maxmq", "mq_open_max");

#ifdef MQ_EXISTS
#include <mqueue.h>

/* ------------------------------------------------------------ the calls */

#ifdef MQ_OPEN

static int mq_call_open(const char *name, int flags, mode_t mode,
                        struct mq_attr *attr) {
  return (int)syscall(MQ_OPEN, MQ_NAME(name), flags, mode, attr);
}

static int mq_call_unlink(const char *name) {
  return (int)syscall(MQ_UNLINK, MQ_NAME(name));
}

static int mq_call_getattr(int fd, struct mq_attr *attr) {
#ifdef MQ_SETATTR
  return (int)syscall(MQ_SETATTR, fd, NULL, attr);
#else
  return (int)syscall(SYS_mq_getattr, fd, attr);
#endif
}

static int mq_call_notify(int fd, const struct sigevent *event) {
  return (int)syscall(MQ_NOTIFY, fd, event);
}

/* The last argument is the time, of those that take one. */
static int mq_call_send(int fd, const char *bytes, size_t size,
                        unsigned priority) {
  return (int)syscall(MQ_SEND, fd, bytes, size, priority, NULL);
}

static ssize_t mq_call_receive(int fd, char *bytes, size_t room,
                               unsigned *priority) {
  return (ssize_t)syscall(MQ_RECEIVE, fd, bytes, room, priority, NULL);
}

#else

#define mq_call_open mq_open
#define mq_call_unlink mq_unlink
#define mq_call_getattr mq_getattr
#define mq_call_notify mq_notify
#define mq_call_send mq_send
#define mq_call_receive mq_receive

#endif

/* ------------------------------------------------------------- os.h's */

bool ipc_os_has_mqueue(void) {
#ifndef __linux__
  /* Where the module is not loaded the call would raise SIGSYS. */
  if (sysconf(_SC_MESSAGE_PASSING) <= 0)
    return false;
#endif
  /* There is no such name; who has no queues says that instead. */
  int fd = mq_call_open("/", O_RDONLY | O_CLOEXEC, 0, NULL);
  if (fd >= 0)
    close(fd);
  return fd >= 0 || errno != ENOSYS;
}

static int mqueue_error(void) {
  if (errno == ENOSYS)
    return ENOTSUP;
  return errno == EINTR ? EAGAIN : errno;
}

static int mqueue_open(const char *name, int flags, mode_t mode,
                       struct mq_attr *attr, int *fd) {
#ifndef __linux__
  if (!ipc_os_has_mqueue())
    return ENOTSUP;
#endif
  *fd = mq_call_open(name, flags | O_NONBLOCK | O_CLOEXEC, mode, attr);
  if (*fd < 0)
    return mqueue_error();
#ifndef __linux__
  (void)fcntl(*fd, F_SETFD, FD_CLOEXEC); /* not all take the flag */
#endif
  return 0;
}

int ipc_os_mqueue_open(const char *name, int access, int *fd) {
  return mqueue_open(name, access, 0, NULL, fd);
}

#ifdef __linux__
enum { MQ_USUAL = 8192 }; /* bytes of a message, when nothing is told */
#else
enum { MQ_USUAL = 1024 };
#endif

/* What a queue has that is made without attributes; needed when one of the two
 * is given. */
static long mqueue_default(const char *usual, const char *most,
                           long otherwise) {
  long long value = 0, limit = 0;
  if (ipc_os_limit(usual, &value) || value <= 0 || value > LONG_MAX)
    value = otherwise;
  if (ipc_os_limit(most, &limit) == 0 && limit > 0 && value > limit)
    value = limit;
  return (long)value;
}

int ipc_os_mqueue_make(const char *name, int access, unsigned permissions,
                       const OsQueue *want, int *fd) {
  struct mq_attr attr;
  struct stat st;
  memset(&attr, 0, sizeof attr);
  bool given = want->most > 0 || want->size > 0;
  attr.mq_maxmsg = want->most;
  attr.mq_msgsize = want->size;
  if (given && !want->most)
    attr.mq_maxmsg = mqueue_default(
        MQ_SYSCTL("msg_default", "default_maxmsg", "mq_def_maxmsg"),
        ipc_os_mqueue_messages, 10);
  if (given && !want->size)
    attr.mq_msgsize = mqueue_default(
        MQ_SYSCTL("msgsize_default", "default_msgsize", "mq_def_msgsize"),
        ipc_os_mqueue_bytes, MQ_USUAL);
  int err = mqueue_open(name, access | O_CREAT | O_EXCL, (mode_t)permissions,
                        given ? &attr : NULL, fd);
  if (err)
    return err;
  /* The umask took some away; it is the process's and not ours to touch. */
  if (fstat(*fd, &st) || (st.st_mode & 0777) != permissions)
    err = fchmod(*fd, (mode_t)permissions) ? errno : 0;
  if (err) {
    (void)mq_call_unlink(name);
    close(*fd);
  }
  return err;
}

int ipc_os_mqueue_look(int fd, OsQueue *q) {
  struct mq_attr attr;
  struct stat st;
  if (mq_call_getattr(fd, &attr) || fstat(fd, &st))
    return errno;
  q->most = attr.mq_maxmsg;
  q->size = attr.mq_msgsize;
  q->count = attr.mq_curmsgs;
  q->uid = (long)st.st_uid;
  q->gid = (long)st.st_gid;
  q->permissions = (unsigned)st.st_mode & 0777;
  q->device = (uint64_t)st.st_dev;
  q->inode = (uint64_t)st.st_ino;
  return 0;
}

int ipc_os_mqueue_send(int fd, const char *bytes, size_t size,
                       unsigned priority) {
  return mq_call_send(fd, bytes, size, priority) < 0 ? mqueue_error() : 0;
}

int ipc_os_mqueue_receive(int fd, char *bytes, size_t room, size_t *got,
                          unsigned *priority) {
  ssize_t n = mq_call_receive(fd, bytes, room, priority);
  if (n < 0)
    return mqueue_error();
  *got = (size_t)n;
  return 0;
}

int ipc_os_mqueue_remove(const char *name) {
  return mq_call_unlink(name) ? mqueue_error() : 0;
}

int ipc_os_mqueue_notify(int fd, int signal) {
  struct sigevent event;
  memset(&event, 0, sizeof event);
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = signal;
  return mq_call_notify(fd, signal ? &event : NULL) ? mqueue_error() : 0;
}

#else

bool ipc_os_has_mqueue(void) { return false; }

int ipc_os_mqueue_open(const char *name, int access, int *fd) {
  (void)name, (void)access, (void)fd;
  return ENOTSUP;
}

int ipc_os_mqueue_make(const char *name, int access, unsigned permissions,
                       const OsQueue *want, int *fd) {
  (void)name, (void)access, (void)permissions, (void)want, (void)fd;
  return ENOTSUP;
}

int ipc_os_mqueue_look(int fd, OsQueue *q) {
  (void)fd, (void)q;
  return ENOTSUP;
}

int ipc_os_mqueue_send(int fd, const char *bytes, size_t size,
                       unsigned priority) {
  (void)fd, (void)bytes, (void)size, (void)priority;
  return ENOTSUP;
}

int ipc_os_mqueue_receive(int fd, char *bytes, size_t room, size_t *got,
                          unsigned *priority) {
  (void)fd, (void)bytes, (void)room, (void)got, (void)priority;
  return ENOTSUP;
}

int ipc_os_mqueue_remove(const char *name) {
  (void)name;
  return ENOTSUP;
}

int ipc_os_mqueue_notify(int fd, int signal) {
  (void)fd, (void)signal;
  return ENOTSUP;
}

#endif
