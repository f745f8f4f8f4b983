/* Calls that need nothing but the wire, with few crossings of Lua and C: what
 * is written goes out and an answer is waited for (exchange), calls of the
 * other side are answered by plain functions (work). Whatever else comes goes
 * to Lua. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>

#include "chan.h"
#include "wire.h"

/* --------------------------------------------------------------- exchange */

static int exchange_attempt(lua_State *L, Handle *h) {
  Wire *w = lua_touserdata(L, WIRE_WIRE);
  int n = ipc_wire_next(L, w, WIRE_WIRE, (Chan *)h);
  if (n >= 3 && lua_tointeger(L, -n) == ENVELOPE_RESPONSE &&
      lua_tointeger(L, 1 - n) == (lua_Integer)w->awaited)
    ipc_wire_forget(L, w, WIRE_WIRE, w->awaited);
  return n;
}

#define EXCHANGE_OP                                                            \
  .name = "recv", .attempt = exchange_attempt, .want = IPC_READ,               \
  .deadline = WIRE_TIMEOUT, .top = WIRE_TOP

static const Op exchange_op = {EXCHANGE_OP};
static const Op exchange_alone_op = {EXCHANGE_OP, .alone = true};

/* wire:exchange(timeout, alone, id): flush, then recv. As recv, and nothing
 * waits for the answer `id` if it is that; or false: what is written could not
 * be sent yet, or a hook has read that answer before. */
static int wire_exchange(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  Chan *self = w->chan, *c = self->writer;
  ipc_check_timeout(L, WIRE_TIMEOUT);
  if (!ipc_handle_usable(&self->h) || !ipc_handle_usable(&c->h))
    return ipc_handle_refuse(L, &self->h, "send");
  int err = EAGAIN;
  if (!c->h.queue || !ipc_waiter_first(&c->h, IPC_WRITE))
    err = ipc_wire_send(w, c);
  if (c->h.observers)
    ipc_handle_changed(L, &c->h);
  if (err)
    return ipc_wire_sent(L, w, err);
  const Op *op =
      lua_toboolean(L, WIRE_TIMEOUT + 1) ? &exchange_alone_op : &exchange_op;
  w->awaited = lua_isnoneornil(L, WIRE_TIMEOUT + 2)
                   ? 0
                   : ipc_wire_id(L, WIRE_TIMEOUT + 2);
  if (w->awaited && w->awaited != w->asked && !ipc_wire_awaits(L, w->awaited))
    return lua_pushboolean(L, 0), 1;
  ipc_wire_arrange(L);
  w->until = IPC_FOREVER;
  if (lua_type(L, WIRE_TIMEOUT) == LUA_TNUMBER &&
      ipc_deadline(L, WIRE_TIMEOUT, IPC_FOREVER, &w->until))
    w->until = ipc_now(); /* there is no time at all */
  return ipc_run(L, op);
}

/* wire:left() -> seconds until the deadline of the last exchange that was sent,
 * or less than none; nil: it had none */
static int wire_left(lua_State *L) {
  const Wire *w = ipc_wire_self(L);
  if (w->until == IPC_FOREVER)
    return lua_pushnil(L), 1;
  lua_pushnumber(L, (lua_Number)(w->until - ipc_now()) / 1e9);
  return 1;
}

/* ------------------------------------------------------------------- work */

/* Slots of work: 1 channel, 2 timeout, 3 wire, 4 exports, 5 message handler. */
enum { WORK_EXPORTS = WIRE_TOP + 1, WORK_HANDLER, WORK_TOP = WORK_HANDLER };

enum {
  WORK_RAN = 4,          /* a kind: a call was run, and is to be answered */
  WORK_GATHER = 1 << 16, /* bytes of answers that may wait for more of them */
  WORK_TURN = 64         /* calls between looks at the clock */
};

/* PackSpecial: what travels by reference is Lua's. */
static bool work_special(lua_State *L, int index, PackSpecial *s,
                         const char **bytes, size_t *size) {
  (void)s, (void)bytes, (void)size;
  lua_pushvalue(L, index);
  return false;
}

/* In work_run, the results from slot 2 on: answers with them, or returns them.
 */
