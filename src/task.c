/* Waiting in a task of a registered scheduler: what it polls, and the queue in
 * which the tasks of one handle stand. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <poll.h>
#include <string.h>

#include "ipc.h"
#include "os.h"

/***
 * @submodule ipc
 */

/* A task waiting: what the scheduler polls, and a place in the queue of the
 * handle whose descriptor that is. The first of a suspension is a to-be-closed
 * value on the task's stack, so that all of them leave however the wait ends:
 * result, error, coroutine.close, or collection. */
struct Waiter {
  Handle *handle; /* NULL: none, or it is gone */
  Waiter *next;
  Waiter **link;
  Waiter *more; /* of the same suspension; user value 1 keeps them */
  Nanos deadline;
  int want;
  bool watches;   /* is woken, but takes no turn */
  bool absent;    /* was passed over; until it looks again */
  bool closing;   /* its call goes on although the handle is closed */
  unsigned looks; /* how often it had its turn */
  /* Whom it waited for last, how often that one had looked then, and how often
   * it may still miss its turn. */
  const Waiter *behind;
  unsigned seen;
  unsigned patience;
};

static const char waiter_key; /* registry: the metatable */

enum { PATIENCE = 3 };

/* Schedulers count from when they are told, which is later: a machine that has
 * other things to do may come between. */
static const Nanos waiter_grace = IPC_SECOND / 10;

enum { SCHEDULER_IS_TASK = 1, SCHEDULER_WAIT, SCHEDULER_CANCEL };

static void waiter_unlink(Waiter *w) {
  if (!w->link)
    return;
  *w->link = w->next;
  if (w->next)
    w->next->link = w->link;
  w->link = NULL;
  w->handle = NULL;
}

static void waiter_enter(Waiter *w, Handle *h) {
  Waiter **at = &h->queue;
  while (*at)
    at = &(*at)->next;
  *at = w;
  w->link = at;
  w->handle = h;
  h->waited = true;
}

void ipc_waiters_forget(Handle *h) {
  while (h->queue)
    waiter_unlink(h->queue);
}

Waiter *ipc_waiter_first(const Handle *h, int want) {
  Waiter *w = h->queue;
  while (w && (w->want != want || w->watches || w->absent))
    w = w->next;
  return w;
}

bool ipc_waiter_any(const Handle *h, int want) {
  Waiter *w = h->queue;
  while (w && w->want != want)
    w = w->next;
  return w != NULL;
}

/* Whether it need not wait: its handle was closed, or holds what it wants. */
static bool waiter_due(const Waiter *w) {
  Handle *h = w->handle;
  if (!h)
    return false;
  if (!h->open || h->leaving || (h->closing && !w->closing) ||
      h->generation != ipc_generation)
    return true;
  return (w->watches || ipc_waiter_first(h, w->want) == w) &&
         h->ops->ready(h, w->want, false) != EAGAIN;
}

/* Whether a scheduler that looks now wakes it. */
static bool waiter_called(const Waiter *w) {
  const Handle *h = w->handle;
  if (waiter_due(w) || ipc_now() - waiter_grace >= w->deadline)
    return true;
  struct pollfd p = {h->ops->descriptor(h, w->want),
                     ipc_handle_events(h, w->want), 0};
  size_t ready = 0;
  return p.fd >= 0 && ipc_os_poll(&p, 1, 0, &ready) == 0 && ready > 0;
}

/* Whether the first has missed its turn too often. That w was woken says
 * nothing: by a time of its own, perhaps, or for a rest. But what called the
 * first when w was woken brings it to look before w is woken the next time. */
static bool waiter_misses(Waiter *w, const Waiter *first) {
  if (w->behind != first || w->seen != first->looks) {
    w->behind = first;
    w->seen = first->looks;
    w->patience = PATIENCE;
  }
  if (w->patience == 0)
    return true;
  if (waiter_called(first))
    w->patience--;
  return false;
}

/* First come, first served; but one that does not look although it could (its
 * coroutine was dropped) is passed over. */
bool ipc_waiter_turn(Waiter *w) {
  const Handle *h = w->handle;
  if (!h) /* it is gone */
    return true;
  w->absent = false;
  Waiter *first = ipc_waiter_first(h, w->want);
  if (first != w && waiter_misses(w, first)) {
    first->absent = true;
    first = ipc_waiter_first(h, w->want);
  }
  if (first != w)
    return false;
  w->looks++;
  return true;
}

