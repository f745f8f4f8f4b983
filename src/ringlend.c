/* What a ring lends to Lua: views of the record that is sent or received next,
 * and tickets for messages of a ring with leases; see rings.h. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdint.h>
#include <string.h>

#include "msgpack.h"
#include "rings.h"
#include "view.h"

/***
 * @submodule ipc
 */

enum { LEND_TICKETS = 1024 }; /* of one handle */

/* ------------------------------------------------------------------- views */

static int lend_check(void *owner, View *v) {
  Ring *r = owner;
  if (r->c.h.generation != ipc_generation)
    return ECHILD;
  if (!ipc_handle_usable(&r->c.h))
    return EPIPE;
  /* Lent before a fork gave this process a place, and a mapping, of its own. */
  if ((uintptr_t)v->bytes - (uintptr_t)r->bytes >= 2 * r->ring)
    return ECHILD;
  return ipc_ring_check(r);
}

static int lend_end(void *owner, View *v, bool done, size_t size) {
  Ring *r = owner;
  if (v->commits)
    return ipc_ring_commit(r, done ? size : SIZE_MAX);
  r->peeked = false;
  if (r->m.s.head.flags & SEGMENT_LEASE) {
    if (r->tickets > 0)
      r->tickets--;
    return ipc_ring_settle(r, v->place, done);
  }
  if (done) {
    r->c.ops->took(&r->c, v->size);
    r->c.serial++;
    r->c.received++;
    r->c.bytes_in += v->size;
  }
  return 0;
}

static const ViewOps lend_view = {.check = lend_check, .end = lend_end};

/* Pushes nil, message, errno for a message that was over the limit and is gone.
 */
static int lend_over(lua_State *L, const Ring *r, const char *call,
                     size_t size) {
  return ipc_fail(L, r->c.h.ops->type, call, EMSGSIZE,
                  lua_pushfstring(L, "%I bytes, but maxsize is %I",
                                  (LUAI_UACINT)size, (LUAI_UACINT)r->c.limit));
}

/* Slots: 1 the handle, 2 size, 3 timeout, 4 the view. */
static int reserve_attempt(lua_State *L, Handle *h) {
  Ring *r = (Ring *)h;
  size_t size = (size_t)lua_tointeger(L, 2);
  char *bytes;
  View *v = lua_touserdata(L, 4);
  if (r->c.shut)
    return ipc_fail(L, h->ops->type, "reserve", EPIPE, NULL);
  int err = ipc_ring_reserve(r, size, &bytes);
  if (err == EAGAIN)
    return -IPC_WRITE;
  if (err)
    return ipc_fail(L, h->ops->type, "reserve", err, r->c.why);
  v->bytes = bytes;
  v->size = size;
  v->writable = v->commits = v->open = true;
  lua_pushvalue(L, 4);
  return 1;
}

static const Op reserve_op = {.name = "reserve",
                              .attempt = reserve_attempt,
                              .want = IPC_WRITE,
                              .deadline = 3,
                              .top = 4};

/***
Room for the next message, in the ring itself: write into it, then `commit` it,
whole or its first bytes. Until then nobody sees it and `send` answers EBUSY;
leaving its scope gives the room back. Only of a ring with `writers = 1`.
@function shm:reserve
@int size bytes, at most `maxsize()`
@tparam[opt=the channel's] ?number timeout seconds to wait for room
@treturn view writable, to be committed; or nil, message, errno as `send`
@usage local v <close> = assert(w:reserve(1 << 20))
v:pack(0, "d", 1.5)
v:commit(8)
*/
static int lend_reserve(lua_State *L) {
  Ring *r = (Ring *)ipc_handle_self(L);
  if (!r->c.writer)
    luaL_error(L, "%s: this end only receives", r->c.h.ops->type);
  lua_settop(L, 3);
  luaL_argcheck(L, lua_isinteger(L, 2), 2, "bytes: an integer expected");
  lua_Integer size = lua_tointeger(L, 2);
  luaL_argcheck(L, size >= 0, 2, "a negative size");
  ipc_check_timeout(L, 3);
  if (!ipc_handle_usable(&r->c.h))
    return ipc_handle_refuse(L, &r->c.h, "reserve");
  if (!(r->m.s.head.flags & SEGMENT_SOLE_WRITER))
    luaL_error(L, "%s: reserve needs a ring with writers = 1",
               r->c.h.ops->type);
  if ((uint64_t)size > r->c.limit)
    return lend_over(L, r, "reserve", (size_t)size);
  ipc_view_new(L, 1, &lend_view);
  return ipc_run(L, &reserve_op);
}

