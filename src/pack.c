/* ipc.pack: a value to a string of its bytes, by encode.c. */

/***
 * @submodule ipc.values
 */
#include "prefix.h"

#include <lauxlib.h>
#include <lua.h>
#include <stdint.h>
#include <string.h>

#include "buffer.h"
#include "encode.h"
#include "msgpack.h"

enum { PACK_KEEP = 64 * 1024 }; /* bytes of scratch kept between calls */

/* Bytes of C memory that pack uses again and again. */
typedef struct Scratch {
  int open;
  Buffer buffer;
} Scratch;

static int scratch_gc(lua_State *L) {
  Scratch *s = lua_touserdata(L, 1);
  s->open = 0;
  ipc_buffer_free(&s->buffer);
  return 0;
}

/* The state is closing and the scratch already gone: C memory would have no
 * owner now, so Lua's is used, doubled until the value fits. */
static int pack_closing(lua_State *L, int strings) {
  for (size_t room = 1024;; room *= 2) {
    if (room > PTRDIFF_MAX / 2)
      return luaL_error(L, "not enough memory");
    char *bytes = lua_newuserdatauv(L, room, 0);
    lua_pushvalue(L, 1);
    size_t size = ipc_encode_at(L, bytes, room, strings);
    if (size) {
      lua_pushlstring(L, bytes, size);
      return 1;
    }
    lua_settop(L, 1);
  }
}

static int pack_options(lua_State *L) {
  int strings = IPC_STRINGS_AUTO;
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_settop(L, 2);
  lua_pushnil(L);
  for (; lua_next(L, 2); lua_pop(L, 1)) {
    const char *name = luaL_tolstring(L, -2, NULL);
    const char *choice =
        lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "";
    if (lua_type(L, -3) != LUA_TSTRING || strcmp(name, "strings") != 0)
      luaL_argerror(L, 2, lua_pushfstring(L, "unknown option '%s'", name));
    if (strcmp(choice, "str") == 0)
      strings = IPC_STRINGS_STR;
    else if (strcmp(choice, "bin") == 0)
      strings = IPC_STRINGS_BIN;
    else
      luaL_argerror(L, 2, "option 'strings' is \"str\" or \"bin\"");
    lua_pop(L, 1);
  }
  return strings;
}

/*** The bytes of a value.
 *
 * Raises on what has no place in them (functions, threads, foreign userdata,
 * cycles, tables nested deeper than 64), naming the way there:
 * `value.jobs[3].callback: a function cannot be packed`.
 *
 * @function pack
 * @param value anything listed above, nil too
 * @param[opt] options a table: `strings = "str"` packs every string as str,
 * `strings = "bin"` every string that is not a key as bin; by default what is
 * valid UTF-8 is str and the rest bin
 * @return a string
 * @usage ipc.pack { 0, 17, "add", { 1, 2 } }
 */
static int pack_pack(lua_State *L) {
  int strings = IPC_STRINGS_AUTO;
  if (lua_gettop(L) != 1) {
    luaL_checkany(L, 1);
    if (!lua_isnoneornil(L, 2))
      strings = pack_options(L);
    lua_settop(L, 1);
  }
  Scratch *s = lua_touserdata(L, lua_upvalueindex(1));
  if (!s->open)
    return pack_closing(L, strings);
  s->buffer.size = 0;
  ipc_encode(L, &s->buffer, strings, NULL);
  lua_pushlstring(L, s->buffer.bytes, s->buffer.size);
  if (s->buffer.room > PACK_KEEP)
    ipc_buffer_free(&s->buffer);
  return 1;
}

void ipc_pack_open(lua_State *L) {
  Scratch *s = lua_newuserdatauv(L, sizeof *s, 0);
  *s = (Scratch){1, {NULL, 0, 0}};
  lua_createtable(L, 0, 1);
  lua_pushcfunction(L, scratch_gc);
  lua_setfield(L, -2, "__gc");
  lua_setmetatable(L, -2);
  lua_pushcclosure(L, pack_pack, 1);
  lua_setfield(L, -2, "pack");
}
