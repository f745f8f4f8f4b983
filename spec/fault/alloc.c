/* Preloaded into a Lua, whose module it also is: runs a scenario again and
 * again, each time in a fresh state, with the first, the second, the third ...
 * allocation or system call failing, until it is through without meeting the
 * failure; and looks after each run whether everything is as before.
 *
 * What fails is only what the scenario does inside of `try`, and of C memory
 * and system calls only what the library asks for. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

#include "caller.h"

enum { LUA_MEMORY, C_MEMORY, MAKES, MOVES }; /* what fails */

static struct {
  int what;
  long times; /* how many in a row */
  int error;  /* what a system call fails with */
  bool child; /* in the forked child instead of here */
  bool gone;  /* this is the forked child */
  bool armed;
  size_t held; /* bytes of Lua memory */
} plan;

/* What survives the process that runs, and what its children change. */
static struct Shared {
  long n, seen, hits, runs, runs_hit;
  char text[2000];
} * shared;

static bool strike(int what) {
  if (!plan.armed || plan.what != what)
    return false;
  long at = ++shared->seen;
  if (at < shared->n || at - shared->n >= plan.times)
    return false;
  shared->hits++;
  return true;
}

/* --------------------------------------------------------------- C memory */

void *__libc_malloc(size_t size);
void *__libc_realloc(void *block, size_t size);
void __libc_free(void *block);

/* The library's live blocks: there are never many. */
static struct Block {
  void *at;
  size_t size;
} blocks[1024];
static size_t blocks_used;

static void block_enter(void *at, size_t size) {
  if (at && blocks_used < sizeof blocks / sizeof *blocks)
    blocks[blocks_used++] = (struct Block){at, size};
}

static void block_leave(const void *at) {
  for (size_t i = blocks_used; at && i-- > 0;)
    if (blocks[i].at == at) {
      blocks[i] = blocks[--blocks_used];
      return;
    }
}

static size_t blocks_bytes(void) {
  size_t bytes = 0;
  for (size_t i = 0; i < blocks_used; i++)
    bytes += blocks[i].size;
  return bytes;
}

void *malloc(size_t size) {
  if (!shared || !FROM_CORE)
    return __libc_malloc(size);
  if (strike(C_MEMORY)) {
    errno = ENOMEM;
    return NULL;
  }
  void *block = __libc_malloc(size);
  block_enter(block, size);
  return block;
}

void *realloc(void *block, size_t size) {
  if (!shared || !FROM_CORE)
    return __libc_realloc(block, size);
  if (strike(C_MEMORY)) {
    errno = ENOMEM;
    return NULL;
  }
  void *larger = __libc_realloc(block, size);
  if (larger) {
    block_leave(block);
    block_enter(larger, size);
  }
  return larger;
}

void free(void *block) {
  if (shared)
    block_leave(block);
  __libc_free(block);
}

static void *lua_memory(void *context, void *block, size_t before,
                        size_t size) {
  (void)context;
  if (!block)
    before = 0;
  if (size == 0) {
    __libc_free(block);
    plan.held -= before;
    return NULL;
  }
  if (size > before && strike(LUA_MEMORY)) /* shrinking may not fail */
    return NULL;
  void *fresh = __libc_realloc(block, size);
  if (fresh)
    plan.held += size - before;
  return fresh;
}

/* ----------------------------------------------------------- system calls */

