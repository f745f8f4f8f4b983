/* Starting programs: what happens between fork and exec. That part makes system
 * calls and nothing else: it may run in the memory of its parent. What systems
 * do differently is in os_child.c. No Lua. */
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

#ifdef __APPLE__
#include <crt_externs.h>
char **ipc_os_environment(void) { return *_NSGetEnviron(); }
#else
extern char **environ;
char **ipc_os_environment(void) { return environ; }
#endif

#if defined(__GLIBC__)
typedef __rlimit_resource_t SpawnResource;
#else
typedef int SpawnResource;
#endif

int ipc_os_resource(const char *name) {
  static const struct {
    const char *name;
    int resource;
  } all[] = {{"core", RLIMIT_CORE},       {"cpu", RLIMIT_CPU},
             {"data", RLIMIT_DATA},       {"fsize", RLIMIT_FSIZE},
             {"nofile", RLIMIT_NOFILE},
#ifdef RLIMIT_AS
             {"as", RLIMIT_AS},
#endif
#ifdef RLIMIT_NPROC
             {"nproc", RLIMIT_NPROC},
#endif
#ifdef RLIMIT_MEMLOCK
             {"memlock", RLIMIT_MEMLOCK},
#endif
             {"stack", RLIMIT_STACK}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    if (strcmp(all[i].name, name) == 0)
      return all[i].resource;
  return -1;
}

/* ------------------------------------------------------------- the child */

/* What the child says when it cannot go on. */
typedef struct Failure {
  int err, step, number;
} Failure;

/* What nohup(1) and shells make background jobs ignore stays so. */
static const int spawn_kept_signals[] = {SIGHUP, SIGINT, SIGQUIT};

enum { SPAWN_SIGNALS = sizeof spawn_kept_signals / sizeof(int) };

typedef struct Start {
  const OsSpawn *spawn;
  const OsLife *life;
  pid_t parent;
  bool main; /* the parent's first thread starts it */
  int keeps; /* descriptors from 3 on */
  int keep[OS_KEPT + 2];
  bool ignored[SPAWN_SIGNALS];
  int report;               /* a pipe for the failure; or -1: */
  volatile Failure failure; /* the memory is the parent's, too */
} Start;

_Noreturn static void spawn_fail(Start *s, int err, OsStep step, int number) {
  Failure f = {err, (int)step, number};
  if (s->report < 0) {
    s->failure.err = f.err;
    s->failure.step = f.step;
    s->failure.number = f.number;
  } else {
    while (write(s->report, &f, sizeof f) < 0 && errno == EINTR)
      continue;
  }
  _exit(127);
}

/* fd becomes `number`, without close-on-exec. */
static int spawn_become(int fd, int number) {
  if (fd != number)
    return dup2(fd, number) < 0 ? errno : 0;
  return fcntl(fd, F_SETFD, 0) < 0 ? errno : 0;
}

/* The file of a path becomes `number`. Never waits for who opens the other end
 * of a FIFO. */
static int spawn_open(const char *path, int flags, int number) {
  int fd = open(path, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0666);
  if (fd < 0)
    return errno;
  int now = fcntl(fd, F_GETFL);
  if (now >= 0)
    (void)fcntl(fd, F_SETFL, now & ~O_NONBLOCK);
  int err = spawn_become(fd, number);
  if (fd != number)
    close(fd);
  return err;
}

/* What programs read and write blocks; our own end of it may be shared with
 * others, who rely on that it does not. */
static int spawn_blocking(int fd, int number) {
  int again = ipc_os_open_blocking(fd);
  int err = spawn_become(again >= 0 ? again : fd, number);
  if (again >= 0) {
    close(again);
    return err;
  }
  int flags = fcntl(fd, F_GETFL);
  if (!err && flags >= 0 && (flags & O_NONBLOCK))
    (void)fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
  return err;
}

static int spawn_stream(const OsStream *o, int fd, int number) {
  if (fd == OS_FILE)
    return spawn_open(o->path, o->flags, number);
  if (fd == OS_STDOUT)
    return dup2(1, number) < 0 ? errno : 0;
  if (fd == OS_INHERIT) {
    /* Closed, or open for something else because it was closed. */
    int flags = fcntl(number, F_GETFD);
    if (flags < 0 || (flags & FD_CLOEXEC))
      return spawn_open("/dev/null", number == 0 ? O_RDONLY : O_WRONLY, number);
    return 0;
  }
  return o->blocking ? spawn_blocking(fd, number) : spawn_become(fd, number);
}

/* Where standard descriptors were closed, others have their numbers. */
static void spawn_clear(Start *s, OsLife *life) {
  int *all[OS_KEPT + 4] = {&life->reader, &life->writer};
  for (int i = 0; i < s->keeps; i++)
    all[2 + i] = &s->keep[i];
  for (int i = 0; i < s->keeps + 2; i++) {
    if (*all[i] < 0 || *all[i] > 2)
      continue;
    *all[i] = fcntl(*all[i], F_DUPFD_CLOEXEC, 3);
    if (*all[i] < 0)
      spawn_fail(s, errno, OS_STEP_KEEP, 0);
  }
}

/* Those that stand where another belongs make room first. */
static void spawn_streams(Start *s) {
  const OsSpawn *o = s->spawn;
  int fd[3];
  for (int i = 0; i < 3; i++) {
    fd[i] = o->stream[i].fd;
    if (fd[i] < 0 || fd[i] > 2 || fd[i] == i)
      continue;
    fd[i] = fcntl(fd[i], F_DUPFD_CLOEXEC, 3);
    if (fd[i] < 0)
      spawn_fail(s, errno, OS_STEP_STREAM, i);
  }
  for (int i = 0; i < 3; i++) {
    int err = spawn_stream(&o->stream[i], fd[i], i);
    if (err)
      spawn_fail(s, err, OS_STEP_STREAM, i);
  }
}

/* keep[i] becomes 3 + i. One that stands where another belongs makes room. */
static int spawn_keep(Start *s) {
  for (int i = 0; i < s->keeps; i++) {
    int number = 3 + i;
    if (s->keep[i] < 0)
      continue;
    for (int k = i + 1; k < s->keeps; k++) {
      if (s->keep[k] != number)
        continue;
      s->keep[k] = fcntl(number, F_DUPFD_CLOEXEC, number + 1);
      if (s->keep[k] < 0)
        return errno;
    }
    int err = spawn_become(s->keep[i], number);
    if (err)
      return err;
  }
  return 0;
}

/* All others are as in a new session, handled or ignored by us. */
static void spawn_signals(const Start *s) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = SIG_DFL;
  for (int n = 1; n < NSIG; n++)
    if (n != SIGKILL && n != SIGSTOP)
      (void)sigaction(n, &action, NULL);
  action.sa_handler = SIG_IGN;
  for (int i = 0; i < SPAWN_SIGNALS; i++)
    if (s->ignored[i])
      (void)sigaction(spawn_kept_signals[i], &action, NULL);
  ipc_os_unblock();
}