static int work_answer(lua_State *L, Wire *w, uint32_t id) {
  Outgoing o;
  int top = lua_gettop(L);
  w->encoding = true;
  ipc_wire_begin(L, w, &o);
  o.special.pack = work_special;
  ipc_envelope_response(&o.e, id);
  ipc_envelope_nil(&o.e);
  bool good = true;
  if (w->spread || top > 2) {
    good = ipc_envelope_values(&o.e, 2, top, "result");
  } else if (top == 2) {
    o.e.root = "result";
    o.e.argument = 1;
    good = ipc_encode_index(&o.e, 2);
  } else {
    ipc_envelope_nil(&o.e);
  }
  good = good && ipc_wire_end(L, &o) == 1;
  w->encoding = false;
  if (good) {
    w->answered = true;
    return 0;
  }
  w->answered = false;
  lua_settop(L, top);
  return top - 1;
}

/* The function has returned after others had run. */
static int work_later(lua_State *L, int status, lua_KContext context) {
  (void)status, (void)context;
  return lua_gettop(L) - 1;
}

/* (wire, function, ...), protected: runs it and answers w->current, unless Lua
 * has asked for that: then the results are left. */
static int work_run(lua_State *L) {
  Wire *w = lua_touserdata(L, 1);
  uint32_t id = w->current, touches = w->touches;
  lua_callk(L, lua_gettop(L) - 2, LUA_MULTRET, 0, work_later);
  if (w->touches != touches) {
    w->answered = false; /* by another that ran in it, perhaps */
    return lua_gettop(L) - 1;
  }
  return work_answer(L, w, id);
}

/* What work answers of a call that Lua is to answer: its results, or the error,
 * are above the slots. An error of what encodes results comes with nil. */
static int work_ran(lua_State *L, Wire *w, uint32_t id, bool good) {
  lua_pushinteger(L, WORK_RAN);
  lua_pushinteger(L, (lua_Integer)id);
  if (w->encoding)
    lua_pushnil(L);
  else
    lua_pushboolean(L, good);
  w->encoding = false;
  lua_rotate(L, WORK_TOP + 1, 3);
  return lua_gettop(L) - WORK_TOP;
}

/* After a yield; but where one is possible also after an error without. */
static int work_continue(lua_State *L, int status, lua_KContext context) {
  Wire *w = lua_touserdata(L, WIRE_WIRE);
  if (w->current == (uint32_t)context)
    w->running = false;
  return work_ran(L, w, (uint32_t)context, status == LUA_YIELD);
}

/* Runs the request above the slots: 0; or the results of work. */
static int work_call(lua_State *L, Wire *w) {
  int base = WORK_TOP + 1; /* kind, id, the function, arguments */
  uint32_t id = (uint32_t)lua_tointeger(L, base + 1);
  uint32_t before = w->current;
  bool outer = w->running;
  lua_pushcfunction(L, work_run);
  lua_replace(L, base);
  lua_pushvalue(L, WIRE_WIRE);
  lua_replace(L, base + 1);
  w->current = id;
  w->running = true;
  w->answered = false;
  if (w->out.size > 0)
    ipc_wire_owe(w);
  int status = lua_pcallk(L, lua_gettop(L) - base, LUA_MULTRET, WORK_HANDLER,
                          (lua_KContext)id, work_continue);
  w->current = before;
  w->running = outer;
  if (status == LUA_OK && w->answered) {
    lua_settop(L, WORK_TOP);
    return 0;
  }
  return work_ran(L, w, id, status == LUA_OK);
}

/* Whether the message above the slots is a request to a plain function, which
 * takes the name's place. */
static bool work_mine(lua_State *L, const Wire *w, int n) {
  int base = WORK_TOP + 1;
  if (w->passes || w->brought || n < 3 || !lua_isinteger(L, base) ||
      lua_tointeger(L, base) != ENVELOPE_REQUEST)
    return false;
  lua_pushvalue(L, base + 2);
  if (lua_rawget(L, WORK_EXPORTS) == LUA_TFUNCTION) {
    lua_replace(L, base + 2);
    return true;
  }
  lua_pop(L, 1);
  return false;
}

