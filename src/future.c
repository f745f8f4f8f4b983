/* Answers that are not here yet, and how they come to be: calls that a batch or
 * a session begins, and the answers that come together. Here is what most of
 * them need; the rest is Lua's, in lua/ipc/rpc. */
#include "prefix.h"

#include <lauxlib.h>
#include <lua.h>
#include <math.h>

#include "chan.h"
#include "wire.h"

enum {
  FUTURE_VALUE = 1, /* see FutureState */
  FUTURE_VIEW,      /* of the session that was called */
  FUTURE_METHOD,    /* what was called, for errors */
  FUTURE_MORE,      /* a table of whatever else Lua keeps */
  FUTURE_UVS = FUTURE_MORE
};

/* What FUTURE_VALUE is: an answer is kept without memory for it, but for one of
 * many results. */
typedef enum FutureState {
  FUTURE_WAITS,
  FUTURE_ONE,   /* the result, if there is one */
  FUTURE_MANY,  /* a table of them */
  FUTURE_FAILED /* the error */
} FutureState;

typedef struct Future {
  Nanos moment; /* its deadline; IPC_FOREVER: none */
  uint32_t id;
  int results;
  FutureState state;
  bool more; /* there is FUTURE_MORE */
} Future;

enum { BATCH_VIEW = 1, BATCH_WIRE, BATCH_UVS = BATCH_WIRE };

/* Calls that are sent at once. */
typedef struct Batch {
  Wire *wire;        /* kept by a user value; NULL: Lua begins all */
  lua_Integer count; /* of those added since it was last sent */
  Nanos since;       /* when the first was written that is not sent */
  bool closed;
} Batch;

enum {
  FUTURE_GATHER = 64,    /* answers that are settled at once */
  FUTURE_TEXT = 1 << 16, /* bytes of a string that needs no protection */
  BATCH_HASTE = 1000000, /* ns in which those are added that may go early, */
  BATCH_EARLY = 64       /* and how many calls at the most */
};

static const char future_key, batch_key; /* registry: the metatables */

/* Whether the value in slot 1 has the metatable that is upvalue 1. */
static void *future_test(lua_State *L) {
  void *p = lua_touserdata(L, 1);
  if (!p || !lua_getmetatable(L, 1))
    return NULL;
  if (!lua_rawequal(L, -1, lua_upvalueindex(1)))
    p = NULL;
  lua_pop(L, 1);
  return p;
}

/* Complains as the methods that are written in Lua do. */
static void *future_self(lua_State *L, const char *name, const char *what) {
  void *p = future_test(L);
  if (!p)
    luaL_error(L, "bad argument #0 to '%s' (%s expected, got %s)", name, what,
               luaL_typename(L, 1));
  return p;
}

/* Whether the userdata at `index` is a future. */
static bool future_is(lua_State *L, int index) {
  if (!lua_getmetatable(L, index))
    return false;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &future_key);
  bool is = lua_rawequal(L, -1, -2);
  lua_pop(L, 2);
  return is;
}

/* ------------------------------------------------------------ pending calls */

/* What is on top, which is popped, waits for that answer; nil: nothing does.
 * The wire is at `index`. */
static void future_pend(lua_State *L, int index, uint32_t id) {
  lua_getiuservalue(L, index, WIRE_UV_PENDING);
  lua_rotate(L, -2, 1);
  lua_rawseti(L, -2, (lua_Integer)id);
  lua_pop(L, 1);
}

/* Pushes what waits for it. */
static int future_pending(lua_State *L, int index, uint32_t id) {
  lua_getiuservalue(L, index, WIRE_UV_PENDING);
  int type = lua_rawgeti(L, -1, (lua_Integer)id);
  lua_remove(L, -2);
  return type;
}

bool ipc_wire_awaits(lua_State *L, uint32_t id) {
  int top = lua_gettop(L);
  bool awaits = lua_getiuservalue(L, 1, WIRE_UV_PENDING) == LUA_TTABLE &&
                lua_rawgeti(L, -1, (lua_Integer)id) != LUA_TNIL;
  lua_settop(L, top);
  return awaits;
}

