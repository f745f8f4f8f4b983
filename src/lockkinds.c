/* What locks do, kind by kind: the methods of their handles; see lock.h. Each
 * call that may wait is an op; what it tells others while it waits is in a
 * claim, which takes it back however the call ends. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <string.h>

#include "lock.h"

/***
 * @submodule ipc.lock
 */

enum { SELF = 1, TIMEOUT, GUARD, CLAIM };

/* Checks the timeout at `index`; nil becomes the handle's own. */
static Lock *lock_self(lua_State *L, int index) {
  Lock *l = (Lock *)ipc_handle_self(L);
  ipc_check_timeout(L, index);
  if (lua_isnil(L, index) && l->timeout != IPC_FOREVER) {
    lua_pushnumber(L, (lua_Number)l->timeout / 1e9);
    lua_replace(L, index);
  }
  return l;
}

/* The guard has it: pushes it, and whether a holder died. The word is there
 * since the type was made: nothing is allocated here. */
static int lock_got(lua_State *L, Lock *l, LockGuard *g) {
  g->serial = ++l->serial;
  lua_pushvalue(L, GUARD);
  if (!atomic_load_explicit(&l->u.cell->broken, memory_order_relaxed))
    return 1;
  lua_rawgetp(L, LUA_REGISTRYINDEX, ipc_lock_dead);
  return 2;
}

/* Without the wait's machinery, unless somebody came before. */
static int lock_run(lua_State *L, Lock *l, const Op *op) {
  if (ipc_handle_usable(&l->h) && !l->h.queue) {
    int n = op->attempt(L, &l->h);
    if (n >= 0)
      return n;
  }
  return ipc_run(L, op);
}

/* Mutex, rwlock: this handle is the one that has it. */
static int lock_held(lua_State *L, Lock *l) {
  LockGuard *g = lua_touserdata(L, GUARD);
  int n = lock_got(L, l, g);
  ipc_lock_own(l)->holder = l;
  l->live = g->serial;
  return n;
}

static bool lock_holds(const Lock *l) {
  return l->place && ipc_lock_own(l)->holder == l;
}

/* The timeout or a signal ends a call without a claim. */
static int plain_failed(lua_State *L, Handle *h, int err) {
  Lock *l = (Lock *)h;
  l->u.waited = false;
  return ipc_fail(L, h->ops->type, "lock", err, NULL);
}

/* Gives back what the guard of this serial has; of a semaphore up to n. */
static int undo_permits(Lock *l, uint64_t serial, uint32_t n) {
  if (l->u.how & CELL_COUNTS)
    return ipc_cell_give(&l->u, ipc_lock_own(l), n);
  LockGrant *g = (LockGrant *)(void *)l->grants.bytes;
  size_t count = l->grants.size / sizeof *g;
  for (size_t i = count; i-- > 0;)
    if (g[i].serial == serial) {
      n = g[i].n;
      memmove(g + i, g + i + 1, (count - i - 1) * sizeof *g);
      l->grants.size -= sizeof *g;
      return ipc_cell_give(&l->u, ipc_lock_own(l), n);
    }
  return 0; /* release gave it back */
}

int ipc_lock_undo(Lock *l, uint64_t serial, uint32_t n) {
  CellOwn *own = ipc_lock_own(l);
  uint32_t kind = l->u.how & CELL_KIND;
  if (kind == CELL_SEMAPHORE)
    return undo_permits(l, serial, n);
  if (own->holder != l || l->live != serial)
    return 0;
  own->holder = NULL;
  l->live = 0;
  if (kind == CELL_MUTEX)
    return ipc_cell_unlock(&l->u);
  ipc_cell_unshare(&l->u, own);
  return 0;
}

/* -------------------------------------------------- mutex, rwlock: release */

/* Checks that the handle has it; else pushes why not. */
static int release_check(lua_State *L, Lock *l, const char *call) {
  if (!ipc_handle_usable(&l->h))
    return ipc_handle_refuse(L, &l->h, call);
  int err = ipc_lock_check(l);
  if (!err && !lock_holds(l))
    err = EPERM;
  return err ? ipc_lock_fail(L, l, call, err,
                             err == EPERM ? "this handle does not have it"
                                          : NULL)
             : 0;
}

