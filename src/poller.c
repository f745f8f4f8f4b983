/* Pollers: sets of things to wait for that are made once and waited for many
 * times. What is watched how is pollset.c's. */
#include "prefix.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "ipc.h"
#include "os.h"
#include "polled.h"
#include "pollers.h"

/***
A poller waits for any of many things, and a wait costs what is ready, not what
is in it. Made by `ipc.poller`. It can be polled itself, by `ipc.poll`, another
poller or a foreign loop.

It keeps what is in it from being collected. A handle that is closed leaves by
itself, and is told as ready once more; a bare descriptor must be removed before
it is closed. In a child of `ipc.fork` it is closed.

@module ipc.poller
*/

/* ------------------------------------------------------------ system half */

static int poller_descriptor(const Handle *h, int want) {
  const Poller *p = (const Poller *)h;
  (void)want;
  return p->set.os ? ipc_os_set_descriptor(p->set.os) : -1;
}

/* The nap is the shortest of what is in it. */
static int poller_arm(Handle *h, int want, Sleepers *by) {
  Nanos now = ipc_now();
  Nanos until = ipc_pollset_arm(&((Poller *)h)->set, IPC_FOREVER);
  (void)want, (void)by; /* the kernel polls those that are in it */
  if (until != IPC_FOREVER) {
    Nanos nap = until > now ? (until - now) / 1000 + 1 : 1;
    h->nap = nap < UINT32_MAX ? (uint32_t)nap : UINT32_MAX;
  }
  return 0;
}

static int poller_ready(Handle *h, int want, bool ask_kernel) {
  (void)want;
  if (ask_kernel)
    h->nap = 0;
  return ipc_pollset_ready(&((Poller *)h)->set, ask_kernel) ? 0 : EAGAIN;
}

static void poller_close(Handle *h, How how) {
  Poller *p = (Poller *)h;
  (void)how;
  for (size_t i = 0; i < (size_t)p->room; i++) {
    if (p->members[i])
      ipc_pollset_abandon(p->members[i]);
    free(p->members[i]);
  }
  free(p->members);
  free(p->vacant);
  p->members = NULL;
  p->vacant = NULL;
  p->room = 0;
  p->vacancies = p->foreign = 0;
  ipc_pollset_close(&p->set);
}

static const HandleOps poller_handle = {.type = "ipc.poller",
                                        .descriptor = poller_descriptor,
                                        .arm = poller_arm,
                                        .ready = poller_ready,
                                        .close = poller_close,
                                        .interest = IPC_READ};

/* ------------------------------------------------------------ what is in it */

static int poller_grow(Poller *p) {
  size_t room = p->room ? (size_t)p->room * 2 : 16;
  Member **members = realloc(p->members, room * sizeof *members);
  if (!members)
    return ENOMEM;
  p->members = members;
  lua_Integer *vacant = realloc(p->vacant, room * sizeof *vacant);
  if (!vacant)
    return ENOMEM;
  p->vacant = vacant;
  for (size_t i = room; i-- > (size_t)p->room;) {
    members[i] = NULL;
    vacant[p->vacancies++] = (lua_Integer)i + 1;
  }
  p->room = (lua_Integer)room;
  return 0;
}

/* The member that the object at `index` is, or NULL. */
static Member *poller_member(lua_State *L, const Poller *p, int index) {
  lua_getiuservalue(L, 1, POLLER_PLACES);
  lua_pushvalue(L, index);
  lua_rawget(L, -2);
  lua_Integer at = lua_tointeger(L, -1);
  lua_pop(L, 2);
  return at > 0 && at <= p->room ? p->members[at - 1] : NULL;
}

/* The slots of add and modify. */
enum { ADD_OBJECT = 2, ADD_EVENTS, ADD_ONCE, ADD_TOP = ADD_ONCE };

static int poller_wants(lua_State *L, int otherwise) {
  if (lua_isnil(L, ADD_EVENTS))
    return otherwise;
  int want = lua_type(L, ADD_EVENTS) == LUA_TSTRING
                 ? ipc_poll_wants(lua_tostring(L, ADD_EVENTS))
                 : 0;
  luaL_argcheck(L, want != 0, ADD_EVENTS, "\"r\", \"w\" or \"rw\" expected");
  return want;
}

/* What is wanted of a handle; raises on what it has not. */
static int poller_wants_of(lua_State *L, const Handle *h) {
  int interest = ipc_handle_interest(h);
  if (interest == IPC_NEVER)
    luaL_argerror(
        L, ADD_OBJECT,
        lua_pushfstring(L, "%s is not polled: its calls wait", h->ops->type));
  int want = poller_wants(L, interest);
  const Chan *c = (const Chan *)h;
  bool receives = h->channel ? c->reader != NULL : true;
  bool sends = h->channel && c->writer;
  if (((want & IPC_READ) && !receives) || ((want & IPC_WRITE) && !sends))
    luaL_argerror(L, ADD_EVENTS,
                  receives ? "this only receives" : "this end only sends");
  return h->channel ? want : interest;
}