void ipc_wire_forget(lua_State *L, Wire *w, int index, uint32_t id) {
  int top = lua_gettop(L);
  if (w->asked == id)
    w->asked = 0;
  if (lua_getiuservalue(L, index, WIRE_UV_PENDING) == LUA_TTABLE &&
      lua_rawgeti(L, -1, (lua_Integer)id) != LUA_TNIL) {
    lua_pushnil(L);
    lua_rawseti(L, top + 1, (lua_Integer)id);
    w->flying--;
  }
  lua_settop(L, top);
}

/* An id that no call in flight has. */
static uint32_t future_id(lua_State *L, Wire *w, int index) {
  uint32_t id = w->last;
  int type;
  do {
    id = id < UINT32_MAX ? id + 1 : 1;
    type = future_pending(L, index, id);
    lua_pop(L, 1);
  } while (type != LUA_TNIL);
  return w->last = id;
}

/* wire:flight(calls, timeout): so many calls at once, so many seconds for each
 */
static int wire_flight(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  lua_Integer calls = luaL_checkinteger(L, 2);
  lua_Number timeout = luaL_checknumber(L, 3);
  w->calls = calls > 0 && calls < UINT32_MAX ? (uint32_t)calls : UINT32_MAX;
  w->patience = timeout < 1e9 ? (Nanos)(timeout * 1e9) : IPC_FOREVER;
  lua_newtable(L);
  lua_setiuservalue(L, 1, WIRE_UV_PENDING);
  return 0;
}

/* wire:plain(whether): calls need nothing but the wire */
static int wire_plain(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  w->plain = lua_toboolean(L, 2);
  return 0;
}

/* wire:flying() -> how many wait for answers */
static int wire_flying(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)ipc_wire_self(L)->flying);
  return 1;
}

/* wire:id() -> one that is free */
static int wire_id(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  luaL_argcheck(L, w->calls > 0, 1, "no flight");
  lua_pushinteger(L, (lua_Integer)future_id(L, w, 1));
  return 1;
}

/* wire:expect(id, what): what waits for that answer */
static int wire_expect(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  uint32_t id = ipc_wire_id(L, 2);
  luaL_argcheck(L, w->calls > 0 && lua_toboolean(L, 3), 3, "nothing");
  lua_settop(L, 3);
  luaL_argcheck(L, lua_type(L, 3) != LUA_TUSERDATA || future_is(L, 3), 3,
                "not a future");
  bool new = future_pending(L, 1, id) == LUA_TNIL;
  lua_pop(L, 1);
  future_pend(L, 1, id);
  if (new)
    w->flying++;
  return 0;
}

/* wire:pending(id) -> what waits for that answer, or nil */
static int wire_pending(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  uint32_t id = ipc_wire_id(L, 2);
  return w->calls > 0 ? (future_pending(L, 1, id), 1) : 0;
}

/* wire:next([id]) -> the id of another that is waited for: as next */
static int wire_id_after(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  lua_settop(L, 2);
  if (w->calls == 0)
    return 0;
  lua_getiuservalue(L, 1, WIRE_UV_PENDING);
  lua_insert(L, 2);
  return lua_next(L, 2) ? (lua_pop(L, 1), 1) : 0;
}

/* wire:forget(id) -> what waited for it until now, or nil */
static int wire_forget(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  uint32_t id = ipc_wire_id(L, 2);
  if (w->calls == 0)
    return 0;
  (void)future_pending(L, 1, id);
  ipc_wire_forget(L, w, 1, id);
  return 1;
}

/* ------------------------------------------------------------------ futures */