/***
Gives it up, as its guard does.
@function rwlock:unlock
@treturn boolean true; or nil, message, errno: EPERM when this handle does not
have it
*/
/***
Gives the mutex up, as its guard does.
@function mutex:unlock
@treturn boolean true; or nil, message, errno: EPERM when this handle does not
have it
*/
static int lock_unlock(lua_State *L) {
  Lock *l = (Lock *)ipc_handle_self(L);
  int n = release_check(L, l, "unlock");
  if (n)
    return n;
  int err = ipc_lock_undo(l, l->live, 0);
  if (err)
    return ipc_lock_fail(L, l, "unlock", err, NULL);
  lua_pushboolean(L, 1);
  return 1;
}

/***
Declares that the data is whole again: readers and writers are not told
`"owner_dead"` any more. By who has the lock to write.
@function rwlock:consistent
@treturn boolean true; or nil, message, errno: EPERM when this handle does not
have it to write
*/
/***
Declares that the data is whole again: lockers are not told `"owner_dead"` any
more. By who has the mutex.
@function mutex:consistent
@treturn boolean true; or nil, message, errno: EPERM when this handle does not
have it
*/
static int lock_consistent(lua_State *L) {
  Lock *l = (Lock *)ipc_handle_self(L);
  int n = release_check(L, l, "consistent");
  if (n)
    return n;
  if ((l->u.how & CELL_KIND) == CELL_RWLOCK &&
      ipc_lock_own(l)->held != CELL_WRITES)
    return ipc_lock_fail(L, l, "consistent", EPERM, "it is locked to read");
  atomic_store(&l->u.cell->broken, 0);
  lua_pushboolean(L, 1);
  return 1;
}

/* ------------------------------------------------------------------- mutex */

/* Why it cannot be had once more. */
static const char *lock_deadlock(const Lock *l) {
  return lock_holds(l) ? "this handle has it already"
                       : "another handle of the same memory has it";
}

static int mutex_attempt(lua_State *L, Handle *h) {
  Lock *l = (Lock *)h;
  int err = ipc_lock_begin(l);
  if (!err && ipc_lock_own(l)->holder)
    err = EDEADLK;
  if (!err)
    err = ipc_cell_lock(&l->u);
  if (err == EAGAIN)
    return ipc_lock_later(l);
  if (err)
    return ipc_lock_fail(L, l, "lock", err,
                         err == EDEADLK ? lock_deadlock(l) : NULL);
  return lock_held(L, l);
}

static const Op mutex_op = {.name = "lock",
                            .attempt = mutex_attempt,
                            .failed = plain_failed,
                            .want = IPC_READ,
                            .deadline = TIMEOUT,
                            .top = GUARD};

/***
Locks: nobody else has it until the guard is unlocked, or leaves its scope. The
handle has it, not the coroutine: a second lock through it is EDEADLK (tasks
that exclude each other open the mutex once each).
@function mutex:lock
@tparam[opt] number timeout seconds
@treturn guard a to-be-closed value
@treturn ?string `"owner_dead"` when a process died that had it, and nobody has
called `consistent` since: look at the data before it is used; or nil, message,
errno: ETIMEDOUT, EDEADLK, EPIPE (closed), ENOTRECOVERABLE (another process
overwrote it)
@usage local held <close>, state = assert(mutex:lock(5))
*/
static int mutex_lock(lua_State *L) {
  lua_settop(L, TIMEOUT);
  Lock *l = lock_self(L, TIMEOUT);
  (void)ipc_lock_guard(L, SELF);
  return lock_run(L, l, &mutex_op);
}

/* ------------------------------------------------------------------ rwlock */

static void share_unclaim(LockClaim *c) {
  ipc_cell_unwant(&c->lock->u, ipc_lock_own(c->lock));
}