/* Slots: 1 the handle, 2 timeout, 3 the view. */
static int peek_attempt(lua_State *L, Handle *h) {
  Ring *r = (Ring *)h;
  Message m = {0};
  uint64_t place = 0;
  uint32_t offered;
  View *v = lua_touserdata(L, 3);
  bool lease = r->m.s.head.flags & SEGMENT_LEASE;
  int err;
  if (lease && r->tickets >= LEND_TICKETS)
    err = ENOBUFS;
  else if (lease)
    err = ipc_ring_take(r, &m, &place, &offered);
  else
    err = ipc_ring_peek(r, &m);
  if (err == EAGAIN)
    return -IPC_READ;
  if (err == EMSGSIZE)
    return lend_over(L, r, "peek", m.size);
  if (err)
    return ipc_fail(L, h->ops->type, "peek", err, r->c.why);
  v->bytes = (char *)(uintptr_t)m.bytes;
  v->size = m.size;
  v->place = place;
  if (lease)
    r->tickets++;
  else
    r->peeked = true;
  v->open = true;
  lua_pushvalue(L, 3);
  return 1;
}

static const Op peek_op = {.name = "peek",
                           .attempt = peek_attempt,
                           .want = IPC_READ,
                           .deadline = 2,
                           .top = 3};

/***
The next message where it is, without a copy: read it, then `release` it, which
is what takes it. Leaving its scope without that leaves it the next; until then
`recv` answers EBUSY. Only of a ring with `readers = 1`, or with leases, where
each view is a message of its own.
@function shm:peek
@tparam[opt=the channel's] ?number timeout seconds
@treturn view to be released; or nil, message, errno as `recv`
@usage local v <close> = assert(r:peek())
print(v:unpack(0, "d"))
v:release()
*/
static int lend_peek(lua_State *L) {
  Ring *r = (Ring *)ipc_handle_self(L);
  if (!r->c.reader)
    luaL_error(L, "%s: this end only sends", r->c.h.ops->type);
  lua_settop(L, 2);
  ipc_check_timeout(L, 2);
  if (!ipc_handle_usable(&r->c.h))
    return ipc_handle_refuse(L, &r->c.h, "peek");
  if (!(r->m.s.head.flags & (SEGMENT_SOLE_READER | SEGMENT_LEASE)))
    luaL_error(L, "%s: peek needs a ring with readers = 1, or lease = true",
               r->c.h.ops->type);
  ipc_view_new(L, 1, &lend_view);
  return ipc_run(L, &peek_op);
}

/* ----------------------------------------------------------------- tickets */

/***
Tickets: messages of a ring with `lease = true` that `take` gave. A ticket's
message is nobody else's until `ack`, which ends it; after `nack`, or when the
ticket's scope is left, or its process dies, it is offered to another.
@section ticket
*/

static const char ticket_key; /* registry: the metatable */

typedef struct Ticket {
  Ring *ring; /* kept alive by user value 1 */
  uint64_t place;
  uint32_t offered;
  bool open;
} Ticket;

enum { TICKET_RING = 1, TICKET_BYTES };