/* Pushes one of a call, whose name is at `method`, by the view at `view`. */
static Future *future_new(lua_State *L, int view, int method) {
  Future *f = lua_newuserdatauv(L, sizeof *f, FUTURE_UVS);
  *f = (Future){.moment = IPC_FOREVER};
  lua_pushvalue(L, view);
  lua_setiuservalue(L, -2, FUTURE_VIEW);
  lua_pushvalue(L, method);
  lua_setiuservalue(L, -2, FUTURE_METHOD);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &future_key);
  lua_setmetatable(L, -2);
  return f;
}

/* (view, method) -> future */
static int future_make(lua_State *L) {
  lua_settop(L, 2);
  (void)future_new(L, 1, 2);
  return 1;
}

/* Pushes the table of what Lua keeps in the future in slot 1. */
static void future_more(lua_State *L, Future *f) {
  if (!f->more) {
    lua_newtable(L);
    lua_setiuservalue(L, 1, FUTURE_MORE);
    f->more = true;
  }
  lua_getiuservalue(L, 1, FUTURE_MORE);
}

enum {
  FIELD_DONE = 1,
  FIELD_ID,
  FIELD_MOMENT,
  FIELD_METHOD,
  FIELD_VIEW,
  FIELD_SESSION,
  FIELD_PROBLEM,
  FIELD_N
};

/* Which field of a future's own slot 2 names; 0: none. Upvalue 3: their names.
 */
static int future_field(lua_State *L) {
  if (lua_type(L, 2) != LUA_TSTRING)
    return 0;
  lua_pushvalue(L, 2);
  lua_rawget(L, lua_upvalueindex(3));
  int field = (int)lua_tointeger(L, -1);
  lua_pop(L, 1);
  return field;
}

/* A result, by the number in slot 2. */
static int future_result(lua_State *L, const Future *f) {
  lua_Integer i = lua_isinteger(L, 2) ? lua_tointeger(L, 2) : 0;
  if (i < 1 || i > f->results)
    return lua_pushnil(L), 1;
  lua_getiuservalue(L, 1, FUTURE_VALUE);
  if (f->state == FUTURE_MANY)
    lua_rawgeti(L, -1, i);
  return 1;
}

static int future_get(lua_State *L, const Future *f, int field) {
  switch (field) {
  case FIELD_DONE:
    return lua_pushboolean(L, f->state != FUTURE_WAITS), 1;
  case FIELD_ID:
    return lua_pushinteger(L, (lua_Integer)f->id), 1;
  case FIELD_MOMENT:
    if (f->moment == IPC_FOREVER)
      return lua_pushnil(L), 1;
    return lua_pushnumber(L, (lua_Number)f->moment / 1e9), 1;
  case FIELD_METHOD:
    return lua_getiuservalue(L, 1, FUTURE_METHOD), 1;
  case FIELD_VIEW:
    return lua_getiuservalue(L, 1, FUTURE_VIEW), 1;
  case FIELD_SESSION:
    if (lua_getiuservalue(L, 1, FUTURE_VIEW) != LUA_TTABLE)
      return lua_pushnil(L), 1;
    lua_pushliteral(L, "core");
    return lua_rawget(L, -2), 1;
  case FIELD_PROBLEM:
    if (f->state != FUTURE_FAILED)
      return lua_pushnil(L), 1;
    return lua_getiuservalue(L, 1, FUTURE_VALUE), 1;
  case FIELD_N:
    return lua_pushinteger(L, f->results), 1;
  default:
    return future_result(L, f);
  }
}

/* __index. Upvalues: 1 the metatable, 2 methods, 3 names of fields. */
static int future_index(lua_State *L) {
  lua_settop(L, 2);
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(2)) != LUA_TNIL)
    return 1;
  lua_pop(L, 1);
  const Future *f = future_test(L);
  if (!f)
    return lua_pushnil(L), 1;
  if (f->more) {
    lua_getiuservalue(L, 1, FUTURE_MORE);
    lua_pushvalue(L, 2);
    if (lua_rawget(L, -2) != LUA_TNIL)
      return 1;
    lua_pop(L, 2);
  }
  return future_get(L, f, future_field(L));
}