/* Slot CLAIM: nothing, until it has to wait. */
static int share_attempt(lua_State *L, Handle *h, bool write) {
  Lock *l = (Lock *)h;
  LockClaim *c = lua_touserdata(L, CLAIM);
  uint32_t since = c ? c->round : 0;
  int err = ipc_lock_begin(l);
  if (!err && ipc_lock_own(l)->holder)
    err = EDEADLK;
  if (!err)
    err = ipc_cell_share(&l->u, ipc_lock_own(l), write, c && write, &since);
  if (err == EAGAIN && !c) { /* from now on it is known to wait */
    c = ipc_lock_claim(L, SELF);
    lua_replace(L, CLAIM);
    lua_toclose(L, CLAIM);
    c->round = since;
    if (!ipc_handle_usable(h)) /* what made a claim may have run Lua */
      return ipc_handle_refuse(L, h, write ? "write" : "read");
    err = ipc_lock_check(l);
    if (!err && ipc_lock_own(l)->holder)
      err = EDEADLK;
    c->live = write && !err;
    if (!err)
      err = ipc_cell_share(&l->u, ipc_lock_own(l), write, write, &since);
  }
  if (err == EAGAIN)
    return ipc_lock_later(l);
  if (c && !err)
    c->live = false;
  if (err)
    return ipc_lock_fail(L, l, write ? "write" : "read", err,
                         err == EDEADLK ? lock_deadlock(l) : NULL);
  return lock_held(L, l);
}

static int read_attempt(lua_State *L, Handle *h) {
  return share_attempt(L, h, false);
}

static int write_attempt(lua_State *L, Handle *h) {
  return share_attempt(L, h, true);
}

static const Op read_op = {.name = "read",
                           .attempt = read_attempt,
                           .failed = plain_failed,
                           .want = IPC_READ,
                           .deadline = TIMEOUT,
                           .top = CLAIM};

static const Op write_op = {.name = "write",
                            .attempt = write_attempt,
                            .failed = plain_failed,
                            .want = IPC_READ,
                            .deadline = TIMEOUT,
                            .top = CLAIM};

static int share_run(lua_State *L, const Op *op) {
  lua_settop(L, TIMEOUT);
  (void)lock_self(L, TIMEOUT);
  (void)ipc_lock_guard(L, SELF);
  lua_pushnil(L);
  return ipc_run(L, op);
}

/***
Locks to read: others may read, too, nobody writes. Who waits to write goes
before who comes to read later; who waited to read while one wrote, before the
next. A handle has the lock once: a second call is EDEADLK.
@function rwlock:read
@tparam[opt] number timeout seconds
@treturn guard a to-be-closed value
@treturn ?string `"owner_dead"` when a process died that wrote; or nil, message,
errno as `mutex:lock`
*/
static int rwlock_read(lua_State *L) { return share_run(L, &read_op); }

/***
Locks to write: nobody else reads or writes.
@function rwlock:write
@tparam[opt] number timeout seconds
@treturn guard a to-be-closed value
@treturn ?string `"owner_dead"` when a process died that wrote, until
`consistent`; or nil, message, errno as `mutex:lock`
*/
static int rwlock_write(lua_State *L) { return share_run(L, &write_op); }

/* --------------------------------------------------------------- semaphore */

/* How many permits, at `index`; 1 when absent. */
static uint32_t permits_check(lua_State *L, int index, const Lock *l) {
  lua_Integer n = luaL_optinteger(L, index, 1);
  bool counts = l->u.how & CELL_COUNTS;
  lua_Integer most = counts ? CELL_PERMITS : (lua_Integer)l->u.count;
  if (n < 1 || n > most)
    luaL_argerror(L, index,
                  lua_pushfstring(L, "%I permits: 1 to %I", (LUAI_UACINT)n,
                                  (LUAI_UACINT)most));
  return (uint32_t)n;
}

static int acquire_attempt(lua_State *L, Handle *h) {
  Lock *l = (Lock *)h;
  LockGuard *g = lua_touserdata(L, GUARD);
  bool counts = l->u.how & CELL_COUNTS;
  int err = ipc_lock_begin(l);
  if (!err && !counts)
    err = ipc_buffer_reserve(&l->grants, sizeof(LockGrant));
  if (!err)
    err = ipc_cell_acquire(&l->u, ipc_lock_own(l), g->n);
  if (err == EAGAIN)
    return ipc_lock_later(l);
  if (err)
    return ipc_lock_fail(L, l, "acquire", err, NULL);
  g->serial = ++l->serial;
  if (!counts) {
    LockGrant *last = (LockGrant *)(void *)(l->grants.bytes + l->grants.size);
    *last = (LockGrant){g->serial, g->n};
    l->grants.size += sizeof *last;
  }
  lua_pushvalue(L, GUARD);
  return 1;
}

