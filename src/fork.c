/* A copy of this process: what goes into it and what stays, its whole life, and
 * the report it leaves. Knows nothing of the handle on it. */
#include "prefix.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fork.h"
#include "ipc.h"
#include "msgpack.h"
#include "node.h"
#include "os.h"

/* What a fork needs, acquired before it. */
typedef struct Needs {
  int socket[2]; /* parent's, child's */
  int life[2];   /* parent reads, child holds; -1 where a pidfd does it */
  int report;
} Needs;

static void needs_close(const Needs *b) {
  const int fds[] = {b->socket[0], b->socket[1], b->life[0], b->life[1],
                     b->report};
  for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
    if (fds[i] >= 0)
      close(fds[i]);
}

static int needs_prepare(Needs *b) {
  *b = (Needs){{-1, -1}, {-1, -1}, -1};
  int err = ipc_os_socketpair(SOCK_STREAM, b->socket);
  if (!err && !ipc_os_watches_processes())
    err = ipc_os_pipe(b->life, false);
  if (!err)
    err = ipc_os_nameless(&b->report);
  if (err)
    needs_close(b);
  return err;
}

/* -------------------------------------------------------------- the child */

static const char parent_key; /* registry: the child's channel to its parent */

static int child_traceback(lua_State *L) {
  lua_settop(L, 1);
  const char *message = luaL_tolstring(L, 1, NULL); /* a copy: 1 stays as is */
  luaL_traceback(L, L, message, 1);
  lua_createtable(L, 2, 0);
  lua_insert(L, -2);
  lua_rawseti(L, -2, 2); /* the text */
  lua_pushvalue(L, 1);
  lua_rawseti(L, -2, 1); /* the value */
  return 1;
}

/* (value, ...) -> their encodings one after the other, in S->scratch. */
static int child_encode(lua_State *L) {
  State *S = ipc_state(L);
  int n = lua_gettop(L);
  lua_pushinteger(L, n);
  S->scratch.size = 0;
  ipc_value_encode(L, -1, &S->scratch);
  for (int i = 1; i <= n; i++)
    ipc_value_encode(L, i, &S->scratch);
  return 0;
}

static bool child_write(int fd, const Buffer *b) {
  size_t at = 0;
  while (at < b->size) {
    ssize_t n = write(fd, b->bytes + at, b->size - at);
    if (n < 0 && errno != EINTR)
      return false; /* the parent sees an incomplete report */
    at += n > 0 ? (size_t)n : 0;
  }
  return b->size > 0;
}

/* Leaves true, results... or false, value, text for the parent. The values
 * are above `base`. False if that was not possible. */
static bool child_report(lua_State *L, int base, bool ok, int report) {
  State *S = ipc_state(L);
  lua_checkstack(L, 8);
  if (ok)
    lua_pushnil(L);
  else
    lua_pushvalue(L, base + 2); /* the error's text */
  lua_insert(L, ++base);
  lua_pushboolean(L, ok);
  lua_insert(L, base + 1);
  lua_pushcfunction(L, child_encode);
  lua_insert(L, base + 1);
  if (lua_pcall(L, lua_gettop(L) - base - 1, 0, 0) != LUA_OK) {
    /* What it returned, or raised, cannot travel: say so instead, or say at
     * least what the error says. */
    if (!ok)
      lua_copy(L, base, -1);
    lua_pushcfunction(L, child_encode);
    lua_insert(L, base + 1);
    lua_pushboolean(L, 0);
    lua_insert(L, base + 2);
    lua_pushvalue(L, -1);
    if (lua_pcall(L, 3, 0, 0) != LUA_OK)
      S->scratch.size = 0;
  }
  return child_write(report, &S->scratch);
}

/* Accepted messages leave before the child does, for as long as the most
 * patient channel lingers. False if some did not. */