/* What the arguments say about a member: its kind, unless it is `known`, and
 * what is wanted. */
static void poller_describe(lua_State *L, Member *m, bool known) {
  m->once = lua_toboolean(L, ADD_ONCE);
  luaL_argcheck(L, lua_isnil(L, ADD_ONCE) || lua_isboolean(L, ADD_ONCE),
                ADD_ONCE, "boolean expected");
  if (known ? m->handle != NULL : (m->handle = ipc_handle_at(L, 2)) != NULL) {
    if (m->handle->moved)
      luaL_argerror(L, ADD_OBJECT,
                    lua_pushfstring(L, "moved to %d", m->handle->moved));
    m->want = poller_wants_of(L, m->handle);
  } else if (lua_isinteger(L, ADD_OBJECT)) {
    lua_Integer fd = lua_tointeger(L, ADD_OBJECT);
    luaL_argcheck(L, fd >= 0 && fd <= INT_MAX, ADD_OBJECT, "not a descriptor");
    m->fd = (int)fd;
    m->want = poller_wants(L, IPC_READ);
  } else if (ipc_poll_is_foreign(L, ADD_OBJECT)) {
    luaL_argcheck(L, lua_isnil(L, ADD_EVENTS), ADD_EVENTS,
                  "the object itself says what it waits for");
    m->foreign = true;
  } else {
    luaL_typeerror(L, ADD_OBJECT, "handle or descriptor");
  }
}

/* Whether `inner` has `outer` in it, however deep. */
static bool poller_holds(const Poller *inner, const Poller *outer,
                         unsigned depth) {
  if (inner == outer || depth == 0)
    return true;
  for (lua_Integer i = 0; i < inner->room; i++) {
    const Member *m = inner->members[i];
    if (m && m->handle && m->handle->ops == &poller_handle &&
        poller_holds((const Poller *)m->handle, outer, depth - 1))
      return true;
  }
  return false;
}

static int poller_fail(lua_State *L, const char *call, int err) {
  if (err == ENOSPC)
    return ipc_fail_limit(L, poller_handle.type, call, err, NULL,
                          "fs.epoll.max_user_watches");
  return ipc_fail(L, poller_handle.type, call, err,
                  err == EEXIST   ? "it is in there: modify() changes it"
                  : err == ENOENT ? "it is not in there"
                  : err == ELOOP  ? "pollers in a circle, or too deep"
                                  : NULL);
}

/* A place that says in Lua which object has it; 0: no memory, or a finaliser
 * closed the poller. */
static lua_Integer poller_reserve(lua_State *L, Poller *p) {
  if (p->vacancies == 0 && poller_grow(p))
    return 0;
  lua_Integer at = p->vacant[--p->vacancies];
  lua_getiuservalue(L, 1, POLLER_OBJECTS); /* a finaliser may take them away */
  lua_getiuservalue(L, 1, POLLER_PLACES);
  lua_pushvalue(L, ADD_OBJECT);
  lua_rawseti(L, -3, at);
  lua_pushvalue(L, ADD_OBJECT);
  lua_pushinteger(L, at);
  lua_rawset(L, -3);
  lua_pop(L, 2);
  return ipc_handle_usable(&p->h) ? at : 0;
}

/* Who sleeps on the poller looks again. */
static void poller_changed(lua_State *L, Poller *p) {
  if (p->h.queue)
    ipc_wake(L, &p->h);
  if (p->h.observers)
    ipc_handle_changed(L, &p->h);
}

/***
Adds something to wait for.
@function poller:add
@param object a handle (a channel, a listener, a poller, signals, ...), a
descriptor (an integer), or a foreign object with `pollfd`, `events` and
`timeout` as cqueues polls them, which are asked at each wait
@tparam ?string events "r", "w" or "rw"; by default receiving, or sending of
what only sends; none of a foreign object
@tparam[opt=false] ?boolean once it is told once, and then not before `modify`
@treturn boolean true; or nil, message, errno: EEXIST what is in there, EBADF
no descriptor, ENOSPC the system's limit, ELOOP pollers in a circle
@usage local p = assert(ipc.poller())
assert(p:add(listener) and p:add(channel, "rw"))
*/
static int poller_add(lua_State *L) {
  Poller *p = (Poller *)ipc_handle_self(L);
  Member given = {.fd = -1, .due = IPC_FOREVER};
  lua_settop(L, ADD_TOP);
  poller_describe(L, &given, false);
  if (!ipc_handle_usable(&p->h))
    return ipc_handle_refuse(L, &p->h, "add");
  if (given.handle && given.handle->ops == &poller_handle &&
      poller_holds((const Poller *)given.handle, p, 4))
    return poller_fail(L, "add", ELOOP);
  if (poller_member(L, p, ADD_OBJECT))
    return poller_fail(L, "add", EEXIST);
  lua_Integer at = poller_reserve(L, p);
  if (!ipc_handle_usable(&p->h))
    return ipc_handle_refuse(L, &p->h, "add");
  Member *m = at ? malloc(sizeof *m) : NULL;
  if (!m)
    return poller_fail(L, "add", ENOMEM);
  *m = given;
  m->at = at;
  p->members[at - 1] = m;
  p->foreign += m->foreign;
  int err = ipc_pollset_add(&p->set, m);
  if (err) {
    ipc_poller_remove(L, p, m);
    return poller_fail(L, "add", err);
  }
  poller_changed(L, p);
  lua_pushboolean(L, 1);
  return 1;
}