bool ipc_waiter_has(const Waiter *w) { return w->handle != NULL; }

bool ipc_in_task(lua_State *L, State *S) {
  if (!S->scheduled || !lua_isyieldable(L))
    return false;
  ipc_state_push(L);
  lua_getiuservalue(L, -1, SCHEDULER_IS_TASK);
  lua_pushthread(L);
  lua_call(L, 1, 1);
  bool task = lua_toboolean(L, -1);
  lua_pop(L, 2);
  return task;
}

static Waiter *waiter_new(lua_State *L, int want) {
  Waiter *w = lua_newuserdatauv(L, sizeof *w, 1);
  memset(w, 0, sizeof *w);
  w->want = want;
  w->deadline = IPC_FOREVER;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &waiter_key);
  lua_setmetatable(L, -2);
  return w;
}

Waiter *ipc_waiter_open(lua_State *L, Handle *h, int want, bool closing) {
  Waiter *w = waiter_new(L, want);
  w->closing = closing;
  lua_toclose(L, -1);
  if (h)
    waiter_enter(w, h);
  return w;
}

void ipc_waiter_add(lua_State *L, int slot, Handle *h, int want) {
  Waiter *first = lua_touserdata(L, slot);
  Waiter *w = waiter_new(L, want);
  w->watches = true;
  lua_getiuservalue(L, slot, 1);
  lua_setiuservalue(L, -2, 1);
  lua_pushvalue(L, -1);
  lua_setiuservalue(L, slot, 1);
  w->more = first->more;
  first->more = w;
  waiter_enter(w, h);
}

void ipc_suspend(lua_State *L, int slot, int count, Nanos deadline, int results,
                 lua_KContext context, lua_KFunction again) {
  State *S = ipc_state(L);
  Waiter *first = lua_touserdata(L, slot);
  first->deadline = S->looped ? deadline : ipc_owed_nap(S, deadline);
  lua_pushvalue(L, slot);
  count++;
  for (Chan *c = S->rests; c; c = c->rest.next) {
    luaL_checkstack(L, 8, "too many objects to wait for");
    ipc_waiter_add(L, slot, &c->h, IPC_WRITE);
    ((Waiter *)lua_touserdata(L, -1))->closing = true; /* until it is out */
    count++;
  }
  ipc_state_push(L);
  lua_getiuservalue(L, -1, SCHEDULER_WAIT);
  lua_replace(L, -2);
  lua_insert(L, -(count + 1));
  lua_callk(L, count, results, context, again);
}

static void scheduler_cancel(lua_State *L, int fd) {
  ipc_state_push(L);
  lua_getiuservalue(L, -1, SCHEDULER_CANCEL);
  lua_replace(L, -2);
  lua_pushinteger(L, fd);
  if (lua_pcall(L, 1, 0, 0) != LUA_OK) {
    const char *message = lua_tostring(L, -1);
    lua_warning(L, "ipc: the scheduler's cancel: ", 1);
    lua_warning(L, message ? message : "an error", 0);
    lua_pop(L, 1);
  }
}

void ipc_wake(lua_State *L, Handle *h) {
  if (!h->state->scheduled || !h->waited || !lua_checkstack(L, 4))
    return;
  int last = -1;
  for (int want = IPC_READ; want <= IPC_ENDED; want <<= 1) {
    int fd = h->ops->descriptor(h, want);
    if (fd >= 0 && fd != last)
      scheduler_cancel(L, fd);
    last = fd;
  }
}

void ipc_wake_next(lua_State *L, Handle *h, int want) {
  if (ipc_waiter_any(h, want) && ipc_handle_usable(h) &&
      h->ops->ready(h, want, false) != EAGAIN)
    ipc_wake(L, h);
}

static void waiter_leave(lua_State *L, Waiter *w) {
  Handle *h = w->handle;
  waiter_unlink(w);
  if (!h || !h->open)
    return;
  if (h->leaving && !h->queue) {
    ipc_wake(L, h);
    ipc_handle_release(h, IPC_CLOSE);
  } else if (h->channel && ((Chan *)h)->shutting) {
    ipc_chan_flush(L, (Chan *)h); /* nobody polls what it closes */
  } else {
    ipc_wake_next(L, h, w->want);
  }
}

