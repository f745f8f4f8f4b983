/* Records seen through a struct, their types, and ipc.struct's userdata. A
 * field is found by the address of its interned name, so that an access costs
 * little more than calling C from Lua does. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "fields.h"
#include "ipc.h"
#include "node.h"
#include "record.h"
#include "versioned.h"
#include "view.h"

/* ----------------------------------------------------------------- records */

static const char struct_key; /* registry: the metatable of ipc.struct */

typedef struct Struct {
  const void *magic; /* &struct_key */
  Layout *layout;    /* behind it */
} Struct;

static const Node *record_self(lua_State *L) {
  const Node *n = node_at(L, 1, &ipc_record_key);
  if (!n)
    luaL_typeerror(L, 1, "ipc.record");
  return n;
}

/***
Structs over shared bytes: fields by name, where C has them.

`ipc.struct` describes a struct once; `view` of an `ipc.memory` or an `ipc.view`
looks at bytes through it. A record's fields are read and written in place, so
other processes see each store at once; a naturally aligned value of up to 8
bytes is never seen half written. Anything larger is, unless a lock is held or
the struct is `versioned`.
@module ipc.struct
@usage local Point = ipc.struct { { "x", "d" }, { "y", "d" } }
local points = memory:view(Point, 0, 100)
points[1].x = 1.5
for i, p in points() do print(i, p.x, p.y) end
*/

/***
A record: its fields by their names, and nothing else, so that none is taken. A
field that is a struct or an array is a view of its own; assigning a table, or
another view of the same struct, to it stores all that the table has. Reading or
writing a field that there is not raises; so do values of another type or range.
What it belongs to being closed raises an error object with `message` and
`errno`, as everything that has no second result.

`pairs` goes through the fields in order.
@table record
*/
static int record_index(lua_State *L) {
  const Node *n = record_self(L);
  const Layout *s = n->type->layout;
  const Field *f = layout_find(s, lua_topointer(L, 2));
  if (!f && !(f = ipc_field_named(L, s, 2)))
    return ipc_field_unknown(L, s, 2);
  if (f->count || f->type.layout)
    return node_child(L, n, &f->type, f->count, f->offset, f - s->fields + 1);
  return node_get(L, n, &f->type, f->offset);
}

/* Writes a number, the most usual of slot 3, with as few calls as there can be.
 * False: it is not so simple. */
static inline bool record_set(lua_State *L, const Node *n, const Field *f,
                              int *err) {
  const Type *t = &f->type;
  bool is_signed = t->is_signed;
  Value v = {.integer = 0};
  if (f->count || t->code > CODE_DOUBLE || n->whole || !n->view->writable)
    return false;
  if (t->code > CODE_INT64) {
    if (lua_type(L, 3) != LUA_TNUMBER)
      return false;
    v.number = lua_tonumber(L, 3);
  } else {
    if (!lua_isinteger(L, 3))
      return false;
    v.integer = lua_tointeger(L, 3);
    uint32_t bits = t->size * 8 - is_signed;
    int64_t over = bits < 63 ? v.integer >> bits : 0;
    if (over != 0 && !(is_signed && over == -1))
      return false;
  }
  *err = node_check(n);
  if (*err)
    return true;
  layout_put(t, node_bytes(n) + f->offset, &v);
  *err = node_recheck(n);
  return true;
}

static int record_newindex(lua_State *L) {
  const Node *n = record_self(L);
  const Layout *s = n->type->layout;
  const Field *f = layout_find(s, lua_topointer(L, 2));
  int err;
  if (!f && !(f = ipc_field_named(L, s, 2)))
    return ipc_field_unknown(L, s, 2);
  if (!record_set(L, n, f, &err)) {
    Path path = {NULL, f, 0};
    if (f->count || f->type.layout)
      err = ipc_node_put(L, n, &f->type, f->count, f->offset, &path);
    else
      err = ipc_node_set(L, n, &f->type, f->offset, &path);
  }
  return err ? ipc_node_raise(L, n, "newindex", err) : 0;
}

/* (record, name) -> the next field's name and value. */
static int record_next(lua_State *L) {
  const Node *n = record_self(L);
  const Layout *s = n->type->layout;
  const Field *f = s->fields;
  if (!lua_isnoneornil(L, 2)) {
    f = ipc_field_named(L, s, 2);
    if (!f)
      return ipc_field_unknown(L, s, 2);
    f++;
  }
  if (f == s->fields + s->count)
    return 0;
  lua_settop(L, 1);
  lua_pushlstring(L, f->name, f->length);
  if (f->count || f->type.layout)
    node_child(L, n, &f->type, f->count, f->offset, f - s->fields + 1);
  else
    node_get(L, n, &f->type, f->offset);
  lua_insert(L, 3);
  lua_settop(L, 3);
  return 2;
}