static Ticket *ticket_self(lua_State *L) {
  Ticket *t = lua_touserdata(L, 1);
  bool ours =
      t && lua_getmetatable(L, 1) &&
      (lua_rawgetp(L, LUA_REGISTRYINDEX, &ticket_key), lua_rawequal(L, -1, -2));
  if (!ours)
    luaL_typeerror(L, 1, "ipc.ticket");
  lua_pop(L, 2);
  return t;
}

/* 0, or why it is not this ticket's message any more. */
static int ticket_settle(Ticket *t, bool done) {
  Ring *r = t->ring;
  t->open = false;
  if (r->c.h.generation != ipc_generation)
    return ECHILD;
  if (!r->c.h.open || !r->m.begun)
    return EPIPE;
  if (r->tickets > 0)
    r->tickets--;
  int err = ipc_ring_check(r);
  return err ? err : ipc_ring_settle(r, t->place, done);
}

static int ticket_end(lua_State *L, const char *call, bool done) {
  Ticket *t = ticket_self(L);
  if (!t->open)
    luaL_error(L, "ipc.ticket: %s after it was settled", call);
  int err = ticket_settle(t, done);
  if (err) {
    bool fault = err == ENOTRECOVERABLE || err == EFAULT;
    return ipc_fail(L, "ipc.ticket", call, err, fault ? t->ring->c.why : NULL);
  }
  lua_pushboolean(L, 1);
  return 1;
}

/***
The work is done: the message is gone for good.
@function ticket:ack
@treturn boolean true; or nil, message, errno: EPIPE when the channel was closed
before (it was offered again then)
*/
static int ticket_ack(lua_State *L) { return ticket_end(L, "ack", true); }

/***
The work is not done: the message is offered again, to anybody.
@function ticket:nack
@treturn boolean true; or nil, message, errno
*/
static int ticket_nack(lua_State *L) { return ticket_end(L, "nack", false); }

/***
The value that `put` sent.
@function ticket:get
@return the value; or nil, message, EBADMSG when it is none
*/
static int ticket_get(lua_State *L) {
  size_t size;
  ticket_self(L);
  lua_getiuservalue(L, 1, TICKET_BYTES);
  const char *bytes = lua_tolstring(L, -1, &size);
  if (ipc_value_decode(L, bytes, size) == 0)
    return 1;
  lua_pushnil(L);
  lua_pushfstring(L, "ipc.ticket.get: %s", lua_tostring(L, -2));
  lua_pushinteger(L, EBADMSG);
  return 3;
}

/* Leaves its scope, or is collected: what was not acknowledged is offered
 * again. */
static int ticket_gc(lua_State *L) {
  Ticket *t = ticket_self(L);
  if (t->open)
    (void)ticket_settle(t, false);
  return 0;
}

/***
The message's bytes.
@tfield string ticket.bytes
*/

/***
How often it was offered, this time included.
@tfield integer ticket.offered
*/
static int ticket_index(lua_State *L) {
  const Ticket *t = ticket_self(L);
  const char *name = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
  if (strcmp(name, "bytes") == 0)
    lua_getiuservalue(L, 1, TICKET_BYTES);
  else if (strcmp(name, "offered") == 0)
    lua_pushinteger(L, t->offered);
  else
    lua_getfield(L, lua_upvalueindex(1), name);
  return 1;
}

static int ticket_tostring(lua_State *L) {
  lua_pushstring(L,
                 ticket_self(L)->open ? "ipc.ticket" : "ipc.ticket (settled)");
  return 1;
}