static const Op acquire_op = {.name = "acquire",
                              .attempt = acquire_attempt,
                              .failed = plain_failed,
                              .want = IPC_READ,
                              .deadline = TIMEOUT,
                              .top = GUARD};

/***
Takes permits, once there are so many; who wants many may wait for as long as
others take few. They return with the guard, by `release`,
with the handle, and when the process dies; with `owned = false` only by the
guard or by anybody's `release`.
@function semaphore:acquire
@tparam[opt] number timeout seconds
@tparam[opt=1] integer n permits, all at once
@treturn guard a to-be-closed value; or nil, message, errno: ETIMEDOUT, EPIPE
(closed), ENOTRECOVERABLE
@usage local slot <close> = assert(semaphore:acquire(5))
*/
static int semaphore_acquire(lua_State *L) {
  enum { N = 3 };
  lua_settop(L, N);
  Lock *l = lock_self(L, TIMEOUT);
  uint32_t n = permits_check(L, N, l);
  lua_settop(L, TIMEOUT);
  ipc_lock_guard(L, SELF)->n = n;
  return lock_run(L, l, &acquire_op);
}

/* The oldest first: guards of inner scopes keep theirs. */
static int release_grants(Lock *l, uint32_t n) {
  LockGrant *g = (LockGrant *)(void *)l->grants.bytes;
  size_t count = l->grants.size / sizeof *g, gone = 0;
  uint64_t sum = 0;
  for (size_t i = 0; i < count; i++)
    sum += g[i].n;
  if (sum < n)
    return EPERM;
  for (uint32_t left = n; left > 0;) {
    uint32_t some = g[gone].n < left ? g[gone].n : left;
    g[gone].n -= some;
    left -= some;
    if (g[gone].n == 0)
      gone++;
  }
  memmove(g, g + gone, (count - gone) * sizeof *g);
  l->grants.size -= gone * sizeof *g;
  return ipc_cell_give(&l->u, ipc_lock_own(l), n);
}

/***
Gives permits back that this handle has, those it has had longest first; their
guards do nothing then. With `owned = false`: adds permits, whoever took some.
@function semaphore:release
@tparam[opt=1] integer n
@treturn boolean true; or nil, message, errno: EPERM when this handle does not
have so many, EOVERFLOW when there would be more than 2147483647
*/
static int semaphore_release(lua_State *L) {
  lua_settop(L, 2);
  Lock *l = (Lock *)ipc_handle_self(L);
  uint32_t n = permits_check(L, 2, l);
  if (!ipc_handle_usable(&l->h))
    return ipc_handle_refuse(L, &l->h, "release");
  int err = ipc_lock_check(l);
  if (!err)
    err = l->u.how & CELL_COUNTS ? ipc_cell_give(&l->u, ipc_lock_own(l), n)
                                 : release_grants(l, n);
  if (err)
    return ipc_lock_fail(L, l, "release", err,
                         err == EPERM ? "this handle does not have so many"
                                      : NULL);
  lua_pushboolean(L, 1);
  return 1;
}

/* --------------------------------------------------------------- condition */

enum { MUTEX = 2, DEADLINE };

/* Takes the mutex back: 0, EAGAIN, or why not. */
static int wait_relock(Lock *l, Lock *mutex, LockClaim *c, bool suspect) {
  if (!ipc_handle_usable(&mutex->h))
    return mutex->h.generation == ipc_generation ? EPIPE : ECHILD;
  int err = ipc_lock_check(mutex);
  if (err)
    return err;
  CellOwn *own = ipc_lock_own(mutex);
  mutex->u.suspect = suspect;
  err =
      own->holder ? ipc_cell_lock_behind(&mutex->u) : ipc_cell_lock(&mutex->u);
  if (err == EAGAIN) {
    l->u.word = mutex->u.word;
    l->u.value = mutex->u.value;
    l->behind = mutex;
  }
  if (!err) {
    own->holder = mutex;
    mutex->live = c->guard; /* the guard it had has it again */
  }
  return err;
}

static int wait_failed_by(lua_State *L, Lock *l, LockClaim *c, int err) {
  if (c->live && !ipc_lock_check(l))
    ipc_lock_unclaim(c);
  c->live = false;
  ipc_lock_fail(L, l, "wait", err, NULL);
  lua_pushboolean(L, 0);
  return 4;
}

