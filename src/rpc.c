/* What ipc.rpc, which is written in Lua, stands on: makes wires (see wire.h),
 * and what keys and processes are asked. Sessions, their rules and all that a
 * call means are in lua/ipc/rpc. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ipc.h"
#include "os.h"
#include "sha256.h"
#include "wire.h"

enum { WIRE_PARAMS = 100000 }; /* the most that the limit may be: Lua's stack */

static const char wire_key; /* registry: the metatable */

/* ------------------------------------------------------------------ wires */

Wire *ipc_wire_self(lua_State *L) {
  Wire *w = lua_touserdata(L, 1);
  if (w && lua_getmetatable(L, 1)) {
    bool mine = lua_rawequal(L, -1, lua_upvalueindex(1));
    lua_pop(L, 1);
    if (mine && w->open)
      return w;
    if (mine) /* the state is closing */
      luaL_error(L, "ipc.rpc: the wire is gone");
  }
  luaL_typeerror(L, 1, "ipc.wire");
  return NULL;
}

static int wire_gc(lua_State *L) {
  Wire *w = lua_touserdata(L, 1);
  w->open = false;
  ipc_owe_no_more(&w->owed);
  ipc_buffer_free(&w->out);
  ipc_buffer_free(&w->in);
  free(w->levels);
  w->levels = NULL;
  return 0;
}

Wire *ipc_wire_test(lua_State *L, int index) {
  Wire *w = lua_touserdata(L, index);
  if (w && lua_getmetatable(L, index)) {
    lua_rawgetp(L, LUA_REGISTRYINDEX, &wire_key);
    bool mine = lua_rawequal(L, -1, -2);
    lua_pop(L, 2);
    if (mine)
      return w;
  }
  luaL_typeerror(L, index, "ipc.wire");
  return NULL;
}

/* ----------------------------------------------------------------- limits */

static lua_Integer limit_of(lua_State *L, int index, const char *name,
                            lua_Integer least, lua_Integer most,
                            lua_Integer otherwise) {
  int is = 0;
  lua_pushstring(L, name);
  lua_rawget(L, index);
  lua_Integer n = otherwise;
  if (!lua_isnil(L, -1)) {
    n = lua_type(L, -1) == LUA_TNUMBER ? lua_tointegerx(L, -1, &is) : 0;
    if (!is || n < least || n > most)
      luaL_argerror(L, index,
                    lua_pushfstring(L, "limit '%s' is an integer from %I to %I",
                                    name, (LUAI_UACINT)least,
                                    (LUAI_UACINT)most));
  }
  lua_pop(L, 1);
  return n;
}

static void limit_names(lua_State *L, int index) {
  static const char *const names[] = {"bytes", "depth",  "values", "tables",
                                      "keys",  "method", "params", NULL};
  lua_pushnil(L);
  for (; lua_next(L, index); lua_pop(L, 1)) {
    const char *name =
        lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "";
    int i = 0;
    while (names[i] && strcmp(names[i], name) != 0)
      i++;
    if (!names[i])
      luaL_argerror(L, index, lua_pushfstring(L, "unknown limit '%s'", name));
  }
}

static void limit_set(lua_State *L, int index, EnvelopeLimits *limits) {
  if (lua_isnoneornil(L, index))
    return;
  luaL_checktype(L, index, LUA_TTABLE);
  limit_names(L, index);
  ValueLimits v = limits->values;
  v.bytes = (size_t)limit_of(L, index, "bytes", 1,
                             sizeof(size_t) < 8 ? INT32_MAX : INT64_C(1) << 40,
                             (lua_Integer)v.bytes);
  v.depth = (uint32_t)limit_of(L, index, "depth", 0, WIRE_DEPTH, v.depth);
  v.values = (uint32_t)limit_of(L, index, "values", 1, INT32_MAX, v.values);
  v.tables = (uint32_t)limit_of(L, index, "tables", 0, INT32_MAX, v.tables);
  v.keys = (uint32_t)limit_of(L, index, "keys", 0, INT32_MAX, v.keys);
  limits->method = (size_t)limit_of(L, index, "method", 0, INT32_MAX,
                                    (lua_Integer)limits->method);
  limits->params =
      (int)limit_of(L, index, "params", 0, WIRE_PARAMS, limits->params);
  limits->values = v;
}

