/* Arrays seen through a struct: elements by their number. */
#include "prefix.h"

#include <lauxlib.h>
#include <lua.h>
#include <stdint.h>

#include "fields.h"
#include "ipc.h"
#include "node.h"

/* ------------------------------------------------------------------ arrays */

/***
 * @submodule ipc.struct
 */

static const Node *vector_self(lua_State *L) {
  const Node *n = node_at(L, 1, &ipc_vector_key);
  if (!n)
    luaL_typeerror(L, 1, "ipc.vector");
  return n;
}

/* The number of an element, from 1; 0: one behind the last, where ipairs ends.
 * Raises on all others. */
static size_t vector_number(lua_State *L, const Node *n, int index) {
  int fits = lua_isinteger(L, index);
  lua_Integer i = fits ? lua_tointeger(L, index) : 0;
  if (!fits && lua_type(L, index) == LUA_TNUMBER)
    i = lua_tointegerx(L, index, &fits);
  if (i >= 1 && (lua_Unsigned)i <= n->count)
    return (size_t)i;
  if (fits && (lua_Unsigned)i == (lua_Unsigned)n->count + 1)
    return 0;
  if (lua_type(L, index) == LUA_TNUMBER)
    luaL_error(L, "no element [%s] of %I", luaL_tolstring(L, index, NULL),
               (LUAI_UACINT)n->count);
  luaL_error(L, "an element's number expected, got %s",
             luaL_typename(L, index));
  return 0;
}

static int vector_element(lua_State *L, const Node *n, size_t i) {
  size_t offset = (i - 1) * n->type->size;
  if (n->type->layout)
    return node_child(L, n, n->type, 0, offset, (lua_Integer)i);
  return node_get(L, n, n->type, offset);
}

static int vector_index(lua_State *L) {
  const Node *n = vector_self(L);
  if (lua_isinteger(L, 2)) {
    lua_Unsigned at = (lua_Unsigned)lua_tointeger(L, 2);
    if (at - 1 < n->count)
      return vector_element(L, n, (size_t)at);
  }
  if (lua_type(L, 2) == LUA_TSTRING) {
    lua_pushvalue(L, 2);
    lua_rawget(L, lua_upvalueindex(1));
    if (lua_isnil(L, -1))
      luaL_error(L, "ipc.vector has no '%s'", lua_tostring(L, 2));
    return 1;
  }
  size_t i = vector_number(L, n, 2);
  return i ? vector_element(L, n, i) : 0;
}

/* The number of an element that there is. */
static size_t vector_there(lua_State *L, const Node *n, int index) {
  size_t i = vector_number(L, n, index);
  if (i == 0)
    luaL_error(L, "no element [%I] of %I", (LUAI_UACINT)n->count + 1,
               (LUAI_UACINT)n->count);
  return i;
}

/* Writes slot 3 to element i; an errno. */
static int vector_put(lua_State *L, const Node *n, size_t i) {
  Path path = {NULL, NULL, i};
  if (!n->type->layout)
    return ipc_node_set(L, n, n->type, (i - 1) * n->type->size, &path);
  size_t offset;
  Node element = ipc_node_element(n, i, &offset);
  return ipc_node_put(L, &element, n->type, 0, offset, &path);
}

static int vector_newindex(lua_State *L) {
  const Node *n = vector_self(L);
  int err = vector_put(L, n, vector_there(L, n, 2));
  return err ? ipc_node_raise(L, n, "newindex", err) : 0;
}

static int vector_len(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)vector_self(L)->count);
  return 1;
}

/* (vector, i) -> i + 1, element; to the last, or to upvalue 1. */
static int vector_next(lua_State *L) {
  const Node *n = vector_self(L);
  lua_Integer last = lua_tointeger(L, lua_upvalueindex(1));
  lua_Integer i = luaL_checkinteger(L, 2);
  if (i < 0 || i >= last || (lua_Unsigned)i >= n->count)
    return 0;
  lua_settop(L, 1);
  lua_pushinteger(L, i + 1);
  vector_element(L, n, (size_t)i + 1);
  lua_insert(L, 3);
  lua_settop(L, 3);
  return 2;
}

static lua_Integer vector_bound(lua_State *L, int index,
                                lua_Integer otherwise) {
  if (lua_isnoneornil(L, index))
    return otherwise;
  luaL_checktype(L, index, LUA_TNUMBER);
  return luaL_checkinteger(L, index);
}

