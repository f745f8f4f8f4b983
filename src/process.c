/* Processes: the handle on a child, be it a copy of this process (ipc.fork), a
 * program (ipc.exec) or a Lua of its own (ipc.spawn). It is the channel to the
 * child, and what the child's end is waited for on. */
#include "prefix.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "child.h"
#include "exec.h"
#include "fork.h"
#include "frame.h"
#include "ipc.h"
#include "life.h"
#include "os.h"
#include "passing.h"
#include "report.h"

/***
 * @submodule ipc
 */

/* User values beside those of all channels. */
enum {
  PROCESS_UV_CHILD = IPC_UV_WRITER + 1, /* the Child */
  PROCESS_UV_OUTCOME, /* reason, usage and results, once it has ended */
  PROCESS_UV_NAME,    /* of the program; else nil */
  PROCESS_UV_ERRORS,  /* its standard error, if that is a pipe */
  PROCESS_UV_EXIT,    /* the handle on its end */
  PROCESS_VALUES = PROCESS_UV_EXIT - IPC_UV_WRITER
};

enum { EXIT_UV_PROCESS = 2 /* behind what all handles may have */ };

/* A program's channel has two parts, as ipc.duplex has them, or less. */
typedef struct Process {
  Framed f;
  Child *child;
} Process;

/* The child's end alone. */
typedef struct Exit {
  Handle h;
  Child *child;
} Exit;

/* ------------------------------------------------------------ system half */

static const StreamOps process_stream = {.read = ipc_os_receive,
                                         .write = ipc_os_send,
                                         .shutdown = ipc_os_end_sending};

/* The part of a program's channel, or NULL. */
static Handle *process_part(const Handle *h, int want) {
  const Chan *c = (const Chan *)h;
  Chan *part = want == IPC_READ    ? c->reader
               : want == IPC_WRITE ? c->writer
                                   : NULL;
  return part && part != c ? &part->h : NULL;
}

static int process_descriptor(const Handle *h, int want) {
  const Handle *part = process_part(h, want);
  if (want == IPC_ENDED)
    return h->open ? ((const Process *)h)->child->ended : -1;
  if (part)
    return part->open ? part->ops->descriptor(part, want) : -1;
  return ipc_frame_descriptor(h, want);
}

static int process_ready(Handle *h, int want, bool ask_kernel) {
  Child *c = ((Process *)h)->child;
  Handle *part = process_part(h, want);
  if (want == IPC_ENDED)
    return c->reaped ? 0 : ask_kernel ? ipc_child_reap(c) : EAGAIN;
  if (part)
    return ipc_handle_usable(part) ? part->ops->ready(part, want, ask_kernel)
                                   : EPIPE;
  return ipc_frame_ready(h, want, ask_kernel);
}

/* When the program ends, init takes over; atexit holds ipc_os_lock. */
static void process_close(Handle *h, How how) {
  ipc_frame_close(h, how);
  ipc_child_drop(((Process *)h)->child,
                 how != IPC_EXIT && h->generation == ipc_generation);
}

static const HandleOps process_handle = {.type = "ipc.process",
                                         .descriptor = process_descriptor,
                                         .ready = process_ready,
                                         .close = process_close,
                                         .values = PROCESS_VALUES};

static int exit_descriptor(const Handle *h, int want) {
  (void)want;
  return ((const Exit *)h)->child->ended;
}

static int exit_ready(Handle *h, int want, bool ask_kernel) {
  Child *c = ((Exit *)h)->child;
  (void)want;
  return c->reaped ? 0 : ask_kernel ? ipc_child_reap(c) : EAGAIN;
}

static void exit_close(Handle *h, How how) {
  ipc_child_drop(((Exit *)h)->child,
                 how != IPC_EXIT && h->generation == ipc_generation);
}

static const HandleOps exit_handle = {.type = "ipc.exit",
                                      .descriptor = exit_descriptor,
                                      .ready = exit_ready,
                                      .close = exit_close,
                                      .interest = IPC_ENDED};

/* -------------------------------------------------------------- beginning */

static const char child_key; /* registry: the metatable of a Child */