static int record_pairs(lua_State *L) {
  record_self(L);
  lua_settop(L, 1);
  lua_pushcfunction(L, record_next);
  lua_insert(L, 1);
  return 2;
}

/* Adds "name = value, " of a single value. */
static void record_describe(lua_State *L, luaL_Buffer *b, const Node *n,
                            const Field *f) {
  luaL_addlstring(b, f->name, f->length);
  luaL_addstring(b, " = ");
  int err = ipc_node_push(L, n, &f->type, f->offset);
  if (err) {
    lua_pushliteral(L, "?");
  } else if (lua_type(L, -1) == LUA_TSTRING) {
    lua_pushfstring(L, "\"%s\"", lua_tostring(L, -1));
    lua_remove(L, -2);
  } else {
    luaL_tolstring(L, -1, NULL);
    lua_remove(L, -2);
  }
  luaL_addvalue(b);
  luaL_addstring(b, ", ");
}

static int record_tostring(lua_State *L) {
  enum { SHOWN = 8, SHORT = 64 };
  const Node *n = record_self(L);
  const Layout *s = n->type->layout;
  luaL_Buffer b;
  uint32_t shown = 0;
  int err = ipc_node_check(n);
  if (err) {
    lua_pushfstring(L, "ipc.record (%s)",
                    err == EBADF   ? "ended"
                    : err == EPIPE ? "closed"
                                   : "lost");
    return 1;
  }
  lua_settop(L, 1);
  luaL_buffinit(L, &b);
  luaL_addstring(&b, "ipc.record (");
  for (uint32_t i = 0; i < s->count && shown < SHOWN; i++) {
    const Field *f = &s->fields[i];
    if (f->count || f->type.layout || f->type.size > SHORT)
      continue;
    record_describe(L, &b, n, f);
    shown++;
  }
  if (shown < s->count)
    luaL_addstring(&b, "...");
  else
    luaL_buffsub(&b, 2);
  luaL_addchar(&b, ')');
  luaL_pushresult(&b);
  return 1;
}

/* ----------------------------------------------------------------- structs */

static const Node *struct_record(lua_State *L, const Layout *s) {
  const Node *n = node_at(L, 2, &ipc_record_key);
  if (!n)
    luaL_typeerror(L, 2, "ipc.record");
  luaL_argcheck(L, n->type->layout == s, 2, "a record of another struct");
  return n;
}

static const Layout *struct_self(lua_State *L) {
  const Layout *s = ipc_layout_at(L, 1);
  if (!s)
    luaL_typeerror(L, 1, "ipc.struct");
  return s;
}

/***
A record as a plain table, structs in it as tables: of a versioned struct, as it
was at one moment.
@function struct:load
@tparam record record of this struct
@tparam[opt] ?table into is filled and returned; what else it has stays
@treturn table; or nil, message, errno. Of a versioned struct also its version:
another one after every store
@usage local t = Point:load(points[1])
*/
int ipc_record_load(lua_State *L) {
  const Node *n = struct_record(L, struct_self(L));
  lua_settop(L, 3);
  lua_pushvalue(L, 2);
  return ipc_node_table(L, n, n->type, 0, 0, 3);
}

/***
Stores what a table has into a record; fields that it has not keep their bytes.
A versioned record changes at one moment, whoever else stores.
@function struct:store
@tparam record record of this struct
@param t a table, or another record of the struct
@treturn boolean true; or nil, message, errno. What does not fit raises, with
nothing stored
@usage Point:store(points[1], { x = 0, y = 0 })
*/
int ipc_record_store(lua_State *L) {
  const Node *n = struct_record(L, struct_self(L));
  lua_settop(L, 3);
  int err = ipc_node_put(L, n, n->type, 0, 0, NULL);
  if (err)
    return ipc_node_fail(L, n, "store", err);
  lua_pushboolean(L, 1);
  return 1;
}