void ipc_waiter_settle(lua_State *L, int slot) {
  Waiter *first = lua_touserdata(L, slot);
  while (first->more) {
    Waiter *w = first->more;
    first->more = w->more;
    waiter_leave(L, w);
  }
  lua_pushnil(L);
  lua_setiuservalue(L, slot, 1);
}

static bool waiter_is(lua_State *L, int index) {
  if (!lua_getmetatable(L, index))
    return false;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &waiter_key);
  bool ours = lua_rawequal(L, -1, -2);
  lua_pop(L, 2);
  return ours;
}

static Waiter *waiter_self(lua_State *L) {
  Waiter *w = lua_touserdata(L, 1);
  if (!w || !waiter_is(L, 1))
    luaL_typeerror(L, 1, "ipc.waiter");
  return w;
}

static int waiter_pollfd(lua_State *L) {
  Waiter *w = waiter_self(L);
  Handle *h = w->handle;
  int fd = h && h->open ? h->ops->descriptor(h, w->want) : -1;
  if (fd < 0)
    return lua_pushnil(L), 1;
  lua_pushinteger(L, fd);
  return 1;
}

static bool waiter_writes(const Waiter *w) {
  return w->handle ? ipc_handle_events(w->handle, w->want) == POLLOUT
                   : w->want == IPC_WRITE;
}

static int waiter_events(lua_State *L) {
  lua_pushstring(L, waiter_writes(waiter_self(L)) ? "w" : "r");
  return 1;
}

static int waiter_timeout(lua_State *L) {
  Waiter *w = waiter_self(L);
  if (waiter_due(w)) {
    lua_pushnumber(L, 0);
  } else if (w->deadline == IPC_FOREVER) {
    lua_pushnil(L);
  } else {
    Nanos left = w->deadline - ipc_now();
    lua_pushnumber(L, left > 0 ? (lua_Number)left / 1e9 : 0);
  }
  return 1;
}

/* What the loop asks of a waiter, at once: descriptor or nil; 1 to read, 2 to
 * write; when it is due (seconds of ipc.now; nil: never by itself). False of
 * what is none. */
static int waiter_look(lua_State *L) {
  Waiter *w = lua_touserdata(L, 1);
  if (!w || !waiter_is(L, 1))
    return lua_pushboolean(L, 0), 1;
  Handle *h = w->handle;
  int fd = h && h->open ? h->ops->descriptor(h, w->want) : -1;
  if (fd < 0)
    lua_pushnil(L);
  else
    lua_pushinteger(L, fd);
  lua_pushinteger(L, waiter_writes(w) ? 2 : 1);
  if (waiter_due(w))
    lua_pushnumber(L, 0);
  else if (w->deadline == IPC_FOREVER)
    lua_pushnil(L);
  else
    lua_pushnumber(L, (lua_Number)w->deadline / 1e9);
  return 3;
}

static int waiter_close(lua_State *L) {
  Waiter *w = waiter_self(L);
  ipc_waiter_settle(L, 1);
  waiter_leave(L, w);
  return 0;
}

static int waiter_gc(lua_State *L) {
  Waiter *w = waiter_self(L);
  Handle *h = w->handle;
  waiter_unlink(w);
  if (h && h->leaving && !h->queue)
    ipc_handle_release(h, IPC_CLOSE);
  return 0;
}

/* ----------------------------------------------------- how the loop waits */

static const char cancel_key; /* its address, given to resume with an error */

static int wait_resumed(lua_State *L, int status, lua_KContext context) {
  (void)status, (void)context;
  if (lua_touserdata(L, 1) != &cancel_key)
    return lua_gettop(L);
  lua_settop(L, 2);
  return lua_error(L);
}

/* Yields with a mark, which tells this from what a user yields, and the
 * objects. Raises the error that it is resumed with. */
static int task_wait(lua_State *L) {
  lua_pushlightuserdata(L, (void *)&waiter_key);
  lua_insert(L, 1);
  return lua_yieldk(L, lua_gettop(L), 0, wait_resumed);
}

/* -------------------------------------------------------------- functions */

