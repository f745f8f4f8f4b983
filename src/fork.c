/* A copy of this process: what goes into it and what stays, its whole life, and
 * the report it leaves. Knows nothing of the handle on it. */
#include "prefix.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fork.h"
#include "ipc.h"
#include "life.h"
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

/* The child's whole life: function and arguments are at 1 .. n. */
_Noreturn static void fork_child(lua_State *L, int n, const Needs *b) {
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

  ipc_life_run(L, n, b->socket[1], b->report);
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
      for (int want = IPC_READ; h->moves && want <= IPC_WRITE; want <<= 1) {
        Handle *part = ipc_handle_part(h, want);
        if (part == h)
          continue;
        lua_getiuservalue(L, -1,
                          want == IPC_READ ? IPC_UV_READER : IPC_UV_WRITER);
        f(L, part, b);
        lua_pop(L, 1);
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
    ipc_handle_moved(L, -2, (int)b->child->pid);
  }
}

int ipc_fork_where(lua_State *L) {
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
  Child *c = b->child;
  c->pidfd = needs->life[0] < 0;
  c->ended = c->pidfd ? ipc_os_process(c->pid) : needs->life[0];
  if (c->ended >= 0 || errno == ESRCH) /* ended, and SIGCHLD is ignored */
    return 0;
  int err = errno;
  (void)kill(c->pid, SIGKILL);
  while (waitpid(c->pid, NULL, 0) < 0 && errno == EINTR)
    continue;
  b->failed = "pidfd_open(2)";
  return err;
}

int ipc_fork_start(lua_State *L, int n, Birth *b) {
  State *S = ipc_state(L);
  Needs needs;
  *b = (Birth){.child = b->child};
  Child *c = b->child;
  b->where = ipc_fork_where(L);
  fork_each(L, n, fork_check, b);
  ipc_os_sweep();
  int err = needs_prepare(&needs);
  if (err)
    return err;
  fork_each(L, n, fork_keep, b);
  err = b->err;
  if (!err) {
    fflush(NULL);
    c->pid = fork();
    if (c->pid == 0)
      fork_child(L, n, &needs);
    err = c->pid < 0 ? errno : 0;
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
  c->report = needs.report;
  return 0;
}

void ipc_fork_move(lua_State *L, int n, Birth *b) {
  fork_each(L, n, fork_rest, b); /* first: what follows may run Lua */
  fork_each(L, n, fork_moved, b);
}
