/* What encoding and decoding share: ipc.null, the marks that tell an array
 * from a map, extension values. The formats themselves are in pack.c and
 * unpack.c; what an extension type means is for others to say. */
#include "prefix.h"

#include <lauxlib.h>
#include <lua.h>
#include <string.h>

#include "msgpack.h"

/*** Values to bytes and back.
 *
 * Any Lua value made of nil, booleans, numbers, strings, tables and `ipc.ext`
 * objects, as
 * [MessagePack](https://github.com/msgpack/msgpack/blob/master/spec.md). What
 * `ipc.pack` makes of it:
 *
 * - an integer: the shortest integer format. A float: float 64. The subtype
 *   is kept both ways: 3.0 never becomes 3;
 * - a string: str if it is valid UTF-8, else bin; a key is always str;
 * - a table whose keys are exactly 1..n: an array. Any other table: a map, and
 *   so is a table marked by `ipc.map`. An empty table: an array unless marked;
 * - `ipc.null`, and nil at the top or in a table marked by `ipc.array`: nil;
 * - metatables are ignored and metamethods never run.
 *
 * Decoding is the reverse. A map that Lua would take for an array (an empty
 * one, or one with the key 1), and an array that lost a nil, come back marked,
 * so that they are packed as they came. Of equal keys the last wins.
 *
 * @module ipc.values
 */

/* Keys of the registry: their addresses count, not what they hold. */
static const char ext_key = 'e';
static const char array_key = 'a';
static const char map_key = 'm';

typedef struct Ext {
  size_t size;
  int type;
  char bytes[]; /* a byte more than size, so that it is never empty */
} Ext;

/* --- extension values --- */

void ipc_ext_push(lua_State *L, int type, const char *bytes, size_t size) {
  if (size > PTRDIFF_MAX - sizeof(Ext) - 1)
    luaL_error(L, "not enough memory");
  Ext *x = lua_newuserdatauv(L, sizeof(Ext) + size + 1, 0);
  x->size = size;
  x->type = type;
  if (size)
    memcpy(x->bytes, bytes, size);
  x->bytes[size] = '\0';
  lua_rawgetp(L, LUA_REGISTRYINDEX, &ext_key);
  lua_setmetatable(L, -2);
}

static const Ext *ext_test(lua_State *L, int index) {
  if (lua_type(L, index) != LUA_TUSERDATA || !lua_getmetatable(L, index))
    return NULL;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &ext_key);
  int same = lua_rawequal(L, -1, -2);
  lua_pop(L, 2);
  return same ? lua_touserdata(L, index) : NULL;
}

const char *ipc_ext_test(lua_State *L, int index, int *type, size_t *size) {
  const Ext *x = ext_test(L, index);
  if (!x)
    return NULL;
  *type = x->type;
  *size = x->size;
  return x->bytes;
}

static const Ext *ext_check(lua_State *L) {
  const Ext *x = ext_test(L, 1);
  if (!x)
    luaL_typeerror(L, 1, "ipc.ext");
  return x;
}

/*** An extension value: an opaque run of bytes with a type.
 *
 * It has the fields `type` and `data`, cannot be changed, and equals any other
 * of the same type and data. Extension values that are decoded are such
 * objects, whatever their type, and travel back unchanged. As keys of a table
 * two equal ones are still two keys.
 *
 * @function ext
 * @param type an integer from -128 to 127; those below 0 belong to the
 * MessagePack specification (-1 is a timestamp)
 * @param data a string
 * @return the object
 * @usage local point = ipc.ext(7, string.pack(">ff", 1, 2))
 */
static int ext_new(lua_State *L) {
  luaL_argcheck(L, lua_isinteger(L, 1), 1, "integer expected");
  lua_Integer type = lua_tointeger(L, 1);
  luaL_argcheck(L, type >= -128 && type <= 127, 1, "not within -128..127");
  luaL_checktype(L, 2, LUA_TSTRING);
  size_t size;
  const char *bytes = lua_tolstring(L, 2, &size);
  luaL_argcheck(L, !ipc_value_too_long(size), 2,
                "longer than 4294967295 bytes");
  ipc_ext_push(L, (int)type, bytes, size);
  return 1;
}

