/* What every handle has: its life, its owner, its methods for waiting in a
 * foreign loop. Knows nothing of sending and receiving. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "ipc.h"
#include "os.h"

/***
 * @submodule ipc.channel
 */

unsigned ipc_generation;

static const char state_key;  /* registry: the State */
static const char handle_key; /* in a metatable: it is a handle's */
static const char alive_key;  /* registry: Handle * -> its userdata, weakly */

/* ------------------------------------------------------------------- life */

void *ipc_handle_new(lua_State *L, size_t size, const HandleOps *ops,
                     int values) {
  Handle *h = lua_newuserdatauv(L, size, values);
  memset(h, 0, size);
  h->ops = ops;
  h->state = ipc_state(L);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &alive_key);
  lua_pushvalue(L, -2);
  lua_rawsetp(L, -2, h);
  lua_pop(L, 1);
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, ops) == LUA_TNIL || h->state->typing) {
    lua_pop(L, 1);
    ipc_room_types(L, ops);
    lua_rawgetp(L, LUA_REGISTRYINDEX, ops);
  }
  lua_setmetatable(L, -2);
  return h;
}

void ipc_handle_owe(lua_State *L, int index) {
  ((Handle *)lua_touserdata(L, index))->owes = true;
}

/* In h's finaliser: whether the state is closing. The collector clears weak
 * values before it runs their finalisers (manual, 2.5.3); lua_close runs them
 * without. */
static bool handle_ends(lua_State *L, const Handle *h) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &alive_key);
  bool there = lua_rawgetp(L, -1, h) != LUA_TNIL;
  lua_pop(L, 2);
  return there;
}

short ipc_handle_events(const Handle *h, int want) {
  return want == IPC_WRITE && !h->ops->events ? POLLOUT : POLLIN;
}

int ipc_handle_watch(Handle *h, int want, Sleepers *by) {
  enum { NAP = 1000 }; /* us */
  if (h->nap)          /* the op looks again by itself */
    return -1;
  int fd = h->ops->descriptor(h, want);
  if (h->ops->arm && h->ops->arm(h, want, by) != 0)
    fd = -1;
  else if (fd < 0)
    fd = h->ops->descriptor(h, want);
  if (fd < 0 && want != IPC_NEVER) /* nothing will tell */
    h->nap = NAP;
  return fd;
}

Nanos ipc_handle_nap(const Handle *h, Nanos deadline) {
  if (!h->nap)
    return deadline;
  Nanos until = ipc_now() + (Nanos)h->nap * 1000;
  return until < deadline ? until : deadline;
}

void ipc_handle_open(Handle *h) {
  State *S = h->state;
  h->generation = ipc_generation;
  h->open = true;
  h->next = S->handles;
  h->link = &S->handles;
  if (h->next)
    h->next->link = &h->next;
  S->handles = h;
}

/* What was read ahead in asking is nothing the kernel tells others of. */
int ipc_handle_hits(Handle *h, int wants, bool ask_kernel) {
  int hits = 0;
  if (!ipc_handle_usable(h))
    return wants;
  for (int want = IPC_READ; want <= IPC_ENDED; want <<= 1) {
    if (!(wants & want) || h->ops->ready(h, want, ask_kernel) == EAGAIN)
      continue;
    hits |= want;
    if (ask_kernel)
      ipc_handle_asked(ipc_handle_part(h, want));
  }
  return hits;
}

/* -------------------------------------------------------------- observers */

void ipc_handle_observe(Handle *h, Observer *o) {
  o->next = h->observers;
  o->link = &h->observers;
  if (o->next)
    o->next->link = &o->next;
  h->observers = o;
}

void ipc_observer_leave(Observer *o) {
  if (!o->link)
    return;
  *o->link = o->next;
  if (o->next)
    o->next->link = o->link;
  o->link = NULL;
}

/* The list may be another after each call of Lua. */
static Observer *handle_stirred(const Handle *h) {
  Observer *o = h->observers;
  while (o && !o->stirred)
    o = o->next;
  return o;
}

void ipc_handle_asked(Handle *h) {
  for (Observer *o = h->observers; o; o = o->next) {
    o->tell(o, false);
    o->stirred = o->by->queue || o->by->observers;
  }
}

