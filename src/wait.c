/* Deadlines and the one wait. Nothing else in the library blocks: without a
 * scheduler a call waits here, in poll(2); in a task of one it yields. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <math.h>
#include <string.h>
#include <time.h>

#include "ipc.h"
#include "os.h"

/* ------------------------------------------------------------------- time */

Nanos ipc_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (Nanos)t.tv_sec * IPC_SECOND + t.tv_nsec;
}

Nanos ipc_seconds(lua_Number seconds) {
  if (seconds <= 0)
    return 0;
  /* 2^62 ns are 146 years: far enough, and no sum with now overflows. */
  if (seconds >= 4.6e9)
    return IPC_FOREVER;
  return (Nanos)(seconds * 1e9);
}

void ipc_check_timeout(lua_State *L, int index) {
  int type = lua_type(L, index);
  if (type == LUA_TNIL || type == LUA_TNONE)
    return;
  if (type != LUA_TNUMBER)
    luaL_typeerror(L, index, "seconds");
  lua_Number seconds = lua_tonumber(L, index);
  luaL_argcheck(L, seconds == seconds, index, "timeout is not a number");
  lua_pushnumber(L, seconds);
  lua_replace(L, index);
}

_Static_assert(sizeof(lua_Integer) >= sizeof(Nanos),
               "a deadline must fit a Lua integer");

int ipc_deadline(lua_State *L, int index, Nanos otherwise, Nanos *deadline) {
  if (lua_isinteger(L, index)) {
    *deadline = lua_tointeger(L, index);
    return 0;
  }
  Nanos left =
      lua_isnil(L, index) ? otherwise : ipc_seconds(lua_tonumber(L, index));
  if (left == 0)
    return ETIMEDOUT;
  *deadline = left == IPC_FOREVER ? IPC_FOREVER : ipc_now() + left;
  lua_pushinteger(L, *deadline);
  lua_replace(L, index);
  return 0;
}

/* --------------------------------------------------------------- retrying */

/* After a retry that did not pay the next 1, 3, 7, ... 1023 waits sleep at
 * once; one that did forgets all of that. So two processes on one core lose
 * nearly nothing, and two on different cores find out within a few waits. */
bool ipc_spin_start(Spin *spin, Nanos now, Nanos deadline, Nanos *until) {
  if (spin->budget == 0)
    return false;
  if (spin->skip > 0) {
    spin->skip--;
    return false;
  }
  if (spin->penalty > 0 && ipc_os_cores() < 2) {
    ipc_spin_failed(spin);
    return false;
  }
  *until = now + (Nanos)spin->budget;
  if (*until > deadline)
    *until = deadline;
  return true;
}

void ipc_spin_failed(Spin *spin) {
  spin->penalty = (uint16_t)(spin->penalty * 2 + 1);
  if (spin->penalty > 1023)
    spin->penalty = 1023;
  spin->skip = spin->penalty;
}

/* ----------------------------------------------------------------- hooks */

static const char nothing_key; /* registry: a Lua function that does nothing */

/* The handler of lua(1) for Ctrl-C sets a hook on the main coroutine, which
 * fires when Lua code runs: so run some. */
int ipc_run_hooks(lua_State *L, State *S, lua_Hook was, lua_KContext context,
                  lua_KFunction again) {
  if (lua_gethook(L)) {
    lua_rawgetp(L, LUA_REGISTRYINDEX, &nothing_key);
    lua_callk(L, 0, 0, context, again);
  }
  if (L != S->main) {
    lua_Hook hook = lua_gethook(S->main);
    if (hook && hook != was)
      return EINTR;
  }
  return 0;
}

/* --------------------------------------------------------------- sleeping */

void ipc_flush_rests(State *S) {
  for (Chan *c = S->rests, *next; c; c = next) {
    next = c->rest.next;
    if (c->h.generation == ipc_generation)
      ipc_chan_flush(c);
  }
}

int ipc_sleep(State *S, size_t count, Nanos deadline) {
  size_t all = count;
  S->polls.size = count * sizeof(struct pollfd);
  for (Chan *c = S->rests; c; c = c->rest.next) {
    if (ipc_buffer_reserve(&S->polls, sizeof(struct pollfd)))
      break; /* it will be written by the next wait instead */
    struct pollfd *p = (struct pollfd *)(void *)S->polls.bytes + all++;
    *p = (struct pollfd){c->h.ops->descriptor(&c->h, IPC_WRITE), POLLOUT, 0};
    S->polls.size = all * sizeof(struct pollfd);
  }
  Nanos left = IPC_FOREVER;
  if (deadline != IPC_FOREVER) {
    left = deadline - ipc_now();
    if (left < 0)
      left = 0;
  }
  size_t ready = 0;
  int err = ipc_os_poll((struct pollfd *)(void *)S->polls.bytes, all, left,
                        &ready);
  if (err)
    return err;
  ipc_flush_rests(S);
  return ready ? 0 : ETIMEDOUT;
}