#define REAL(name)                                                             \
  static __typeof__(name) *real;                                               \
  if (!real)                                                                   \
  *(void **)&real = dlsym(RTLD_NEXT, #name)

static bool refuse(int what) {
  if (!strike(what))
    return false;
  errno = plan.error;
  return true;
}

int pipe2(int fd[2], int flags) {
  REAL(pipe2);
  return FROM_CORE && refuse(MAKES) ? -1 : real(fd, flags);
}

int socketpair(int family, int type, int protocol, int fd[2]) {
  REAL(socketpair);
  return FROM_CORE && refuse(MAKES) ? -1 : real(family, type, protocol, fd);
}

int socket(int family, int type, int protocol) {
  REAL(socket);
  return FROM_CORE && refuse(MAKES) ? -1 : real(family, type, protocol);
}

int accept4(int fd, __SOCKADDR_ARG from, socklen_t *restrict size, int flags) {
  REAL(accept4);
  return FROM_CORE && refuse(MAKES) ? -1 : real(fd, from, size, flags);
}

int memfd_create(const char *name, unsigned flags) {
  REAL(memfd_create);
  return FROM_CORE && refuse(MAKES) ? -1 : real(name, flags);
}

int mkstemp64(char *path) {
  REAL(mkstemp64);
  return FROM_CORE && refuse(MAKES) ? -1 : real(path);
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t size) {
  REAL(setsockopt);
  return FROM_CORE && refuse(MAKES) ? -1 : real(fd, level, name, value, size);
}

int getsockopt(int fd, int level, int name, void *restrict value,
               socklen_t *restrict size) {
  REAL(getsockopt);
  return FROM_CORE && refuse(MAKES) ? -1 : real(fd, level, name, value, size);
}

int fcntl64(int fd, int command, ...) {
  REAL(fcntl64);
  va_list args;
  va_start(args, command);
  long argument = va_arg(args, long);
  va_end(args);
  /* Locks that are only tried make nothing, and nothing interrupts them. */
  bool lock = command == F_OFD_SETLK || command == F_OFD_GETLK;
  return FROM_CORE && !lock && refuse(MAKES) ? -1 : real(fd, command, argument);
}

int open64(const char *path, int flags, ...) {
  REAL(open64);
  va_list args;
  va_start(args, flags);
  mode_t mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
  va_end(args);
  return FROM_CORE && refuse(MAKES) ? -1 : real(path, flags, mode);
}

int mkfifo(const char *path, mode_t mode) {
  REAL(mkfifo);
  return FROM_CORE && refuse(MAKES) ? -1 : real(path, mode);
}

pid_t fork(void) {
  REAL(fork);
  if (FROM_CORE && refuse(MAKES))
    return -1;
  pid_t pid = real();
  if (pid == 0 && shared) {
    plan.gone = true;
    plan.armed = plan.child;
    alarm(20); /* alarms are not inherited */
  }
  return pid;
}

int epoll_create1(int flags) {
  REAL(epoll_create1);
  return FROM_CORE && refuse(MAKES) ? -1 : real(flags);
}

/* Only what is new takes something. */
int epoll_ctl(int set, int call, int fd, struct epoll_event *event) {
  REAL(epoll_ctl);
  bool fails = FROM_CORE && call == EPOLL_CTL_ADD && refuse(MAKES);
  return fails ? -1 : real(set, call, fd, event);
}

int timerfd_create(clockid_t clock, int flags) {
  REAL(timerfd_create);
  return FROM_CORE && refuse(MAKES) ? -1 : real(clock, flags);
}

int timerfd_settime(int fd, int flags, const struct itimerspec *set,
                    struct itimerspec *before) {
  REAL(timerfd_settime);
  return FROM_CORE && refuse(MAKES) ? -1 : real(fd, flags, set, before);
}

/* To give a signal back takes nothing. */
int sigaction(int number, const struct sigaction *restrict set,
              struct sigaction *restrict before) {
  REAL(sigaction);
  bool fails = FROM_CORE && set && set->sa_handler != SIG_DFL && refuse(MAKES);
  return fails ? -1 : real(number, set, before);
}

int clone(int (*run)(void *), void *stack, int flags, void *argument, ...) {
  REAL(clone);
  va_list args;
  va_start(args, argument);
  void *parent = va_arg(args, void *);
  va_end(args);
  return FROM_CORE && refuse(MAKES) ? -1
                                    : real(run, stack, flags, argument, parent);
}

long syscall(long number, ...) {
  REAL(syscall);
  long a[6];
  va_list args;
  va_start(args, number);
  for (int i = 0; i < 6; i++)
    a[i] = va_arg(args, long);
  va_end(args);
  if (FROM_CORE && (number == SYS_pidfd_open     ? refuse(MAKES)
                    : number == SYS_pwritev2     ? refuse(MOVES)
                    : number == SYS_epoll_pwait2 ? refuse(MOVES)
                                                 : false))
    return -1;
  return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

ssize_t read(int fd, void *bytes, size_t size) {
  REAL(read);
  return FROM_CORE && refuse(MOVES) ? -1 : real(fd, bytes, size);
}

ssize_t pread64(int fd, void *bytes, size_t size, off64_t at) {
  REAL(pread64);
  return FROM_CORE && refuse(MOVES) ? -1 : real(fd, bytes, size, at);
}

ssize_t recv(int fd, void *bytes, size_t size, int flags) {
  REAL(recv);
  return FROM_CORE && refuse(MOVES) ? -1 : real(fd, bytes, size, flags);
}

ssize_t recvmsg(int fd, struct msghdr *m, int flags) {
  REAL(recvmsg);
  return FROM_CORE && refuse(MOVES) ? -1 : real(fd, m, flags);
}

ssize_t send(int fd, const void *bytes, size_t size, int flags) {
  REAL(send);
  return FROM_CORE && refuse(MOVES) ? -1 : real(fd, bytes, size, flags);
}

ssize_t sendmsg(int fd, const struct msghdr *m, int flags) {
  REAL(sendmsg);
  return FROM_CORE && refuse(MOVES) ? -1 : real(fd, m, flags);
}

ssize_t write(int fd, const void *bytes, size_t size) {
  REAL(write);
  return FROM_CORE && refuse(MOVES) ? -1 : real(fd, bytes, size);
}

ssize_t writev(int fd, const struct iovec *iov, int count) {
  REAL(writev);
  return FROM_CORE && refuse(MOVES) ? -1 : real(fd, iov, count);
}

int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout,
          const sigset_t *mask) {
  REAL(ppoll);
  return FROM_CORE && refuse(MOVES) ? -1 : real(fds, count, timeout, mask);
}

int epoll_wait(int set, struct epoll_event *events, int most, int timeout) {
  REAL(epoll_wait);
  return FROM_CORE && refuse(MOVES) ? -1 : real(set, events, most, timeout);
}

/* ---------------------------------------------------------------- one run */

/* try(f, ...): the only place where things fail. As pcall. */
static int run_try(lua_State *L) {
  luaL_checkany(L, 1);
  luaL_checkstack(L, LUA_MINSTACK, NULL);
  if (!plan.gone)
    plan.armed = !plan.child;
  int status = lua_pcall(L, lua_gettop(L) - 1, LUA_MULTRET, 0);
  if (!plan.gone)
    plan.armed = false;
  luaL_checkstack(L, LUA_MINSTACK, NULL);
  lua_pushboolean(L, status == LUA_OK);
  lua_insert(L, 1);
  return lua_gettop(L);
}

/* Whether failures happen in the child, and in this process now. */
static int run_child(lua_State *L) {
  lua_pushboolean(L, plan.child);
  return 1;
}

/* How many failures there were so far in this run. */
static int run_hits(lua_State *L) {
  lua_pushinteger(L, shared->hits);
  return 1;
}

static int run_traceback(lua_State *L) {
  luaL_traceback(L, L, luaL_tolstring(L, 1, NULL), 1);
  return 1;
}

static void run_note(const char *format, ...) {
  va_list args;
  if (shared->text[0])
    return;
  va_start(args, format);
  vsnprintf(shared->text, sizeof shared->text, format, args);
  va_end(args);
}

/* Whether Lua had no memory to call a finaliser: it never calls it again, and
 * what that would have let go stays. */
static bool unfinalised;

static void run_warned(void *context, const char *piece, int more) {
  static bool finaliser;
  (void)context, (void)more;
  if (strcmp(piece, "not enough memory") == 0)
    unfinalised = unfinalised || finaliser;
  finaliser = strncmp(piece, "__gc", 4) == 0 || (finaliser && piece[0] == ' ');
}

/* Runs the scenario in a new state. */
static void run_script(const char *prelude, const char *script, bool failing) {
  plan.held = 0;
  lua_State *L = lua_newstate(lua_memory, NULL);
  lua_setwarnf(L, run_warned, NULL);
  luaL_openlibs(L);
  lua_pushcfunction(L, run_traceback);
  if (luaL_loadfile(L, script) || luaL_loadfile(L, prelude)) {
    run_note("%s", lua_tostring(L, -1));
  } else {
    lua_pushcfunction(L, run_try);
    lua_pushcfunction(L, run_child);
    lua_pushcfunction(L, run_hits);
    lua_pushinteger(L, plan.what < MAKES ? ENOMEM : plan.error);
    lua_pushboolean(L, plan.what >= MAKES && plan.error == EINTR);
    lua_call(L, 5, 1);
    if (lua_pcall(L, 1, 0, 1))
      run_note("%s", lua_tostring(L, -1));
  }
  /* Nothing gets better when the state is closed. */
  plan.armed = failing && !plan.child && plan.times == LONG_MAX;
  lua_close(L);
  plan.armed = false;
  if (plan.held)
    run_note("%zu bytes of Lua's memory left", plan.held);
}

static bool children(void) {
  siginfo_t info;
  return waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0;
}

/* Children that a dropped handle left are reaped by the next fork. */
static void run_sweep(const char *prelude, const char *sweep) {
  for (int i = 0; i < 500 && children(); i++) {
    run_script(prelude, sweep, false);
    usleep(i < 10 ? 500 : 10000);
  }
  if (!children())
    return;
  /* Without memory to note it, an orphan stays a zombie until the end. */
  if (plan.what != C_MEMORY)
    run_note("a child is left");
  while (waitpid(-1, NULL, 0) > 0)
    continue;
}

enum { DESCRIPTORS = 256 };

static void run_descriptors(char open[DESCRIPTORS]) {
  REAL(fcntl64);
  for (int fd = 0; fd < DESCRIPTORS; fd++)
    open[fd] = real(fd, F_GETFD) >= 0;
}

static void run_checked(const char *prelude, const char *script,
                        const char *sweep) {
  char before[DESCRIPTORS], after[DESCRIPTORS], path[40], to[200];
  size_t bytes = blocks_bytes();
  run_descriptors(before);
  alarm(30);
  shared->seen = shared->hits = 0;
  unfinalised = false;
  run_script(prelude, script, true);
  long hits = shared->hits;
  run_sweep(prelude, sweep);
  shared->hits = hits;
  alarm(0);
  run_descriptors(after);
  for (int fd = 0; fd < DESCRIPTORS; fd++) {
    if (before[fd] == after[fd])
      continue;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(path, to, sizeof to - 1);
    to[n > 0 ? n : 0] = '\0';
    if (!after[fd] || !unfinalised)
      run_note("descriptor %d is %s: %s", fd, after[fd] ? "open" : "closed",
               to);
    if (after[fd])
      close(fd);
  }
  if (blocks_bytes() != bytes) {
    if (!unfinalised)
      run_note("%zd bytes of C memory left", (ssize_t)(blocks_bytes() - bytes));
    blocks_used = 0;
  }
  shared->runs++;
  shared->runs_hit += hits > 0;
}

/* batch(prelude, script, sweep, what, times, error, child, first, step)
 * -> through?, n, runs, runs that met a failure, failure text or nil.
 * A process of its own runs n = first, first + step, ... */
static int host_batch(lua_State *L) {
  static const char *const whats[] = {"lua", "malloc", "makes", "moves", NULL};
  const char *prelude = luaL_checkstring(L, 1);
  const char *script = luaL_checkstring(L, 2);
  const char *sweep = luaL_checkstring(L, 3);
  plan.what = luaL_checkoption(L, 4, NULL, whats);
  plan.times = (long)luaL_checkinteger(L, 5);
  if (plan.times == 0)
    plan.times = LONG_MAX;
  static const char *const names[] = {"ENOMEM", "EMFILE", "ENFILE", "EINTR",
                                      NULL};
  static const int numbers[] = {ENOMEM, EMFILE, ENFILE, EINTR};
  plan.error = numbers[luaL_checkoption(L, 6, NULL, names)];
  plan.child = lua_toboolean(L, 7);
  long first = (long)luaL_checkinteger(L, 8);
  long step = (long)luaL_checkinteger(L, 9);
  if (!shared)
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  memset(shared, 0, sizeof *shared);
  fflush(NULL);
  pid_t pid = fork();
  if (pid == 0) {
    plan.gone = plan.armed = false;
    bool child = plan.child;
    plan.child = false;
    run_script(prelude, sweep, false); /* makes what stays for good */
    plan.child = child;
    for (shared->n = first;; shared->n += step) {
      run_checked(prelude, script, sweep);
      if (shared->text[0])
        _exit(1);
      if (shared->hits == 0)
        _exit(0);
    }
  }
  int status = 0;
  waitpid(pid, &status, 0);
  if (WIFSIGNALED(status))
    run_note("%s, signal %d",
             WTERMSIG(status) == SIGALRM ? "it hung" : "it crashed",
             WTERMSIG(status));
  lua_pushboolean(L, WIFEXITED(status) && WEXITSTATUS(status) == 0);
  lua_pushinteger(L, shared->n);
  lua_pushinteger(L, shared->runs);
  lua_pushinteger(L, shared->runs_hit);
  if (!shared->text[0])
    return 4;
  lua_pushstring(L, shared->text);
  return 5;
}

int luaopen_alloc(lua_State *L);

int luaopen_alloc(lua_State *L) {
  lua_pushcfunction(L, host_batch);
  return 1;
}