void ipc_handle_changed(lua_State *L, Handle *h) {
  ipc_handle_asked(h);
  luaL_checkstack(L, 1, "pollers too deep");
  for (Observer *o; (o = handle_stirred(h));) {
    Handle *by = o->by;
    o->stirred = false;
    if (!ipc_handle_push(L, by))
      continue;
    ipc_wake_next(L, by, IPC_READ);
    if (by->observers)
      ipc_handle_changed(L, by);
    lua_pop(L, 1);
  }
}

void ipc_handle_release(Handle *h, How how) {
  if (!h->open)
    return;
  while (h->observers) {
    Observer *o = h->observers;
    ipc_observer_leave(o);
    o->tell(o, true);
  }
  h->open = false;
  *h->link = h->next;
  if (h->next)
    h->next->link = h->link;
  h->link = NULL;
  /* Of another process: its names, peers and accepted bytes are not ours. */
  h->foreign = h->generation != ipc_generation;
  h->ops->close(h, h->foreign || h->moved ? IPC_DROP : how);
}

/* One whose close raised (a hook, a scheduler) can be closed again. */
bool ipc_handle_begin_close(lua_State *L, Handle *h) {
  if (!h->open || h->leaving)
    return false;
  if (h->generation != ipc_generation) {
    ipc_handle_release(h, IPC_DROP);
    return false;
  }
  h->closing = true;
  for (int want = IPC_READ; want <= IPC_WRITE; want <<= 1)
    ipc_wake(L, ipc_handle_part(h, want));
  if (h->observers)
    ipc_handle_changed(L, h);
  return true;
}

/* A scheduler keeps polling the descriptor until the last task that waits on
 * it has run: the last to leave the queue releases it. */
void ipc_handle_close(lua_State *L, Handle *h) {
  if (!h->open)
    return;
  h->closing = true;
  ipc_wake(L, h);
  if (h->observers)
    ipc_handle_changed(L, h);
  h->leaving = h->queue != NULL;
  if (!h->leaving)
    ipc_handle_release(h, IPC_CLOSE);
}

/* The handle in slot 1 if its metatable is upvalue 1, else NULL. */
static Handle *handle_mine(lua_State *L) {
  Handle *h = lua_touserdata(L, 1);
  if (!h || !lua_getmetatable(L, 1))
    return NULL;
  bool mine = lua_rawequal(L, -1, lua_upvalueindex(1));
  lua_pop(L, 1);
  return mine ? h : NULL;
}

static int handle_gc(lua_State *L) {
  Handle *h = handle_mine(L);
  if (h) {
    bool ends = handle_ends(L, h);
    ipc_waiters_forget(h);
    /* A scheduler that goes on lets go of what it polled; one that ends with
     * the state may be gone, and that of another process is not ours. */
    if (!ends && h->open && h->generation == ipc_generation)
      ipc_wake(L, h);
    ipc_handle_release(h, ends && h->owes ? IPC_EXIT : IPC_DROP);
  }
  return 0;
}

/* ------------------------------------------------------------------ owner */

Handle *ipc_handle_at(lua_State *L, int index) {
  Handle *h = lua_touserdata(L, index);
  if (!h || !lua_getmetatable(L, index))
    return NULL;
  bool ours = lua_rawgetp(L, -1, &handle_key) != LUA_TNIL;
  lua_pop(L, 2);
  return ours ? h : NULL;
}

bool ipc_handle_push(lua_State *L, const Handle *h) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &alive_key);
  bool there = lua_rawgetp(L, -1, h) != LUA_TNIL;
  lua_remove(L, -2);
  if (!there)
    lua_pop(L, 1);
  return there;
}

static int handle_moved(lua_State *L, const Handle *h) {
  lua_getiuservalue(L, 1, IPC_UV_MOVED);
  const char *where = lua_tostring(L, -1);
  if (h->moved < 0)
    return luaL_error(L, "%s: moved to another process: dup() keeps one",
                      h->ops->type);
  return luaL_error(L, "%s: moved to %d%s: dup() keeps one", h->ops->type,
                    h->moved, where ? where : "");
}

void ipc_handle_moved(lua_State *L, int index, int pid) {
  Handle *h = lua_touserdata(L, index);
  index = lua_absindex(L, index);
  lua_setiuservalue(L, index, IPC_UV_MOVED);
  h->moved = pid;
  ipc_handle_close(L, h);
}