/* ------------------------------------------------------------------ tasks */

/* A task waiting: what the scheduler polls, and a place in the queue. It lives
 * on the task's stack as a to-be-closed value, so the place is given up
 * however the wait ends: result, error, coroutine.close, or collection. */
struct Waiter {
  Handle *handle; /* NULL: none, or it is gone */
  Waiter *next;
  Waiter **link;
  Nanos deadline;
  int want;
  int fd; /* what to poll when there is no handle */
  bool watches;     /* is woken, but takes no turn: ipc.poll */
  unsigned looks;   /* how often it had its turn */
  Waiter *behind;   /* whom it waited for last, and how often that one */
  unsigned seen;    /* had looked then */
  unsigned patience;
};

static const char waiter_key; /* registry: the metatable */

enum { SCHEDULER_IS_TASK = 1, SCHEDULER_WAIT, SCHEDULER_CANCEL };

void ipc_waiter_leave(Waiter *w) {
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
}

void ipc_waiters_forget(Handle *h) {
  while (h->queue)
    ipc_waiter_leave(h->queue);
}

static Waiter *waiter_first(const Handle *h, int want) {
  Waiter *w = h->queue;
  while (w && (w->want != want || w->watches))
    w = w->next;
  return w;
}

void ipc_waiter_watch(Waiter *w) { w->watches = true; }

/* First come, first served; but one who was woken three times while the first
 * did not even look (its coroutine was dropped) goes ahead. */
static bool waiter_turn(Waiter *w) {
  Waiter *first = waiter_first(w->handle, w->want);
  if (first != w) {
    if (w->behind != first || w->seen != first->looks) {
      w->behind = first;
      w->seen = first->looks;
      w->patience = 3;
    }
    if (w->patience > 0) {
      w->patience--;
      return false;
    }
  }
  w->looks++;
  return true;
}

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

Waiter *ipc_waiter_push(lua_State *L, int handle, int want, Nanos deadline) {
  Waiter *w = lua_newuserdatauv(L, sizeof *w, 1);
  memset(w, 0, sizeof *w);
  w->want = want;
  w->deadline = deadline;
  w->fd = -1;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &waiter_key);
  lua_setmetatable(L, -2);
  if (handle) {
    lua_pushvalue(L, handle);
    lua_setiuservalue(L, -2, 1);
    waiter_enter(w, lua_touserdata(L, handle));
  }
  return w;
}

void ipc_suspend(lua_State *L, int count, lua_KContext context,
                 lua_KFunction again) {
  State *S = ipc_state(L);
  for (Chan *c = S->rests; c; c = c->rest.next) {
    luaL_checkstack(L, 4, "too many objects to wait for");
    Waiter *w = ipc_waiter_push(L, 0, IPC_WRITE, IPC_FOREVER);
    w->fd = c->h.ops->descriptor(&c->h, IPC_WRITE);
    count++;
  }
  ipc_state_push(L);
  lua_getiuservalue(L, -1, SCHEDULER_WAIT);
  lua_replace(L, -2);
  lua_insert(L, -(count + 1));
  lua_callk(L, count, 0, context, again);
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
  if (!h->state->scheduled)
    return;
  int last = -1;
  for (int want = IPC_READ; want <= IPC_ENDED; want <<= 1) {
    Waiter *w = h->queue;
    while (w && w->want != want)
      w = w->next;
    if (!w)
      continue;
    int fd = h->ops->descriptor(h, want);
    if (fd >= 0 && fd != last)
      scheduler_cancel(L, fd);
    last = fd;
  }
}

Waiter *ipc_waiter_at(lua_State *L, int index) {
  Waiter *w = lua_touserdata(L, index);
  if (!w || !lua_getmetatable(L, index))
    return NULL;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &waiter_key);
  bool ours = lua_rawequal(L, -1, -2);
  lua_pop(L, 2);
  return ours ? w : NULL;
}

static Waiter *waiter_self(lua_State *L) {
  Waiter *w = ipc_waiter_at(L, 1);
  if (!w)
    luaL_typeerror(L, 1, "ipc.waiter");
  return w;
}