/* Slots: 1 the handle, 2 timeout, 3 the ticket. */
static int take_attempt(lua_State *L, Handle *h) {
  Ring *r = (Ring *)h;
  Message m = {0};
  Ticket *t = lua_touserdata(L, 3);
  int err = r->tickets >= LEND_TICKETS
                ? ENOBUFS
                : ipc_ring_take(r, &m, &t->place, &t->offered);
  if (err == EAGAIN)
    return -IPC_READ;
  if (err == ENOBUFS)
    return ipc_fail(L, h->ops->type, "take", err,
                    "1024 tickets of this handle are not settled");
  if (err == EMSGSIZE)
    return lend_over(L, r, "take", m.size);
  if (err)
    return ipc_fail(L, h->ops->type, "take", err, r->c.why);
  r->tickets++;
  t->open = true; /* from here on the collector gives it back */
  lua_pushlstring(L, m.bytes, m.size);
  lua_setiuservalue(L, 3, TICKET_BYTES);
  err = r->c.h.open ? ipc_ring_check(r) : EPIPE;
  if (err) { /* pages were lost under the copy, or a finaliser closed it */
    t->open = false;
    return ipc_fail(L, h->ops->type, "take", err, r->c.why);
  }
  lua_pushvalue(L, 3);
  r->c.serial++;
  r->c.received++;
  r->c.bytes_in += m.size;
  return 1;
}

static const Op take_op = {.name = "take",
                           .attempt = take_attempt,
                           .want = IPC_READ,
                           .deadline = 2,
                           .top = 3};

/***
The next message, on a ticket: it is acknowledged after the work, not before, so
that it is offered to another process if this one dies. Only of a ring with
`lease = true`. `recv` there is take and ack.
@function shm:take
@tparam[opt=the channel's] ?number timeout seconds
@treturn ticket to be settled; or nil, message, errno as `recv`, and ENOBUFS
with 1024 tickets of this handle out
@usage local t <close>, why = jobs:take()
if t then work(t:get()) t:ack() end
*/
static int lend_take(lua_State *L) {
  Ring *r = (Ring *)ipc_handle_self(L);
  if (!r->c.reader)
    luaL_error(L, "%s: this end only sends", r->c.h.ops->type);
  lua_settop(L, 2);
  ipc_check_timeout(L, 2);
  if (!ipc_handle_usable(&r->c.h))
    return ipc_handle_refuse(L, &r->c.h, "take");
  if (!(r->m.s.head.flags & SEGMENT_LEASE))
    luaL_error(L, "%s: take needs a ring with lease = true", r->c.h.ops->type);
  Ticket *t = lua_newuserdatauv(L, sizeof *t, TICKET_BYTES);
  *t = (Ticket){.ring = r};
  lua_rawgetp(L, LUA_REGISTRYINDEX, &ticket_key);
  lua_setmetatable(L, -2);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, TICKET_RING);
  return ipc_run(L, &take_op);
}

static const luaL_Reg lend_methods[] = {{"reserve", lend_reserve},
                                        {"peek", lend_peek},
                                        {"take", lend_take},
                                        {NULL, NULL}};

void ipc_rings_setup(lua_State *L, const HandleOps *ops) {
  static const luaL_Reg methods[] = {{"ack", ticket_ack},
                                     {"nack", ticket_nack},
                                     {"get", ticket_get},
                                     {NULL, NULL}};
  static const luaL_Reg meta[] = {{"__gc", ticket_gc},
                                  {"__close", ticket_gc},
                                  {"__tostring", ticket_tostring},
                                  {NULL, NULL}};
  ipc_chan_type(L, ops, lend_methods);
  lua_rawgetp(L, LUA_REGISTRYINDEX, ops);
  ipc_handle_methods(L, ipc_rings_named);
  lua_pop(L, 1);
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &ticket_key) == LUA_TNIL) {
    luaL_newlib(L, meta);
    lua_pushliteral(L, "ipc.ticket");
    lua_setfield(L, -2, "__name");
    lua_pushliteral(L, "ipc");
    lua_setfield(L, -2, "__metatable");
    luaL_newlib(L, methods);
    lua_pushcclosure(L, ticket_index, 1);
    lua_setfield(L, -2, "__index");
    lua_rawsetp(L, LUA_REGISTRYINDEX, &ticket_key);
  }
  lua_pop(L, 1);
}
