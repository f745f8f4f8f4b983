/* What every listener has: accept and the end of it. Its mechanism is behind
 * ListenerOps. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>

#include "ipc.h"

/***
A listener waits for clients at an address; made by `ipc.listen`. It stays
usable in both when `ipc.fork` takes it to a child; what it made in the file
system goes with the one that made it.

@module ipc.listener
*/

enum { ACCEPT_TIMEOUT = 2, ACCEPT_TOP = 2 };

static int accept_attempt(lua_State *L, Handle *h) {
  Listener *l = (Listener *)h;
  int err = l->ops->accept(L, l);
  if (err == EAGAIN)
    return -IPC_READ;
  if (err)
    return ipc_fail(L, h->ops->type, "accept", err, NULL);
  l->accepted++;
  return 1;
}

static const Op accept_op = {.name = "accept",
                             .attempt = accept_attempt,
                             .want = IPC_READ,
                             .deadline = ACCEPT_TIMEOUT,
                             .top = ACCEPT_TOP};

/***
Waits for the next client.
@function listener:accept
@tparam[opt=the listener's] ?number timeout seconds; 0 never waits
@treturn channel to the client; or nil, message, errno: `"timeout"` (ETIMEDOUT),
`"closed"` (EPIPE), EMFILE and ENFILE without a free descriptor (the client
keeps waiting; the next accept gives others time to close some)
@usage local client = assert(listener:accept(1))
*/
static int listener_accept(lua_State *L) {
  Listener *l = (Listener *)ipc_handle_self(L);
  ipc_check_timeout(L, ACCEPT_TIMEOUT);
  lua_settop(L, ACCEPT_TOP);
  if (lua_isnil(L, ACCEPT_TIMEOUT) && l->timeout != IPC_FOREVER) {
    lua_pushnumber(L, (lua_Number)l->timeout / 1e9);
    lua_replace(L, ACCEPT_TIMEOUT);
  }
  return ipc_run(L, &accept_op);
}

/***
Stops listening; also what `<close>` does. What the listener made in the file
system is removed. Clients already accepted stay. Any number of times.
@function listener:close
@treturn boolean true
*/
static int listener_close(lua_State *L) {
  Handle *h = ipc_handle_closable(L);
  if (ipc_handle_begin_close(L, h))
    ipc_handle_close(L, h);
  lua_pushboolean(L, 1);
  return 1;
}

/***
The address that `ipc.connect` takes, with the port that the system chose.
@function listener:address
@treturn string address; or nil, "closed", EPIPE
*/
static int listener_address(lua_State *L) {
  Listener *l = (Listener *)ipc_handle_self(L);
  if (!ipc_handle_usable(&l->h))
    return ipc_handle_refuse(L, &l->h, "address");
  l->ops->address(L, l);
  return 1;
}

/***
Sets how long every later accept waits by default.
@function listener:settimeout
@tparam ?number seconds nil: for ever; 0: never
@treturn boolean true
*/
static int listener_settimeout(lua_State *L) {
  Listener *l = (Listener *)ipc_handle_self(L);
  ipc_check_timeout(L, 2);
  l->timeout =
      lua_isnoneornil(L, 2) ? IPC_FOREVER : ipc_seconds(lua_tonumber(L, 2));
  lua_pushboolean(L, 1);
  return 1;
}

/***
What came so far.
@function listener:stats
@treturn table `accepted` clients; `refused` ones: not among `allow_uids`, or
gone before they were accepted
*/
static int listener_stats(lua_State *L) {
  Listener *l = (Listener *)ipc_handle_self(L);
  lua_createtable(L, 0, 2);
  lua_pushinteger(L, (lua_Integer)l->accepted);
  lua_setfield(L, -2, "accepted");
  lua_pushinteger(L, (lua_Integer)l->refused);
  lua_setfield(L, -2, "refused");
  return 1;
}

static const luaL_Reg listener_methods[] = {{"accept", listener_accept},
                                            {"close", listener_close},
                                            {"__close", listener_close},
                                            {"address", listener_address},
                                            {"settimeout", listener_settimeout},
                                            {"stats", listener_stats},
                                            {NULL, NULL}};

void *ipc_listener_new(lua_State *L, size_t size, const HandleOps *h,
                       const ListenerOps *ops, int values) {
  /* At least the user value that says where a handle moved. */
  Listener *l = ipc_handle_new(L, size, h, values > 0 ? values : 1);
  l->ops = ops;
  l->timeout = IPC_FOREVER;
  l->h.shares = true;
  return l;
}

void ipc_listener_type(lua_State *L, const HandleOps *h) {
  ipc_handle_type(L, h, listener_methods);
  lua_pop(L, 1);
}