/* __newindex; upvalues as there. */
static int future_newindex(lua_State *L) {
  Future *f = future_self(L, "=", "future");
  lua_Number n;
  lua_settop(L, 3);
  switch (future_field(L)) {
  case FIELD_ID:
    f->id = ipc_wire_id(L, 3);
    return 0;
  case FIELD_MOMENT:
    n = lua_isnil(L, 3) ? HUGE_VAL : luaL_checknumber(L, 3);
    f->moment = n >= 0 && n < 9e9 ? (Nanos)(n * 1e9) : IPC_FOREVER;
    return 0;
  case FIELD_METHOD:
    lua_setiuservalue(L, 1, FUTURE_METHOD);
    return 0;
  case FIELD_DONE:
  case FIELD_PROBLEM:
  case FIELD_N:
    return luaL_error(L, "ipc.rpc.future: its answer cannot be assigned");
  default:
    break;
  }
  luaL_argcheck(L, !lua_isnil(L, 2) && lua_rawequal(L, 2, 2), 2, "no name");
  if (lua_isnil(L, 3) && !f->more)
    return 0;
  future_more(L, f);
  lua_insert(L, 2);
  lua_rawset(L, 2);
  return 0;
}

/* What is on top, popped, is the answer. */
static void future_settle(lua_State *L, int index, Future *f, FutureState state,
                          int results) {
  lua_setiuservalue(L, index, FUTURE_VALUE);
  f->results = results;
  f->state = state;
}

/* (...) -> a table of them */
static int future_pack(lua_State *L) {
  int n = lua_gettop(L);
  lua_createtable(L, n, 0);
  lua_insert(L, 1);
  for (int i = n; i > 0; i--)
    lua_rawseti(L, 1, i);
  return 1;
}

/* (future, problem, ...) -> whether there was memory for its answer: an error,
 * or results; (future): it has none again */
static int future_keep(lua_State *L) {
  Future *f = future_self(L, "keep", "future");
  int n = lua_gettop(L) - 2;
  bool good = true;
  if (n < 0) {
    lua_pushnil(L);
    future_settle(L, 1, f, FUTURE_WAITS, 0);
  } else if (!lua_isnil(L, 2)) {
    lua_settop(L, 2);
    future_settle(L, 1, f, FUTURE_FAILED, 0);
  } else if (n <= 1) { /* of none it is the nil */
    future_settle(L, 1, f, FUTURE_ONE, n);
  } else {
    lua_pushcfunction(L, future_pack);
    lua_replace(L, 2);
    good = lua_pcall(L, n, 1, 0) == LUA_OK;
    if (good)
      future_settle(L, 1, f, FUTURE_MANY, n);
  }
  lua_pushboolean(L, good);
  return 1;
}

/* After a function of Lua's that may have yielded. */
static int future_later(lua_State *L, int status, lua_KContext context) {
  (void)status, (void)context;
  return lua_gettop(L);
}

/* future:wait([timeout]): what is not here, or an error, is Lua's: upvalue 2.
 */
static int future_wait(lua_State *L) {
  const Future *f = future_self(L, "wait", "future");
  ipc_check_timeout(L, 2);
  if (f->state == FUTURE_ONE) {
    lua_pushboolean(L, 1);
    if (f->results == 0)
      return 1;
    lua_getiuservalue(L, 1, FUTURE_VALUE);
    return 2;
  }
  lua_pushvalue(L, lua_upvalueindex(2));
  lua_insert(L, 1);
  lua_callk(L, lua_gettop(L) - 1, LUA_MULTRET, 0, future_later);
  return lua_gettop(L);
}

/* ---------------------------------------------------------------- beginning */

/* Whether those from `first` to `top` are values that can be encoded, whatever
 * they are: that raises nothing but for lack of memory, and runs no Lua. */
