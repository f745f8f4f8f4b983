/* Handles on locks in shared memory; see lock.h. What a handle has is released
 * when it is closed; one that is collected, or that the program ends with,
 * leaves what a dead process leaves: nobody knows what state the data is in. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdlib.h>
#include <string.h>

#include "lock.h"
#include "os.h"

/***
Locks between processes: mutex, rwlock, semaphore, condition, event, barrier. A
process that dies, however, loses what it had at once: the kernel says that it
is dead, nobody waits for a time to pass. Their constructors are in `ipc`. Calls
take a timeout in seconds (nil: that of `settimeout`, or for ever; 0 only looks)
and answer nil, `"timeout"`, ETIMEDOUT after it; in a task of a scheduler they
yield, and those of one handle are served in the order they came.
@module ipc.lock
*/

const char ipc_lock_dead[] = "owner_dead";

static const char guard_key, claim_key; /* registry: metatables */

/* ns that a call waits before it asks, now and then, who is dead. */
enum { LOOK = 20000000 };

/* ------------------------------------------------------------------ places */

static LockPlace *place_new(Segment *s) {
  uint32_t count = ipc_cell_count(s);
  LockPlace *p = calloc(1, sizeof *p + count * sizeof(CellOwn));
  if (!p)
    return NULL;
  p->s = s;
  p->count = count;
  return p;
}

static void place_leave(LockPlace *p) {
  if (--p->users == 0)
    free(p);
}

int ipc_lock_enter(Lock *l, LockPlace **place, Segment *s, unsigned index) {
  LockPlace *p = place ? *place : NULL;
  if (!p) {
    p = place_new(s);
    if (!p)
      return ENOMEM;
    if (place) {
      *place = p;
      p->users++;
    }
  }
  p->users++;
  l->place = p;
  l->index = index;
  l->next = p->locks;
  l->link = &p->locks;
  if (l->next)
    l->next->link = &l->next;
  p->locks = l;
  return 0;
}

CellOwn *ipc_lock_own(const Lock *l) { return &l->place->own[l->index]; }

/* ------------------------------------------------------------------- state */

int ipc_lock_check(Lock *l) {
  if (l->memory && !ipc_handle_usable(l->memory))
    return l->memory->generation == ipc_generation ? EPIPE : ECHILD;
  Segment *s = l->place ? l->place->s : NULL;
  if (!s || !s->base)
    return EUSERS;
  if (l->u.s != s || l->base != s->base) {
    l->u.s = s;
    l->base = s->base;
    l->u.cell = ipc_cell_at(s, l->index);
  }
  l->u.suspect = false;
  return ipc_segment_check(s);
}

int ipc_lock_begin(Lock *l) {
  bool lapsed = l->lapsed;
  int err = ipc_lock_check(l);
  if (atomic_load_explicit(&l->suspect, memory_order_relaxed))
    lapsed = atomic_exchange(&l->suspect, false);
  if (l->pending && !lapsed) /* others' coming and going ends its sleeps */
    lapsed = ipc_now() - l->looked >= LOOK;
  if (lapsed)
    l->looked = ipc_now();
  l->u.suspect = lapsed;
  l->lapsed = l->pending = false;
  l->behind = NULL;
  return err;
}

int ipc_lock_fail(lua_State *L, const Lock *l, const char *call, int err,
                  const char *why) {
  const Segment *s = l->place ? l->place->s : NULL;
  if (err == ECHILD)
    why = "this handle belongs to the process that forked";
  else if (err == EUSERS)
    why = "there was no place for this process beside its parent";
  else if (!why && s && (err == ENOTRECOVERABLE || err == EFAULT))
    why = s->why;
  return ipc_fail(L, l->h.ops->type, call, err, why);
}

void ipc_lock_leave(Lock *l, bool dead) {
  LockPlace *p = l->place;
  if (!p || !p->s || !p->s->base)
    return;
  CellOwn *own = ipc_lock_own(l);
  (void)ipc_lock_check(l); /* looks up the cell; what else it says is no reason
                            * to keep anything */
  LockGrant *g = (LockGrant *)(void *)l->grants.bytes;
  for (size_t i = 0; i < l->grants.size / sizeof *g; i++)
    (void)ipc_cell_give(&l->u, own, g[i].n);
  l->grants.size = 0;
  if (own->holder == l && !dead)
    (void)ipc_lock_undo(l, l->live, 0);
  if (own->holder == l || (dead && !l->memory))
    ipc_cell_sweep(p->s, l->u.cell, p->s->slot);
  if (own->holder == l)
    *own = (CellOwn){.holder = NULL};
}