/* An offset or a count: `least` to `most`. */
static size_t view_argument(lua_State *L, int index, size_t least,
                            size_t otherwise) {
  if (lua_isnoneornil(L, index))
    return otherwise;
  luaL_checktype(L, index, LUA_TNUMBER);
  lua_Integer n = luaL_checkinteger(L, index);
  luaL_argcheck(L,
                n >= 0 && (lua_Unsigned)n <= PTRDIFF_MAX && (size_t)n >= least,
                index, "out of range");
  return (size_t)n;
}

/***
Looks at bytes through a struct.
@function bytes:view
@tparam struct description
@tparam[opt=0] ?integer offset in bytes
@tparam[opt] ?integer count gives an array of so many, which may be written as
`v[i]`, `#v`, `v:load(i)`, `v:store(i, t)` and `for i, r in v() do`; without it
there is one record
@treturn record|vector which keeps the bytes' owner alive
@usage local header = m:view(Header)
local players = m:view(Player, Header.size, 100)
*/
int ipc_struct_view(lua_State *L) {
  View *v = ipc_bytes_alive(L);
  const Layout *s = ipc_layout_at(L, 2);
  if (!s)
    luaL_typeerror(L, 2, "ipc.struct");
  size_t offset = view_argument(L, 3, 0, 0), size = s->self.size;
  size_t count = view_argument(L, 4, 1, 0), most = v->size;
  if (offset > most || (count ? count : 1) > (most - offset) / size) {
    char text[96];
    snprintf(text, sizeof text, "%zu times %zu bytes, but there are %zu",
             count ? count : 1, size, most);
    luaL_argerror(L, count ? 4 : 3, text);
  }
  int err = ipc_view_check(v);
  if (err)
    return ipc_view_fail(L, v->type, "view", err);
  if (s->versioned && (uintptr_t)(v->bytes + offset) % VERSIONED_ALIGN)
    luaL_argerror(L, 3, "a versioned struct is aligned by 8 bytes");
  lua_pushvalue(L, 1);
  lua_pushvalue(L, 2);
  Node *n = ipc_node_new(L, count ? &ipc_vector_key : &ipc_record_key, true);
  n->view = v;
  n->type = &s->self;
  n->whole = s->versioned && !count ? s : NULL;
  n->place = offset;
  n->count = count;
  n->end = offset + size * (count ? count : 1);
  return 1;
}

/* ------------------------------------------------------------------ opening */

Layout *ipc_layout_new(lua_State *L, uint32_t count) {
  size_t head = (sizeof(Struct) + 15) / 16 * 16;
  size_t size = head + ipc_layout_block(count);
  Struct *s = lua_newuserdatauv(L, size, IPC_UV_NAMES);
  memset(s, 0, size);
  s->layout = ipc_layout_begin((char *)s + head, count);
  s->magic = &struct_key;
  lua_newtable(L);
  lua_setiuservalue(L, -2, IPC_UV_NAMES);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &struct_key);
  lua_setmetatable(L, -2);
  return s->layout;
}

const Layout *ipc_layout_at(lua_State *L, int index) {
  const Struct *s = lua_touserdata(L, index);
  return s && lua_rawlen(L, index) > sizeof *s && s->magic == &struct_key
             ? s->layout
             : NULL;
}

/* Makes the metatable of that key, or puts the one there is on top. */
bool ipc_node_type(lua_State *L, const void *key, const char *name,
                   const luaL_Reg *meta) {
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, key) != LUA_TNIL)
    return false;
  lua_pop(L, 1);
  lua_newtable(L);
  lua_pushstring(L, name);
  lua_setfield(L, -2, "__name");
  lua_pushliteral(L, "ipc");
  lua_setfield(L, -2, "__metatable");
  luaL_setfuncs(L, meta, 0);
  lua_pushvalue(L, -1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, key);
  return true;
}

void ipc_record_open(lua_State *L) {
  static const luaL_Reg record[] = {{"__index", record_index},
                                    {"__newindex", record_newindex},
                                    {"__pairs", record_pairs},
                                    {"__tostring", record_tostring},
                                    {NULL, NULL}};
  static const luaL_Reg none[] = {{NULL, NULL}};
  ipc_node_type(L, &ipc_record_key, "ipc.record", record);
  lua_pop(L, 1);
  ipc_vector_open(L);
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &ipc_weak_key) == LUA_TNIL) {
    lua_newtable(L);
    lua_pushliteral(L, "v");
    lua_setfield(L, -2, "__mode");
    lua_rawsetp(L, LUA_REGISTRYINDEX, &ipc_weak_key);
  }
  lua_pop(L, 1);
  ipc_node_type(L, &struct_key, "ipc.struct", none);
}
