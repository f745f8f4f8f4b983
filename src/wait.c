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

/***
 * @submodule ipc
 */

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

enum { SPIN_ASKS = 16 };

/* After a retry that did not pay the next 1, 3, 7, ... 1023 waits sleep at
 * once; one that did forgets all of that. So two processes on one core lose
 * nearly nothing, and two on different cores find out within a few waits. */
bool ipc_spin_start(Spin *spin, Nanos now, Nanos deadline, Nanos *until) {
  if (spin->budget == 0 || ipc_os_online() < 2)
    return false;
  if (spin->skip > 0) {
    spin->skip--;
    return false;
  }
  /* Asked always where it does not pay, and now and then where it does. */
  spin->switches =
      spin->penalty || ++spin->starts % SPIN_ASKS == 0 ? ipc_os_switches() : -1;
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

void ipc_spin_paid(Spin *spin) {
  if (spin->switches >= 0 && ipc_os_switches() != spin->switches)
    ipc_spin_failed(spin); /* on one core, asleep it would have been sooner */
  else
    spin->penalty = 0;
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
    /* One that came during the call, or one that fires at the next instruction
     * of Lua and was not there when the main coroutine last ran. */
    lua_Hook hook = lua_gethook(S->main);
    if (hook && (hook != was || (hook != S->hook &&
                                 (lua_gethookmask(S->main) & LUA_MASKCOUNT) &&
                                 lua_gethookcount(S->main) == 1)))
      return EINTR;
  }
  return 0;
}

/* --------------------------------------------------------------- sleeping */

void ipc_owe(State *S, Owed *o) {
  if (o->link)
    return;
  o->next = S->owed;
  if (o->next)
    o->next->link = &o->next;
  o->link = &S->owed;
  S->owed = o;
}

void ipc_owe_no_more(Owed *o) {
  if (!o->link)
    return;
  *o->link = o->next;
  if (o->next)
    o->next->link = o->link;
  o->link = NULL;
}

void ipc_flush_rests(lua_State *L, State *S) {
  for (Chan *c = S->rests, *next; c; c = next) {
    next = c->rest.next;
    if (c->h.generation == ipc_generation)
      ipc_chan_flush(L, c);
    else
      ipc_chan_end_rest(c, 0); /* the process that forked sends it */
  }
  Owed *all = S->owed; /* without those that stay owed */
  if (all)
    all->link = &all;
  S->owed = NULL;
  while (all) {
    Owed *o = all;
    ipc_owe_no_more(o);
    o->pay(L, o);
  }
}

bool ipc_owed_blindly(const State *S) {
  const Owed *o = S->owed;
  while (o && o->to->rest.link)
    o = o->next;
  return o != NULL;
}

Nanos ipc_owed_nap(const State *S, Nanos deadline) {
  if (!ipc_owed_blindly(S))
    return deadline;
  Nanos soon = ipc_now() + OS_SLICE;
  return soon < deadline ? soon : deadline;
}

