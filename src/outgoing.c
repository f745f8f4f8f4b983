/* What a wire writes: messages encoded into its buffer, and that sent. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "chan.h"
#include "wire.h"

/* --------------------------------------------------------------- encoding */

uint32_t ipc_wire_id(lua_State *L, int index) {
  if (lua_type(L, index) != LUA_TNUMBER) /* no coercion */
    luaL_typeerror(L, index, "id");
  lua_Integer id = luaL_checkinteger(L, index);
  luaL_argcheck(L, id >= 0 && id <= (lua_Integer)UINT32_MAX, index,
                "an id has 32 bits");
  return (uint32_t)id;
}

/* PackSpecial; the wire is in slot 1. Makes a note of it. */
static bool wire_special(lua_State *L, int index, PackSpecial *s,
                         const char **bytes, size_t *size) {
  Wire *w = s->owner;
  *size = 0;
  index = lua_absindex(L, index);
  if (w->refs) {
    lua_getiuservalue(L, 1, WIRE_UV_REFS);
    lua_pushvalue(L, index);
    if (lua_rawget(L, -2) == LUA_TSTRING)
      *bytes = lua_tolstring(L, -1, size); /* kept by the table */
    lua_pop(L, 2);
  }
  if (*size == 0) {
    lua_pushvalue(L, index);
    return false;
  }
  lua_getiuservalue(L, 1, WIRE_UV_LIST);
  lua_pushvalue(L, index);
  lua_rawseti(L, -2, ++w->specials);
  lua_pop(L, 1);
  return true;
}

void ipc_wire_begin(lua_State *L, Wire *w, Outgoing *o) {
  if (w->specials > 0 || (w->refs && !w->list)) { /* or of one not appended */
    lua_newtable(L);
    lua_setiuservalue(L, 1, WIRE_UV_LIST);
    w->list = true;
    w->specials = 0;
  }
  o->wire = w;
  o->special = (PackSpecial){w, wire_special};
  ipc_encode_begin(&o->e, L, &w->out);
  if (w->levels) {
    o->e.levels = w->levels;
    o->e.most = (int)w->limits.values.depth;
  }
  o->e.special = &o->special;
  if (w->chan->writer->stream)
    return;
  encode_room(&o->e, sizeof(size_t));
  o->e.at += sizeof(size_t);
}

static size_t outgoing_size(const Outgoing *o) {
  size_t size = (size_t)(o->e.at - o->e.base);
  return o->wire->chan->writer->stream ? size : size - sizeof size;
}

static size_t outgoing_most(const Wire *w) {
  const Chan *c = w->chan->writer;
  return c->stream || w->most < c->limit ? w->most : c->limit;
}

bool ipc_wire_fits(const Outgoing *o) {
  return outgoing_size(o) <= outgoing_most(o->wire);
}

int ipc_wire_end(lua_State *L, Outgoing *o) {
  Wire *w = o->wire;
  Encode *e = &o->e;
  size_t size = outgoing_size(o);
  if (!ipc_wire_fits(o)) {
    char detail[96];
    snprintf(detail, sizeof detail, "%zu bytes, but maxsize is %zu%s", size,
             outgoing_most(w),
             outgoing_most(w) == w->most ? " (the other side's option)" : "");
    return ipc_fail(L, "ipc.rpc", "send", EMSGSIZE, detail);
  }
  if (!w->chan->writer->stream)
    memcpy(e->base, &size, sizeof size);
  w->messages++;
  ipc_encode_end(e);
  lua_pushboolean(L, 1);
  if (w->specials == 0)
    return 1;
  w->specials = 0;
  w->list = false;
  lua_getiuservalue(L, 1, WIRE_UV_LIST);
  lua_pushnil(L);
  lua_setiuservalue(L, 1, WIRE_UV_LIST);
  return 2;
}

/* A special value that is not known is on top. */
static int wire_unknown(lua_State *L) {
  lua_pushnil(L);
  lua_insert(L, -2);
  return 2;
}

/* The value at `index`, which errors call so. */
static bool wire_value(Outgoing *o, int index, const char *root) {
  o->e.root = root;
  return ipc_encode_index(&o->e, index);
}

/* What messages end with: an array of the values from `first` to `top`. */
static int wire_values(lua_State *L, Outgoing *o, int first, int top,
                       const char *root) {
  if (!ipc_envelope_values(&o->e, first, top, root))
    return wire_unknown(L);
  return ipc_wire_end(L, o);
}

/* wire:request(id, method, ...) -> true; true, a list of the special values
 * that go with it; nil and one that refs() does not have: nothing was appended;
 * or nil, message, errno. So do all that follow. */
static int wire_request(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  uint32_t id = ipc_wire_id(L, 2);
  Outgoing o;
  luaL_checktype(L, 3, LUA_TSTRING);
  int top = lua_gettop(L);
  ipc_wire_begin(L, w, &o);
  ipc_envelope_request(&o.e, id);
  ipc_envelope_name(&o.e, 3);
  return wire_values(L, &o, 4, top, "bad argument to a call: argument");
}