static int wait_attempt(lua_State *L, Handle *h) {
  Lock *l = (Lock *)h, *mutex = lua_touserdata(L, MUTEX);
  LockClaim *c = lua_touserdata(L, CLAIM);
  int err = ipc_lock_begin(l);
  bool suspect = l->u.suspect;
  if (!err && !c->told) {
    err = ipc_cell_told(&l->u, ipc_lock_own(l));
    c->told = !err;
  }
  if (!err)
    err = wait_relock(l, mutex, c, suspect);
  if (err == EAGAIN)
    return ipc_lock_later(l);
  if (err)
    return wait_failed_by(L, l, c, err);
  ipc_cell_unexpect(&l->u, ipc_lock_own(l), true, true);
  c->live = false;
  lua_pushboolean(L, 1);
  if (!atomic_load(&mutex->u.cell->broken))
    return 1;
  lua_rawgetp(L, LUA_REGISTRYINDEX, ipc_lock_dead);
  return 2;
}

/* The mutex is taken back if it is free; what the call was told meanwhile is
 * handed on. */
static int wait_failed(lua_State *L, Handle *h, int err) {
  Lock *l = (Lock *)h, *mutex = lua_touserdata(L, MUTEX);
  LockClaim *c = lua_touserdata(L, CLAIM);
  bool held = false;
  if (c->live && h->open && !ipc_lock_check(l))
    ipc_lock_unclaim(c);
  c->live = false;
  held = wait_relock(l, mutex, c, true) == 0;
  l->behind = NULL;
  l->u.word = NULL;
  ipc_fail(L, h->ops->type, "wait", err, NULL);
  lua_pushboolean(L, held);
  if (!held || !atomic_load(&mutex->u.cell->broken))
    return 4;
  lua_rawgetp(L, LUA_REGISTRYINDEX, ipc_lock_dead);
  return 5;
}

static const Op wait_op = {.name = "wait",
                           .attempt = wait_attempt,
                           .failed = wait_failed,
                           .want = IPC_READ,
                           .deadline = DEADLINE,
                           .top = CLAIM};

/* The mutex at MUTEX, which its handle must have; raises. */
static Lock *wait_mutex(lua_State *L) {
  Handle *h = ipc_handle_at(L, MUTEX);
  bool is = h && h->ops == ipc_lock_types[CELL_MUTEX];
  if (!is)
    luaL_typeerror(L, MUTEX, "ipc.mutex");
  if (!is || !ipc_handle_usable(h) || !lock_holds((Lock *)h))
    luaL_argerror(L, MUTEX, "the mutex must be locked through this handle");
  return (Lock *)h;
}

/***
Gives the mutex up, waits until it is notified, and takes the mutex back (its
guard has it again). As conditions go it may return for no reason: look at what
is waited for, in a loop. A process that is killed when it was notified, before
it has the mutex, hands that on. Raises when this handle of the mutex does not
have it.
@function condition:wait
@tparam ipc.mutex mutex
@tparam[opt] number timeout seconds, for all of it
@treturn boolean true
@treturn ?string `"owner_dead"` as `mutex:lock`; or nil, message, errno, whether
the mutex is held (after the time it is taken back only if it is free), and then
`"owner_dead"` as above
@usage local held <close> = assert(mutex:lock())
while not ready() do assert(changed:wait(mutex, 5)) end
*/
static int condition_wait(lua_State *L) {
  lua_settop(L, DEADLINE);
  Lock *l = lock_self(L, DEADLINE);
  (void)wait_mutex(L);
  LockClaim *c = ipc_lock_claim(L, SELF);
  lua_toclose(L, CLAIM);
  if (!ipc_handle_usable(&l->h))
    return ipc_handle_refuse(L, &l->h, "wait");
  Lock *mutex = wait_mutex(L); /* what made a claim may have run Lua */
  int err = ipc_lock_check(l);
  if (!err)
    err = ipc_lock_check(mutex);
  if (!err)
    err = ipc_cell_expect(&l->u);
  if (err) {
    ipc_lock_fail(L, l, "wait", err, NULL);
    lua_pushboolean(L, 1);
    return 4;
  }
  c->live = true;
  c->guard = mutex->live;
  err = ipc_lock_undo(mutex, mutex->live, 0);
  return err ? wait_failed_by(L, l, c, err) : ipc_run(L, &wait_op);
}