/* Of modify and remove; NULL: what to answer was pushed, *n values. */
static Member *poller_argument(lua_State *L, const char *call, int *n) {
  Poller *p = (Poller *)ipc_handle_self(L);
  luaL_checkany(L, ADD_OBJECT);
  if (!ipc_handle_usable(&p->h)) {
    *n = ipc_handle_refuse(L, &p->h, call);
    return NULL;
  }
  Member *m = poller_member(L, p, ADD_OBJECT);
  if (!m)
    *n = poller_fail(L, call, ENOENT);
  return m;
}

/***
Changes what is waited for, and wakes what has been told once.
@function poller:modify
@param object that is in there
@tparam ?string events as `add`
@tparam[opt=false] ?boolean once as `add`
@treturn boolean true; or nil, message, errno: ENOENT what is not in there
@usage p:modify(channel, "w", true)
*/
static int poller_modify(lua_State *L) {
  int n = 0;
  lua_settop(L, ADD_TOP);
  Member *m = poller_argument(L, "modify", &n);
  if (!m)
    return n;
  if (!m->gone)
    poller_describe(L, m, true);
  int err = ipc_pollset_modify(m);
  if (err)
    return poller_fail(L, "modify", err);
  poller_changed(L, (Poller *)lua_touserdata(L, 1));
  lua_pushboolean(L, 1);
  return 1;
}

/***
Takes something out. A descriptor must be taken out before it is closed.
@function poller:remove
@param object that is in there
@treturn boolean true; or nil, message, errno: ENOENT what is not in there
*/
static int poller_remove_call(lua_State *L) {
  int n = 0;
  lua_settop(L, ADD_OBJECT);
  Member *m = poller_argument(L, "remove", &n);
  if (!m)
    return n;
  ipc_poller_remove(L, lua_touserdata(L, 1), m);
  lua_pushboolean(L, 1);
  return 1;
}

/* --------------------------------------------------------------- the rest */

/***
Ends it; also what `<close>` does. What is in it stays open.
@function poller:close
@treturn boolean true
*/
static int poller_end(lua_State *L) {
  Handle *h = ipc_handle_closable(L);
  if (ipc_handle_begin_close(L, h))
    ipc_handle_close(L, h);
  for (int i = POLLER_OBJECTS; i <= POLLER_VALUES && !h->open; i++) {
    lua_pushnil(L);
    lua_setiuservalue(L, 1, i);
  }
  lua_pushboolean(L, 1);
  return 1;
}

/* How much is in it. */
static int poller_length(lua_State *L) {
  const Poller *p = (const Poller *)ipc_handle_self(L);
  lua_pushinteger(L, p->h.open ? (lua_Integer)p->set.count : 0);
  return 1;
}

static const luaL_Reg poller_methods[] = {{"add", poller_add},
                                          {"modify", poller_modify},
                                          {"remove", poller_remove_call},
                                          {"wait", ipc_poller_wait},
                                          {"close", poller_end},
                                          {"__close", poller_end},
                                          {"__len", poller_length},
                                          {NULL, NULL}};

/***
A set of things to wait for, for many waits: what is ready costs, not what is
there.
@function poller
@treturn poller with `add`, `modify`, `remove`, `wait`, `close` and `#`; or nil,
message, errno: EMFILE
@usage local p <close> = assert(ipc.poller())
p:add(listener)
for _, object in ipairs(assert(p:wait())) do print(object) end
*/
static int poller_new(lua_State *L) {
  Poller *p = ipc_handle_new(L, sizeof *p, &poller_handle, POLLER_VALUES);
  for (int i = POLLER_OBJECTS; i <= POLLER_VALUES; i++) {
    lua_newtable(L);
    lua_setiuservalue(L, -2, i);
  }
  int err = ipc_pollset_open(&p->set, &p->h);
  if (err)
    return ipc_fail(L, "ipc", "poller", err, NULL);
  ipc_handle_open(&p->h);
  return 1;
}

static void poller_setup(lua_State *L) {
  ipc_handle_type(L, &poller_handle, poller_methods);
  lua_pop(L, 1);
}

static const luaL_Reg poller_functions[] = {
    {"poll", ipc_poll}, {"poller", poller_new}, {NULL, NULL}};

const Room ipc_room_poller = {
    .name = "poller", .functions = poller_functions, .types = poller_setup};
