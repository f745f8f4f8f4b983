/* For spec/storm: a debugger. A victim is a fork(2) of the script itself that
 * stops before what is to be looked at; it is then followed instruction by
 * instruction, killed before any one of them, or lied to by one system call.
 * Its addresses are ours, so we read its code here. Linux on x86_64; elsewhere
 * it is false. */
#define _GNU_SOURCE

#if defined(__linux__) && defined(__x86_64__)
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <lauxlib.h>
#include <lua.h>

enum {
  PATIENCE = 20,        /* s that a victim may take to its next stop */
  WATCHED = 64 << 10,   /* bytes of the memory that are compared */
  PLACES = 1 << 18,     /* different instructions of one walk, at the most */
  BREAKPOINT = 0xcc,    /* int3 */
  SYSTEM_CALL = 0x050f, /* syscall */
  BAD_CALL = -1
};

/* ----------------------------------------------------------------- victims */

/* Stops here, once when ready and once when done. */
static void __attribute__((noinline)) step_mark(void) {
  __asm__ volatile("int3" ::: "memory");
}

static void victim_failed(lua_State *L) {
  fprintf(stderr, "victim: %s\n", lua_tostring(L, -1));
  abort();
}

/* fork(prepare, act) -> pid: a child that will call act(prepare()); stopped
 * before either. */
static int step_fork(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  luaL_checktype(L, 2, LUA_TFUNCTION);
  lua_settop(L, 2);
  fflush(NULL);
  pid_t pid = fork();
  if (pid < 0)
    return luaL_error(L, "fork: %s", strerror(errno));
  if (pid == 0) {
    ptrace(PTRACE_TRACEME, 0, NULL, NULL);
    raise(SIGSTOP);
    lua_pushvalue(L, 2);
    lua_pushvalue(L, 1);
    if (lua_pcall(L, 0, LUA_MULTRET, 0))
      victim_failed(L);
    step_mark();
    if (lua_pcall(L, lua_gettop(L) - 3, 0, 0))
      victim_failed(L);
    step_mark();
    _exit(0);
  }
  int status;
  if (waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status))
    return luaL_error(L, "the victim did not stop");
  ptrace(PTRACE_SETOPTIONS, pid, NULL, PTRACE_O_EXITKILL);
  lua_pushinteger(L, pid);
  return 1;
}

static uintptr_t victim_at(pid_t pid) {
  return (uintptr_t)ptrace(PTRACE_PEEKUSER, pid,
                           offsetof(struct user_regs_struct, rip), NULL);
}

static void victim_set(pid_t pid, size_t field, uintptr_t value) {
  ptrace(PTRACE_POKEUSER, pid, field, value);
}

static void too_long(int number) { (void)number; }

/* Goes on until the next stop: 0: a trap; else why it will have no more. */
static const char *victim_go(pid_t pid, enum __ptrace_request request) {
  static char why[64];
  int status, pass = 0;
  for (;;) {
    ptrace(request, pid, NULL, pass);
    if (request != PTRACE_SINGLESTEP)
      alarm(PATIENCE);
    pid_t got = waitpid(pid, &status, 0);
    if (request != PTRACE_SINGLESTEP)
      alarm(0);
    if (got != pid)
      return "hangs";
    if (!WIFSTOPPED(status)) {
      snprintf(why, sizeof why, "ended by status %#x", (unsigned)status);
      return why;
    }
    if ((WSTOPSIG(status) & 0x7f) == SIGTRAP)
      return NULL;
    pass = WSTOPSIG(status) == SIGSTOP ? 0 : WSTOPSIG(status);
  }
}

/* ready(pid): runs prepare. */
static int step_ready(lua_State *L) {
  const char *why = victim_go((pid_t)luaL_checkinteger(L, 1), PTRACE_CONT);
  if (why)
    return luaL_error(L, "before it was ready, the victim %s", why);
  return 0;
}

