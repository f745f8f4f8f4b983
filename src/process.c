/* Processes: ipc.fork, a copy of this one with a channel to it. The handle is
 * that channel, and what the child's end is waited for on. Starting a fresh
 * interpreter is not its business. */
#include "prefix.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fork.h"
#include "frame.h"
#include "ipc.h"
#include "msgpack.h"
#include "os.h"
#include "passing.h"

/***
 * @submodule ipc
 */

typedef struct Process {
  Framed f;
  pid_t pid;
  int ended_fd; /* readable once the child has ended: a pidfd, or the reading
                   end of a pipe that only the child can write; -1 */
  bool pidfd;
  int report; /* the file in which the child leaves its results; -1 */
  bool reaped;
  bool known; /* status means something: nobody else reaped it */
  int status; /* of waitpid(2) */
} Process;

/* ------------------------------------------------------------ system half */

static const StreamOps process_stream = {.read = ipc_os_receive,
                                         .write = ipc_os_send,
                                         .shutdown = ipc_os_end_sending};

/* 0 once it has ended, EAGAIN before. */
static int process_reap(Process *p) {
  if (p->reaped)
    return 0;
  int err = ipc_os_reap(p->pid, &p->status);
  if (err == EAGAIN)
    return err;
  p->reaped = true;
  p->known = err == 0; /* else SIGCHLD is ignored, or another wait took it */
  return 0;
}

static int process_descriptor(const Handle *h, int want) {
  const Process *p = (const Process *)h;
  return want == IPC_ENDED ? p->ended_fd : ipc_frame_descriptor(h, want);
}

static int process_ready(Handle *h, int want, bool ask_kernel) {
  Process *p = (Process *)h;
  if (want != IPC_ENDED)
    return ipc_frame_ready(h, want, ask_kernel);
  return p->reaped ? 0 : ask_kernel ? process_reap(p) : EAGAIN;
}

static void process_close(Handle *h, How how) {
  Process *p = (Process *)h;
  ipc_frame_close(h, how);
  if (p->ended_fd >= 0)
    close(p->ended_fd);
  if (p->report >= 0)
    close(p->report);
  p->ended_fd = p->report = -1;
  /* When the program ends, init takes over; atexit holds ipc_os_lock. */
  if (!p->reaped && how != IPC_EXIT && h->generation == ipc_generation)
    ipc_os_orphan(p->pid);
}

static const HandleOps process_handle = {.type = "ipc.process",
                                         .descriptor = process_descriptor,
                                         .ready = process_ready,
                                         .close = process_close};

static int process_kill(Process *p, int signal) {
  if (process_reap(p) == 0)
    return ESRCH;
  return ipc_os_kill(p->pid, p->pidfd ? p->ended_fd : -1, signal);
}

/***
Starts a copy of this process that calls `fn(...)` and ends; its channel to
this one is `ipc.parent` there.

Channels among the arguments and direct upvalues of `fn` move to the child:
they are closed here (`dup()` keeps one). Memories are shared; so is one of
which a view, a record or an array is among them. All others are closed in the
child. Standard output is flushed before; the child never returns into the
caller, and ends without running what the parent registered for its own end.
Results, or the error with its traceback, are what `wait` answers.
@function fork
@tparam function fn
@param ... its arguments, shared as they are at the fork
@treturn process a channel to the child, with `wait`, `kill`, `stop`, `pid` and
`reason`; or nil, message, errno: EAGAIN or ENOMEM of fork(2), EMFILE
@usage local child <close> = assert(ipc.fork(function(x) return x + 1 end, 41))
print(child:wait())  --> true  42
*/
static int process_fork(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  int n = lua_gettop(L);
  luaL_checkstack(L, 20, NULL);
  Process *p = (Process *)ipc_frame_new(L, sizeof *p, &process_handle,
                                        &process_stream, IPC_READ | IPC_WRITE);
  p->ended_fd = p->report = -1;
  p->f.c.h.moves = false;
  p->f.handles = PASSING_HANDLES;
  p->f.brings = p->f.c.passes = true;
  Birth b;
  int err = ipc_fork_start(L, n, &b);
  if (err)
    return ipc_fail(L, "ipc", "fork", err, b.failed);
  p->f.rfd = p->f.wfd = b.socket;
  p->f.c.spin[0].skip = 1; /* the child needs the core first */
  p->pid = b.pid;
  p->report = b.report;
  p->pidfd = b.pidfd;
  p->ended_fd = b.ended;
  ipc_handle_open(&p->f.c.h);
  ipc_fork_move(L, n, &b);
  lua_settop(L, n + 1);
  return 1;
}

