/* What lua/ipc/loop/reactor.lua stands on: a set of descriptors for a loop that
 * keeps the rest in tables. Not a poller: here a descriptor is a number without
 * an owner, a chain of waiters or a hot list, so that a task that waits again
 * costs no call of the system and no memory, and a wait fills a list that is
 * there. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <poll.h>
#include <stdlib.h>

#include "ipc.h"
#include "os.h"

enum { REACTOR_MOST = 256 }; /* that one wait tells; the others come next */

typedef struct Reactor {
  Handle h;
  OsSet *set;
  OsReady ready[REACTOR_MOST];
} Reactor;

/* ------------------------------------------------------------ system half */

static int reactor_descriptor(const Handle *h, int want) {
  const Reactor *r = (const Reactor *)h;
  (void)want;
  return r->set ? ipc_os_set_descriptor(r->set) : -1;
}

static int reactor_ready(Handle *h, int want, bool ask_kernel) {
  struct pollfd p = {reactor_descriptor(h, want), POLLIN, 0};
  size_t ready = 0;
  if (!ask_kernel || p.fd < 0)
    return EAGAIN;
  return ipc_os_poll(&p, 1, 0, &ready) == 0 && ready > 0 ? 0 : EAGAIN;
}

static void reactor_close(Handle *h, How how) {
  Reactor *r = (Reactor *)h;
  (void)how;
  if (r->set)
    ipc_os_set_close(r->set);
  r->set = NULL;
}

static const HandleOps reactor_handle = {.type = "ipc.reactor",
                                         .descriptor = reactor_descriptor,
                                         .ready = reactor_ready,
                                         .close = reactor_close,
                                         .interest = IPC_READ};

/* --------------------------------------------------------------- Lua half */

static Reactor *reactor_self(lua_State *L) {
  Reactor *r = (Reactor *)ipc_handle_self(L);
  if (!ipc_handle_usable(&r->h))
    luaL_error(L, "ipc.reactor: closed");
  return r;
}

/* (descriptor, bits: 1 to read, 2 to write, 0 not any more, whether it is new)
 */
static int reactor_change(lua_State *L) {
  Reactor *r = reactor_self(L);
  int fd = (int)luaL_checkinteger(L, 2);
  lua_Integer bits = luaL_checkinteger(L, 3);
  short events = (short)((bits & 1 ? POLLIN : 0) | (bits & 2 ? POLLOUT : 0));
  int err = ipc_os_set_change(r->set, fd, events, lua_toboolean(L, 4));
  if (err)
    return ipc_fail(L, "ipc.reactor", "change", err, NULL);
  lua_pushboolean(L, 1);
  return 1;
}

static int reactor_interrupted(lua_State *L, int status, lua_KContext context) {
  (void)status, (void)context;
  lua_pushinteger(L, 0);
  return 1;
}

/* (list, seconds or nil) -> n; the list has n descriptors and their bits, one
 * after the other. What is wrong with one is ready for all. */
static int reactor_wait(lua_State *L) {
  Reactor *r = reactor_self(L);
  lua_Hook was = lua_gethook(r->h.state->main);
  size_t count = 0;
  luaL_checktype(L, 2, LUA_TTABLE);
  Nanos left =
      lua_isnoneornil(L, 3) ? IPC_FOREVER : ipc_seconds(luaL_checknumber(L, 3));
  int err = ipc_os_set_wait(r->set, r->ready, REACTOR_MOST, left, &count);
  ipc_os_sweep();
  if (err == EINTR) {
    err = ipc_run_hooks(L, r->h.state, was, 0, reactor_interrupted);
    if (err == 0)
      return reactor_interrupted(L, LUA_OK, 0);
  }
  if (err)
    return ipc_fail(L, "ipc.reactor", "wait", err, NULL);
  for (size_t i = 0; i < count; i++) {
    short events = r->ready[i].events;
    int bits = (events & POLLIN ? 1 : 0) | (events & POLLOUT ? 2 : 0);
    if (events & (POLLERR | POLLHUP | POLLNVAL))
      bits = 3;
    lua_pushinteger(L, r->ready[i].fd);
    lua_rawseti(L, 2, (lua_Integer)(2 * i + 1));
    lua_pushinteger(L, bits);
    lua_rawseti(L, 2, (lua_Integer)(2 * i + 2));
  }
  lua_pushinteger(L, (lua_Integer)count);
  return 1;
}

static const luaL_Reg reactor_methods[] = {
    {"change", reactor_change}, {"wait", reactor_wait}, {NULL, NULL}};

int ipc_reactor_new(lua_State *L) {
  ipc_handle_type(L, &reactor_handle, reactor_methods);
  lua_pop(L, 1);
  Reactor *r = ipc_handle_new(L, sizeof *r, &reactor_handle, 1);
  int err = ipc_os_set_open(&r->set);
  if (err)
    return ipc_fail(L, "ipc", "loop", err, NULL);
  ipc_handle_open(&r->h);
  return 1;
}