static bool flight_simple(lua_State *L, int first, int top) {
  for (int i = first; i <= top; i++) {
    int type = lua_type(L, i);
    if (type == LUA_TSTRING
            ? lua_rawlen(L, i) > FUTURE_TEXT
            : type != LUA_TNUMBER && type != LUA_TBOOLEAN && type != LUA_TNIL)
      return false;
  }
  return true;
}

/* Whether a call needs nothing but the wire, and may begin. */
static bool flight_free(const Wire *w) {
  return w->open && w->plain && w->flying < w->calls &&
         ipc_handle_usable(&w->chan->h);
}

/* Encodes a request in `o`, the name at `name`, arguments up to `top`; the wire
 * is in slot 1. Its id; or 0, and it is not to be sent like this. */
static uint32_t flight_encode(lua_State *L, Wire *w, Outgoing *o, int name,
                              int top) {
  uint32_t id = future_id(L, w, 1);
  ipc_wire_begin(L, w, o);
  ipc_envelope_request(&o->e, id);
  ipc_envelope_name(&o->e, name);
  /* Finalisers and metamethods may have run. */
  if (!ipc_envelope_values(&o->e, name + 1, top,
                           "bad argument to a call: argument") ||
      !flight_free(w) || !ipc_wire_fits(o))
    return 0;
  return id;
}

/* Begins a call: pushes its future, and perhaps a list as ipc_wire_end. 0: it
 * was not begun. The wire is in slot 1. */
static int flight_begin(lua_State *L, Wire *w, int view, int name, int top) {
  Outgoing o;
  Future *f = future_new(L, view, name);
  int at = lua_gettop(L);
  f->id = flight_encode(L, w, &o, name, top);
  if (f->id == 0)
    return 0;
  if (w->patience != IPC_FOREVER)
    f->moment = ipc_now() + w->patience;
  lua_pushvalue(L, at);
  future_pend(L, 1, f->id); /* which may fail for lack of memory */
  w->flying++;
  int n = ipc_wire_end(L, &o);
  if (n == 2) {
    lua_remove(L, -2); /* true, which goes without saying */
    return 2;
  }
  lua_settop(L, at);
  return 1;
}

/* wire:begin(view, name, ...) -> future, and perhaps the list of the special
 * values that go with it; nothing: it was not begun, and nothing was written */
static int wire_begin_call(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  luaL_checktype(L, 2, LUA_TTABLE);
  luaL_checktype(L, 3, LUA_TSTRING);
  if (!flight_free(w))
    return 0;
  return flight_begin(L, w, 2, 3, lua_gettop(L));
}

/* wire:ask(name, ...) -> the id of a call whose answer is waited for, and
 * perhaps that list; or nothing */
static int wire_ask(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  Outgoing o;
  luaL_checktype(L, 2, LUA_TSTRING);
  int top = lua_gettop(L);
  if (!flight_free(w))
    return 0;
  uint32_t id = flight_encode(L, w, &o, 2, top);
  if (id == 0)
    return 0;
  lua_settop(L, top);
  lua_pushboolean(L, 1);
  future_pend(L, 1, id);
  w->flying++;
  w->asked = id;
  lua_pushinteger(L, (lua_Integer)id);
  if (ipc_wire_end(L, &o) == 1)
    return lua_settop(L, top + 1), 1;
  lua_remove(L, -2);
  return 2;
}

/* ------------------------------------------------------------------ settling
 */

/* Settles the answer above slot 2, of n parts: false: that is Lua's. Slot 2:
 * what is pending. */