static int waiter_pollfd(lua_State *L) {
  Waiter *w = waiter_self(L);
  Handle *h = w->handle;
  int fd = w->fd;
  if (h)
    fd = h->open ? h->ops->descriptor(h, w->want) : -1;
  if (fd < 0)
    return lua_pushnil(L), 1;
  lua_pushinteger(L, fd);
  return 1;
}

static int waiter_events(lua_State *L) {
  lua_pushstring(L, waiter_self(L)->want == IPC_WRITE ? "w" : "r");
  return 1;
}

static int waiter_timeout(lua_State *L) {
  Waiter *w = waiter_self(L);
  Handle *h = w->handle;
  if (h && (!ipc_handle_usable(h) ||
            ((w->watches || waiter_first(h, w->want) == w) &&
             h->ops->ready(h, w->want, false) != EAGAIN))) {
    lua_pushnumber(L, 0);
  } else if (w->deadline == IPC_FOREVER) {
    lua_pushnil(L);
  } else {
    Nanos left = w->deadline - ipc_now();
    lua_pushnumber(L, left > 0 ? (lua_Number)left / 1e9 : 0);
  }
  return 1;
}

static int waiter_close(lua_State *L) {
  Waiter *w = waiter_self(L);
  Handle *h = w->handle;
  ipc_waiter_leave(w);
  /* What was read ahead does not make the descriptor ready again: the next in
   * line must be told. */
  if (h && ipc_handle_usable(h) && waiter_first(h, w->want) &&
      h->ops->ready(h, w->want, false) != EAGAIN)
    ipc_wake(L, h);
  return 0;
}

static int waiter_gc(lua_State *L) {
  ipc_waiter_leave(waiter_self(L));
  return 0;
}

/* ---------------------------------------------------------------- the run */

static int run_finish(lua_State *L, const Op *op, int n) {
  if (!op->quiet || !lua_isnil(L, -n))
    return n;
  lua_settop(L, lua_gettop(L) - n + 3);
  if (lua_tointeger(L, -1) != EPIPE)
    return ipc_raise(L);
  lua_pushnil(L);
  return 1;
}

static int run_failed(lua_State *L, const Op *op, Handle *h, int err) {
  int n = op->failed ? op->failed(L, h, err)
                     : ipc_fail(L, h->ops->type, op->name, err, NULL);
  return run_finish(L, op, n);
}

static Spin *run_spin(Handle *h, int want) {
  if (!h->channel || want == IPC_ENDED)
    return NULL;
  return &((Chan *)h)->spin[want == IPC_WRITE];
}

/* One turn of waiting for `want`: 0 to try again, or why not. May yield. */
typedef struct Run {
  const Op *op;
  Handle *handle;
  Waiter *waiter;
  lua_Hook hook; /* the main coroutine's when the call began */
  Nanos until;   /* retrying ends; 0: not retrying */
} Run;

static int run(lua_State *L, int status, lua_KContext context);

static int run_wait(lua_State *L, Run *r, int want) {
  Handle *h = r->handle;
  State *S = h->state;
  lua_KContext context = (lua_KContext)r->op;
  Nanos deadline;
  int err = ipc_deadline(L, r->op->deadline,
                         h->channel ? ((Chan *)h)->timeout : IPC_FOREVER,
                         &deadline);
  if (err)
    return err;
  Nanos now = ipc_now();
  if (now >= deadline)
    return ETIMEDOUT;
  if (S->rests)
    ipc_flush_rests(S);

  if (ipc_in_task(L, S)) {
    if (!r->waiter) {
      r->waiter = ipc_waiter_push(L, 1, want, deadline);
      lua_toclose(L, -1);
    }
    lua_pushvalue(L, r->op->top + 1);
    ipc_suspend(L, 1, context, run);
    return 0;
  }

  Spin *spin = run_spin(h, want);
  if (r->until) {
    if (now < r->until)
      return 0;
    r->until = 0;
    ipc_spin_failed(spin);
  } else if (spin && ipc_spin_start(spin, now, deadline, &r->until)) {
    return 0;
  }

  err = ipc_run_hooks(L, S, r->hook, context, run);
  if (err)
    return err;
  S->polls.size = 0;
  if (ipc_buffer_reserve(&S->polls, sizeof(struct pollfd)))
    return ENOMEM;
  *(struct pollfd *)(void *)S->polls.bytes =
      (struct pollfd){h->ops->descriptor(h, want),
                      want == IPC_WRITE ? POLLOUT : POLLIN, 0};
  if (h->channel)
    ((Chan *)h)->sleeps++;
  err = ipc_sleep(S, 1, deadline);
  if (err == EINTR)
    return ipc_run_hooks(L, S, r->hook, context, run);
  return err == ETIMEDOUT ? 0 : err; /* one last look, then the clock says so */
}