/* ------------------------------------------------------------- as handles */

static int lock_descriptor(const Handle *h, int want) {
  const Lock *l = (const Lock *)h;
  return want < 0 || l->behind ? -1 : ipc_watch_descriptor(&l->watch);
}

/* In the thread: nobody but the next attempt asks the kernel. */
static bool lock_doubts(void *of) {
  Lock *l = of;
  atomic_store(&l->suspect, true);
  return true;
}

static bool lock_waits(const Lock *l) {
  return (l->u.how & CELL_KIND) != CELL_EVENT;
}

static int lock_arm(Handle *h, int want, Sleepers *by) {
  Lock *l = (Lock *)h;
  if (want < 0)
    return 0;
  if (l->behind || ipc_lock_check(l))
    return EAGAIN; /* the word may go with the other one: look now and then */
  if (lock_waits(l) && !l->u.word)
    return EAGAIN;
  uint32_t value = l->u.value;
  if (!lock_waits(l)) { /* polled, perhaps, by who never tried */
    l->u.word = &l->u.cell->event.count;
    value = ipc_segment_announce(l->u.s, &l->u.cell->event);
    if (ipc_cell_is_set(l->u.cell))
      value += 2; /* what is not there: it wakes at once */
  }
  l->watch.doubts = lock_waits(l) ? lock_doubts : NULL;
  l->watch.of = l;
  return ipc_watch_arm(&l->watch, l->u.word, value, by);
}

/* Whether its cell is mapped. */
static bool lock_mapped(const Lock *l) {
  return (!l->memory || ipc_handle_usable(l->memory)) && l->place &&
         l->place->s && l->place->s->base;
}

/* Whether the word to sleep on is still there. */
static bool lock_stands(const Lock *l) {
  if (l->behind &&
      (!ipc_handle_usable(&l->behind->h) || !lock_mapped(l->behind)))
    return false;
  return lock_mapped(l) && l->u.word;
}

static int lock_wait(Handle *h, int want, Nanos deadline) {
  Lock *l = (Lock *)h;
  (void)want;
  if (!lock_stands(l)) /* hooks ran */
    return deadline == 0 ? ETIMEDOUT : 0;
  return ipc_watch_wait(l->u.word, l->u.value, deadline, &l->slice, &l->lapsed);
}

static int lock_ready(Handle *h, int want, bool ask_kernel) {
  Lock *l = (Lock *)h;
  (void)ask_kernel;
  if (want < 0)
    return EAGAIN;
  if (!lock_waits(l))
    return ipc_lock_check(l) || ipc_cell_is_set(l->u.cell) ? 0 : EAGAIN;
  if (!lock_stands(l))
    return 0; /* to hear so */
  return atomic_load(l->u.word) == l->u.value && !atomic_load(&l->suspect)
             ? EAGAIN
             : 0;
}

static void lock_close(Handle *h, How how) {
  Lock *l = (Lock *)h;
  bool foreign = h->foreign || h->generation != ipc_generation;
  ipc_watch_close(&l->watch, foreign);
  for (LockClaim *c = l->claims; c; c = c->next) {
    if (c->live && !foreign && (how == IPC_CLOSE || l->memory) &&
        !ipc_lock_check(l))
      ipc_lock_unclaim(c);
    c->live = false;
  }
  if (l->place && !foreign)
    ipc_lock_leave(l, how != IPC_CLOSE);
  if (l->place) {
    *l->link = l->next;
    if (l->next)
      l->next->link = l->link;
    place_leave(l->place);
    l->place = NULL;
  }
  l->u.word = NULL;
  l->behind = NULL;
  ipc_member_close(&l->m, h, how);
  ipc_buffer_free(&l->grants);
}

static int lock_forking(Handle *h) {
  Lock *l = (Lock *)h;
  Handle *memory = l->memory;
  ipc_watch_stop(&l->watch);
  if (!memory)
    return ipc_member_forking(&l->m, false);
  if (memory->kept || !ipc_handle_usable(memory))
    return 0;
  int err = memory->ops->forking ? memory->ops->forking(memory) : 0;
  memory->kept = !err;
  return err;
}