/* Pushes a handle without a child; `mode` as of ipc_chan_new. */
static Process *process_new(lua_State *L, int mode) {
  Process *p = (Process *)ipc_frame_new(L, sizeof *p, &process_handle,
                                        &process_stream, mode);
  p->child = lua_newuserdatauv(L, sizeof *p->child, 0);
  *p->child = CHILD_NONE;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &child_key);
  lua_setmetatable(L, -2);
  lua_setiuservalue(L, -2, PROCESS_UV_CHILD);
  p->f.c.h.moves = false;
  return p;
}

/* The child is there; `socket` is the channel to it, or -1. */
static void process_open(Process *p, int socket, unsigned handles) {
  if (socket >= 0) {
    p->f.rfd = p->f.wfd = socket;
    p->f.handles = (uint8_t)handles;
    p->f.brings = p->f.c.passes = true;
    p->f.c.peer = (int)p->child->pid;
    p->f.c.spin[0].skip = 1; /* the child needs the core first */
  }
  p->child->handles = 1;
  p->child->generation = ipc_generation;
  ipc_handle_open(&p->f.c.h);
}

/***
Starts a copy of this process that calls `fn(...)` and ends; its channel to
this one is `ipc.parent` there.

Channels among the arguments and direct upvalues of `fn` move to the child:
they are closed here (`dup()` keeps one). Memories are shared; so is one of
which a view, a record or an array is among them. All others are closed in the
child. Standard output is flushed before; the child never returns into the
caller, and ends without running what the parent registered for its own end. It
goes on when the parent has gone: its `ipc.parent` says `closed` then.
Results, or the error with its traceback, are what `wait` answers.
@function fork
@tparam function fn
@param ... its arguments, shared as they are at the fork
@treturn process a channel to the child, with `wait`, `kill`, `stop`, `exited`,
`pid` and `reason`; or nil, message, errno: EAGAIN or ENOMEM of fork(2), EMFILE
@usage local child <close> = assert(ipc.fork(function(x) return x + 1 end, 41))
print(child:wait())  --> true  42
*/
static int process_fork(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  int n = lua_gettop(L);
  luaL_checkstack(L, 20, NULL);
  Process *p = process_new(L, IPC_READ | IPC_WRITE);
  Birth b = {.child = p->child};
  int err = ipc_fork_start(L, n, &b);
  if (err == EMFILE)
    return ipc_fail_limit(L, "ipc", "fork", err, b.failed, "RLIMIT_NOFILE");
  if (err)
    return ipc_fail(L, "ipc", "fork", err, b.failed);
  process_open(p, b.socket, PASSING_HANDLES);
  ipc_fork_move(L, n, &b);
  lua_settop(L, n + 1);
  return 1;
}

/* Makes the ends of pipes on top of the stack p's own. */
static void process_parts(lua_State *L, Process *p, const Exec *x) {
  Chan *c = &p->f.c;
  int self = lua_gettop(L);
  c->stream = true;
  for (int i = 0; i < 3; i++) {
    Chan *ours = x->stream[i].ours;
    if (!ours)
      continue;
    if (i == 0)
      c->writer = ours;
    else if (i == 1)
      c->reader = ours;
    ipc_exec_push(L, x, i);
    lua_setiuservalue(L, self,
                      i == 0   ? IPC_UV_WRITER
                      : i == 1 ? IPC_UV_READER
                               : PROCESS_UV_ERRORS);
  }
  lua_pushstring(L, x->name);
  lua_setiuservalue(L, self, PROCESS_UV_NAME);
}

/* The options are at 1. `lua`: what it starts is one of us. */
static int process_start(lua_State *L, bool lua) {
  Exec x;
  int where = ipc_fork_where(L);
  ipc_exec_options(L, &x, lua, lua ? "spawn" : "exec");
  Process *p = process_new(L, lua ? IPC_READ | IPC_WRITE : 0);
  int self = lua_gettop(L);
  p->f.c.timeout = x.timeout;
  if (x.limit)
    p->f.c.limit = x.limit;
  int err = ipc_exec_pipes(L, &x);
  if (err)
    return ipc_exec_fail(L, &x, err);
  lua_settop(L, self);
  if (!lua)
    process_parts(L, p, &x);
  luaL_checkstack(L, 20, NULL);
  err = ipc_exec_start(&x, p->child);
  if (err)
    return ipc_exec_fail(L, &x, err);
  p->child->begins = lua;
  process_open(p, x.socket[0], PASSING_HANDLES);
  ipc_exec_move(L, &x, (int)p->child->pid, where);
  lua_settop(L, self);
  return 1;
}