static bool child_drain(lua_State *L, State *S) {
  Nanos linger = 0;
  for (Chan *c = S->rests; c; c = c->rest.next)
    if (c->linger > linger)
      linger = c->linger;
  Nanos deadline = linger == IPC_FOREVER ? linger : ipc_now() + linger;
  for (;;) {
    ipc_flush_rests(L, S);
    if (!S->rests)
      break;
    int err = ipc_now() < deadline ? ipc_sleep(S, 0, deadline) : ETIMEDOUT;
    if (err && err != EINTR)
      break;
  }
  for (Handle *h = S->handles; h; h = h->next)
    if (h->channel && (((Chan *)h)->lost || ((Chan *)h)->rest.link))
      return false;
  return true;
}

static int child_adopt(lua_State *L) {
  lua_pushcfunction(L, ipc_room("socket")->adopt);
  lua_insert(L, 1);
  lua_call(L, 1, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &parent_key);
  return 0;
}

/* The child's whole life: function and arguments are at 1 .. n. */
_Noreturn static void child_run(lua_State *L, int n, const Needs *b) {
  State *S = ipc_state(L);
  for (Handle *h = S->handles; h; h = h->next) {
    ipc_waiters_forget(h);
    if (!h->kept)
      continue;
    h->generation = ipc_generation;
    if (h->shares && h->channel)
      ipc_chan_end_rest((Chan *)h, 0); /* the parent sends it */
    if (h->ops->forked)
      h->ops->forked(h, true);
  }
  ipc_state_release(S, IPC_DROP);
  ipc_states_drop(S);
  for (Handle *h = S->handles; h; h = h->next)
    h->kept = false;
  close(b->socket[0]);
  if (b->life[0] >= 0)
    close(b->life[0]);
  ipc_os_hold((const int[2]){b->life[1], b->report});

  lua_pushcfunction(L, child_adopt);
  lua_pushinteger(L, b->socket[1]);
  int status = lua_pcall(L, 1, 0, 0);
  if (status == LUA_OK)
    lua_settop(L, n); /* else the message stays on top */
  lua_pushcfunction(L, child_traceback);
  lua_insert(L, 1);
  if (status == LUA_OK)
    status = lua_pcall(L, n - 1, LUA_MULTRET, 1);
  if (status != LUA_OK) {
    bool packed = lua_istable(L, -1); /* else: no memory for a traceback */
    lua_copy(L, -1, 2); /* not replace: it is there already after a call */
    lua_settop(L, 2);
    if (packed) {
      lua_rawgeti(L, 2, 1);
      lua_rawgeti(L, 2, 2);
      lua_remove(L, 2);
    } else {
      lua_pushvalue(L, 2);
    }
  }
  if (!child_drain(L, S) && status == LUA_OK) {
    status = LUA_ERRRUN;
    lua_settop(L, 1);
    lua_pushliteral(L, "bytes that were accepted could not be sent");
    lua_pushvalue(L, -1);
  }
  bool told = child_report(L, 1, status == LUA_OK, b->report);
  ipc_state_release(S, IPC_EXIT);
  fflush(NULL);
  _exit(status == LUA_OK && told ? EXIT_SUCCESS : EXIT_FAILURE);
}

/* --------------------------------------------------------------- the fork */

/* Calls f for every handle that the function at 1 and the arguments up to `n`
 * take along: themselves, direct upvalues, the parts of a duplex, the memory
 * that a view of it is of. The handle is on top of the stack. */
static void fork_each(lua_State *L, int n,
                      void (*f)(lua_State *L, Handle *h, Birth *b), Birth *b) {
  for (int i = 2, up = 1; i <= n || up > 0;) {
    if (i <= n) {
      lua_pushvalue(L, i++);
    } else if (lua_getupvalue(L, 1, up)) {
      up++;
    } else {
      return;
    }
    ipc_node_memory(L);
    Handle *h = ipc_handle_at(L, -1);
    if (h) {
      f(L, h, b);
      Chan *c = (Chan *)h;
      if (h->channel && c->reader && c->reader != c) {
        lua_getiuservalue(L, -1, IPC_UV_READER);
        f(L, &c->reader->h, b);
        lua_getiuservalue(L, -2, IPC_UV_WRITER);
        f(L, &c->writer->h, b);
        lua_pop(L, 2);
      }
    }
    lua_pop(L, 1);
  }
}