/* wire:call(id, meta, method, ...) */
static int wire_call(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  uint32_t id = ipc_wire_id(L, 2);
  Outgoing o;
  luaL_checktype(L, 3, LUA_TTABLE);
  luaL_checktype(L, 4, LUA_TSTRING);
  int top = lua_gettop(L);
  ipc_wire_begin(L, w, &o);
  ipc_envelope_request(&o.e, id);
  ipc_envelope_literal(&o.e, "$call");
  ipc_envelope_array(&o.e, 3);
  if (!wire_value(&o, 3, "meta"))
    return wire_unknown(L);
  ipc_envelope_name(&o.e, 4);
  return wire_values(L, &o, 5, top, "bad argument to a call: argument");
}

/* wire:invoke(id, meta, reference, name, ...): meta and name may be nil */
static int wire_invoke(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  uint32_t id = ipc_wire_id(L, 2);
  Outgoing o;
  bool meta = !lua_isnil(L, 3);
  luaL_checkany(L, 4);
  if (meta)
    luaL_checktype(L, 3, LUA_TTABLE);
  if (!lua_isnoneornil(L, 5))
    luaL_checktype(L, 5, LUA_TSTRING);
  if (lua_gettop(L) < 5)
    lua_settop(L, 5);
  int top = lua_gettop(L);
  ipc_wire_begin(L, w, &o);
  ipc_envelope_request(&o.e, id);
  ipc_envelope_literal(&o.e, meta ? "$call" : "$invoke");
  if (meta) {
    ipc_envelope_array(&o.e, 3);
    if (!wire_value(&o, 3, "meta"))
      return wire_unknown(L);
    ipc_envelope_literal(&o.e, "$invoke");
  }
  ipc_envelope_array(&o.e, 3);
  if (!wire_value(&o, 4, "reference"))
    return wire_unknown(L);
  if (lua_isnil(L, 5))
    ipc_envelope_nil(&o.e);
  else
    ipc_envelope_name(&o.e, 5);
  return wire_values(L, &o, 6, top, "bad argument to a call: argument");
}

/* wire:notify(method, ...) */
static int wire_notify(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  Outgoing o;
  luaL_checktype(L, 2, LUA_TSTRING);
  int top = lua_gettop(L);
  ipc_wire_begin(L, w, &o);
  ipc_envelope_notify(&o.e);
  ipc_envelope_name(&o.e, 2);
  return wire_values(L, &o, 3, top, "bad argument to a call: argument");
}

/* wire:reply(id, ...): all results, as our own peers take them */
static int wire_reply(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  uint32_t id = ipc_wire_id(L, 2);
  Outgoing o;
  int top = lua_gettop(L);
  ipc_wire_owe(w);
  ipc_wire_begin(L, w, &o);
  ipc_envelope_response(&o.e, id);
  ipc_envelope_nil(&o.e);
  return wire_values(L, &o, 3, top, "result");
}

/* wire:result(id, ...): as others do; one by itself, several in an array */
static int wire_result(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  uint32_t id = ipc_wire_id(L, 2);
  Outgoing o;
  int top = lua_gettop(L);
  ipc_wire_owe(w);
  ipc_wire_begin(L, w, &o);
  ipc_envelope_response(&o.e, id);
  ipc_envelope_nil(&o.e);
  if (top > 3)
    return wire_values(L, &o, 3, top, "result");
  o.e.argument = 1;
  if (top == 2)
    ipc_envelope_nil(&o.e);
  else if (!wire_value(&o, 3, "result"))
    return wire_unknown(L);
  return ipc_wire_end(L, &o);
}

/* wire:fail(id, error) */
static int wire_fail(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  uint32_t id = ipc_wire_id(L, 2);
  Outgoing o;
  luaL_checkany(L, 3);
  luaL_argcheck(L, !lua_isnil(L, 3), 3, "an error is not nil");
  ipc_wire_owe(w);
  ipc_wire_begin(L, w, &o);
  ipc_envelope_response(&o.e, id);
  if (!wire_value(&o, 3, "error"))
    return wire_unknown(L);
  ipc_envelope_nil(&o.e);
  return ipc_wire_end(L, &o);
}

/* wire:refs() -> a table with weak keys: special value -> its extension, a
 * string of the type's byte and the bytes */
static int wire_refs(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  if (!w->refs) {
    lua_newtable(L);
    lua_createtable(L, 0, 1);
    lua_pushliteral(L, "k");
    lua_setfield(L, -2, "__mode");
    lua_setmetatable(L, -2);
    lua_setiuservalue(L, 1, WIRE_UV_REFS);
    w->refs = true;
  }
  lua_getiuservalue(L, 1, WIRE_UV_REFS);
  return 1;
}

/* ---------------------------------------------------------------- sending */

/* wire:unsent() -> bytes not out yet, those that the channel holds included;
 * and bytes that are out */