/***
Registers the scheduler whose coroutines may wait without blocking: a call that
has to wait in one of its tasks yields to it. One per Lua state; a new one
replaces the old; nil goes back to blocking.
@function scheduler
@tparam ?table scheduler `is_task(thread)`: whether the running coroutine is a
task; `wait(object, ...)`: yields until one of the objects is ready, each with
methods `pollfd()`, `events()` and `timeout()` as cqueues polls them, and may
return the ready ones; `cancel(descriptor)`: makes the waits on a descriptor
return.
@usage ipc.scheduler { is_task = is_task, wait = wait, cancel = cancel }
*/
static int task_scheduler(lua_State *L) {
  static const char *const names[] = {"is_task", "wait", "cancel"};
  State *S = ipc_state(L);
  bool some = !lua_isnoneornil(L, 1);
  if (some)
    luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  ipc_state_push(L);
  for (int i = 0; i < 3; i++) {
    if (some && lua_getfield(L, 1, names[i]) != LUA_TFUNCTION)
      return luaL_argerror(
          L, 1, lua_pushfstring(L, "function '%s' expected", names[i]));
    if (!some)
      lua_pushnil(L);
  }
  for (int i = 3; i >= 1; i--)
    lua_setiuservalue(L, 2, i);
  lua_getiuservalue(L, 2, SCHEDULER_WAIT);
  S->looped = lua_tocfunction(L, -1) == task_wait;
  S->scheduled = some;
  S->registers++;
  return 0;
}

/* -------------------------------------- what lua/ipc/loop/reactor.lua needs */

/* (message, errno) -> an error object. */
static int task_error(lua_State *L) {
  lua_settop(L, 2);
  ipc_error_push(L, 1, 2);
  return 1;
}

/* The open handles of this process, as a list. */
static int task_handles(lua_State *L) {
  lua_newtable(L);
  lua_Integer n = 0;
  for (Handle *h = ipc_state(L)->handles; h; h = h->next)
    if (ipc_handle_usable(h) && ipc_handle_push(L, h))
      lua_rawseti(L, -2, ++n);
  return 1;
}

/* Counts the schedulers: the loop has heard of every descriptor's end if it has
 * been one all the time. */
static int task_registers(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)ipc_state(L)->registers);
  return 1;
}

/* Writes what it can of accepted messages, and of what is owed; the descriptors
 * to poll for the others, -1 where nothing tells. */
static int task_flush(lua_State *L) {
  State *S = ipc_state(L);
  if (!ipc_has_rests(S))
    return 0;
  ipc_flush_rests(L, S);
  lua_settop(L, 0);
  for (Chan *c = S->rests; c; c = c->rest.next) {
    luaL_checkstack(L, 4, "too many objects to wait for");
    c->h.waited = true; /* its close tells */
    lua_pushinteger(L, c->h.ops->descriptor(&c->h, IPC_WRITE));
  }
  if (ipc_owed_blindly(S))
    lua_pushinteger(L, -1);
  return lua_gettop(L);
}

/* Closes all that is open, as at the end of the program: it is about to die. */
static int task_close(lua_State *L) {
  ipc_state_release(ipc_state(L), IPC_EXIT);
  return 0;
}

void ipc_task_push(lua_State *L) {
  static const luaL_Reg functions[] = {{"wait", task_wait},
                                       {"set", ipc_reactor_new},
                                       {"registers", task_registers},
                                       {"look", waiter_look},
                                       {"error", task_error},
                                       {"handles", task_handles},
                                       {"flush", task_flush},
                                       {"close", task_close},
                                       {NULL, NULL}};
  luaL_newlib(L, functions);
  lua_pushlightuserdata(L, (void *)&waiter_key);
  lua_setfield(L, -2, "mark");
  lua_pushlightuserdata(L, (void *)&cancel_key);
  lua_setfield(L, -2, "cancel");
}

static const luaL_Reg waiter_methods[] = {{"pollfd", waiter_pollfd},
                                          {"events", waiter_events},
                                          {"timeout", waiter_timeout},
                                          {NULL, NULL}};

void ipc_task_open(lua_State *L) {
  lua_pushcfunction(L, task_scheduler);
  lua_setfield(L, -2, "scheduler");

  lua_newtable(L);
  lua_pushliteral(L, "ipc.waiter");
  lua_setfield(L, -2, "__name");
  luaL_newlib(L, waiter_methods);
  lua_setfield(L, -2, "__index");
  lua_pushcfunction(L, waiter_close);
  lua_setfield(L, -2, "__close");
  lua_pushcfunction(L, waiter_gc);
  lua_setfield(L, -2, "__gc");
  lua_rawsetp(L, LUA_REGISTRYINDEX, &waiter_key);
}
