/* Children, where systems differ: births that cost nothing, and how a child
 * learns that its parent is gone, however that went. No Lua. */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os.h"

#if defined(__linux__) && !defined(IPC_PORTABLE)
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif
#ifdef __FreeBSD__
#include <sys/procctl.h>
#endif

/* ------------------------------------------------------------------ ends */

int ipc_os_reap(pid_t pid, int *status, OsUsage *usage) {
  struct rusage used;
  pid_t got;
  do
    got = wait4(pid, status, WNOHANG, &used);
  while (got < 0 && errno == EINTR);
  if (got != pid)
    return got == 0 ? EAGAIN : errno;
  usage->user =
      (double)used.ru_utime.tv_sec + (double)used.ru_utime.tv_usec / 1e6;
  usage->system =
      (double)used.ru_stime.tv_sec + (double)used.ru_stime.tv_usec / 1e6;
#ifdef __APPLE__
  usage->memory = (uint64_t)used.ru_maxrss;
#else
  usage->memory = (uint64_t)used.ru_maxrss * 1024;
#endif
  return 0;
}

int ipc_os_ended(pid_t pid) {
  siginfo_t info;
  int n;
  memset(&info, 0, sizeof info);
  do
    n = waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT);
  while (n < 0 && errno == EINTR);
  if (n < 0)
    return errno;
  return info.si_pid == pid ? 0 : EAGAIN;
}

#if defined(__linux__) && !defined(IPC_PORTABLE)

/* Newer than some C libraries; the numbers are the kernel's for ever. */
#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x00001000 /* Linux 5.2 */
#endif
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif

enum {
  CHILD_STACK = 128 << 10,    /* bytes */
  CHILD_HIGH = 500,           /* see ipc_os_high */
  CHILD_WHOLE_GROUP = 1 << 2, /* PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9 */
  CHILD_RANGE_CLOEXEC = 1 << 2,
  CHILD_INFO_EXIT = 1 << 3 /* PIDFD_INFO_EXIT, Linux 6.15 */
};

/* ----------------------------------------------------------------- births */

/* sigset_t of the kernel. What sigprocmask(3) calls all signals leaves out the
 * ones that the C library sends its threads. */
typedef struct ChildMask {
  unsigned char bits[_NSIG / 8];
} ChildMask;

static void child_mask(const ChildMask *now, ChildMask *before) {
  (void)syscall(SYS_rt_sigprocmask, SIG_SETMASK, now, before, sizeof *now);
}

void ipc_os_unblock(void) {
  enum { FIRST = 32 };                    /* below: the C library's own */
  const unsigned long standard[16] = {0}; /* struct sigaction of the kernel */
  const ChildMask none = {{0}};
  for (int n = FIRST; n < SIGRTMIN; n++)
    (void)syscall(SYS_rt_sigaction, n, standard, NULL, sizeof none);
  child_mask(&none, NULL);
}

bool ipc_os_shares(void) {
#ifdef __SANITIZE_ADDRESS__
  return false; /* it takes the stack that no function returned on for a bug */
#else
  return !ipc_os_without("vfork");
#endif
}

/* While the child runs in our memory, no handler of ours may: not there, where
 * it would do our work twice, and not here, since we sleep. */
int ipc_os_share(int (*run)(void *), void *argument, pid_t *pid, int *ended) {
  ChildMask all, before;
  char *stack = mmap(NULL, CHILD_STACK, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  if (stack == MAP_FAILED)
    return errno;
  memset(&all, 0xff, sizeof all);
  int fd = -1, flags = CLONE_VM | CLONE_VFORK | SIGCHLD;
  if (!ipc_os_without("pidfd"))
    flags |= CLONE_PIDFD;
#if defined(__hppa__)
  char *top = stack; /* grows upward */
#else
  char *top = stack + CHILD_STACK;
#endif
  child_mask(&all, &before);
  *pid = clone(run, top, flags, argument, &fd);
  int err = *pid < 0 ? errno : 0;
  child_mask(&before, NULL);
  (void)munmap(stack, CHILD_STACK);
  *ended = err ? -1 : fd;
  return err;
}

/* -------------------------------------------------------------- following */

void ipc_os_die_with(pid_t parent, bool main) {
  /* It comes at the end of the thread that started us, prctl(2). */
  if (main)
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
  pid_t now = getppid(); /* 0: it is outside of our pid namespace */
  if (now != parent && now != 0)
    _exit(127);
}

bool ipc_os_main_thread(void) { return getpid() == (pid_t)syscall(SYS_gettid); }

/* "/proc/self/fd/N", by hand: snprintf(3) is not for a child. */
static void child_path(int fd, char path[32]) {
  static const char folder[] = "/proc/self/fd/";
  char digits[12];
  size_t n = 0, at = sizeof folder - 1;
  memcpy(path, folder, at);
  do
    digits[n++] = (char)('0' + fd % 10);
  while ((fd /= 10) > 0);
  while (n > 0)
    path[at++] = digits[--n];
  path[at] = '\0';
}

int ipc_os_open_blocking(int fd) {
  char path[32];
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_GETPIPE_SZ) < 0)
    return -1;
  child_path(fd, path);
  int again = open(path, (flags & O_ACCMODE) | O_NONBLOCK | O_CLOEXEC);
  if (again >= 0 && fcntl(again, F_SETFL, flags & ~O_NONBLOCK)) {
    close(again);
    again = -1;
  }
  return again;
}