static void fork_check(lua_State *L, Handle *h, Birth *b) {
  (void)b;
  if (h->moved)
    luaL_error(L, "%s: moved to %d: dup() keeps one", h->ops->type, h->moved);
}

static void fork_keep(lua_State *L, Handle *h, Birth *b) {
  (void)L;
  if (h->kept) /* met before */
    return;
  h->kept = h->open && h->generation == ipc_generation && !h->closing &&
            (h->moves || h->shares);
  int err = h->kept && h->ops->forking ? h->ops->forking(h) : 0;
  if (err) {
    h->kept = false;
    b->failed = h->ops->type;
    b->err = err;
  }
}

/* What was accepted and is not out goes with the end. */
static void fork_rest(lua_State *L, Handle *h, Birth *b) {
  (void)L, (void)b;
  if (h->kept && h->moves)
    ipc_chan_end_rest((Chan *)h, 0);
}

static void fork_over(Handle *h) {
  if (h->kept && h->ops->forked)
    h->ops->forked(h, false);
  h->kept = false;
}

/* The end is in the child now: here it is no more. */
static void fork_moved(lua_State *L, Handle *h, Birth *b) {
  bool moves = h->kept && h->moves;
  fork_over(h);
  if (moves) {
    lua_pushvalue(L, b->where);
    ipc_handle_moved(L, -2, (int)b->pid);
  }
}

/* Pushes " (x.lua:12)", the line that calls; its index. */
static int fork_where(lua_State *L) {
  size_t size;
  luaL_where(L, 1); /* "x.lua:12: " or "" */
  const char *line = lua_tolstring(L, -1, &size);
  if (size > 2) {
    lua_pushlstring(L, line, size - 2);
    lua_pushfstring(L, " (%s)", lua_tostring(L, -1));
    lua_replace(L, -3);
    lua_pop(L, 1);
  }
  return lua_gettop(L);
}

/* The parent's half: a descriptor for the child's end. 0, or an errno: then
 * there is no child, since nothing could wait for its end. */
static int fork_watch(Birth *b, const Needs *needs) {
  b->pidfd = needs->life[0] < 0;
  b->ended = b->pidfd ? ipc_os_process(b->pid) : needs->life[0];
  if (b->ended >= 0 || errno == ESRCH) /* ended, and SIGCHLD is ignored */
    return 0;
  int err = errno;
  (void)kill(b->pid, SIGKILL);
  while (waitpid(b->pid, NULL, 0) < 0 && errno == EINTR)
    continue;
  b->failed = "pidfd_open(2)";
  return err;
}

int ipc_fork_start(lua_State *L, int n, Birth *b) {
  State *S = ipc_state(L);
  Needs needs;
  *b = (Birth){.failed = NULL};
  b->where = fork_where(L);
  fork_each(L, n, fork_check, b);
  ipc_os_sweep();
  int err = needs_prepare(&needs);
  if (err)
    return err;
  fork_each(L, n, fork_keep, b);
  err = b->err;
  if (!err) {
    fflush(NULL);
    b->pid = fork();
    if (b->pid == 0)
      child_run(L, n, &needs);
    err = b->pid < 0 ? errno : 0;
    if (err)
      b->failed = "fork(2)";
  }
  close(needs.socket[1]);
  needs.socket[1] = -1;
  if (needs.life[1] >= 0)
    close(needs.life[1]);
  needs.life[1] = -1;
  if (!err)
    err = fork_watch(b, &needs);
  if (err) {
    for (Handle *h = S->handles; h; h = h->next)
      fork_over(h);
    needs_close(&needs);
    return err;
  }
  b->socket = needs.socket[0];
  b->report = needs.report;
  return 0;
}

void ipc_fork_move(lua_State *L, int n, Birth *b) {
  fork_each(L, n, fork_rest, b); /* first: what follows may run Lua */
  fork_each(L, n, fork_moved, b);
}

int ipc_fork_parent(lua_State *L) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &parent_key);
  return 1;
}