int ipc_sleep(State *S, size_t count, Nanos deadline) {
  size_t all = count;
  deadline = ipc_owed_nap(S, deadline);
  S->polls.size = count * sizeof(struct pollfd);
  for (Chan *c = S->rests; c; c = c->rest.next) {
    if (ipc_buffer_reserve(&S->polls, sizeof(struct pollfd)))
      break; /* it will be written by the next wait instead */
    struct pollfd *p = (struct pollfd *)(void *)S->polls.bytes + all++;
    *p = (struct pollfd){c->h.ops->descriptor(&c->h, IPC_WRITE),
                         ipc_handle_events(&c->h, IPC_WRITE), 0};
    S->polls.size = all * sizeof(struct pollfd);
  }
  Nanos left = IPC_FOREVER;
  if (deadline != IPC_FOREVER) {
    left = deadline - ipc_now();
    if (left < 0)
      left = 0;
  }
  size_t ready = 0;
  int err =
      ipc_os_poll((struct pollfd *)(void *)S->polls.bytes, all, left, &ready);
  ipc_os_sweep();
  if (err)
    return err;
  return ready ? 0 : ETIMEDOUT;
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

/* Closed answers in the op's own form; what is no end of the channel does not.
 */
static int run_refused(lua_State *L, const Op *op, Handle *h) {
  int n = ipc_handle_refuse(L, h, op->name);
  if (!op->failed || lua_tointeger(L, -1) != EPIPE)
    return n;
  lua_pop(L, n);
  return op->failed(L, h, EPIPE);
}

/* Of a duplex's part: that is what an op sees of it. */
static Spin *run_spin(Handle *h, int want) {
  if (!h->channel || want == IPC_ENDED)
    return NULL;
  return &((Chan *)ipc_handle_part(h, want))->spin[want == IPC_WRITE];
}

/* One turn of waiting for `want`: 0 to try again, or why not. May yield. */
typedef struct Run {
  const Op *op;
  Handle *handle;
  Waiter *waiter;
  lua_Hook hook; /* the main coroutine's when the call began */
  Nanos until;   /* retrying ends; 0: not retrying */
  Nanos asked;   /* whether others are called, while retrying in a task */
  Spin *spin;    /* whose retrying that is */
  bool looked;   /* the handle's own wait has looked, after the deadline */
} Run;

/* The time is over; what only the handle's own wait finds out is worth one more
 * attempt. */
static int run_late(Run *r, int want) {
  Handle *part = ipc_handle_part(r->handle, want);
  if (r->looked || !part->ops->wait)
    return ETIMEDOUT;
  r->looked = true;
  return part->ops->wait(part, want, 0) == 0 ? 0 : ETIMEDOUT;
}

static int run(lua_State *L, int status, lua_KContext context);

enum {
  RUN_ASKS = 5000,    /* ns between looks at who else could go on */
  RUN_TURNS = 5000000 /* ns that a task retries before others have a turn */
};

/* In a task: whether retrying, begun or not, goes on instead of a suspension.
 * Who else can go on goes first. */
static bool run_alone(Run *r, const Handle *part, int want, Nanos now,
                      Nanos deadline) {
  if (r->waiter || (part->queue && ipc_waiter_first(part, want)))
    return false;
  if (!r->until) {
    r->spin = run_spin(r->handle, want);
    r->asked = now;
    return r->spin && ipc_spin_start(r->spin, now, deadline, &r->until);
  }
  if (now >= r->until) {
    r->until = 0;
    ipc_spin_failed(r->spin);
    return false;
  }
  if (now - r->asked < RUN_ASKS)
    return true;
  r->asked = now;
  return !ipc_reactor_calls(part->state);
}

/* The waiter goes. Not by lua_settop alone: that of Lua 5.4.4 goes on with a
 * pointer into the stack, which what it closes may have moved. */
static void run_leave(lua_State *L, Run *r) {
  int slot = r->op->top + 1;
#if LUA_VERSION_RELEASE_NUM >= 50403
  if (r->waiter)
    lua_closeslot(L, slot);
#endif
  lua_settop(L, slot - 1);
  r->waiter = NULL;
}

/* After a suspension. One that was for a turn leaves no place in a queue. */
static void run_resumed(lua_State *L, Run *r) {
  int slot = r->op->top + 1;
  r->waiter = lua_touserdata(L, slot);
  ipc_waiter_settle(L, slot);
  if (!ipc_waiter_has(r->waiter))
    run_leave(L, r);
}

/* Suspends the task until what it waits for may be there; `turn`: only until
 * others have had theirs. */
static void run_suspend(lua_State *L, Run *r, int want, Nanos deadline,
                        bool turn) {
  int slot = r->op->top + 1;
  Handle *part = ipc_handle_part(r->handle, want);
  lua_KContext context = (lua_KContext)r->op;
  r->until = 0;
  if (turn) {
    r->waiter = ipc_waiter_open(L, NULL, want, false);
    deadline = 0;
  } else {
    (void)ipc_handle_watch(part, want, ipc_reactor_sleepers(part->state));
    if (!r->waiter)
      r->waiter = ipc_waiter_open(L, part, want, r->op->closing);
    Spin *spin = r->op->alone ? NULL : run_spin(r->handle, want);
    if (spin) /* the loop retries, and knows whether that pays */
      spin->penalty = ipc_reactor_penalty(part->state);
    deadline = ipc_handle_nap(part, deadline);
  }
  ipc_suspend(L, slot, 0, deadline, 0, context, run);
  run_resumed(L, r);
}

static int run_wait(lua_State *L, Run *r, int want) {
  Handle *h = r->handle;
  State *S = h->state;
  lua_KContext context = (lua_KContext)r->op;
  Nanos deadline, now = 0;
  int err =
      ipc_deadline(L, r->op->deadline,
                   h->channel ? ((Chan *)h)->timeout : IPC_FOREVER, &deadline);
  if (err || (now = ipc_now()) >= deadline)
    return run_late(r, want);
  if (ipc_has_rests(S))
    ipc_flush_rests(L, S);

  Handle *part = ipc_handle_part(h, want);
  bool turn = r->op->alone && !r->waiter && now - S->looked > RUN_TURNS;
  if (r->op->alone && !turn && run_alone(r, part, want, now, deadline))
    return 0;
  if (ipc_in_task(L, S)) {
    run_suspend(L, r, want, deadline, turn);
    return 0;
  }

  if (r->until) {
    if (now < r->until)
      return 0;
    r->until = 0;
    ipc_spin_failed(r->spin);
  } else {
    r->spin = run_spin(h, want);
    if (r->spin && ipc_spin_start(r->spin, now, deadline, &r->until))
      return 0;
  }

  err = ipc_run_hooks(L, S, r->hook, context, run);
  if (err)
    return err;
  lua_Hook was = lua_gethook(S->main);
  if (h->channel)
    ((Chan *)h)->sleeps++;
  if (part->ops->wait && !part->nap && !S->rests) {
    err = part->ops->wait(part, want, ipc_owed_nap(S, deadline));
    ipc_os_sweep();
    if (err == EINTR)
      return ipc_run_hooks(L, S, r->hook, context, run);
    if (err != EAGAIN)
      return err == ETIMEDOUT ? 0 : err;
  }
  S->polls.size = 0;
  if (ipc_buffer_reserve(&S->polls, sizeof(struct pollfd)))
    return ENOMEM;
  *(struct pollfd *)(void *)S->polls.bytes = (struct pollfd){
      ipc_handle_watch(part, want, NULL), ipc_handle_events(part, want), 0};
  if (lua_gethook(S->main) != was) /* a signal, while the watch was set up */
    err = EINTR;
  else
    err = ipc_sleep(S, 1, ipc_handle_nap(part, deadline));
  if (err == EINTR)
    return ipc_run_hooks(L, S, r->hook, context, run);
  return err == ETIMEDOUT ? 0 : err; /* one last look, then the clock says so */
}

/* What was waited for is there: as Op.finish. */
static int run_more(lua_State *L, Run *r) {
  run_leave(L, r);
  r->until = 0;
  int n = r->op->finish(L, r->handle);
  if (n == IPC_TURN)
    run_suspend(L, r, r->op->want, 0, true);
  return n;
}

bool ipc_run_tires(lua_State *L, State *S) {
  return S->reactor && ipc_now() - S->looked > RUN_TURNS && ipc_in_task(L, S);
}

/* `tried`: an attempt has just been made, and would have to wait. */
static int run_from(lua_State *L, lua_KContext context, bool tried) {
  const Op *op = (const Op *)context;
  Handle *h = lua_touserdata(L, 1);
  Handle *part = ipc_handle_part(h, op->want);
  Run r = {op, h, NULL, lua_gethook(h->state->main), 0, 0, NULL, false};
  if (L == h->state->main)
    h->state->hook = r.hook;
  if (lua_gettop(L) > op->top)
    run_resumed(L, &r);
  for (;;) {
    int n;
    if (!ipc_handle_usable(h) && !op->closing)
      n = run_refused(L, op, h);
    else if (r.waiter && !ipc_waiter_turn(r.waiter))
      n = -op->want;
    else if (!r.waiter && part->queue && ipc_waiter_first(part, op->want) &&
             ipc_in_task(L, h->state))
      n = -op->want; /* others came first */
    else if (tried) {
      n = -op->want;
    } else {
      part->nap = 0;
      n = op->attempt(L, h);
      if (part->observers)
        ipc_handle_changed(L, part);
    }
    if (n >= 0) {
      if (r.until)
        ipc_spin_paid(r.spin);
      if (part->queue && !r.waiter) /* a waiter tells the next when it leaves */
        ipc_wake_next(L, part, op->want);
      if (n > 0 || !op->finish)
        return run_finish(L, op, n);
      n = run_more(L, &r);
      if (n >= 0)
        return n;
      tried =
          n == IPC_AGAIN && !part->nap && !part->ops->arm && !part->ops->wait;
      continue;
    }
    tried = false;
    int err = run_wait(L, &r, -n);
    if (!err)
      continue;
    if (err == ETIMEDOUT && part->exposed && ipc_handle_usable(part))
      (void)ipc_handle_watch(part, op->want,
                             NULL); /* a foreign loop polls it now */
    return run_failed(L, op, h, err);
  }
}

static int run(lua_State *L, int status, lua_KContext context) {
  (void)status;
  return run_from(L, context, false);
}

int ipc_run(lua_State *L, const Op *op) {
  return run_from(L, (lua_KContext)op, false);
}

int ipc_run_tried(lua_State *L, const Op *op) {
  return run_from(L, (lua_KContext)op, true);
}

/* -------------------------------------------------------------- functions */

/***
Seconds on the monotonic clock; only differences mean something.
@function now
@treturn number seconds
*/
static int wait_now(lua_State *L) {
  lua_pushnumber(L, (lua_Number)ipc_now() / 1e9);
  return 1;
}

/* Slot 1: the deadline; 2: a task's waiter. */
static int sleep_again(lua_State *L, int status, lua_KContext context) {
  (void)status;
  State *S = ipc_state(L);
  lua_Hook was = lua_gethook(S->main);
  Nanos deadline;
  if (ipc_deadline(L, 1, IPC_FOREVER, &deadline))
    deadline = 0;
  for (;;) {
    if (lua_gettop(L) > 1)
      ipc_waiter_settle(L, 2);
    if (ipc_has_rests(S))
      ipc_flush_rests(L, S);
    if (ipc_now() >= deadline)
      return lua_pushboolean(L, 1), 1;
    if (ipc_in_task(L, S)) {
      if (lua_gettop(L) == 1)
        ipc_waiter_open(L, NULL, IPC_READ, false);
      ipc_suspend(L, 2, 0, deadline, 0, context, sleep_again);
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

void ipc_wait_open(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"now", wait_now}, {"sleep", wait_sleep}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);

  if (luaL_loadstring(L, "") != LUA_OK)
    lua_error(L);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &nothing_key);
}