/* kill(pid): and what it had is the system's again. */
static int step_kill(lua_State *L) {
  pid_t pid = (pid_t)luaL_checkinteger(L, 1);
  int status;
  kill(pid, SIGKILL);
  while (waitpid(pid, &status, 0) == pid && WIFSTOPPED(status))
    continue;
  return 0;
}

/* ------------------------------------------------------ what others see */

/* The memory that the victim shares under a name, and how it was. */
typedef struct Watch {
  const char *path;
  unsigned char *now;
  size_t size;
  ino_t inode;
  unsigned char before[WATCHED];
} Watch;

/* After a system call the name may be another file's. */
static void watch_look(Watch *w) {
  struct stat is;
  if (stat(w->path, &is) || is.st_size == 0 || is.st_ino == w->inode)
    return;
  if (w->now)
    munmap(w->now, w->size);
  w->now = NULL;
  int fd = open(w->path, O_RDONLY | O_CLOEXEC);
  size_t size = is.st_size < WATCHED ? (size_t)is.st_size : WATCHED;
  void *at =
      fd < 0 ? MAP_FAILED : mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
  close(fd);
  if (at == MAP_FAILED)
    return;
  w->now = at;
  w->size = size;
  w->inode = is.st_ino;
  memcpy(w->before, at, size);
}

static bool watch_changed(Watch *w) {
  if (!w->now || memcmp(w->now, w->before, w->size) == 0)
    return false;
  memcpy(w->before, w->now, w->size);
  return true;
}

static uint32_t watch_word(const Watch *w, size_t at) {
  uint32_t word = 0;
  if (w->now && at + sizeof word <= w->size)
    memcpy(&word, w->now + at, sizeof word);
  return word;
}

/* ------------------------------------------------------------------- walks */

typedef struct Place {
  uintptr_t at;
  uint32_t hits;
} Place;

static uint32_t place_hit(Place *places, uintptr_t at) {
  size_t i = (at * UINT64_C(0x9e3779b97f4a7c15)) >> 46; /* 18 bits */
  while (places[i].at && places[i].at != at)
    i = (i + 1) % PLACES;
  places[i].at = at;
  return ++places[i].hits;
}

/* Where the core's code is mapped. */
static void core_text(uintptr_t *from, uintptr_t *to) {
  char line[512];
  FILE *f = fopen("/proc/self/maps", "re");
  *from = *to = 0;
  while (f && fgets(line, sizeof line, f)) {
    unsigned long low, high;
    if (strstr(line, "/core.so") && strstr(line, "r-xp") &&
        sscanf(line, "%lx-%lx", &low, &high) == 2) {
      *from = low;
      *to = high;
    }
  }
  if (f)
    fclose(f);
}

static void point_push(lua_State *L, uintptr_t at, uint32_t hit, const Watch *w,
                       size_t word) {
  lua_createtable(L, 0, 7);
  lua_pushinteger(L, (lua_Integer)at);
  lua_setfield(L, -2, "at");
  lua_pushinteger(L, hit);
  lua_setfield(L, -2, "hit");
  lua_pushinteger(L, watch_word(w, 256));
  lua_setfield(L, -2, "sending"); /* the lock, see segment.h */
  lua_pushinteger(L, watch_word(w, 384));
  lua_setfield(L, -2, "receiving");
  lua_pushinteger(L, watch_word(w, word));
  lua_setfield(L, -2, "word");
}

/* walk(pid, path [, word]) -> points, steps: every instruction between the
 * marks before which a kill is a kill of its own: {at, hit, changed: something
 * that others see is not as it was at the point before, core: in the core's
 * code, sending, receiving: the locks, word: what is at that offset, call: the
 * number of the system call just made}. */