/* What is sent may be nested as deep as what comes, and no less than usual. */
static void limit_wire(lua_State *L, Wire *w, const EnvelopeLimits *limits) {
  uint32_t depth = limits->values.depth;
  if (depth != w->limits.values.depth) {
    Level *levels = NULL;
    if (depth > ENCODE_DEPTH) {
      levels = malloc(depth * sizeof *levels);
      if (!levels)
        luaL_error(L, "not enough memory");
    }
    free(w->levels);
    w->levels = levels;
  }
  w->limits = *limits;
}

/* wire:limit(limits): those named are others from now on. */
static int wire_limit(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_settop(L, 2);
  EnvelopeLimits limits = w->limits;
  limit_set(L, 2, &limits);
  limit_wire(L, w, &limits);
  lua_pushboolean(L, 1);
  return 1;
}

/* wire:most(bytes): a longer message is not sent, the peer would not take it.
 */
static int wire_most(lua_State *L) {
  Wire *w = ipc_wire_self(L);
  lua_Integer most = luaL_checkinteger(L, 2);
  luaL_argcheck(L, most > 0, 2, "more than 0 expected");
  w->most = (lua_Unsigned)most < SIZE_MAX ? (size_t)most : SIZE_MAX;
  lua_pushboolean(L, 1);
  return 1;
}

static const luaL_Reg wire_methods[] = {
    {"limit", wire_limit}, {"most", wire_most}, {NULL, NULL}};

/* Makes the metatable, or pushes the one that is there. */
static void wire_type(lua_State *L) {
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &wire_key) != LUA_TNIL)
    return;
  lua_pop(L, 1);
  lua_newtable(L);
  lua_pushliteral(L, "ipc.wire");
  lua_setfield(L, -2, "__name");
  lua_pushliteral(L, "ipc");
  lua_setfield(L, -2, "__metatable");
  lua_pushcfunction(L, wire_gc);
  lua_setfield(L, -2, "__gc");
  lua_newtable(L);
  const luaL_Reg *const parts[] = {wire_methods, ipc_outgoing_methods,
                                   ipc_incoming_methods, ipc_work_methods,
                                   ipc_flight_methods};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    lua_pushvalue(L, -2);
    luaL_setfuncs(L, parts[i], 1);
  }
  lua_setfield(L, -2, "__index");
  lua_pushvalue(L, -1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &wire_key);
}

/* (channel, limits) -> wire */
static int rpc_wire(lua_State *L) {
  Chan *c = (Chan *)ipc_handle_at(L, 1);
  EnvelopeLimits limits = {ipc_value_limits, 100, 250};
  if (!c || !c->h.channel)
    luaL_typeerror(L, 1, "channel");
  luaL_argcheck(L, c->reader && c->writer, 1,
                "calls go both ways: this end does not");
  limit_set(L, 2, &limits);
  lua_settop(L, 1);
  Wire *w = lua_newuserdatauv(L, sizeof *w, WIRE_UVS);
  memset(w, 0, sizeof *w);
  w->chan = c;
  w->most = SIZE_MAX;
  w->open = true;
  ipc_scan_start(&w->scan);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, WIRE_UV_CHANNEL);
  wire_type(L);
  lua_setmetatable(L, -2);
  limit_wire(L, w, &limits);
  return 1;
}

/* (channel) -> the types of what it reads from and writes to, which may be
 * handles of their own */
static int rpc_ends(lua_State *L) {
  const Chan *c = (const Chan *)ipc_handle_at(L, 1);
  if (!c || !c->h.channel)
    luaL_typeerror(L, 1, "channel");
  lua_pushstring(L, c->reader ? c->reader->h.ops->type : NULL);
  lua_pushstring(L, c->writer ? c->writer->h.ops->type : NULL);
  return 2;
}

/* ------------------------------------------------------------------- keys */

/* (key, text) -> 32 bytes */
static int rpc_hmac(lua_State *L) {
  size_t key_size, size;
  unsigned char digest[SHA256_SIZE];
  luaL_checktype(L, 1, LUA_TSTRING);
  luaL_checktype(L, 2, LUA_TSTRING);
  const char *key = lua_tolstring(L, 1, &key_size);
  const char *text = lua_tolstring(L, 2, &size);
  ipc_sha256_hmac(key, key_size, text, size, digest);
  lua_pushlstring(L, (const char *)digest, sizeof digest);
  return 1;
}