/***
Starts a program, execve(2): no shell between, nothing of this process in it but
what is asked for. Costs the same however large this process is.

The list part is the program and its arguments, strings; one without a slash is
searched in PATH, of its own environment. With pipes the handle is a channel of
bytes (`unit = "stream"`): sends to its standard input, receives from its
standard output; `p.stdin`, `p.stdout` and `p.stderr` are these alone. Without
it stands for the program's end.

The program ends with this process, whatever ended that (Linux; elsewhere where
the system can); with it, if it leads a process group (see `group`), all that
it started and that did not leave the group. All other descriptors are closed
in it, but for one by which the system ends it with us; no signal is blocked and
none ignored, except those that nohup(1) or a shell's background job ignores.
@function exec
@tparam table options the program's words, and:
`stdin`, `stdout`, `stderr`: "inherit" (the default), "null", "pipe", "stdout"
(stderr only: goes where that goes), `{ file = path, append = true }` (created
as the umask says; emptied without `append`), a channel of bytes (an end moves:
it is closed here, `dup()` keeps one), a file of io, or a process (its
`stdout`); `input`: a string, which becomes stdin as a file; `env`: variables to
set (strings) or unset (false), on top of ours; `clean_env` (false): on top of
none; `cwd`: the directory it runs in, from which a relative PATH counts;
`rlimits`: limits of setrlimit(2) by name, a number or `{ soft, hard }`: as,
core, cpu, data, fsize, memlock, nofile, nproc, stack; `nice`: is added to the
priority's number; `group`: whether it leads a process group of its own (true,
unless its stdin is a terminal; false lets one ask there whose stdin is not, as
ssh and sudo do for passwords: in a group of its own the terminal stops it);
`detach` (false): it goes on when
this process ends, in a session of its own, and close only lets go of it;
`timeout`: seconds that its calls wait by default; `maxsize`: bytes of one read
@treturn process with `wait` (true if it ended with 0; else nil, "sort: exit 2",
0), `kill`, `stop`, `exited`; or nil, message, errno: ENOENT (no such program,
file or directory), EACCES, ENOEXEC (neither a program nor a script with `#!`),
E2BIG (words and environment), EMFILE, EAGAIN, EBUSY (a channel has read ahead)
@usage local p = assert(ipc.exec { "sort", "-u", input = "b\na\nb\n", stdout =
"pipe" }) print(p:read "a")  --> a b assert(p:wait())
*/
static int process_exec(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  return process_start(L, false);
}

/* (options) -> the handle on a Lua that calls begin and finish. */
static int process_spawn(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  return process_start(L, true);
}

/* --------------------------------------------------------------- its end */

static void reason_field(lua_State *L, const char *name) {
  lua_setfield(L, -2, name);
}

/* Pushes the program's name, or the child's number; its text. */
static const char *reason_name(lua_State *L, int self, const Child *c) {
  if (lua_getiuservalue(L, self, PROCESS_UV_NAME) != LUA_TSTRING) {
    lua_pop(L, 1);
    lua_pushfstring(L, "child %d", (int)c->pid);
  }
  return lua_tostring(L, -1);
}

