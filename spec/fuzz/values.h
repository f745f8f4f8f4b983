/* What both fuzzers of values need: a Lua state with the equality of values in
 * it, and an owner for buffers. */
#ifndef FUZZ_VALUES_H
#define FUZZ_VALUES_H

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../src/msgpack.h"

static void check(int good, const char *what) {
  if (!good) {
    fprintf(stderr, "broken: %s\n", what);
    abort();
  }
}

/* Equality as ipc.null, NaN and ext values have it. Tables as keys are matched
 * by trying. */
static const char *const equal_lua =
    "local mathtype, pack, type, next = math.type, string.pack, type, next\n"
    "local function same(a, b)\n"
    "  if type(a) ~= type(b) or mathtype(a) ~= mathtype(b) then\n"
    "    return false\n"
    "  elseif mathtype(a) == 'float' then\n"
    "    return a ~= a and b ~= b or pack('d', a) == pack('d', b)\n"
    "  elseif type(a) ~= 'table' then\n"
    "    return a == b\n"
    "  end\n"
    "  local n = 0\n"
    "  for k, v in next, a do\n"
    "    n = n + 1\n"
    "    local w = b[k]\n"
    "    if type(k) == 'table' or type(k) == 'userdata' then\n"
    "      w = nil\n"
    "      for k2, w2 in next, b do\n"
    "        if same(k, k2) and same(v, w2) then w = w2 break end\n"
    "      end\n"
    "    end\n"
    "    if w == nil or not same(v, w) then return false end\n"
    "  end\n"
    "  for _ in next, b do n = n - 1 end\n"
    "  return n == 0\n"
    "end\n"
    "return same\n";

static int same(lua_State *L, int a, int b) {
  a = lua_absindex(L, a);
  b = lua_absindex(L, b);
  lua_getfield(L, LUA_REGISTRYINDEX, "same");
  lua_pushvalue(L, a);
  lua_pushvalue(L, b);
  lua_call(L, 2, 1);
  int yes = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return yes;
}

/* Pushes an empty buffer that is freed with its userdata. */
static Buffer *buffer_push(lua_State *L) {
  Buffer *b = lua_newuserdatauv(L, sizeof *b, 0);
  *b = (Buffer){NULL, 0, 0};
  lua_getfield(L, LUA_REGISTRYINDEX, "buffer meta");
  lua_setmetatable(L, -2);
  return b;
}

static int buffer_gc(lua_State *L) {
  ipc_buffer_free(lua_touserdata(L, 1));
  return 0;
}

static lua_State *state_new(void) {
  lua_State *L = luaL_newstate();
  if (!L)
    abort();
  luaL_openlibs(L);
  lua_newtable(L);
  ipc_msgpack_open(L);
  lua_setfield(L, LUA_REGISTRYINDEX, "ipc");
  if (luaL_dostring(L, equal_lua))
    abort();
  lua_setfield(L, LUA_REGISTRYINDEX, "same");
  lua_newtable(L);
  lua_pushcfunction(L, buffer_gc);
  lua_setfield(L, -2, "__gc");
  lua_setfield(L, LUA_REGISTRYINDEX, "buffer meta");
  return L;
}

/* Calls `try` with what it is to try, in a state that now and then is closed,
 * for leaks to show. */
static void run(lua_CFunction try, void *what) {
  static lua_State *L;
  static unsigned runs;
  if (L && ++runs % 1000 == 0) {
    lua_close(L);
    L = NULL;
  }
  if (!L)
    L = state_new();
  lua_pushcfunction(L, try);
  lua_pushlightuserdata(L, what);
  if (lua_pcall(L, 1, 0, 0)) {
    fprintf(stderr, "raised: %s\n", lua_tostring(L, -1));
    abort();
  }
}

#endif