static int notify(lua_State *L, lua_Integer n) {
  Lock *l = (Lock *)ipc_handle_self(L);
  if (!ipc_handle_usable(&l->h))
    return ipc_handle_refuse(L, &l->h, "notify");
  int err = ipc_lock_check(l);
  if (err)
    return ipc_lock_fail(L, l, "notify", err, NULL);
  ipc_cell_notify(l->u.s, l->u.cell, n < UINT32_MAX ? (uint32_t)n : UINT32_MAX);
  lua_pushboolean(L, 1);
  return 1;
}

/***
Lets some of those go on that wait now, with or without the mutex.
@function condition:notify
@tparam[opt=1] integer n at most so many
@treturn boolean true; or nil, message, errno
*/
static int condition_notify(lua_State *L) {
  lua_Integer n = luaL_optinteger(L, 2, 1);
  luaL_argcheck(L, n >= 1, 2, "1 or more expected");
  return notify(L, n);
}

/***
Lets all go on that wait now.
@function condition:notify_all
@treturn boolean true; or nil, message, errno
*/
static int condition_notify_all(lua_State *L) { return notify(L, UINT32_MAX); }

/* ------------------------------------------------------------------- event */

static int event_attempt(lua_State *L, Handle *h) {
  Lock *l = (Lock *)h;
  int err = ipc_lock_begin(l);
  if (!err)
    err = ipc_cell_await(&l->u);
  if (err == EAGAIN)
    return ipc_lock_later(l);
  if (err)
    return ipc_lock_fail(L, l, "wait", err, NULL);
  lua_pushboolean(L, 1);
  return 1;
}

static const Op event_op = {.name = "wait",
                            .attempt = event_attempt,
                            .want = IPC_READ,
                            .deadline = TIMEOUT,
                            .top = TIMEOUT};

/***
Waits until the event is set; with `auto = true` it is clear again then, and one
waited.
@function event:wait
@tparam[opt] number timeout seconds
@treturn boolean true; or nil, message, errno: ETIMEDOUT, EPIPE (closed)
*/
static int event_wait(lua_State *L) {
  lua_settop(L, TIMEOUT);
  (void)lock_self(L, TIMEOUT);
  return ipc_run(L, &event_op);
}

static int event_store(lua_State *L, bool on, const char *call) {
  Lock *l = (Lock *)ipc_handle_self(L);
  if (!ipc_handle_usable(&l->h))
    return ipc_handle_refuse(L, &l->h, call);
  int err = ipc_lock_check(l);
  if (err)
    return ipc_lock_fail(L, l, call, err, NULL);
  ipc_cell_set(&l->u, on);
  lua_pushboolean(L, 1);
  return 1;
}

/***
Sets the event: all who wait go on, and who comes later; with `auto = true` one.
@function event:set
@treturn boolean true; or nil, message, errno
*/
static int event_set(lua_State *L) { return event_store(L, true, "set"); }

/***
Clears the event.
@function event:clear
@treturn boolean true; or nil, message, errno
*/
static int event_clear(lua_State *L) { return event_store(L, false, "clear"); }

/***
Whether the event is set now.
@function event:is_set
@treturn boolean set; or nil, message, errno
*/
static int event_is_set(lua_State *L) {
  Lock *l = (Lock *)ipc_handle_self(L);
  if (!ipc_handle_usable(&l->h))
    return ipc_handle_refuse(L, &l->h, "is_set");
  int err = ipc_lock_check(l);
  if (err)
    return ipc_lock_fail(L, l, "is_set", err, NULL);
  lua_pushboolean(L, ipc_cell_is_set(l->u.cell));
  return 1;
}

/* ----------------------------------------------------------------- barrier */

enum { ARRIVAL = 3 };

/* What became of the round; the arrival is history. */
static int barrier_over(lua_State *L, const Lock *l, LockClaim *c, int err) {
  c->live = false;
  if (err)
    return ipc_lock_fail(L, l, "wait", err, NULL);
  lua_pushboolean(L, 1);
  lua_pushboolean(L, 0);
  return 2;
}