static void spawn_limits(Start *s) {
  const OsSpawn *o = s->spawn;
  for (size_t i = 0; i < o->limit_count; i++) {
    const OsResource *want = &o->limits[i];
    struct rlimit r;
    r.rlim_cur = want->soft == UINT64_MAX ? RLIM_INFINITY : (rlim_t)want->soft;
    r.rlim_max = want->hard == UINT64_MAX ? RLIM_INFINITY : (rlim_t)want->hard;
    if (setrlimit((SpawnResource)want->resource, &r))
      spawn_fail(s, errno, OS_STEP_LIMIT, (int)i);
  }
  if (o->nice) {
    errno = 0;
    if (nice(o->nice) == -1 && errno)
      spawn_fail(s, errno, OS_STEP_NICE, 0);
  }
}

/* As execvp(3) searches, but no shell runs what is no program. */
_Noreturn static void spawn_program(Start *s) {
  const OsSpawn *o = s->spawn;
  int err = ENOENT, seen = 0;
  for (size_t i = 0; o->paths[i]; i++) {
    (void)execve(o->paths[i], o->argv, o->envp);
    err = errno;
    if (err == EACCES)
      seen = err;
    else if (err != ENOENT && err != ENOTDIR)
      spawn_fail(s, err, OS_STEP_PROGRAM, 0);
  }
  spawn_fail(s, seen ? seen : err, OS_STEP_PROGRAM, 0);
}

static int spawn_child(void *argument) {
  Start *s = argument;
  const OsSpawn *o = s->spawn;
  OsLife life = *s->life;
  int err = 0, follows = -1;
  if (o->drop >= 0)
    close(o->drop);
  if (o->group == OS_GROUP_SESSION)
    err = setsid() < 0 ? errno : 0;
  else if (o->group == OS_GROUP_OWN)
    err = setpgid(0, 0) ? errno : 0;
  if (err)
    spawn_fail(s, err, OS_STEP_GROUP, 0);
  if (o->group != OS_GROUP_SESSION)
    ipc_os_die_with(s->parent, s->main);
  spawn_clear(s, &life);
  spawn_streams(s);
  ipc_os_close_on_exec(3);
  if (o->group != OS_GROUP_SESSION && !life.kept) {
    pid_t self = getpid();
    err = ipc_os_follow(&life, o->group == OS_GROUP_OWN ? -self : self,
                        3 + s->keeps, &follows);
    if (err)
      spawn_fail(s, err, OS_STEP_FOLLOW, 0);
  }
  err = spawn_keep(s);
  if (err)
    spawn_fail(s, err, OS_STEP_KEEP, 0);
  if (o->cwd && chdir(o->cwd))
    spawn_fail(s, errno, OS_STEP_DIRECTORY, 0);
  spawn_limits(s);
  spawn_signals(s);
  spawn_program(s);
}