/* Pushes the reason of a child's end, as far as the system tells. */
static void reason_push(lua_State *L, int self, const Child *p) {
  const char *who = reason_name(L, self, p);
  lua_createtable(L, 0, 5);
  if (!p->known) {
    lua_pushliteral(L, "unknown");
    reason_field(L, "kind");
    lua_pushfstring(L, "%s: ended; its status went to another wait", who);
  } else if (WIFSIGNALED(p->status)) {
    int number = WTERMSIG(p->status);
    const char *name = ipc_signal_name(number);
    lua_pushliteral(L, "signal");
    reason_field(L, "kind");
    if (name)
      lua_pushstring(L, name);
    else
      lua_pushinteger(L, number);
    reason_field(L, "signal");
#ifdef WCOREDUMP
    lua_pushboolean(L, WCOREDUMP(p->status));
    reason_field(L, "core");
#endif
    lua_pushfstring(L, "%s: killed by signal %d%s%s", who, number,
                    name ? ", " : "", name ? name : "");
  } else {
    lua_pushliteral(L, "exit");
    reason_field(L, "kind");
    lua_pushinteger(L, WEXITSTATUS(p->status));
    reason_field(L, "code");
    lua_pushfstring(L, "%s: exit %d", who, WEXITSTATUS(p->status));
  }
  reason_field(L, "text");
  lua_remove(L, -2);
}

static void usage_push(lua_State *L, const OsUsage *u) {
  lua_createtable(L, 0, 3);
  lua_pushnumber(L, u->user);
  lua_setfield(L, -2, "user");
  lua_pushnumber(L, u->system);
  lua_setfield(L, -2, "system");
  lua_pushinteger(L, (lua_Integer)u->memory);
  lua_setfield(L, -2, "maxrss");
}

/* The reason on top becomes an error, of these slots. */
static void reason_error(lua_State *L, int value, int text) {
  lua_pushliteral(L, "error");
  reason_field(L, "kind");
  lua_pushvalue(L, value);
  reason_field(L, "value");
  lua_pushvalue(L, text);
  reason_field(L, "text");
}

/* The same of one that ended without a word that can be understood. */
static void reason_silent(lua_State *L, int self, const Child *p,
                          const char *what) {
  lua_pushfstring(L, "%s: %s", reason_name(L, self, p), what);
  lua_replace(L, -2);
  lua_insert(L, -2);
  int top = lua_gettop(L);
  reason_error(L, top - 1, top - 1);
  lua_remove(L, -2);
}

/* Pushes the table of all there is to know of an ended child: reason, usage,
 * and the results at 1 .. n. Made once; the handle at `self` keeps it. */
static void process_outcome(lua_State *L, int self) {
  const Process *p = lua_touserdata(L, self);
  if (lua_getiuservalue(L, self, PROCESS_UV_OUTCOME) == LUA_TTABLE)
    return;
  lua_pop(L, 1);
  int base = lua_gettop(L);
  Report report = ipc_report_push(L, p->child->report);
  int n = lua_gettop(L) - base;
  bool ok = n > 0 && lua_toboolean(L, base + 1);
  bool exited = p->child->known && WIFEXITED(p->child->status);
  reason_push(L, self, p->child);
  if (n >= 3 && !ok)
    reason_error(L, base + 2, base + 3);
  else if (report == REPORT_BROKEN && exited)
    reason_silent(L, self, p->child, "its results are incomplete");
  else if (report == REPORT_NONE && p->child->begins && exited &&
           WEXITSTATUS(p->child->status) == 0)
    reason_silent(L, self, p->child, "it never ran the function");
  int reason = lua_gettop(L);
  lua_createtable(L, n, 3);
  lua_pushvalue(L, reason);
  lua_setfield(L, -2, "reason");
  if (p->child->used) {
    usage_push(L, &p->child->usage);
    lua_setfield(L, -2, "usage");
  }
  lua_pushinteger(L, ok ? n : 0);
  lua_setfield(L, -2, "n");
  for (int i = 1; ok && i <= n; i++) {
    lua_pushvalue(L, base + i);
    lua_rawseti(L, -2, i);
  }
  lua_pushvalue(L, -1);
  lua_setiuservalue(L, self, PROCESS_UV_OUTCOME);
  lua_replace(L, base + 1);
  lua_settop(L, base + 1);
}