Handle *ipc_handle_closable(lua_State *L) {
  Handle *h = handle_mine(L);
  if (!h) {
    lua_getfield(L, lua_upvalueindex(1), "__name");
    luaL_typeerror(L, 1, lua_tostring(L, -1));
  }
  return h;
}

Handle *ipc_handle_self(lua_State *L) {
  Handle *h = ipc_handle_closable(L);
  if (h->moved)
    handle_moved(L, h);
  return h;
}

int ipc_handle_refuse(lua_State *L, const Handle *h, const char *call) {
  if (h->moved)
    return handle_moved(L, h);
  if (h->foreign || (h->open && h->generation != ipc_generation))
    return ipc_fail(L, h->ops->type, call, ECHILD,
                    "this handle belongs to the process that forked");
  return ipc_fail(L, h->ops->type, call, EPIPE, NULL);
}

/* -------------------------------------------------- methods every one has */

int ipc_handle_interest(const Handle *h) {
  const Chan *c = (const Chan *)h;
  if (!h->channel || (!c->reader && !c->writer))
    return h->ops->interest ? h->ops->interest : IPC_ENDED;
  return c->reader ? IPC_READ : IPC_WRITE;
}

Handle *ipc_handle_part(Handle *h, int want) {
  Chan *c = (Chan *)h;
  if (!h->channel || want == IPC_ENDED)
    return h;
  Chan *part = want == IPC_WRITE ? c->writer : c->reader;
  return part ? &part->h : h;
}

/***
The descriptor to poll in a foreign loop, or nil when there is none (closed, or
a mechanism without). Poll it for what `events()` says, no longer than
`timeout()` says, then call `recv(0)` until it answers `"timeout"` before
polling again: messages may have been read ahead.
@function channel:pollfd
@treturn ?integer descriptor
*/
static int handle_pollfd(lua_State *L) {
  Handle *h = ipc_handle_self(L);
  if (!ipc_handle_usable(h))
    return luaL_pushfail(L), 1;
  int want = ipc_handle_interest(h);
  Handle *part = ipc_handle_part(h, want);
  part->exposed = true;
  part->waited = true; /* by a scheduler, perhaps: of an object in Lua */
  int fd = ipc_handle_watch(part, want, NULL);
  if (fd < 0)
    return luaL_pushfail(L), 1;
  lua_pushinteger(L, fd);
  return 1;
}

/***
What to poll `pollfd()` for: `"r"` or `"w"`, as cqueues(3) wants it.
@function channel:events
@treturn string "r" or "w"
*/
static int handle_events(lua_State *L) {
  Handle *h = ipc_handle_self(L);
  int want = ipc_handle_interest(h);
  short events = ipc_handle_events(ipc_handle_part(h, want), want);
  lua_pushstring(L, events == POLLOUT ? "w" : "r");
  return 1;
}

/***
How long a foreign loop may wait before it asks this handle: 0 while a whole
message has been read ahead or the handle is closed; a little where nothing
tells when to look again (a full System V queue); else nil.
@function channel:timeout
@treturn ?number seconds
*/
static int handle_timeout(lua_State *L) {
  Handle *h = ipc_handle_self(L);
  int want = ipc_handle_interest(h);
  const Handle *part = ipc_handle_part(h, want);
  if (!ipc_handle_usable(h) || h->ops->ready(h, want, false) != EAGAIN)
    lua_pushnumber(L, 0);
  else if (part->nap)
    lua_pushnumber(L, (lua_Number)part->nap / 1e6);
  else
    lua_pushnil(L);
  return 1;
}

static int handle_tostring(lua_State *L) {
  Handle *h = handle_mine(L);
  if (h && h->moved < 0)
    lua_pushfstring(L, "%s (moved)", h->ops->type);
  else if (h && h->moved)
    lua_pushfstring(L, "%s (moved to %d)", h->ops->type, h->moved);
  else if (!h || !h->open || h->closing)
    lua_pushfstring(L, "%s (closed)", h ? h->ops->type : "ipc");
  else if (h->ops->descriptor(h, ipc_handle_interest(h)) < 0)
    lua_pushfstring(L, "%s (open)", h->ops->type);
  else
    lua_pushfstring(L, "%s (%d)", h->ops->type,
                    h->ops->descriptor(h, ipc_handle_interest(h)));
  return 1;
}