static int run(lua_State *L, int status, lua_KContext context) {
  (void)status;
  const Op *op = (const Op *)context;
  Handle *h = lua_touserdata(L, 1);
  Run r = {op, h, NULL, lua_gethook(h->state->main), 0};
  if (lua_gettop(L) > op->top)
    r.waiter = lua_touserdata(L, op->top + 1);
  for (;;) {
    int n;
    if (!ipc_handle_usable(h) && !op->closing)
      n = ipc_handle_refuse(L, h, op->name);
    else if (r.waiter && r.waiter->handle && !waiter_turn(r.waiter))
      n = -r.waiter->want;
    else if (!r.waiter && h->queue && waiter_first(h, op->want) &&
             ipc_in_task(L, h->state))
      n = -op->want; /* others came first */
    else
      n = op->attempt(L, h);
    if (n >= 0) {
      if (r.until)
        run_spin(h, op->want)->penalty = 0;
      return run_finish(L, op, n);
    }
    int err = run_wait(L, &r, -n);
    if (err)
      return run_failed(L, op, h, err);
  }
}

int ipc_run(lua_State *L, const Op *op) {
  return run(L, LUA_OK, (lua_KContext)op);
}

/* -------------------------------------------------------------- functions */

/***
Registers the scheduler whose coroutines may wait without blocking: a call that
has to wait in one of its tasks yields to it. One per Lua state; a new one
replaces the old; nil goes back to blocking.
@function scheduler
@tparam ?table scheduler `is_task(thread)`: whether the running coroutine is a
task; `wait(object, ...)`: yields until one of the objects is ready, each with
methods `pollfd()`, `events()` and `timeout()` as cqueues polls them;
`cancel(descriptor)`: makes the waits on a descriptor return.
@usage ipc.scheduler { is_task = is_task, wait = wait, cancel = cancel }
*/
static int wait_scheduler(lua_State *L) {
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
  S->scheduled = some;
  return 0;
}

/***
Seconds on the monotonic clock; only differences mean something.
@function now
@treturn number seconds
*/
static int wait_now(lua_State *L) {
  lua_pushnumber(L, (lua_Number)ipc_now() / 1e9);
  return 1;
}

/* Slot 1: the deadline. */
static int sleep_again(lua_State *L, int status, lua_KContext context) {
  (void)status;
  State *S = ipc_state(L);
  lua_Hook was = lua_gethook(S->main);
  Nanos deadline;
  if (ipc_deadline(L, 1, IPC_FOREVER, &deadline))
    deadline = 0;
  for (;;) {
    if (S->rests)
      ipc_flush_rests(S);
    if (ipc_now() >= deadline)
      return lua_pushboolean(L, 1), 1;
    if (ipc_in_task(L, S)) {
      ipc_waiter_push(L, 0, IPC_READ, deadline);
      ipc_suspend(L, 1, context, sleep_again);
      continue;
    }
    int err = ipc_run_hooks(L, S, was, context, sleep_again);
    if (!err) {
      err = ipc_sleep(S, 0, deadline);
      if (err == EINTR)
        err = ipc_run_hooks(L, S, was, context, sleep_again);
    }
    if (err && err != ETIMEDOUT)
      return ipc_fail(L, "ipc", "sleep", err, NULL);
  }
}

/***
Waits; in a task of a scheduler the others go on meanwhile.
@function sleep
@number seconds
@treturn boolean true, or nil, "interrupted", EINTR
*/
static int wait_sleep(lua_State *L) {
  luaL_checktype(L, 1, LUA_TNUMBER);
  ipc_check_timeout(L, 1);
  lua_settop(L, 1);
  return sleep_again(L, LUA_OK, 0);
}

static const luaL_Reg waiter_methods[] = {{"pollfd", waiter_pollfd},
                                          {"events", waiter_events},
                                          {"timeout", waiter_timeout},
                                          {NULL, NULL}};

void ipc_wait_open(lua_State *L) {
  static const luaL_Reg functions[] = {{"scheduler", wait_scheduler},
                                       {"now", wait_now},
                                       {"sleep", wait_sleep},
                                       {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);

  if (luaL_loadstring(L, "") != LUA_OK)
    lua_error(L);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &nothing_key);

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