/* The results of wait, from the outcome on top. */
static int outcome_results(lua_State *L) {
  int outcome = lua_gettop(L);
  lua_getfield(L, outcome, "n");
  int n = (int)lua_tointeger(L, -1);
  luaL_checkstack(L, n + 4, "too many results");
  if (n > 0) {
    for (int i = 1; i <= n; i++)
      lua_rawgeti(L, outcome, i);
    return n;
  }
  lua_getfield(L, outcome, "reason");
  lua_getfield(L, -1, "kind");
  lua_getfield(L, -2, "code");
  if (strcmp(lua_tostring(L, -2), "exit") == 0 && lua_tointeger(L, -1) == 0) {
    lua_pushboolean(L, 1); /* os.exit(0): it ended well, without results */
    return 1;
  }
  lua_pushnil(L);
  lua_getfield(L, -4, "text");
  lua_pushinteger(L, 0);
  return 3;
}

static int wait_attempt(lua_State *L, Handle *h) {
  if (ipc_child_reap(((Process *)h)->child) == EAGAIN)
    return -IPC_ENDED;
  process_outcome(L, 1);
  return outcome_results(L);
}

static const Op wait_op = {.name = "wait",
                           .attempt = wait_attempt,
                           .want = IPC_ENDED,
                           .deadline = 2,
                           .top = 2};

static Process *process_self(lua_State *L) {
  return (Process *)ipc_handle_self(L);
}

/***
Waits until the child has ended. Again is allowed, after `close` too.
@function process:wait
@tparam[opt=the channel's] ?number timeout seconds
@return true and what the function returned; or nil, message, errno: 0 when it
ended badly (the message is its error with the traceback, or the exit code, or
the signal; see `reason`), `"timeout"` (ETIMEDOUT) while it runs
*/
static int process_wait(lua_State *L) {
  process_self(L);
  ipc_check_timeout(L, 2);
  lua_settop(L, 2);
  if (lua_getiuservalue(L, 1, PROCESS_UV_OUTCOME) == LUA_TTABLE)
    return outcome_results(L);
  lua_pop(L, 1);
  return ipc_run(L, &wait_op);
}

/* Whether its parent may still act on it: it was not closed, moved, forked. */
static bool process_ours(const Process *p) {
  return ipc_handle_usable(&p->f.c.h);
}

/***
Sends a signal to the child; never to another process that got its number.
@function process:kill
@tparam[opt="TERM"] string|integer signal name without SIG, or number
@tparam[opt="process"] string whom `"process"`, or `"group"`: the process group
that it leads, if it does (see `group` of `ipc.exec`), which is what it has
started and what these have, even after its own end
@treturn boolean true; or nil, message, errno: ESRCH when it has ended
*/
static int process_signal(lua_State *L) {
  static const char *const whom[] = {"process", "group", NULL};
  Process *p = process_self(L);
  int number = ipc_check_signal(L, 2, SIGTERM);
  bool group = luaL_checkoption(L, 3, whom[0], whom) == 1;
  if (!process_ours(p))
    return ipc_handle_refuse(L, &p->f.c.h, "kill");
  int err = ipc_child_kill(p->child, number, group);
  if (err)
    return ipc_fail(L, process_handle.type, "kill", err, NULL);
  lua_pushboolean(L, 1);
  return 1;
}

/* Slots of stop and close: 2 deadline, 3 grace (seconds), 4 what comes next, 5
 * the Child, which is closed when the call is left. */
enum { STOP_DEADLINE = 2, STOP_GRACE, STOP_NEXT, STOP_CHILD, STOP_TOP = 5 };
enum { NEXT_TERM = 1, NEXT_KILL, NEXT_LEAVE };

#define PROCESS_GRACE 5.0 /* seconds */

static int stop_done(lua_State *L, Process *p) {
  Chan *c = &p->f.c;
  if (p->child->reaped)
    process_outcome(L, 1);
  if (lua_getiuservalue(L, 1, PROCESS_UV_ERRORS) == LUA_TUSERDATA)
    ipc_handle_close(L, lua_touserdata(L, -1));
  lua_pop(L, 1);
  return ipc_chan_closed(L, c, c->writer && c->writer->rest.link ? EPIPE : 0);
}