/* --------------------------------------------------------------- its end */

/* Reads what the child left; the buffer's contents end with it. */
static int report_read(int fd, Buffer *b) {
  b->size = 0;
  for (;;) {
    if (ipc_buffer_reserve(b, 4096))
      return ENOMEM;
    ssize_t n =
        pread(fd, b->bytes + b->size, b->room - b->size, (off_t)b->size);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      return errno;
    if (n == 0)
      return 0;
    b->size += (size_t)n;
  }
}

/* Pushes the report's values: a boolean first. False if it is incomplete. */
static bool report_push(lua_State *L, int fd) {
  Buffer *b = &ipc_state(L)->scratch;
  int err = fd < 0 ? EBADF : report_read(fd, b);
  if (err == ENOMEM) /* the report is still there: ask again */
    luaL_error(L, "not enough memory");
  if (err || b->size == 0)
    return false;
  /* As a string: decoding runs Lua's allocator, and scratch is anybody's. */
  lua_pushlstring(L, b->bytes, b->size);
  int text = lua_gettop(L), values = text + 1;
  size_t size, at = 0;
  const char *bytes = lua_tolstring(L, text, &size);
  ipc_decoder_push(L);
  lua_Integer left = -1;
  while (left != 0) {
    size_t used = 0;
    luaL_checkstack(L, 8, "too many results");
    if (ipc_decoder_feed(L, values, bytes + at, size - at, &used)) {
      lua_settop(L, text - 1);
      return false;
    }
    at += used;
    if (left < 0) {
      left = lua_tointeger(L, -1);
      lua_pop(L, 1);
      continue;
    }
    if (lua_islightuserdata(L, -1)) { /* ipc.null */
      lua_pop(L, 1);
      lua_pushnil(L);
    }
    left--;
  }
  lua_remove(L, values);
  lua_remove(L, text);
  return true;
}

static void reason_field(lua_State *L, const char *name) {
  lua_setfield(L, -2, name);
}

/* Pushes the reason of a child whose status is known by waitpid(2). */
static void reason_push(lua_State *L, const Process *p) {
  lua_createtable(L, 0, 5);
  if (!p->known) {
    lua_pushliteral(L, "unknown");
    reason_field(L, "kind");
    lua_pushfstring(L, "child %d: ended; its status went to another wait",
                    (int)p->pid);
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
    lua_pushfstring(L, "child %d: killed by signal %d%s%s", (int)p->pid, number,
                    name ? ", " : "", name ? name : "");
  } else {
    lua_pushliteral(L, "exit");
    reason_field(L, "kind");
    lua_pushinteger(L, WEXITSTATUS(p->status));
    reason_field(L, "code");
    lua_pushfstring(L, "child %d: exit %d", (int)p->pid,
                    WEXITSTATUS(p->status));
  }
  reason_field(L, "text");
}

/* Pushes the table of all there is to know of an ended child: reason, and the
 * results at 1 .. n. Made once; the handle in slot 1 keeps it. */
