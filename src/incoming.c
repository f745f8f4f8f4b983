/* What a wire reads: messages off the channel's bytes, decoded. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdio.h>
#include <string.h>

#include "chan.h"
#include "wire.h"

enum { WIRE_DECODE = 2048 }; /* bytes decoded off the C stack */

/* The connection is of no use any more: says so from now on. The text is on
 * top. */
static int wire_break(lua_State *L, Wire *w, int index, int err) {
  w->broken = err;
  lua_pushvalue(L, -1);
  lua_setiuservalue(L, index, WIRE_UV_WHY);
  return ipc_fail(L, "ipc.rpc", "recv", err, lua_tostring(L, -1));
}

/* A stream that is none of messages, or has one that is too long. */
static int wire_stray(lua_State *L, Wire *w, int index, int err) {
  if (w->broken) {
    lua_getiuservalue(L, index, WIRE_UV_WHY);
    return ipc_fail(L, "ipc.rpc", "recv", err, lua_tostring(L, -1));
  }
  ipc_buffer_free(&w->in);
  w->at = 0;
  if (err == EMSGSIZE)
    lua_pushfstring(L, "a message of more than %I bytes",
                    (LUAI_UACINT)w->limits.values.bytes);
  else
    lua_pushstring(L, w->scan.why);
  return wire_break(L, w, index, err);
}

/* UnpackForeign: what the function of exts() makes of it. */
static int wire_ext(lua_State *L, const char *bytes, size_t size,
                    UnpackForeign *f) {
  EnvelopeExts *x = (EnvelopeExts *)f;
  x->some = true;
  lua_getiuservalue(L, x->wire, WIRE_UV_EXTS);
  lua_pushinteger(L, (signed char)bytes[-1]);
  lua_pushlstring(L, bytes, size);
  if (lua_pcall(L, 2, 1, 0) == LUA_OK) {
    if (!lua_isnil(L, -1))
      return 0;
    lua_pushliteral(L, "an extension that stands for nothing here");
  } else if (lua_type(L, -1) != LUA_TSTRING) {
    lua_pushfstring(L, "an extension: (error object is a %s value)",
                    luaL_typename(L, -1));
  }
  x->told = true;
  return EBADMSG;
}

/* wire:exts(f): f(type, bytes) -> the value in place of each extension that
 * comes; it may not yield. nil: they are ipc.ext again. */
static int wire_exts(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  if (!lua_isnoneornil(L, 2))
    luaL_checktype(L, 2, LUA_TFUNCTION);
  lua_settop(L, 2);
  w->exts = !lua_isnil(L, 2);
  lua_setiuservalue(L, 1, WIRE_UV_EXTS);
  lua_pushboolean(L, 1);
  return 1;
}

/* The parts of the message, decoded off its place: that runs Lua's allocator,
 * hence finalisers, and these may use the wire, which is at `index`. As
 * ipc_envelope_decode. */
static int wire_decode(lua_State *L, Wire *w, int index, const char *bytes,
                       size_t size) {
  EnvelopeExts exts = {.f = {.type = -1, .unpack = wire_ext}, .wire = index};
  EnvelopeExts *x = w->exts ? &exts : NULL;
  int n;
  if (size <= WIRE_DECODE) {
    char copy[WIRE_DECODE];
    memcpy(copy, bytes, size);
    n = ipc_envelope_decode(L, copy, size, &w->limits, w->spread, x);
  } else {
    lua_pushlstring(L, bytes, size);
    int at = lua_gettop(L);
    n = ipc_envelope_decode(L, lua_tostring(L, at), size, &w->limits, w->spread,
                            x);
    lua_remove(L, at);
  }
  w->brought = exts.some;
  return n;
}

static int wire_decoded(lua_State *L, int n) {
  return n ? n : ipc_fail(L, "ipc.rpc", "recv", EBADMSG, lua_tostring(L, -1));
}

/* The next message of a stream. */
static int wire_recv_stream(lua_State *L, Wire *w, int index, Chan *self) {
  Chan *c = self->reader;
  int top = lua_gettop(L);
  for (;;) {
    int err = ipc_wire_look(w);
    if (err == 0) {
      uint32_t serial = w->serial;
      int n = wire_decode(L, w, index, w->in.bytes + w->at, w->scan.at);
      if (serial == w->serial && w->open) {
        ipc_wire_took(w);
        c->received++;
        return wire_decoded(L, n);
      }
      /* A finaliser received this very message. */
      lua_settop(L, top);
      continue;
    }
    if (err != EAGAIN)
      return wire_stray(L, w, index, err);
    err = ipc_wire_pull(w, c);
    if (err)
      return ipc_chan_received(L, self, "recv", err, 0);
  }
}