static int stop_attempt(lua_State *L, Handle *h) {
  Process *p = (Process *)h;
  if (!h->open || h->leaving)
    return lua_pushboolean(L, 1), 1;
  return ipc_child_reap(p->child) == EAGAIN ? -IPC_ENDED : stop_done(L, p);
}

static int stop_next(lua_State *L, Handle *h, int err);

static const Op stop_op = {.name = "stop",
                           .attempt = stop_attempt,
                           .failed = stop_next,
                           .want = IPC_ENDED,
                           .deadline = STOP_DEADLINE,
                           .top = STOP_TOP,
                           .closing = true};

/* It did not end in time: the next, harder way. */
static int stop_next(lua_State *L, Handle *h, int err) {
  Process *p = (Process *)h;
  lua_Integer next = lua_tointeger(L, STOP_NEXT);
  if (!h->open || next == NEXT_LEAVE) /* killed, and stuck in the kernel */
    return stop_done(L, p);
  if (err == EINTR)
    next = NEXT_KILL;                          /* the user is in a hurry */
  if (next == NEXT_KILL || !p->child->stopped) /* another may have told it */
    (void)ipc_child_kill(p->child, next == NEXT_TERM ? SIGTERM : SIGKILL, true);
  ipc_child_stop(p->child);
  if (next == NEXT_TERM)
    lua_pushvalue(L, STOP_GRACE);
  else
    lua_pushnumber(L, 1.0);
  lua_replace(L, STOP_DEADLINE);
  lua_pushinteger(L, next + 1);
  lua_replace(L, STOP_NEXT);
  return ipc_run(L, &stop_op);
}

/* No more goes to it, and what it sends finds nobody who listens: it must not
 * wait for us. */
static void stop_hang_up(lua_State *L, Process *p) {
  Chan *c = &p->f.c, *writer = c->writer;
  if (writer && writer->h.open && !writer->shut) {
    writer->shut = writer->shutting = true;
    (void)ipc_chan_flush(L, writer);
  }
  if (p->f.rfd >= 0)
    (void)ipc_os_end_receiving(p->f.rfd);
  if (c->reader && c->reader != c)
    ipc_handle_close(L, &c->reader->h);
  if (lua_getiuservalue(L, 1, PROCESS_UV_ERRORS) == LUA_TUSERDATA)
    ipc_handle_close(L, lua_touserdata(L, -1));
  lua_pop(L, 1);
}

/* An error at the wait, or the end of the coroutine that waits: whoever wanted
 * the child's end has no time for it. */
static int stop_left(lua_State *L) {
  Child *c = lua_touserdata(L, 1);
  if (c && c->handles > 0 && !c->reaped && c->generation == ipc_generation) {
    (void)ipc_child_kill(c, SIGKILL, true);
    ipc_child_stop(c);
  }
  return 0;
}

static int stop_begin(lua_State *L, Process *p, lua_Number grace, int next) {
  Handle *h = &p->f.c.h;
  if (!ipc_handle_begin_close(L, h))
    return lua_pushboolean(L, 1), 1;
  lua_settop(L, 1);
  lua_pushnumber(L, grace);
  lua_pushnumber(L, grace);
  lua_pushinteger(L, next);
  lua_getiuservalue(L, 1, PROCESS_UV_CHILD);
  if (next != NEXT_LEAVE)
    lua_toclose(L, STOP_CHILD);
  stop_hang_up(L, p);
  if (next == NEXT_LEAVE)
    return stop_done(L, p);
  return ipc_run(L, &stop_op);
}

/* Begins to end it at once. */
static int stop_now(lua_State *L, Process *p, lua_Number grace) {
  if (process_ours(p)) {
    (void)ipc_child_kill(p->child, SIGTERM, true);
    ipc_child_stop(p->child);
  }
  return stop_begin(L, p, grace, NEXT_KILL);
}

/***
Ends the child now, and the process group that it leads, if it does: TERM to
all of them, KILL if the child has not ended after `grace`, and KILL to what is
left of its group then.
@function process:stop
@tparam[opt=5] ?number grace seconds
@treturn boolean true; or nil, "N bytes unsent", errno; what became of the child
is in `reason`
*/
static int process_stop(lua_State *L) {
  Process *p = process_self(L);
  ipc_check_timeout(L, 2);
  return stop_now(L, p,
                  lua_isnoneornil(L, 2) ? PROCESS_GRACE : lua_tonumber(L, 2));
}