static void process_outcome(lua_State *L, Process *p) {
  if (lua_getiuservalue(L, 1, IPC_UV_ROOM) == LUA_TTABLE)
    return;
  lua_pop(L, 1);
  int base = lua_gettop(L);
  bool told = report_push(L, p->report);
  int n = lua_gettop(L) - base;
  bool ok = told && lua_toboolean(L, base + 1);
  reason_push(L, p);
  if (told && !ok && n >= 3) {
    lua_pushliteral(L, "error");
    lua_setfield(L, -2, "kind");
    lua_pushvalue(L, base + 2);
    lua_setfield(L, -2, "value");
    lua_pushvalue(L, base + 3);
    lua_setfield(L, -2, "text");
  }
  int reason = lua_gettop(L);
  lua_createtable(L, n, 2);
  lua_pushvalue(L, reason);
  lua_setfield(L, -2, "reason");
  lua_pushinteger(L, ok ? n : 0);
  lua_setfield(L, -2, "n");
  for (int i = 1; ok && i <= n; i++) {
    lua_pushvalue(L, base + i);
    lua_rawseti(L, -2, i);
  }
  lua_pushvalue(L, -1);
  lua_setiuservalue(L, 1, IPC_UV_ROOM);
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
  Process *p = (Process *)h;
  if (process_reap(p) == EAGAIN)
    return -IPC_ENDED;
  process_outcome(L, p);
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
  if (lua_getiuservalue(L, 1, IPC_UV_ROOM) == LUA_TTABLE)
    return outcome_results(L);
  lua_pop(L, 1);
  return ipc_run(L, &wait_op);
}

/***
Sends a signal to the child; never to another process that got its number.
@function process:kill
@tparam[opt="TERM"] string|integer signal name without SIG, or number
@treturn boolean true; or nil, message, errno: ESRCH when it has ended
*/
static int process_signal(lua_State *L) {
  Process *p = process_self(L);
  int number = ipc_check_signal(L, 2, SIGTERM);
  if (!ipc_handle_usable(&p->f.c.h))
    return ipc_handle_refuse(L, &p->f.c.h, "kill");
  int err = process_kill(p, number);
  if (err)
    return ipc_fail(L, process_handle.type, "kill", err, NULL);
  lua_pushboolean(L, 1);
  return 1;
}

/* Slots of stop and close: 2 deadline, 3 grace (seconds), 4 what comes next. */
enum { STOP_DEADLINE = 2, STOP_GRACE, STOP_NEXT, STOP_TOP = 4 };
enum { NEXT_TERM = 1, NEXT_KILL, NEXT_LEAVE };

#define PROCESS_GRACE 5.0 /* seconds */

static int stop_done(lua_State *L, Process *p) {
  Chan *c = &p->f.c;
  if (p->reaped)
    process_outcome(L, p);
  return ipc_chan_closed(L, c, c->rest.link ? EPIPE : 0);
}

static int stop_attempt(lua_State *L, Handle *h) {
  Process *p = (Process *)h;
  if (!h->open || h->leaving)
    return lua_pushboolean(L, 1), 1;
  return process_reap(p) == EAGAIN ? -IPC_ENDED : stop_done(L, p);
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
    next = NEXT_KILL; /* the user is in a hurry */
  (void)process_kill(p, next == NEXT_TERM ? SIGTERM : SIGKILL);
  if (next == NEXT_TERM)
    lua_pushvalue(L, STOP_GRACE);
  else
    lua_pushnumber(L, 1.0);
  lua_replace(L, STOP_DEADLINE);
  lua_pushinteger(L, next + 1);
  lua_replace(L, STOP_NEXT);
  return ipc_run(L, &stop_op);
}