/***
An array: `v[i]` from 1 to `#v`, of records, or of values that are read and
written in place. All other numbers raise, but for `#v + 1`, which reads as nil
so that `ipairs` ends. Assigning a table, or another record of the same struct,
to `v[i]` stores all that it has. `for i, r in v([first [, last]]) do` goes
through elements.
@table vector
@usage for i, player in players() do print(i, player.name) end
*/
static int vector_call(lua_State *L) {
  const Node *n = vector_self(L);
  lua_Integer first = vector_bound(L, 2, 1);
  lua_Integer last = vector_bound(L, 3, (lua_Integer)n->count);
  luaL_argcheck(L, first >= 1, 2, "elements count from 1");
  luaL_argcheck(L, last >= 0 && (lua_Unsigned)last <= n->count, 3,
                "there are not so many elements");
  lua_pushinteger(L, last);
  lua_pushcclosure(L, vector_next, 1);
  lua_pushvalue(L, 1);
  lua_pushinteger(L, first - 1);
  return 3;
}

static int vector_pairs(lua_State *L) {
  vector_self(L);
  lua_settop(L, 1);
  return vector_call(L);
}

static int vector_tostring(lua_State *L) {
  const Node *n = vector_self(L);
  lua_pushfstring(L, "ipc.vector (%I of %I bytes)", (LUAI_UACINT)n->count,
                  (LUAI_UACINT)n->type->size);
  return 1;
}

static int vector_load_one(lua_State *L, const Node *n, size_t i) {
  if (!n->type->layout) {
    int err = ipc_node_push(L, n, n->type, (i - 1) * n->type->size);
    return err ? ipc_node_fail(L, n, "load", err) : 1;
  }
  size_t offset;
  Node element = ipc_node_element(n, i, &offset);
  lua_pushvalue(L, 1);
  return ipc_node_table(L, &element, n->type, 0, offset, 3);
}

/* Of versioned records, into slot 3: each is of its own moment. */
static int vector_load_each(lua_State *L, const Node *n) {
  for (size_t i = 1; i <= n->count; i++) {
    size_t offset;
    Node element = ipc_node_element(n, i, &offset);
    lua_settop(L, 3);
    if (lua_rawgeti(L, 3, (lua_Integer)i) != LUA_TTABLE) {
      lua_pop(L, 1);
      lua_pushnil(L);
    }
    lua_pushvalue(L, 1);
    if (ipc_node_table(L, &element, n->type, 0, offset, 4) == 3)
      return 3;
    lua_pop(L, 1);
    lua_rawseti(L, 3, (lua_Integer)i);
  }
  lua_settop(L, 3);
  return 1;
}

/***
An element as a plain table, structs in it as tables: of a versioned struct, as
it was at one moment.
@function vector:load
@tparam[opt=all] ?integer i the element; none: a list of all, each of its own
moment
@tparam[opt] ?table into is filled and returned; what else it has stays
@treturn table a value, if the elements are no structs; or nil, message, errno.
Of a versioned struct also its version: another one after every store
@usage local t = players:load(1)
*/
static int vector_load(lua_State *L) {
  const Node *n = vector_self(L);
  lua_settop(L, 3);
  const Layout *s = n->type->layout;
  if (!lua_isnil(L, 2))
    return vector_load_one(L, n, vector_there(L, n, 2));
  luaL_argcheck(L, n->count <= INT32_MAX, 1, "too many elements");
  lua_pushvalue(L, 1);
  if (!s || !s->versioned)
    return ipc_node_table(L, n, n->type, (uint32_t)n->count, 0, 3);
  if (lua_isnil(L, 3)) {
    lua_newtable(L);
    lua_replace(L, 3);
  }
  luaL_checktype(L, 3, LUA_TTABLE);
  return vector_load_each(L, n);
}

/***
Stores what a table has into an element; fields that it has not keep their
bytes. A versioned record changes at one moment, whoever else stores.
@function vector:store
@tparam integer i
@param t a table, another record of the struct, or a value, if the elements are
no structs
@treturn boolean true; or nil, message, errno. What does not fit raises, with
nothing stored
@usage players:store(1, { x = 0, y = 0 })
*/
static int vector_store(lua_State *L) {
  const Node *n = vector_self(L);
  lua_settop(L, 3);
  int err = vector_put(L, n, vector_there(L, n, 2));
  if (err)
    return ipc_node_fail(L, n, "store", err);
  lua_pushboolean(L, 1);
  return 1;
}

/* ----------------------------------------------------------------- tables */

void ipc_vector_open(lua_State *L) {
  static const luaL_Reg meta[] = {
      {"__newindex", vector_newindex}, {"__len", vector_len},
      {"__call", vector_call},         {"__pairs", vector_pairs},
      {"__tostring", vector_tostring}, {NULL, NULL}};
  static const luaL_Reg methods[] = {
      {"load", vector_load}, {"store", vector_store}, {NULL, NULL}};
  if (ipc_node_type(L, &ipc_vector_key, "ipc.vector", meta)) {
    luaL_newlib(L, methods);
    lua_pushcclosure(L, vector_index, 1);
    lua_setfield(L, -2, "__index");
  }
  lua_pop(L, 1);
}