static int close_within(lua_State *L, Process *p, lua_Number grace) {
  return stop_begin(L, p, grace, p->child->detached ? NEXT_LEAVE : NEXT_TERM);
}

/***
Gives the child `grace` seconds to end by itself (its `ipc.parent` says
`closed`, to receiving and to sending; a program's pipes end), then stops it,
with the same grace. Leaving the block of a `<close>` variable does this;
leaving it by an error stops the child at once. One that was started with
`detach` goes on instead.
@function process:close
@tparam[opt=5] ?number grace seconds
@treturn boolean true; or nil, "N bytes unsent", errno
*/
static int process_close_call(lua_State *L) {
  Process *p = process_self(L);
  ipc_check_timeout(L, 2);
  return close_within(
      L, p, lua_isnoneornil(L, 2) ? PROCESS_GRACE : lua_tonumber(L, 2));
}

static int process_close_scope(lua_State *L) {
  Process *p = process_self(L);
  if (lua_isnoneornil(L, 2) || p->child->detached)
    return close_within(L, p, PROCESS_GRACE);
  return stop_now(L, p, PROCESS_GRACE);
}

/* ------------------------------------------------------- the handle on it */

static int exit_attempt(lua_State *L, Handle *h) {
  if (ipc_child_reap(((Exit *)h)->child) == EAGAIN)
    return -IPC_ENDED;
  lua_getiuservalue(L, 1, EXIT_UV_PROCESS);
  process_outcome(L, lua_gettop(L));
  return outcome_results(L);
}

static const Op exit_op = {.name = "wait",
                           .attempt = exit_attempt,
                           .want = IPC_ENDED,
                           .deadline = 2,
                           .top = 2};

/***
A handle on the child's end alone, for `ipc.poll` and other loops, where the
process itself stands for what the child sends: ready once the child has ended.
It is good after the process was closed, too.
@function process:exited
@treturn exit with `wait`, as the process has it, `close`, `pollfd`, `events`
and `timeout`; or nil, message, errno when the process is closed
@usage local ready = ipc.poll({ child, child:exited() }, 10)
*/
static int process_exited(lua_State *L) {
  Process *p = process_self(L);
  lua_settop(L, 1);
  if (lua_getiuservalue(L, 1, PROCESS_UV_EXIT) == LUA_TUSERDATA &&
      ipc_handle_usable((Handle *)lua_touserdata(L, -1)))
    return 1;
  if (!process_ours(p))
    return ipc_handle_refuse(L, &p->f.c.h, "exited");
  Exit *e = ipc_handle_new(L, sizeof *e, &exit_handle, EXIT_UV_PROCESS);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, EXIT_UV_PROCESS);
  lua_pushvalue(L, -1);
  lua_setiuservalue(L, 1, PROCESS_UV_EXIT);
  if (!process_ours(p)) /* a finaliser closed it */
    return ipc_handle_refuse(L, &p->f.c.h, "exited");
  e->child = p->child;
  e->child->handles++;
  ipc_handle_open(&e->h);
  return 1;
}

/***
Waits until the child has ended; answers as `process:wait`.
@function exit:wait
@tparam ?number timeout seconds; nil: for ever
@return true and results; or nil, message, errno
*/
static int exit_wait(lua_State *L) {
  ipc_handle_self(L);
  ipc_check_timeout(L, 2);
  lua_settop(L, 2);
  lua_getiuservalue(L, 1, EXIT_UV_PROCESS);
  if (lua_isuserdata(L, -1) &&
      lua_getiuservalue(L, -1, PROCESS_UV_OUTCOME) == LUA_TTABLE)
    return outcome_results(L);
  lua_settop(L, 2);
  return ipc_run(L, &exit_op);
}

/***
Closes the handle; the child and its process stay as they are.
@function exit:close
@treturn boolean true
*/
static int exit_close_call(lua_State *L) {
  Handle *h = ipc_handle_closable(L);
  lua_settop(L, 1);
  if (ipc_handle_begin_close(L, h))
    ipc_handle_close(L, h);
  lua_pushboolean(L, 1);
  return 1;
}