static int stop_begin(lua_State *L, Process *p, lua_Number grace, int next) {
  Handle *h = &p->f.c.h;
  if (!ipc_handle_begin_close(L, h))
    return lua_pushboolean(L, 1), 1;
  lua_settop(L, 1);
  lua_pushnumber(L, grace);
  lua_pushnumber(L, grace);
  lua_pushinteger(L, next);
  if (next == NEXT_TERM) { /* first it may end by itself */
    p->f.c.shut = p->f.c.shutting = true;
    (void)ipc_os_end_receiving(p->f.rfd); /* who sends to us must not wait */
    (void)ipc_chan_flush(L, &p->f.c);
  }
  return ipc_run(L, &stop_op);
}

/***
Ends the child now: TERM, and KILL if it has not ended after `grace`.
@function process:stop
@tparam[opt=5] ?number grace seconds
@treturn boolean true; or nil, "N bytes unsent", errno; what became of the child
is in `reason`
*/
static int process_stop(lua_State *L) {
  Process *p = process_self(L);
  ipc_check_timeout(L, 2);
  lua_Number grace = lua_isnoneornil(L, 2) ? PROCESS_GRACE : lua_tonumber(L, 2);
  if (ipc_handle_usable(&p->f.c.h))
    (void)process_kill(p, SIGTERM);
  return stop_begin(L, p, grace, NEXT_KILL);
}

/***
Gives the child 5 seconds to end by itself (its `ipc.parent` says `closed`, to
receiving and to sending), then stops it. Leaving the block of a `<close>`
variable does this; leaving it by an error stops the child at once.
@function process:close
@treturn boolean true; or nil, "N bytes unsent", errno
*/
static int process_close_call(lua_State *L) {
  return stop_begin(L, process_self(L), PROCESS_GRACE, NEXT_TERM);
}

static int process_close_scope(lua_State *L) {
  Process *p = process_self(L);
  if (lua_isnoneornil(L, 2))
    return stop_begin(L, p, PROCESS_GRACE, NEXT_TERM);
  if (ipc_handle_usable(&p->f.c.h))
    (void)process_kill(p, SIGTERM);
  return stop_begin(L, p, PROCESS_GRACE, NEXT_KILL);
}

/***
What is known of the child. `pid`: its process id. `reason`: nil while it is
not known to have ended, then a table: `kind` ("exit", "signal", "error",
"unknown"), `code`, `signal`, `core`, `text`, and of an error its `value`.
@table process
*/
static int process_index(lua_State *L) {
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(2)) != LUA_TNIL ||
      lua_type(L, 2) != LUA_TSTRING)
    return 1;
  Process *p = process_self(L);
  const char *name = lua_tostring(L, 2);
  if (strcmp(name, "pid") == 0) {
    lua_pushinteger(L, (lua_Integer)p->pid);
    return 1;
  }
  if (strcmp(name, "reason") != 0)
    return lua_pushnil(L), 1;
  if (lua_getiuservalue(L, 1, IPC_UV_ROOM) != LUA_TTABLE) {
    if (!ipc_handle_usable(&p->f.c.h) || process_reap(p))
      return lua_pushnil(L), 1;
    process_outcome(L, p);
  }
  lua_getfield(L, -1, "reason");
  return 1;
}

static const luaL_Reg process_methods[] = {
    {"wait", process_wait},           {"kill", process_signal},
    {"stop", process_stop},           {"close", process_close_call},
    {"__close", process_close_scope}, {NULL, NULL}};

static void process_setup(lua_State *L) {
  bool again = lua_rawgetp(L, LUA_REGISTRYINDEX, &process_handle) != LUA_TNIL;
  lua_pop(L, 1);
  if (again) /* __index is no table any more */
    return;
  ipc_chan_type(L, &process_handle, process_methods);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &process_handle);
  lua_pushvalue(L, -1);
  lua_getfield(L, -1, "__index");
  lua_pushcclosure(L, process_index, 2);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 1);
}

static const luaL_Reg process_functions[] = {
    {"fork", process_fork}, {"parent", ipc_fork_parent}, {NULL, NULL}};

const Room ipc_room_process = {
    .name = "process", .functions = process_functions, .setup = process_setup};