static void lock_forked(Handle *h, bool child) {
  Lock *l = (Lock *)h;
  Handle *memory = l->memory;
  if (!child && memory && memory->kept) { /* its child took it along for us */
    memory->kept = false;
    if (memory->ops->forked)
      memory->ops->forked(memory, false);
  }
  if (!memory)
    ipc_member_forked(&l->m, false, child);
  if (!child)
    return;
  ipc_watch_close(&l->watch, true);
  l->u.word = NULL;
  l->behind = NULL;
  l->live = 0;
  l->grants.size = 0;
  for (LockClaim *c = l->claims; c; c = c->next)
    c->live = false;
  ipc_lock_forked(l->place);
}

static int lock_give(Handle *h, Given *g) {
  Lock *l = (Lock *)h;
  if (l->memory)
    return EOPNOTSUPP;
  int err = ipc_member_give(&l->m, "locks", false, g);
  g->limit = l->u.how & CELL_KIND;
  return err;
}

#define LOCK_TYPE(kind, word, asks)                                            \
  static const HandleOps kind##_handle = {.type = "ipc." word,                 \
                                          .descriptor = lock_descriptor,       \
                                          .arm = lock_arm,                     \
                                          .wait = lock_wait,                   \
                                          .ready = lock_ready,                 \
                                          .close = lock_close,                 \
                                          .forking = lock_forking,             \
                                          .forked = lock_forked,               \
                                          .give = lock_give,                   \
                                          .interest = (asks),                  \
                                          .events = true};

LOCK_TYPE(mutex, "mutex", IPC_NEVER)
LOCK_TYPE(rwlock, "rwlock", IPC_NEVER)
LOCK_TYPE(semaphore, "semaphore", IPC_NEVER)
LOCK_TYPE(condition, "condition", IPC_NEVER)
LOCK_TYPE(event, "event", IPC_READ)
LOCK_TYPE(barrier, "barrier", IPC_NEVER)

const HandleOps *const ipc_lock_types[CELL_KINDS] = {NULL,
                                                     &mutex_handle,
                                                     &rwlock_handle,
                                                     &semaphore_handle,
                                                     &condition_handle,
                                                     &event_handle,
                                                     &barrier_handle};

const char *const ipc_lock_names[CELL_KINDS] = {
    "nothing",     "a mutex",  "an rwlock", "a semaphore",
    "a condition", "an event", "a barrier"};

Lock *ipc_lock_new(lua_State *L, uint32_t kind) {
  Lock *l = ipc_handle_new(L, sizeof *l, ipc_lock_types[kind], 1);
  l->m = MEMBER_NOBODY;
  l->u.how = kind;
  l->timeout = IPC_FOREVER;
  l->h.shares = true;
  return l;
}

/* --------------------------------------------------------- guards, claims */

/* A userdata that keeps the handle. */
static void *lock_thing(lua_State *L, int handle, size_t size,
                        const char *key) {
  void *thing = lua_newuserdatauv(L, size, 1);
  memset(thing, 0, size);
  lua_rawgetp(L, LUA_REGISTRYINDEX, key);
  lua_setmetatable(L, -2);
  lua_pushvalue(L, handle);
  lua_setiuservalue(L, -2, 1);
  return thing;
}

LockGuard *ipc_lock_guard(lua_State *L, int handle) {
  LockGuard *g = lock_thing(L, handle, sizeof *g, &guard_key);
  g->generation = ipc_generation;
  g->lock = lua_touserdata(L, handle);
  return g;
}

LockClaim *ipc_lock_claim(lua_State *L, int handle) {
  LockClaim *c = lock_thing(L, handle, sizeof *c, &claim_key);
  c->lock = lua_touserdata(L, handle);
  c->next = c->lock->claims;
  c->link = &c->lock->claims;
  if (c->next)
    c->next->link = &c->next;
  c->lock->claims = c;
  return c;
}

/* Its methods have the metatable as upvalue 1. */
static void *thing_self(lua_State *L, const char *name) {
  void *thing = lua_touserdata(L, 1);
  bool ours = false;
  if (thing && lua_getmetatable(L, 1)) {
    ours = lua_rawequal(L, -1, lua_upvalueindex(1));
    lua_pop(L, 1);
  }
  if (!ours)
    luaL_typeerror(L, 1, name);
  return thing;
}