static void spawn_nothing(int signal) { (void)signal; }

void ipc_os_leave_interrupt(void) {
  struct sigaction action;
  if (ipc_os_signals_ignored(SIGINT))
    return;
  memset(&action, 0, sizeof action);
  action.sa_handler = spawn_nothing;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  (void)sigaction(SIGINT, &action, NULL);
}

/* ------------------------------------------------------------ the parent */

/* Until the pipe ends, which is when the program runs. */
static void spawn_read(int fd, Failure *f) {
  char *at = (char *)f;
  size_t got = 0;
  while (got < sizeof *f) {
    ssize_t n = read(fd, at + got, sizeof *f - got);
    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      break;
    got += (size_t)n;
  }
  if (got < sizeof *f)
    f->err = 0;
}

/* A copy of this process for the steps, and a pipe that tells how they went. */
static int spawn_fork(Start *s, pid_t *pid) {
  int fd[2];
  sigset_t all, before;
  int err = ipc_os_pipe(fd, false);
  if (err)
    return err;
  /* Out of the way of what the child puts in place. */
  int high = fcntl(fd[1], F_DUPFD_CLOEXEC, 3 + s->keeps);
  if (high >= 0) {
    close(fd[1]);
    fd[1] = high;
  }
  bool made = high >= 0 && fcntl(fd[0], F_SETFL, 0) == 0 &&
              fcntl(fd[1], F_SETFL, 0) == 0;
  err = made ? 0 : errno;
  sigfillset(&all);
  (void)pthread_sigmask(SIG_SETMASK, &all, &before);
  *pid = made ? fork() : -1;
  if (made && *pid < 0)
    err = errno;
  if (*pid == 0) {
    s->report = fd[1];
    close(fd[0]);
    (void)spawn_child(s);
  }
  (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
  close(fd[1]);
  if (!err) {
    Failure f = {0, 0, 0};
    spawn_read(fd[0], &f);
    s->failure.err = f.err;
    s->failure.step = f.step;
    s->failure.number = f.number;
  }
  close(fd[0]);
  return err;
}

static void spawn_bury(pid_t pid) {
  while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
    continue;
}

/* The descriptor on its end, where it was not born with one. */
static int spawn_watch(OsBorn *b) {
  if (b->ended >= 0 || !ipc_os_watches_processes())
    return 0;
  b->ended = ipc_os_process(b->pid);
  if (b->ended >= 0 || errno == ESRCH) /* ended, and SIGCHLD is ignored */
    return 0;
  int err = errno;
  (void)kill(b->pid, SIGKILL);
  spawn_bury(b->pid);
  return err;
}

static int spawn_begin(Start *s, OsBorn *b) {
  int err = ENOTSUP;
  if (ipc_os_shares())
    err = ipc_os_share(spawn_child, s, &b->pid, &b->ended);
  if (err == ENOTSUP) {
    bool shared = s->life->reader < 0 && s->life->writer >= 0;
    if (shared) /* the child finds the pipe by it, until it becomes another */
      ipc_os_fork_keep(s->life->writer, true);
    err = spawn_fork(s, &b->pid);
    if (shared)
      ipc_os_fork_keep(s->life->writer, false);
  }
  if (err)
    return err;
  if (s->failure.err) {
    spawn_bury(b->pid);
    if (b->ended >= 0)
      close(b->ended);
    b->ended = -1;
    b->step = (OsStep)s->failure.step;
    b->number = s->failure.number;
    return s->failure.err;
  }
  return spawn_watch(b);
}

int ipc_os_spawn(const OsSpawn *o, OsBorn *b) {
  OsLife life = {-1, -1, false};
  Start s = {.spawn = o, .life = &life, .report = -1};
  *b = (OsBorn){.pid = -1, .ended = -1, .life = -1};
  s.parent = getpid();
  s.main = ipc_os_main_thread();
  for (int i = 0; i < OS_KEPT; i++) {
    s.keep[i] = o->keep[i];
    if (o->keep[i] >= 0)
      s.keeps = i + 1;
  }
  for (int i = 0; i < SPAWN_SIGNALS; i++)
    s.ignored[i] = ipc_os_signals_ignored(spawn_kept_signals[i]);
  int err = 0;
  if (o->group != OS_GROUP_SESSION)
    err = ipc_os_life(o->lua, &life);
  if (err) {
    b->step = OS_STEP_FOLLOW;
    return err;
  }
  if (life.kept)
    s.keep[s.keeps++] = life.reader;
  err = spawn_begin(&s, b);
  if (life.reader >= 0) {
    close(life.reader);
    b->life = life.writer;
  }
  if (err && b->life >= 0) {
    ipc_os_fork_forget(b->life);
    close(b->life);
    b->life = -1;
  }
  return err;
}