/* What is wrong with a message by itself: 0, or nil, message, errno. */
static int wire_check(lua_State *L, const Wire *w, const Message *m) {
  Scan s;
  ipc_scan_start(&s);
  int err = ipc_scan(&s, m->bytes, m->size, w->limits.values.bytes);
  char detail[96];
  switch (err) {
  case 0:
    return s.at == m->size
               ? 0
               : ipc_fail(L, "ipc.rpc", "recv", EBADMSG,
                          "bytes after the MessagePack in a message");
  case EAGAIN:
    return ipc_fail(L, "ipc.rpc", "recv", EBADMSG,
                    "a message whose MessagePack is cut short");
  case EMSGSIZE:
    snprintf(detail, sizeof detail, "a message of more than %zu bytes",
             w->limits.values.bytes);
    return ipc_fail(L, "ipc.rpc", "recv", err, detail);
  default:
    return ipc_fail(L, "ipc.rpc", "recv", err, s.why);
  }
}

static int wire_recv_message(lua_State *L, Wire *w, int index, Chan *self) {
  Chan *c = self->reader;
  int top = lua_gettop(L);
  for (;;) {
    Message m = {0};
    int err = ipc_chan_next(c, &m);
    if (err)
      return ipc_chan_received(L, self, "recv", err, m.size);
    uint32_t serial = c->serial;
    int n = wire_check(L, w, &m);
    if (!n)
      n = wire_decoded(L, wire_decode(L, w, index, m.bytes, m.size));
    if (serial == c->serial) {
      ipc_chan_took(c, m.size);
      return n;
    }
    lua_settop(L, top);
  }
}

int ipc_wire_next(lua_State *L, Wire *w, int index, Chan *self) {
  return self->reader->stream ? wire_recv_stream(L, w, index, self)
                              : wire_recv_message(L, w, index, self);
}

static int recv_attempt(lua_State *L, Handle *h) {
  return ipc_wire_next(L, lua_touserdata(L, WIRE_WIRE), WIRE_WIRE, (Chan *)h);
}

static const Op recv_op = {.name = "recv",
                           .attempt = recv_attempt,
                           .want = IPC_READ,
                           .deadline = WIRE_TIMEOUT,
                           .top = WIRE_TOP};

static const Op alone_op = {.name = "recv",
                            .attempt = recv_attempt,
                            .want = IPC_READ,
                            .deadline = WIRE_TIMEOUT,
                            .top = WIRE_TOP,
                            .alone = true};

/* wire:recv([timeout [, alone]]) -> kind, ... of the next message, or nil,
 * message, errno; see envelope.h */
static int wire_recv(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  Chan *self = w->chan, *c = self->reader;
  bool tried = false;
  const Op *op = lua_toboolean(L, WIRE_TIMEOUT + 1) ? &alone_op : &recv_op;
  ipc_check_timeout(L, WIRE_TIMEOUT);
  if (ipc_chan_direct(L, self, c)) {
    lua_settop(L, WIRE_TIMEOUT);
    int n = ipc_wire_next(L, w, 1, self);
    if (n >= 0)
      return n;
    tried = !c->h.nap && !c->h.ops->arm && !c->h.ops->wait;
  }
  ipc_wire_arrange(L);
  return tried ? ipc_run_tried(L, op) : ipc_run(L, op);
}

/* wire:ready() -> whether the next message is in user space */
static int incoming_ready(lua_State *L) {
  lua_pushboolean(L, ipc_wire_ready(ipc_wire_self(L)));
  return 1;
}

static bool wire_answers(const char *bytes, size_t size) {
  return size >= 2 && (unsigned char)bytes[0] == 0x94 &&
         bytes[1] == ENVELOPE_RESPONSE;
}

/* Whether the next message is in user space and a response. What is wrong with
 * it, or with the channel, recv finds. */
static bool wire_answered(Wire *w) {
  Chan *c = w->chan->reader;
  if (c->held || !ipc_wire_ready(w))
    return false;
  if (c->stream)
    return wire_answers(w->in.bytes + w->at, w->scan.at);
  Message m = {0};
  int err = c->ops->recv(c, &m);
  if (err && err != EAGAIN) { /* told once: by the call that takes it */
    c->held = err;
    c->held_size = m.size;
  }
  return !err && wire_answers(m.bytes, m.size);
}

int ipc_wire_answer(lua_State *L, Wire *w, Chan *self) {
  if (!ipc_chan_direct(L, self, self->reader) || !wire_answered(w))
    return 0;
  int n = ipc_wire_next(L, w, 1, self);
  return n < 0 ? 0 : n;
}

/* wire:partial() -> bytes of a message that is not all there */
static int wire_partial(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  bool some = wire_have(w) > 0 && ipc_wire_look(w) == EAGAIN;
  lua_pushinteger(L, some ? (lua_Integer)wire_have(w) : 0);
  return 1;
}

/* wire:spread(whether): the array of a response is its results */
static int wire_spread(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  luaL_checktype(L, 2, LUA_TBOOLEAN);
  w->spread = lua_toboolean(L, 2);
  lua_pushboolean(L, 1);
  return 1;
}

const luaL_Reg ipc_incoming_methods[] = {
    {"recv", wire_recv},       {"ready", incoming_ready},
    {"partial", wire_partial}, {"spread", wire_spread},
    {"exts", wire_exts},       {NULL, NULL}};