static bool flight_settle(lua_State *L, Wire *w, int n) {
  enum { PENDING = 2, KIND, ID, ERROR, RESULT };
  if (w->brought || n < ERROR - PENDING || n > RESULT - PENDING ||
      lua_tointeger(L, KIND) != ENVELOPE_RESPONSE || !lua_isnil(L, ERROR))
    return false;
  lua_Integer id = lua_tointeger(L, ID);
  lua_settop(L, RESULT);
  Future *f = lua_rawgeti(L, PENDING, id) == LUA_TUSERDATA
                  ? lua_touserdata(L, -1)
                  : NULL;
  if (!f || f->more) { /* somebody is to be woken */
    lua_settop(L, PENDING + n);
    return false;
  }
  lua_pushvalue(L, 2 + n); /* the result, or the nil before it */
  future_settle(L, RESULT + 1, f, FUTURE_ONE, n - (ERROR - PENDING));
  lua_pushnil(L);
  lua_rawseti(L, PENDING, id);
  w->flying--;
  return true;
}

/* wire:answer() -> as recv, if the next message is in user space, and is a
 * response that does more than to settle a future: those before it are settled;
 * nothing: there is none */
static int wire_answer(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  Chan *self = w->chan;
  lua_settop(L, 1);
  lua_getiuservalue(L, 1, WIRE_UV_PENDING);
  for (int i = 0; i < FUTURE_GATHER; i++) {
    int n = ipc_wire_answer(L, w, self);
    if (n == 0 || w->calls == 0 || !flight_settle(L, w, n))
      return n;
    lua_settop(L, 2);
  }
  return 0;
}

const luaL_Reg ipc_flight_methods[] = {
    {"flight", wire_flight},    {"plain", wire_plain},
    {"flying", wire_flying},    {"id", wire_id},
    {"pending", wire_pending},  {"next", wire_id_after},
    {"expect", wire_expect},    {"forget", wire_forget},
    {"ask", wire_ask},          {"answer", wire_answer},
    {"begin", wire_begin_call}, {NULL, NULL}};

/* ------------------------------------------------------------------- batches
 */

/* (view [, wire]) -> batch: what is plain goes straight to the wire */
static int batch_make(lua_State *L) {
  lua_settop(L, 2);
  Wire *w = lua_isnil(L, 2) ? NULL : ipc_wire_test(L, 2);
  Batch *b = lua_newuserdatauv(L, sizeof *b, BATCH_UVS);
  *b = (Batch){.wire = w};
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, BATCH_VIEW);
  lua_pushvalue(L, 2);
  lua_setiuservalue(L, -2, BATCH_WIRE);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &batch_key);
  lua_setmetatable(L, -2);
  return 1;
}

/* (batch) -> view, count, whether it is closed; nothing: it is no batch */
static int batch_parts(lua_State *L) {
  const Batch *b = future_test(L);
  if (!b)
    return 0;
  lua_getiuservalue(L, 1, BATCH_VIEW);
  lua_pushinteger(L, b->count);
  lua_pushboolean(L, b->closed);
  return 3;
}

/* (batch, count, closed) */
static int batch_set(lua_State *L) {
  Batch *b = future_self(L, "set", "batch");
  b->count = luaL_checkinteger(L, 2);
  b->closed = lua_toboolean(L, 3);
  return 0;
}

/* Lets the peer begin, if calls come fast: then their answers will be read
 * soon, and it need not hold them. */
static void batch_early(Batch *b, Wire *w) {
  if (w->messages == 1) {
    b->since = ipc_now();
  } else if (w->messages % WIRE_EARLY == 0 && w->flying <= BATCH_EARLY) {
    Nanos now = ipc_now();
    if (now - b->since < BATCH_HASTE)
      ipc_wire_early(w);
    b->since = now;
  }
}

/* batch:async(target, ...). Upvalues: 1 the metatable, 2 what begins the calls
 * that need more, 3 and 4 a table and its field that is there while a call of
 * the other side runs outside of tasks. */