static int step_walk(lua_State *L) {
  pid_t pid = (pid_t)luaL_checkinteger(L, 1);
  static Place places[PLACES];
  static Watch watch;
  size_t word = (size_t)luaL_optinteger(L, 3, 0);
  memset(places, 0, sizeof places);
  watch = (Watch){.path = luaL_checkstring(L, 2)};
  watch_look(&watch);
  uintptr_t from, to;
  core_text(&from, &to);
  lua_newtable(L);
  bool changed = true, end = false;
  long call = BAD_CALL;
  lua_Integer steps = 0, n = 0;
  for (; !end; steps++) {
    uintptr_t at = victim_at(pid);
    const unsigned char *code = (const unsigned char *)at;
    uint32_t hit = place_hit(places, at);
    end = *code == BREAKPOINT;
    bool core = at >= from && at < to;
    if (changed || core || end) {
      point_push(L, at, hit, &watch, word);
      lua_pushboolean(L, changed || end);
      lua_setfield(L, -2, "changed");
      lua_pushboolean(L, core);
      lua_setfield(L, -2, "core");
      if (call != BAD_CALL)
        lua_pushinteger(L, call), lua_setfield(L, -2, "call");
      lua_rawseti(L, -2, ++n);
    }
    if (end)
      break;
    call = BAD_CALL;
    if (code[0] == (SYSTEM_CALL & 0xff) && code[1] == SYSTEM_CALL >> 8)
      call = ptrace(PTRACE_PEEKUSER, pid,
                    offsetof(struct user_regs_struct, rax), NULL);
    if (steps % 4096 == 0)
      alarm(PATIENCE);
    const char *why = victim_go(pid, PTRACE_SINGLESTEP);
    if (why)
      return luaL_error(L, "on a walk, the victim %s", why);
    if (call != BAD_CALL)
      watch_look(&watch);
    changed = watch_changed(&watch) || call != BAD_CALL;
  }
  alarm(0);
  if (watch.now)
    munmap(watch.now, watch.size);
  lua_pushinteger(L, steps);
  return 2;
}

/* reach(pid, at, hit) -> true: it is before that instruction for the hit-th
 * time; false: it came to the end without; nil, why: neither. */
static int step_reach(lua_State *L) {
  pid_t pid = (pid_t)luaL_checkinteger(L, 1);
  uintptr_t at = (uintptr_t)luaL_checkinteger(L, 2);
  lua_Integer hit = luaL_checkinteger(L, 3);
  const size_t rip = offsetof(struct user_regs_struct, rip);
  uintptr_t code, with;
  const char *why = NULL;
  memcpy(&code, (const void *)at, sizeof code);
  with = (code & ~(uintptr_t)0xff) | BREAKPOINT;
  while (hit > 0 && !why) {
    ptrace(PTRACE_POKETEXT, pid, at, with);
    why = victim_go(pid, PTRACE_CONT);
    if (why || victim_at(pid) != at + 1)
      break;
    if ((code & 0xff) == BREAKPOINT)
      break; /* the end itself */
    victim_set(pid, rip, at);
    ptrace(PTRACE_POKETEXT, pid, at, code);
    if (--hit == 0)
      break;
    why = victim_go(pid, PTRACE_SINGLESTEP);
  }
  if (why) {
    lua_pushnil(L);
    lua_pushstring(L, why);
    return 2;
  }
  lua_pushboolean(L, hit == 0);
  return 1;
}

/* ------------------------------------------------ system calls that fail */

/* Whether it is one that the C library makes for its own locks, which end the
 * program when they are answered anything new. */
static bool call_is_private(pid_t pid, long call) {
  enum { WAIT = 0, WAKE = 1 }; /* futex(2), between processes */
  long operation = ptrace(PTRACE_PEEKUSER, pid,
                          offsetof(struct user_regs_struct, rsi), NULL);
  return call == SYS_futex && operation != WAIT && operation != WAKE;
}

/* fail(pid, n, errno) -> the number of the n-th system call after the mark,
 * which failed instead of being made; nil: there are not so many. Then
 * `finish`.
 */
