/* The calls that receive from what nobody sends to; see source.h. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>

#include "source.h"

/***
Signals and timers: what comes out of them is received as from a channel, and
`ipc.poll`, pollers and tasks wait for them as for one. Made by `ipc.signals`
and `ipc.timer`. In a child of `ipc.fork` they are closed.

@module ipc.source
*/

enum { RECV_TIMEOUT = 2, RECV_TOP = RECV_TIMEOUT };

static int source_attempt(lua_State *L, Handle *h) {
  Source *s = (Source *)h;
  int err = s->take(L, s);
  if (err == EAGAIN)
    return -IPC_READ;
  if (err)
    return ipc_fail(L, h->ops->type, "recv", err, NULL);
  s->received++;
  return 1;
}

static const Op recv_op = {.name = "recv",
                           .attempt = source_attempt,
                           .want = IPC_READ,
                           .deadline = RECV_TIMEOUT,
                           .top = RECV_TOP};

static const Op next_op = {.name = "recv",
                           .attempt = source_attempt,
                           .want = IPC_READ,
                           .deadline = RECV_TIMEOUT,
                           .top = RECV_TOP,
                           .quiet = true};

/* Self and the timeout, which is the source's by default. */
static void source_arguments(lua_State *L) {
  const Source *s = (const Source *)ipc_handle_self(L);
  ipc_check_timeout(L, RECV_TIMEOUT);
  luaL_argcheck(L, lua_isnoneornil(L, 3), 3, "no tags here");
  lua_settop(L, RECV_TOP);
  if (lua_isnil(L, RECV_TIMEOUT) && s->timeout != IPC_FOREVER) {
    lua_pushnumber(L, (lua_Number)s->timeout / 1e9);
    lua_replace(L, RECV_TIMEOUT);
  }
}

/***
Receives the next; `get` is the same.
@function source:recv
@tparam[opt=the source's] ?number timeout seconds; 0 never waits
@treturn string|integer a signal's name (its number if it has none); how often a
timer has expired since the last; or nil, message, errno: `"timeout"`
(ETIMEDOUT), `"closed"` (EPIPE), which is what a timer that expires once answers
from then on
@usage local signal = signals:recv()
*/
static int source_recv(lua_State *L) {
  source_arguments(L);
  return ipc_run(L, &recv_op);
}

/***
The same as `recv`.
@function source:get
@tparam[opt=the source's] ?number timeout seconds
@return as `recv`
*/

static int source_next(lua_State *L) {
  lua_settop(L, 0);
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_pushvalue(L, lua_upvalueindex(2));
  return ipc_run(L, &next_op);
}

/***
Iterates until it is closed; any other failure, timeout too, raises an error
object with `message` and `errno`. `values` is the same.
@function source:messages
@tparam[opt=the source's] ?number timeout seconds, for each
@treturn function for a generic `for`
@usage for signal in signals:messages() do print(signal) end
*/
static int source_messages(lua_State *L) {
  source_arguments(L);
  lua_pushcclosure(L, source_next, RECV_TOP);
  return 1;
}

/***
The same as `messages`.
@function source:values
@tparam[opt=the source's] ?number timeout seconds, for each
@treturn function for a generic `for`
*/

/***
Sets how long every later call waits by default.
@function source:settimeout
@tparam ?number seconds nil: for ever; 0: never
@treturn boolean true
*/
static int source_settimeout(lua_State *L) {
  Source *s = (Source *)ipc_handle_self(L);
  ipc_check_timeout(L, 2);
  s->timeout =
      lua_isnoneornil(L, 2) ? IPC_FOREVER : ipc_seconds(lua_tonumber(L, 2));
  lua_pushboolean(L, 1);
  return 1;
}

/***
What came so far.
@function source:stats
@treturn table `received`
*/
static int source_stats(lua_State *L) {
  const Source *s = (const Source *)ipc_handle_self(L);
  lua_createtable(L, 0, 1);
  lua_pushinteger(L, (lua_Integer)s->received);
  lua_setfield(L, -2, "received");
  return 1;
}

/***
Ends it; also what `<close>` does. Any number of times.
@function source:close
@treturn boolean true
*/
static int source_close(lua_State *L) {
  Handle *h = ipc_handle_closable(L);
  if (ipc_handle_begin_close(L, h))
    ipc_handle_close(L, h);
  lua_pushboolean(L, 1);
  return 1;
}

static const luaL_Reg source_methods[] = {{"recv", source_recv},
                                          {"get", source_recv},
                                          {"messages", source_messages},
                                          {"values", source_messages},
                                          {"stats", source_stats},
                                          {"settimeout", source_settimeout},
                                          {"close", source_close},
                                          {"__close", source_close},
                                          {NULL, NULL}};

void *ipc_source_new(lua_State *L, size_t size, const HandleOps *h,
                     int (*take)(lua_State *L, Source *s)) {
  Source *s = ipc_handle_new(L, size, h, 1);
  s->timeout = IPC_FOREVER;
  s->take = take;
  return s;
}

void ipc_source_type(lua_State *L, const HandleOps *h) {
  ipc_handle_type(L, h, source_methods);
  lua_pop(L, 1);
}