/***
Gives back what the call got that answered this guard; what leaving its scope
does, too. Again is harmless, and a guard of an earlier lock does nothing, nor
does a parent's in a child. Of a semaphore with `owned = false` the handle must
be open: else what it took is gone, and it answers `"closed"`.
@function guard:unlock
@treturn boolean true; or nil, message, errno: ENOTRECOVERABLE when another
process overwrote the lock
*/
static int guard_unlock(lua_State *L) {
  LockGuard *g = thing_self(L, "ipc.guard");
  Lock *l = g->lock;
  uint64_t serial = g->serial;
  g->serial = 0;
  int err = 0;
  if (serial && l->h.generation != ipc_generation)
    return ipc_handle_refuse(L, &l->h, "unlock");
  if (g->generation != ipc_generation) /* its parent's */
    serial = 0;
  if (serial && !l->h.open && l->u.how & CELL_COUNTS) /* it could not return */
    return ipc_handle_refuse(L, &l->h, "unlock");
  if (serial && l->h.open) {
    err = ipc_lock_check(l);
    if (!err)
      err = ipc_lock_undo(l, serial, g->n);
    else if (!(l->u.how & CELL_COUNTS))
      err = 0; /* it went with what it is in */
  }
  if (err)
    return ipc_lock_fail(L, l, "unlock", err, NULL);
  lua_pushboolean(L, 1);
  return 1;
}

static int guard_tostring(lua_State *L) {
  const LockGuard *g = thing_self(L, "ipc.guard");
  const Lock *l = g->lock;
  bool has = g->serial && l->h.open && g->generation == ipc_generation;
  lua_pushfstring(L, "ipc.guard (%s)", has ? l->h.ops->type : "nothing");
  return 1;
}

static int claim_end(lua_State *L) {
  LockClaim *c = thing_self(L, "ipc.claim");
  Lock *l = c->lock;
  if (c->live && l->h.open && l->h.generation == ipc_generation &&
      !ipc_lock_check(l))
    ipc_lock_unclaim(c);
  c->live = false;
  if (c->link)
    *c->link = c->next;
  if (c->next)
    c->next->link = c->link;
  c->next = NULL;
  c->link = NULL;
  return 0;
}

/* ---------------------------------------------------------------- methods */

/***
Closes the handle: what it has is released, in order, and calls on it that wait
answer `"closed"`. (A handle that is collected without, and a program that ends,
leave what they had as a dead process does.)
@function lock:close
@treturn boolean true; any number of times
*/
static int lock_close_method(lua_State *L) {
  Handle *h = ipc_handle_closable(L);
  if (!h->moved)
    ipc_handle_close(L, h);
  lua_pushboolean(L, 1);
  return 1;
}

/***
Sets the timeout of calls that name none; for ever at first.
@function lock:settimeout
@tparam ?number seconds nil: for ever
@treturn boolean true
*/
static int lock_settimeout(lua_State *L) {
  Lock *l = (Lock *)ipc_handle_self(L);
  lua_settop(L, 2);
  ipc_check_timeout(L, 2);
  l->timeout = lua_isnil(L, 2) ? IPC_FOREVER : ipc_seconds(lua_tonumber(L, 2));
  lua_pushboolean(L, 1);
  return 1;
}

static void stats_figure(lua_State *L, const char *name, lua_Integer n) {
  lua_pushinteger(L, n);
  lua_setfield(L, -2, name);
}

static void stats_kind(lua_State *L, const Lock *l) {
  static const char *const names[CELL_KINDS][3] = {
      [CELL_RWLOCK] = {"readers", "writers", "wanting"},
      [CELL_SEMAPHORE] = {"free"},
      [CELL_CONDITION] = {"waiting"},
      [CELL_BARRIER] = {"arrived", "rounds"}};
  uint32_t kind = l->u.how & CELL_KIND, n[3];
  ipc_cell_figures(&l->u, n);
  for (int i = 0; i < 3; i++)
    if (names[kind][i])
      stats_figure(L, names[kind][i], n[i]);
  if (kind == CELL_SEMAPHORE)
    stats_figure(L, "permits", l->u.count);
  if (kind == CELL_BARRIER)
    stats_figure(L, "parties", l->u.count);
  if (kind == CELL_MUTEX || kind == CELL_RWLOCK) {
    lua_pushboolean(L, ipc_lock_own(l)->holder == l);
    lua_setfield(L, -2, "held");
    lua_pushboolean(L, atomic_load(&l->u.cell->broken) != 0);
    lua_setfield(L, -2, "owner_dead");
  }
}