/* (a, b) -> whether they are equal, in a time that says nothing of where they
 * are not */
static int rpc_equal(lua_State *L) {
  size_t a_size, b_size;
  luaL_checktype(L, 1, LUA_TSTRING);
  luaL_checktype(L, 2, LUA_TSTRING);
  const char *a = lua_tolstring(L, 1, &a_size);
  const char *b = lua_tolstring(L, 2, &b_size);
  volatile unsigned char differs = a_size != b_size;
  for (size_t i = 0; i < a_size && i < b_size; i++)
    differs = (unsigned char)(differs | (a[i] ^ b[i]));
  lua_pushboolean(L, !differs);
  return 1;
}

/* (n) -> n bytes that nobody can foretell */
static int rpc_random(lua_State *L) {
  char bytes[256];
  lua_Integer n = luaL_checkinteger(L, 1);
  luaL_argcheck(L, n >= 0 && n <= (lua_Integer)sizeof bytes, 1,
                "0 to 256 expected");
  ipc_os_random(bytes, (size_t)n);
  lua_pushlstring(L, bytes, (size_t)n);
  return 1;
}

/* (pid) -> whether there is such a process */
static int rpc_alive(lua_State *L) {
  lua_Integer pid = luaL_checkinteger(L, 1);
  if (pid <= 0 || pid > INT32_MAX) /* as peers may say of themselves */
    return lua_pushboolean(L, false), 1;
  siginfo_t ended = {0}; /* of a child that nobody has waited for */
  if (waitid(P_PID, (id_t)pid, &ended, WEXITED | WNOHANG | WNOWAIT) == 0 &&
      ended.si_pid == (pid_t)pid)
    return lua_pushboolean(L, false), 1;
  lua_pushboolean(L, kill((pid_t)pid, 0) == 0 || errno == EPERM);
  return 1;
}

/* The user whose rights this process has, as credentials of its sockets tell
 * it. */
static int rpc_uid(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)geteuid());
  return 1;
}

/* The descriptor of what a channel reads from, or writes to; -1: none. */
static int rpc_descriptor(lua_State *L, int want) {
  const Chan *c = (const Chan *)ipc_handle_at(L, 1);
  if (!c || !c->h.channel)
    luaL_typeerror(L, 1, "channel");
  const Chan *part = want == IPC_WRITE ? c->writer : c->reader;
  if (!part || !part->h.open || !part->h.ops->descriptor)
    return -1;
  return part->h.ops->descriptor(&part->h, want);
}

/* (channel): for as long as a process has the file open that it reads from, as
 * it is open here, others are told so by `held`: also one that got it by
 * fork(2), or was sent it. */
static int rpc_hold(lua_State *L) {
  lua_pushboolean(L, !ipc_os_lock_file(rpc_descriptor(L, IPC_READ), false));
  return 1;
}

/* (channel) -> whether somebody holds the file that it writes to; nil: nothing
 * tells that here */
static int rpc_held(lua_State *L) {
  int fd = rpc_descriptor(L, IPC_WRITE);
  int err = ipc_os_lock_file(fd, true);
  if (!err)
    ipc_os_unlock_file(fd);
  if (err && err != EAGAIN)
    return luaL_pushfail(L), 1;
  lua_pushboolean(L, err == EAGAIN);
  return 1;
}

static const luaL_Reg rpc_inner[] = {
    {"wire", rpc_wire},   {"hmac", rpc_hmac},
    {"equal", rpc_equal}, {"random", rpc_random},
    {"alive", rpc_alive}, {"uid", rpc_uid},
    {"ends", rpc_ends},   {"hold", rpc_hold},
    {"held", rpc_held},   {NULL, NULL}};

/* mark: the field that makes a metatable's tables travel by reference. */
static void rpc_more(lua_State *L) {
  lua_pushlightuserdata(L, (void *)(uintptr_t)ipc_rpc_mark);
  lua_setfield(L, -2, "mark");
  luaL_setfuncs(L, ipc_future_functions, 0);
}

const Room ipc_room_rpc = {.name = "rpc", .inner = rpc_inner, .more = rpc_more};