/***
What is known of the child. `pid`: its process id. `reason`: nil while it is
not known to have ended, then a table: `kind` ("exit", "signal", "error",
"unknown"), `code`, `signal`, `core`, `text`, and of an error its `value`.
`usage`: the same for what it and those it waited for have used: `user` and
`system` (seconds of a processor), `maxrss` (bytes); nil where another wait took
it. Of a program whose streams are pipes: `stdin`, `stdout`, `stderr`, channels.
@table process
*/
static int process_known(lua_State *L, Process *p, const char *name) {
  if (lua_getiuservalue(L, 1, PROCESS_UV_OUTCOME) != LUA_TTABLE) {
    if (!p->child->reaped && (!process_ours(p) || ipc_child_reap(p->child)))
      return lua_pushnil(L), 1;
    process_outcome(L, 1);
  }
  lua_getfield(L, -1, name);
  return 1;
}

static int process_index(lua_State *L) {
  static const struct {
    const char *name;
    int value;
  } streams[] = {{"stdin", IPC_UV_WRITER},
                 {"stdout", IPC_UV_READER},
                 {"stderr", PROCESS_UV_ERRORS}};
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(2)) != LUA_TNIL ||
      lua_type(L, 2) != LUA_TSTRING)
    return 1;
  Process *p = process_self(L);
  const char *name = lua_tostring(L, 2);
  if (strcmp(name, "pid") == 0) {
    lua_pushinteger(L, (lua_Integer)p->child->pid);
    return 1;
  }
  if (strcmp(name, "reason") == 0 || strcmp(name, "usage") == 0)
    return process_known(L, p, name);
  for (size_t i = 0; i < sizeof streams / sizeof *streams; i++)
    if (strcmp(name, streams[i].name) == 0) {
      lua_getiuservalue(L, 1, streams[i].value);
      if (!ipc_handle_at(L, -1)) /* a decoder of our own */
        lua_pushnil(L);
      return 1;
    }
  lua_pushnil(L);
  return 1;
}

static const luaL_Reg process_methods[] = {{"wait", process_wait},
                                           {"kill", process_signal},
                                           {"stop", process_stop},
                                           {"exited", process_exited},
                                           {"close", process_close_call},
                                           {"__close", process_close_scope},
                                           {NULL, NULL}};

static const luaL_Reg exit_methods[] = {{"wait", exit_wait},
                                        {"close", exit_close_call},
                                        {"__close", exit_close_call},
                                        {NULL, NULL}};

static void process_setup(lua_State *L) {
  lua_createtable(L, 0, 2);
  lua_pushcfunction(L, stop_left);
  lua_setfield(L, -2, "__close");
  lua_pushliteral(L, "ipc");
  lua_setfield(L, -2, "__metatable");
  lua_rawsetp(L, LUA_REGISTRYINDEX, &child_key);
  ipc_handle_type(L, &exit_handle, exit_methods);
  lua_pop(L, 1);
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &process_handle) == LUA_TTABLE &&
      lua_getfield(L, -1, "__index") == LUA_TFUNCTION)
    return; /* again */
  ipc_chan_type(L, &process_handle, process_methods);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &process_handle);
  lua_pushvalue(L, -1);
  lua_getfield(L, -1, "__index");
  lua_pushcclosure(L, process_index, 2);
  lua_setfield(L, -2, "__index");
}

static const luaL_Reg process_functions[] = {{"fork", process_fork},
                                             {"exec", process_exec},
                                             {"parent", ipc_life_parent},
                                             {NULL, NULL}};

/* For ipc.spawn: the parent's side, and what the child calls. */
static const luaL_Reg process_inner[] = {{"start", process_spawn},
                                         {"begin", ipc_life_begin},
                                         {"finish", ipc_life_finish},
                                         {NULL, NULL}};

const Room ipc_room_process = {.name = "process",
                               .functions = process_functions,
                               .inner = process_inner,
                               .types = process_setup};