static int step_fail(lua_State *L) {
  pid_t pid = (pid_t)luaL_checkinteger(L, 1);
  lua_Integer n = luaL_checkinteger(L, 2), err = luaL_checkinteger(L, 3);
  const size_t orig = offsetof(struct user_regs_struct, orig_rax);
  ptrace(PTRACE_SETOPTIONS, pid, NULL,
         PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD);
  for (lua_Integer i = 1;; i++) {
    siginfo_t info;
    const char *why = victim_go(pid, PTRACE_SYSCALL);
    if (why)
      return luaL_error(L, "on its way to a system call, the victim %s", why);
    if (ptrace(PTRACE_GETSIGINFO, pid, NULL, &info) == 0 &&
        info.si_code != (SIGTRAP | 0x80))
      return 0; /* the mark */
    long call = ptrace(PTRACE_PEEKUSER, pid, orig, NULL);
    bool private = call_is_private(pid, call);
    i -= private;
    if (!private && i == n)
      victim_set(pid, orig, (uintptr_t)BAD_CALL);
    why = victim_go(pid, PTRACE_SYSCALL);
    if (why)
      return luaL_error(L, "in system call %d, the victim %s", (int)call, why);
    if (private || i < n)
      continue;
    victim_set(pid, offsetof(struct user_regs_struct, rax), (uintptr_t)-err);
    lua_pushinteger(L, call);
    return 1;
  }
}

/* finish(pid) -> true: it is at the end mark; nil, why: it never comes. */
static int step_finish(lua_State *L) {
  const char *why = victim_go((pid_t)luaL_checkinteger(L, 1), PTRACE_CONT);
  lua_pushboolean(L, !why);
  lua_pushstring(L, why ? why : "is done");
  return 2;
}

/* -------------------------------------------------------------------- others
 */

/* link(path) -> what a symbolic link says, or nil. */
static int step_link(lua_State *L) {
  char to[4096];
  ssize_t n = readlink(luaL_checkstring(L, 1), to, sizeof to);
  if (n < 0)
    return 0;
  lua_pushlstring(L, to, (size_t)n);
  return 1;
}

/* list(directory) -> the names in it. */
static int step_list(lua_State *L) {
  DIR *d = opendir(luaL_checkstring(L, 1));
  const struct dirent *e;
  lua_newtable(L);
  for (int i = 1; d && (e = readdir(d)) != NULL; i++) {
    lua_pushstring(L, e->d_name);
    lua_rawseti(L, -2, i);
  }
  if (d)
    closedir(d);
  return 1;
}

/* setenv(name, value or nil) */
static int step_setenv(lua_State *L) {
  const char *name = luaL_checkstring(L, 1);
  if (lua_isnoneornil(L, 2))
    unsetenv(name);
  else
    setenv(name, luaL_checkstring(L, 2), 1);
  return 0;
}

/* core() -> where the core's code begins, and its file: for addr2line(1). */
static int step_core(lua_State *L) {
  uintptr_t from, to;
  Dl_info info;
  core_text(&from, &to);
  if (!from || !dladdr((const void *)from, &info)) // NOLINT
    return 0;
  lua_pushinteger(L, (lua_Integer)(uintptr_t)info.dli_fbase);
  lua_pushstring(L, info.dli_fname);
  return 2;
}

int luaopen_step(lua_State *L);
int luaopen_step(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"fork", step_fork},     {"ready", step_ready}, {"kill", step_kill},
      {"walk", step_walk},     {"reach", step_reach}, {"fail", step_fail},
      {"finish", step_finish}, {"link", step_link},   {"setenv", step_setenv},
      {"core", step_core},     {"list", step_list},   {NULL, NULL}};
  struct sigaction action = {.sa_handler = too_long};
  sigaction(SIGALRM, &action, NULL);
  /* On one core: of us and the victim only one runs, and the change is quick.
   */
  cpu_set_t core;
  CPU_ZERO(&core);
  CPU_SET((size_t)sched_getcpu(), &core);
  sched_setaffinity(0, sizeof core, &core);
  luaL_newlib(L, functions);
  return 1;
}
#else
#include <lua.h>

int luaopen_step(lua_State *L);
int luaopen_step(lua_State *L) {
  lua_pushboolean(L, 0);
  return 1;
}
#endif