static int barrier_attempt(lua_State *L, Handle *h) {
  Lock *l = (Lock *)h;
  LockClaim *c = lua_touserdata(L, ARRIVAL);
  int err = ipc_lock_begin(l);
  if (!err)
    err = ipc_cell_passed(&l->u, c->round);
  if (err == EAGAIN)
    return ipc_lock_later(l);
  return barrier_over(L, l, c, err);
}

static int barrier_failed(lua_State *L, Handle *h, int err) {
  Lock *l = (Lock *)h;
  LockClaim *c = lua_touserdata(L, ARRIVAL);
  int over = EAGAIN;
  if (c->live && h->open && !ipc_lock_check(l))
    over = ipc_cell_withdraw(&l->u, ipc_lock_own(l), c->round);
  if (over == 0 || over == EOWNERDEAD)
    return barrier_over(L, l, c, over); /* just now */
  c->live = over == EAGAIN;
  return ipc_fail(L, h->ops->type, "wait", err, NULL);
}

static const Op barrier_op = {.name = "wait",
                              .attempt = barrier_attempt,
                              .failed = barrier_failed,
                              .want = IPC_READ,
                              .deadline = TIMEOUT,
                              .top = ARRIVAL};

/***
Waits until all parties have come; then the next round begins. Of a party that
dies while it waits all the others hear, and the round begins anew. After a
timeout this one has not come.
@function barrier:wait
@tparam[opt] number timeout seconds
@treturn boolean true
@treturn boolean whether it was the last to come: true for one of them; or nil,
message, errno: ETIMEDOUT, EOWNERDEAD (`"died"`), EPIPE (closed)
*/
static int barrier_wait(lua_State *L) {
  lua_settop(L, TIMEOUT);
  Lock *l = lock_self(L, TIMEOUT);
  LockClaim *c = ipc_lock_claim(L, SELF);
  lua_toclose(L, ARRIVAL);
  bool last = false;
  if (!ipc_handle_usable(&l->h))
    return ipc_handle_refuse(L, &l->h, "wait");
  int err = ipc_lock_check(l);
  if (!err)
    err = ipc_cell_arrive(&l->u, ipc_lock_own(l), &c->round, &last);
  if (err)
    return ipc_lock_fail(L, l, "wait", err, NULL);
  if (last) {
    lua_pushboolean(L, 1);
    lua_pushboolean(L, 1);
    return 2;
  }
  c->live = true;
  return ipc_run(L, &barrier_op);
}

/* ------------------------------------------------------------------ claims */

void ipc_lock_unclaim(LockClaim *c) {
  Lock *l = c->lock;
  uint32_t kind = l->u.how & CELL_KIND;
  CellOwn *own = ipc_lock_own(l);
  if (kind == CELL_RWLOCK)
    share_unclaim(c);
  else if (kind == CELL_CONDITION)
    ipc_cell_unexpect(&l->u, own, c->told, false);
  else if (kind == CELL_BARRIER)
    (void)ipc_cell_withdraw(&l->u, own, c->round);
}

/* ------------------------------------------------------------------ tables */

static const luaL_Reg mutex_methods[] = {{"lock", mutex_lock},
                                         {"unlock", lock_unlock},
                                         {"consistent", lock_consistent},
                                         {NULL, NULL}};

static const luaL_Reg rwlock_methods[] = {{"read", rwlock_read},
                                          {"write", rwlock_write},
                                          {"unlock", lock_unlock},
                                          {"consistent", lock_consistent},
                                          {NULL, NULL}};

static const luaL_Reg semaphore_methods[] = {{"acquire", semaphore_acquire},
                                             {"release", semaphore_release},
                                             {NULL, NULL}};

static const luaL_Reg condition_methods[] = {
    {"wait", condition_wait},
    {"notify", condition_notify},
    {"notify_all", condition_notify_all},
    {NULL, NULL}};

static const luaL_Reg event_methods[] = {{"wait", event_wait},
                                         {"set", event_set},
                                         {"clear", event_clear},
                                         {"is_set", event_is_set},
                                         {NULL, NULL}};

static const luaL_Reg barrier_methods[] = {{"wait", barrier_wait},
                                           {NULL, NULL}};

const luaL_Reg *const ipc_lock_methods[CELL_KINDS] = {NULL,
                                                      mutex_methods,
                                                      rwlock_methods,
                                                      semaphore_methods,
                                                      condition_methods,
                                                      event_methods,
                                                      barrier_methods};