/* The writing end of the pipe that ends with this process, or -1. Closed in
 * every fork, after which a new one is made. */
static int child_lifeline = -1;
static dev_t child_line_device;
static ino_t child_line_inode;

void ipc_os_life_forget(void) { child_lifeline = -1; }

static int child_pipe(int fd[2]) {
  int err = ipc_os_pipe(fd, false);
  if (err)
    return err;
  (void)ipc_os_high(&fd[1]);
  err = ipc_os_fork_close(fd[1]);
  if (err) {
    close(fd[0]);
    close(fd[1]);
  }
  return err;
}

/* Whether it is still that: hosts close descriptors that they do not know, and
 * others get their numbers. */
static bool child_has(int fd) {
  struct stat now;
  return fstat(fd, &now) == 0 && now.st_dev == child_line_device &&
         now.st_ino == child_line_inode;
}

/* Two threads may come at once: one's pipe is dropped again. */
static int child_make_lifeline(int *writer) {
  int fd[2], again = -1;
  ipc_os_lock();
  *writer = child_lifeline;
  if (*writer >= 0 && !child_has(*writer))
    child_lifeline = -1;
  bool there = child_lifeline >= 0;
  ipc_os_unlock();
  if (there)
    return 0;
  if (*writer >= 0)
    ipc_os_fork_forget(*writer);
  int err = child_pipe(fd);
  if (err)
    return err;
  close(fd[0]); /* first: descriptors may be few */
  err = ipc_os_reopen(fd[1], O_RDONLY | O_NONBLOCK | O_CLOEXEC, &again);
  if (!err)
    close(again);
  if (!err) {
    ipc_os_lock();
    struct stat now;
    bool first = child_lifeline < 0 && fstat(fd[1], &now) == 0;
    if (first) {
      child_lifeline = fd[1];
      child_line_device = now.st_dev;
      child_line_inode = now.st_ino;
    }
    *writer = child_lifeline;
    ipc_os_unlock();
    if (first)
      return 0;
  }
  ipc_os_fork_forget(fd[1]);
  close(fd[1]);
  return err;
}

void ipc_os_life_prepare(void) {
  int writer;
  (void)child_make_lifeline(&writer);
}

int ipc_os_life(bool lua, OsLife *l) {
  (void)lua;
  int err = child_make_lifeline(&l->writer);
  if (err == 0 || (err != ENOTSUP && err != EACCES))
    return err;
  int fd[2];
  err = child_pipe(fd);
  if (err)
    return err;
  l->reader = fd[0];
  l->writer = fd[1];
  return 0;
}

/* The kernel does the rest: F_SETSIG in fcntl(2). */
int ipc_os_follow(const OsLife *l, pid_t whom, int least, int *fd) {
  char path[32];
  int err = 0;
  *fd = l->reader;
  if (*fd < 0) {
    child_path(l->writer, path);
    *fd = open(path, O_RDONLY | O_NONBLOCK);
    if (*fd < 0)
      return errno;
  }
  int high = fcntl(*fd, F_DUPFD, CHILD_HIGH);
  if (high < 0 && *fd < least)
    high = fcntl(*fd, F_DUPFD, least);
  if (high >= 0) {
    close(*fd);
    *fd = high;
  } else if (*fd < least) {
    err = errno;
  } else {
    err = fcntl(*fd, F_SETFD, 0) < 0 ? errno : 0;
  }
  if (!err && (fcntl(*fd, F_SETOWN, whom) || fcntl(*fd, F_SETSIG, SIGKILL) ||
               fcntl(*fd, F_SETFL, O_NONBLOCK | O_ASYNC)))
    err = errno;
  return err;
}

int ipc_os_adopt(int from) {
  (void)from; /* the kernel follows */
  return 0;
}

void ipc_os_close_on_exec(int from) {
  if (syscall(SYS_close_range, (long)from, (long)UINT_MAX,
              (long)CHILD_RANGE_CLOEXEC) == 0)
    return;
  struct rlimit r;
  long most = getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur < 1 << 20
                  ? (long)r.rlim_cur
                  : 1 << 20;
  for (int fd = from; fd < most; fd++)
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
}