static const luaL_Reg handle_methods[] = {
    {"pollfd", handle_pollfd},   {"events", handle_events},
    {"timeout", handle_timeout}, {"__tostring", handle_tostring},
    {"__gc", handle_gc},         {NULL, NULL}};

void ipc_handle_methods(lua_State *L, const luaL_Reg *methods) {
  lua_getfield(L, -1, "__index");
  for (const luaL_Reg *f = methods; f && f->name; f++) {
    lua_pushvalue(L, -2);
    lua_pushcclosure(L, f->func, 1);
    lua_setfield(L, strncmp(f->name, "__", 2) == 0 ? -3 : -2, f->name);
  }
  lua_pop(L, 1);
}

void ipc_handle_type(lua_State *L, const HandleOps *ops,
                     const luaL_Reg *methods) {
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, ops) != LUA_TNIL)
    return;
  lua_pop(L, 1);
  lua_newtable(L);
  lua_pushstring(L, ops->type);
  lua_setfield(L, -2, "__name");
  lua_pushliteral(L, "ipc");
  lua_setfield(L, -2, "__metatable");
  lua_pushboolean(L, 1);
  lua_rawsetp(L, -2, &handle_key);
  lua_newtable(L);
  lua_setfield(L, -2, "__index");
  ipc_handle_methods(L, handle_methods);
  ipc_handle_methods(L, methods);
  lua_pushvalue(L, -1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, ops);
}

/* ---------------------------------------------------------- one per Lua */

static State *states; /* of the process; under ipc_os_lock */

void ipc_state_push(lua_State *L) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &state_key);
}

State *ipc_state(lua_State *L) {
  ipc_state_push(L);
  State *S = lua_touserdata(L, -1);
  lua_pop(L, 1);
  return S;
}

void ipc_state_release(State *S, How how) {
  for (Handle *h = S->handles, *next; h; h = next) {
    next = h->next;
    if (!h->kept)
      ipc_handle_release(h, how);
  }
}

static int state_gc(lua_State *L) {
  State *S = lua_touserdata(L, 1);
  ipc_os_lock();
  for (State **at = &states; *at; at = &(*at)->next)
    if (*at == S) {
      *at = S->next;
      break;
    }
  ipc_os_unlock();
  ipc_buffer_free(&S->scratch);
  ipc_buffer_free(&S->polls);
  return 0;
}

void ipc_states_drop(const State *but) {
  ipc_os_lock();
  for (State *S = states; S; S = S->next)
    if (S != but)
      ipc_state_release(S, IPC_DROP);
  ipc_os_unlock();
}

/* The next state of this thread, which no other takes from the list. */
static State *state_after(const State *S) {
  ipc_os_lock();
  State *next = S ? S->next : states;
  while (next && !pthread_equal(next->thread, pthread_self()))
    next = next->next;
  ipc_os_unlock();
  return next;
}

/* The end of the program without lua_close: os.exit(). Other threads may still
 * run their states; a program that exits under its threads closes its own
 * thread's states only. */
static void state_at_exit(void) {
  /* Not under the lock, which rings take when they close: our thread's states
   * stay in the list. */
  for (State *S = state_after(NULL); S; S = state_after(S))
    ipc_state_release(S, IPC_EXIT);
}

static void state_in_child(void) { ipc_generation++; }

void ipc_state_open(lua_State *L) {
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &state_key) != LUA_TNIL) {
    lua_pop(L, 1);
    return;
  }
  lua_pop(L, 1);
  lua_newtable(L);
  lua_createtable(L, 0, 1);
  lua_pushliteral(L, "v");
  lua_setfield(L, -2, "__mode");
  lua_setmetatable(L, -2);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &alive_key);

  State *S = lua_newuserdatauv(L, sizeof *S, 3);
  memset(S, 0, sizeof *S);
  lua_createtable(L, 0, 1);
  lua_pushcfunction(L, state_gc);
  lua_setfield(L, -2, "__gc");
  lua_setmetatable(L, -2);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &state_key);

  lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
  S->main = lua_tothread(L, -1);
  lua_pop(L, 1);
  S->thread = pthread_self();
  S->spin.budget = IPC_SPIN;
  int err = ipc_os_start(state_at_exit, state_in_child);
  if (err)
    luaL_error(L, "ipc: %s", strerror(err));
  ipc_os_lock();
  S->next = states;
  states = S;
  ipc_os_unlock();
}