static int batch_async(lua_State *L) {
  Batch *b = future_self(L, "async", "batch");
  if (b->closed)
    return luaL_error(L, "ipc.rpc.batch: it was left, nothing is added");
  Wire *w = b->wire;
  int top = lua_gettop(L);
  b->count++;
  lua_getiuservalue(L, 1, BATCH_VIEW);
  if (w && flight_free(w) && L == w->chan->h.state->main &&
      lua_type(L, 2) == LUA_TSTRING && flight_simple(L, 2, top)) {
    lua_pushvalue(L, lua_upvalueindex(4));
    if (lua_rawget(L, lua_upvalueindex(3)) == LUA_TNIL) {
      lua_getiuservalue(L, 1, BATCH_WIRE);
      lua_copy(L, -1, 1);
      lua_settop(L, top + 1);
      if (flight_begin(L, w, top + 1, 2, top) == 1) {
        batch_early(b, w);
        return 1;
      }
    }
    lua_settop(L, top + 1);
  }
  lua_replace(L, 1);
  lua_pushvalue(L, lua_upvalueindex(2));
  lua_insert(L, 1);
  lua_settop(L, top + 1);
  lua_callk(L, top, 1, 0, future_later);
  return 1;
}

/* --------------------------------------------------------------------- types
 */

static void future_metatable(lua_State *L, const void *key, const char *name) {
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, key) != LUA_TNIL)
    return; /* of modules that were loaded before */
  lua_pop(L, 1);
  lua_newtable(L);
  lua_pushstring(L, name);
  lua_setfield(L, -2, "__name");
  lua_pushlightuserdata(L, (void *)(uintptr_t)ipc_rpc_mark); /* no argument */
  lua_pushboolean(L, 1);
  lua_rawset(L, -3);
  lua_pushvalue(L, -1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, key);
}

static void future_fields(lua_State *L) {
  static const char *const names[] = {
      [FIELD_DONE] = "done",       [FIELD_ID] = "id",
      [FIELD_MOMENT] = "moment",   [FIELD_METHOD] = "method",
      [FIELD_VIEW] = "view",       [FIELD_SESSION] = "session",
      [FIELD_PROBLEM] = "problem", [FIELD_N] = "n"};
  lua_createtable(L, 0, FIELD_N);
  for (int i = FIELD_DONE; i <= FIELD_N; i++) {
    lua_pushinteger(L, i);
    lua_setfield(L, -2, names[i]);
  }
}

/* (wait) -> class, methods, keep, make; wait(future, timeout) is for what is
 * not here */
static int future_class(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_settop(L, 1);
  future_metatable(L, &future_key, "ipc.rpc.future"); /* 2 */
  lua_newtable(L);                                    /* 3: methods */
  future_fields(L);                                   /* 4 */
  lua_CFunction const events[] = {future_index, future_newindex};
  for (int i = 0; i < 2; i++) {
    lua_pushvalue(L, 2);
    lua_pushvalue(L, 3);
    lua_pushvalue(L, 4);
    lua_pushcclosure(L, events[i], 3);
    lua_setfield(L, 2, i ? "__newindex" : "__index");
  }
  lua_pushvalue(L, 2);
  lua_pushvalue(L, 1);
  lua_pushcclosure(L, future_wait, 2);
  lua_setfield(L, 3, "wait");
  lua_pushvalue(L, 2);
  lua_pushcclosure(L, future_keep, 1);
  lua_pushcfunction(L, future_make);
  lua_remove(L, 4);
  return 4;
}

/* (begin, incoming) -> class, make, parts, set, async */
static int batch_class(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_settop(L, 2);
  future_metatable(L, &batch_key, "ipc.rpc.batch"); /* 3 */
  lua_pushcfunction(L, batch_make);
  lua_pushvalue(L, 3);
  lua_pushcclosure(L, batch_parts, 1);
  lua_pushvalue(L, 3);
  lua_pushcclosure(L, batch_set, 1);
  lua_pushvalue(L, 3);
  lua_pushvalue(L, 1);
  lua_pushvalue(L, 2);
  lua_pushliteral(L, "inline");
  lua_pushcclosure(L, batch_async, 4);
  return 5;
}

const luaL_Reg ipc_future_functions[] = {
    {"futures", future_class}, {"batches", batch_class}, {NULL, NULL}};