/* ------------------------------------------------------------ their groups */

int ipc_os_kill_group(pid_t pid, int fd, int signal, bool reaped) {
  if (fd >= 0 && !ipc_os_without("pidfd_group")) {
    if (syscall(SYS_pidfd_send_signal, fd, signal, NULL, CHILD_WHOLE_GROUP) ==
        0)
      return 0;
    if (errno != EINVAL && errno != ENOSYS)
      return errno;
  }
  if (reaped)
    return ENOTSUP;
  return kill(-pid, signal) ? errno : 0;
}

/* struct pidfd_info, as of Linux 6.15. */
typedef struct ChildInfo {
  uint64_t mask, cgroup;
  uint32_t ids[11];
  int32_t status;
} ChildInfo;

int ipc_os_past(int fd, int *status) {
  ChildInfo info;
  memset(&info, 0, sizeof info);
  info.mask = CHILD_INFO_EXIT;
  if (fd < 0 || ipc_os_without("pidfd_info"))
    return ENOTSUP;
  /* ioctl(2) takes an int here, an unsigned long there. */
  if (syscall(SYS_ioctl, fd, _IOWR(0xff, 11, ChildInfo), &info))
    return errno;
  if (!(info.mask & CHILD_INFO_EXIT))
    return EAGAIN;
  *status = info.status;
  return 0;
}

#else /* not Linux */

void ipc_os_unblock(void) {
  sigset_t none;
  sigemptyset(&none);
  (void)sigprocmask(SIG_SETMASK, &none, NULL);
}

bool ipc_os_shares(void) { return false; }

int ipc_os_share(int (*run)(void *), void *argument, pid_t *pid, int *ended) {
  (void)run, (void)argument, (void)pid, (void)ended;
  return ENOTSUP;
}

void ipc_os_die_with(pid_t parent, bool main) {
  (void)main;
#ifdef __FreeBSD__
  int signal = SIGKILL;
  (void)procctl(P_PID, 0, PROC_PDEATHSIG_CTL, &signal);
#endif
  if (getppid() != parent)
    _exit(127);
}

bool ipc_os_main_thread(void) { return false; }

int ipc_os_open_blocking(int fd) {
  (void)fd;
  return -1;
}

void ipc_os_life_forget(void) {}
void ipc_os_life_prepare(void) {}

/* A program that is not ours cannot be made to follow. */
int ipc_os_life(bool lua, OsLife *l) {
  int fd[2];
  if (!lua)
    return 0;
  int err = ipc_os_pipe(fd, false);
  if (err)
    return err;
  err = ipc_os_fork_close(fd[1]);
  if (err) {
    close(fd[0]);
    close(fd[1]);
    return err;
  }
  *l = (OsLife){.reader = fd[0], .writer = fd[1], .kept = true};
  return 0;
}

int ipc_os_follow(const OsLife *l, pid_t whom, int least, int *fd) {
  (void)l, (void)whom, (void)least, (void)fd;
  return 0;
}

static int child_life;

/* Sleeps until the pipe's other end is gone, with the process that held it. */
static void *child_watch(void *argument) {
  struct pollfd p = {child_life, POLLIN, 0};
  (void)argument;
  while (poll(&p, 1, -1) < 0)
    continue;
  (void)kill(getpgrp() == getpid() ? 0 : getpid(), SIGKILL);
  return NULL;
}

int ipc_os_adopt(int from) {
  struct stat st;
  int flags = fcntl(from, F_GETFL);
  if (flags < 0 || (flags & O_ACCMODE) != O_RDONLY || fstat(from, &st) ||
      !S_ISFIFO(st.st_mode))
    return 0; /* by another system's half */
  (void)fcntl(from, F_SETFD, FD_CLOEXEC);
  child_life = from;
  sigset_t all, before;
  pthread_t thread;
  sigfillset(&all);
  int err = pthread_sigmask(SIG_SETMASK, &all, &before);
  if (!err)
    err = pthread_create(&thread, NULL, child_watch, NULL);
  (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
  return err ? err : pthread_detach(thread);
}

void ipc_os_close_on_exec(int from) {
  enum { MOST = 1 << 16 }; /* where there is no limit */
  struct rlimit r;
  int most = getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur < MOST
                 ? (int)r.rlim_cur
                 : MOST;
  for (int fd = from; fd < most; fd++)
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
}

int ipc_os_kill_group(pid_t pid, int fd, int signal, bool reaped) {
  (void)fd;
  if (reaped)
    return ENOTSUP;
  return kill(-pid, signal) ? errno : 0;
}

int ipc_os_past(int fd, int *status) {
  (void)fd, (void)status;
  return ENOTSUP;
}

#endif