static int ext_index(lua_State *L) {
  const Ext *x = ext_check(L);
  const char *name = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
  if (strcmp(name, "type") == 0)
    lua_pushinteger(L, x->type);
  else if (strcmp(name, "data") == 0)
    lua_pushlstring(L, x->bytes, x->size);
  else
    lua_pushnil(L);
  return 1;
}

static int ext_eq(lua_State *L) {
  const Ext *a = ext_test(L, 1);
  const Ext *b = ext_test(L, 2);
  lua_pushboolean(L, a && b && a->type == b->type && a->size == b->size &&
                         memcmp(a->bytes, b->bytes, a->size) == 0);
  return 1;
}

static int ext_tostring(lua_State *L) {
  const Ext *x = ext_check(L);
  lua_pushfstring(L, "ipc.ext: type %d, %I bytes", x->type,
                  (LUAI_UACINT)x->size);
  return 1;
}

/* --- marks --- */

int ipc_mark_test(lua_State *L, int index) {
  if (!lua_getmetatable(L, index))
    return IPC_MARK_NONE;
  int mark = IPC_MARK_OTHER;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &map_key);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &array_key);
  if (lua_rawequal(L, -3, -1))
    mark = IPC_MARK_ARRAY;
  else if (lua_rawequal(L, -3, -2))
    mark = IPC_MARK_MAP;
  lua_pop(L, 3);
  return mark;
}

void ipc_mark_set(lua_State *L, int mark) {
  lua_rawgetp(L, LUA_REGISTRYINDEX,
              mark == IPC_MARK_MAP ? &map_key : &array_key);
  lua_setmetatable(L, -2);
}

static int mark_table(lua_State *L, int mark) {
  luaL_checktype(L, 1, LUA_TTABLE);
  luaL_argcheck(L, ipc_mark_test(L, 1) != IPC_MARK_OTHER, 1,
                "the table has a metatable of its own");
  lua_settop(L, 1);
  ipc_mark_set(L, mark);
  return 1;
}

/*** The same table, marked so that it is packed as an array.
 *
 * Its length is its largest index, or its field `n` if that is larger (so
 * `ipc.array(table.pack(...))` keeps every nil); what is missing is packed as
 * nil. Packing raises if it has any other key. The mark is a metatable.
 *
 * @function array
 * @param t a table without a metatable of its own (a mark may be replaced)
 * @return t
 * @usage ipc.pack(ipc.array { 1, nil, 3 })
 */
static int mark_array(lua_State *L) { return mark_table(L, IPC_MARK_ARRAY); }

/*** The same table, marked so that it is packed as a map, even when it is empty
 * or its keys are 1..n.
 *
 * @function map
 * @param t a table without a metatable of its own (a mark may be replaced)
 * @return t
 * @usage ipc.pack { options = ipc.map {} }
 */
static int mark_map(lua_State *L) { return mark_table(L, IPC_MARK_MAP); }

/*** What stands for nil where Lua could not keep one: a light userdata that
 * equals only itself, is true in a condition, and is packed as nil.
 *
 * @field null
 */

/* --- tables --- */

static const luaL_Reg ext_meta[] = {{"__index", ext_index},
                                    {"__eq", ext_eq},
                                    {"__tostring", ext_tostring},
                                    {NULL, NULL}};

static const luaL_Reg msgpack_functions[] = {
    {"ext", ext_new}, {"array", mark_array}, {"map", mark_map}, {NULL, NULL}};

/* Registers the metatable once per state: those of a module loaded before must
 * stay valid. */
static void meta_register(lua_State *L, const char *key, const char *name,
                          const luaL_Reg *methods) {
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, key) == LUA_TNIL) {
    lua_newtable(L);
    lua_pushstring(L, name);
    lua_setfield(L, -2, "__name");
    if (methods)
      luaL_setfuncs(L, methods, 0);
    lua_rawsetp(L, LUA_REGISTRYINDEX, key);
  }
  lua_pop(L, 1);
}

void ipc_msgpack_open(lua_State *L) {
  luaL_checkstack(L, 8, NULL);
  meta_register(L, &ext_key, "ipc.ext", ext_meta);
  meta_register(L, &array_key, "ipc.array", NULL);
  meta_register(L, &map_key, "ipc.map", NULL);
  luaL_setfuncs(L, msgpack_functions, 0);
  lua_pushlightuserdata(L, NULL);
  lua_setfield(L, -2, "null");
  ipc_pack_open(L);
  ipc_unpack_open(L);
  ipc_decoder_open(L);
}