/* Op.finish: a message is there. */
static int work_finish(lua_State *L, Handle *h) {
  Wire *w = lua_touserdata(L, WIRE_WIRE);
  Chan *self = (Chan *)h;
  int n;
  for (unsigned calls = 1;; calls++) {
    if (!ipc_handle_usable(h) || !ipc_handle_usable(&self->reader->h))
      return ipc_handle_refuse(L, h, "recv");
    n = ipc_wire_next(L, w, WIRE_WIRE, self);
    if (n < 0 || !work_mine(L, w, n))
      break;
    n = work_call(L, w);
    if (n > 0)
      break;
    ipc_wire_early(w);
    if (w->out.size > WORK_GATHER || !ipc_wire_ready(w)) {
      ipc_wire_try(L, w);
      if (w->out.size > 0 &&
          ipc_handle_usable(h)) /* would have to wait: Lua reads on meanwhile */
        return lua_pushboolean(L, 0), 1;
    }
    if (w->passes)
      return lua_pushboolean(L, 1), 1;
    if (calls % WORK_TURN == 0 && ipc_run_tires(L, h->state)) {
      ipc_wire_try(L, w);
      return IPC_TURN;
    }
  }
  ipc_wire_try(L, w);
  return n < 0 ? IPC_AGAIN : n;
}

/* 0: a message is there, whole. */
static int work_attempt(lua_State *L, Handle *h) {
  Wire *w = lua_touserdata(L, WIRE_WIRE);
  Chan *self = (Chan *)h, *c = self->reader;
  if (!c->stream) {
    Message m = {0};
    int err = c->held ? 0 : ipc_chan_next(c, &m);
    return err ? ipc_chan_received(L, self, "recv", err, m.size) : 0;
  }
  int err = ipc_wire_look(w);
  while (err == EAGAIN) {
    err = ipc_wire_pull(w, c);
    if (err)
      return ipc_chan_received(L, self, "recv", err, 0);
    err = ipc_wire_look(w);
  }
  return 0; /* what is wrong with it, work_finish finds again */
}

#define WORK_OP                                                                \
  .name = "recv", .attempt = work_attempt, .finish = work_finish,              \
  .want = IPC_READ, .deadline = WIRE_TIMEOUT, .top = WORK_TOP

static const Op work_op = {WORK_OP};
static const Op work_alone_op = {WORK_OP, .alone = true};

/* wire:work(exports, timeout, alone, handler): recv that runs requests to the
 * functions of the table `exports` itself and answers them; comes back with
 * other messages, with false: answers could not be sent yet, with true:
 * pass(true) was called meanwhile, or with 4, id, whether it succeeded (nil:
 * its results cannot travel), results or error, of a call that it ran and that
 * Lua is to answer: it failed, or had to wait, or touch() was called in it, or
 * its results are not for the wire alone. `handler` is xpcall's. */
static int wire_work(lua_State *L) {
  (void)ipc_wire_self(L);
  luaL_checktype(L, 2, LUA_TTABLE);
  ipc_check_timeout(L, 3);
  bool alone = lua_toboolean(L, 4);
  luaL_checktype(L, 5, LUA_TFUNCTION);
  lua_settop(L, 5);
  lua_getiuservalue(L, 1, WIRE_UV_CHANNEL);
  lua_replace(L, 4);   /* wire, exports, timeout, channel, handler */
  lua_rotate(L, 1, 2); /* channel, handler, wire, exports, timeout */
  lua_rotate(L, 2, 1); /* channel, timeout, handler, wire, exports */
  lua_rotate(L, 3, -1);
  return ipc_run(L, alone ? &work_alone_op : &work_op);
}

/* wire:touch() -> the id of the call that work runs, which comes back to Lua
 * from now on; nil: it runs none */
static int wire_touch(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  if (!w->running)
    return lua_pushnil(L), 1;
  w->running = false;
  w->touches++;
  lua_pushinteger(L, (lua_Integer)w->current);
  return 1;
}

/* wire:pass(whether): work runs nothing any more, and is recv */
static int wire_pass(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  luaL_checktype(L, 2, LUA_TBOOLEAN);
  w->passes = lua_toboolean(L, 2);
  lua_pushboolean(L, 1);
  return 1;
}

const luaL_Reg ipc_work_methods[] = {
    {"exchange", wire_exchange}, {"left", wire_left}, {"work", wire_work},
    {"touch", wire_touch},       {"pass", wire_pass}, {NULL, NULL}};