/***
Figures, of all who use the lock where they can be seen.
@function lock:stats
@treturn table `takeovers` (of what the dead had, by this handle); mutex,
rwlock: `held` (by this handle), `owner_dead`; rwlock: `readers`, `writers`,
`wanting` (to write); semaphore: `permits`, `free`; condition: `waiting`;
barrier: `parties`, `arrived`, `rounds`
*/
static int lock_stats(lua_State *L) {
  Lock *l = (Lock *)ipc_handle_self(L);
  lua_newtable(L);
  stats_figure(L, "takeovers", l->u.takeovers);
  if (ipc_handle_usable(&l->h) && l->place && !ipc_lock_check(l))
    stats_kind(L, l);
  return 1;
}

/***
Removes the name at once. Who has it open goes on with it; the next to open the
name makes another.
@function lock:remove
@treturn boolean true; or nil, message, errno: ENOENT when it is gone, or the
name is another's by now
*/
static int lock_remove(lua_State *L) {
  Lock *l = (Lock *)ipc_handle_self(L);
  if (l->memory)
    return ipc_lock_fail(L, l, "remove", ENOENT,
                         "it has no name: it is in a memory");
  return ipc_member_remove(L, ipc_lock_room(l));
}

static const luaL_Reg lock_methods[] = {
    {"close", lock_close_method},    {"__close", lock_close_method},
    {"settimeout", lock_settimeout}, {"stats", lock_stats},
    {"remove", lock_remove},         {NULL, NULL}};

void ipc_lock_setup(lua_State *L) {
  for (uint32_t kind = CELL_MUTEX; kind < CELL_KINDS; kind++) {
    ipc_handle_type(L, ipc_lock_types[kind], lock_methods);
    ipc_handle_methods(L, ipc_lock_methods[kind]);
    lua_pop(L, 1);
  }
  static const luaL_Reg guard[] = {
      {"__close", guard_unlock}, {"__tostring", guard_tostring}, {NULL, NULL}};
  lua_newtable(L);
  lua_pushvalue(L, -1);
  luaL_setfuncs(L, guard, 1);
  lua_pushliteral(L, "ipc.guard");
  lua_setfield(L, -2, "__name");
  lua_pushliteral(L, "ipc");
  lua_setfield(L, -2, "__metatable");
  lua_newtable(L);
  lua_pushvalue(L, -2);
  lua_pushcclosure(L, guard_unlock, 1);
  lua_setfield(L, -2, "unlock");
  lua_setfield(L, -2, "__index");
  lua_rawsetp(L, LUA_REGISTRYINDEX, &guard_key);

  lua_pushstring(L, ipc_lock_dead);
  lua_rawsetp(L, LUA_REGISTRYINDEX, ipc_lock_dead);

  static const luaL_Reg claim[] = {
      {"__close", claim_end}, {"__gc", claim_end}, {NULL, NULL}};
  lua_newtable(L);
  lua_pushvalue(L, -1);
  luaL_setfuncs(L, claim, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &claim_key);
}

/* -------------------------------------------------------------- in memory */

void ipc_lock_pause(LockPlace *place) {
  for (Lock *l = place ? place->locks : NULL; l; l = l->next) {
    ipc_watch_stop(&l->watch);
    l->u.word = NULL;
  }
}

void ipc_lock_part(LockPlace **place, How how, bool foreign) {
  LockPlace *p = *place;
  *place = NULL;
  if (!p)
    return;
  for (Lock *l = p->locks; l; l = l->next) {
    if (foreign)
      ipc_watch_close(&l->watch, true);
    else
      ipc_watch_stop(&l->watch);
    l->u.word = NULL;
    if (!foreign)
      ipc_lock_leave(l, how != IPC_CLOSE);
  }
  p->s = NULL;
  place_leave(p);
}

void ipc_lock_forked(LockPlace *place) {
  for (uint32_t i = 0; place && i < place->count; i++)
    place->own[i] = (CellOwn){.holder = NULL};
}