static int wire_unsent(lua_State *L) {
  const Wire *w = ipc_wire_self(L);
  const Chan *c = w->chan->writer;
  size_t held = c->rest.size + c->rest.headed;
  lua_pushinteger(L, (lua_Integer)(w->out.size - w->sent + held));
  lua_pushinteger(L, (lua_Integer)(c->bytes_out - held));
  return 2;
}

/* Of a closed channel nothing will be sent. */
int ipc_wire_sent(lua_State *L, Wire *w, int err) {
  Chan *c = w->chan->writer;
  if (err == 0 || err == EAGAIN) {
    lua_pushboolean(L, err == 0);
    return 1;
  }
  w->sent = 0;
  w->messages = 0;
  ipc_buffer_free(&w->out);
  return ipc_fail(L, "ipc.rpc", "send", ipc_chan_errno(err), c->why);
}

static void wire_pay(lua_State *L, Owed *o) {
  Wire *w = (Wire *)(void *)((char *)o - offsetof(Wire, owed));
  if (!lua_checkstack(L, 4)) { /* before the next wait, then */
    ipc_wire_owe(w);
    return;
  }
  if (!ipc_handle_push(L, &w->chan->h)) /* or it would go while Lua runs */
    return;
  ipc_wire_try(L, w);
  const Chan *c = w->chan->writer;
  if (w->out.size > 0 && ipc_handle_usable(&c->h) && !c->failed && !c->shut &&
      !(c->h.queue && ipc_waiter_first(&c->h, IPC_WRITE)))
    ipc_wire_owe(w);
  lua_pop(L, 1);
}

void ipc_wire_owe(Wire *w) {
  w->owed.pay = wire_pay;
  w->owed.to = w->chan->writer;
  ipc_owe(w->chan->h.state, &w->owed);
}

void ipc_wire_try(lua_State *L, Wire *w) {
  Chan *c = w->chan->writer;
  if (w->out.size == 0 || !ipc_handle_usable(&c->h) ||
      (c->h.queue && ipc_waiter_first(&c->h, IPC_WRITE)))
    return;
  (void)ipc_wire_send(w, c);
  if (c->h.observers)
    ipc_handle_changed(L, &c->h);
}

/* wire:flush() -> true; false: it would have to wait, whatever waits goes on
 * with it; or nil, message, errno */
static int wire_flush(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  Chan *self = w->chan, *c = self->writer;
  State *S = self->h.state;
  if (!ipc_handle_usable(&self->h) || !ipc_handle_usable(&c->h))
    return ipc_handle_refuse(L, &self->h, "send");
  if (c->h.queue && w->out.size > 0 && ipc_waiter_first(&c->h, IPC_WRITE))
    return lua_pushboolean(L, 0), 1;
  if (L == S->main)
    S->hook = lua_gethook(L);
  int err = ipc_wire_send(w, c);
  if (err == EAGAIN)
    ipc_wire_owe(w);
  if (c->h.observers)
    ipc_handle_changed(L, &c->h);
  return ipc_wire_sent(L, w, err);
}

static int drain_attempt(lua_State *L, Handle *h) {
  Wire *w = lua_touserdata(L, WIRE_WIRE);
  Chan *c = ((Chan *)h)->writer;
  if (!ipc_handle_usable(&c->h))
    return ipc_handle_refuse(L, h, "send");
  int err = ipc_wire_send(w, c);
  return err == EAGAIN ? -IPC_WRITE : ipc_wire_sent(L, w, err);
}

static const Op drain_op = {.name = "send",
                            .attempt = drain_attempt,
                            .want = IPC_WRITE,
                            .deadline = WIRE_TIMEOUT,
                            .top = WIRE_TOP};

void ipc_wire_arrange(lua_State *L) {
  ipc_check_timeout(L, WIRE_TIMEOUT);
  lua_settop(L, WIRE_TIMEOUT);
  lua_pushvalue(L, 1);
  lua_getiuservalue(L, 1, WIRE_UV_CHANNEL);
  lua_replace(L, 1);
}

/* wire:drain([timeout]) -> as flush, but waits */
static int wire_drain(lua_State *L) {
  (void)ipc_wire_self(L);
  ipc_wire_arrange(L);
  return ipc_run(L, &drain_op);
}

/* wire:linger(seconds): how long the channel's close waits for its rest */
static int wire_linger(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  w->chan->linger = ipc_seconds(luaL_checknumber(L, 2));
  lua_pushboolean(L, 1);
  return 1;
}

const luaL_Reg ipc_outgoing_methods[] = {{"request", wire_request},
                                         {"call", wire_call},
                                         {"invoke", wire_invoke},
                                         {"notify", wire_notify},
                                         {"reply", wire_reply},
                                         {"result", wire_result},
                                         {"fail", wire_fail},
                                         {"flush", wire_flush},
                                         {"drain", wire_drain},
                                         {"unsent", wire_unsent},
                                         {"refs", wire_refs},
                                         {"linger", wire_linger},
                                         {NULL, NULL}};
