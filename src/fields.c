/* Values and tables to bytes and back. Tables are read and written raw, so that
 * no Lua code runs between a check and the bytes. */
#include "prefix.h"

#include <lauxlib.h>
#include <stdio.h>

#include "fields.h"

/* ----------------------------------------------------------------- errors */

/* Adds "pos[2].x" to the buffer. */
static void path_add(luaL_Buffer *b, const Path *p) {
  if (!p)
    return;
  path_add(b, p->up);
  if (p->field) {
    if (p->up)
      luaL_addchar(b, '.');
    luaL_addlstring(b, p->field->name, p->field->length);
  }
  if (p->index) {
    char text[32];
    snprintf(text, sizeof text, "[%zu]", p->index);
    luaL_addstring(b, text);
  }
}

/* Raises what is on top about the value at `path`. */
static int path_error(lua_State *L, const Path *path) {
  const char *why = lua_tostring(L, -1);
  if (!path)
    return luaL_error(L, "%s", why);
  luaL_Buffer b;
  luaL_buffinit(L, &b);
  path_add(&b, path);
  luaL_pushresult(&b);
  const char *what = path->field || path->up ? "field" : "element";
  return luaL_error(L, "%s '%s': %s", what, lua_tostring(L, -1), why);
}

int ipc_value_refuse(lua_State *L, int index, const Type *t, const Path *path) {
  int64_t least, most;
  size_t size = 0;
  const char *wanted = "number";
  bool number = lua_type(L, index) == LUA_TNUMBER;
  index = lua_absindex(L, index);
  if (t->code == CODE_BOOLEAN)
    wanted = "boolean";
  else if (t->code == CODE_BYTES || t->code == CODE_TEXT)
    wanted = "string";
  else if (t->code < CODE_FLOAT || t->code == CODE_INTEGER)
    wanted = "integer";
  if (lua_type(L, index) == LUA_TSTRING && *wanted == 's') {
    lua_tolstring(L, index, &size);
    if (size > t->size)
      lua_pushfstring(L, "%I bytes, but it has %I", (LUAI_UACINT)size,
                      (LUAI_UACINT)t->size);
    else
      lua_pushliteral(L, "a text with a zero in it");
  } else if (number && *wanted == 'i' && t->size < 8 &&
             lua_tonumber(L, index) == (lua_Number)lua_tointeger(L, index)) {
    ipc_type_range(t, &least, &most);
    lua_pushfstring(L, "%I is not within %I..%I",
                    (LUAI_UACINT)lua_tointeger(L, index), (LUAI_UACINT)least,
                    (LUAI_UACINT)most);
  } else if (number && *wanted == 'i') {
    lua_pushfstring(L, "%f has no integer representation",
                    (LUAI_UACNUMBER)lua_tonumber(L, index));
  } else {
    lua_pushfstring(L, "%s expected, got %s", wanted, luaL_typename(L, index));
  }
  return path_error(L, path);
}

/* How far two names are apart in their first bytes: letters to change, add or
 * leave out, up to 3. */
static int field_distance(const char *a, size_t m, const char *b, size_t n) {
  enum { NAME = 24 };
  unsigned char row[NAME + 1];
  if (m > NAME || n > NAME || m > n + 2 || n > m + 2)
    return 3;
  for (size_t j = 0; j <= n; j++)
    row[j] = (unsigned char)j;
  for (size_t i = 1; i <= m; i++) {
    unsigned char corner = row[0];
    row[0] = (unsigned char)i;
    for (size_t j = 1; j <= n; j++) {
      unsigned char best = (unsigned char)(corner + (a[i - 1] != b[j - 1]));
      corner = row[j];
      if (row[j - 1] + 1 < best)
        best = (unsigned char)(row[j - 1] + 1);
      if (row[j] + 1 < best)
        best = (unsigned char)(row[j] + 1);
      row[j] = best;
    }
  }
  return row[n] < 3 ? row[n] : 3;
}

int ipc_field_unknown(lua_State *L, const Layout *s, int key) {
  size_t length;
  if (lua_type(L, key) != LUA_TSTRING)
    return luaL_error(L, "a field's name expected, got %s",
                      luaL_typename(L, key));
  const char *name = lua_tolstring(L, key, &length);
  const Field *close = NULL;
  int best = length > 3 ? 3 : 2;
  for (uint32_t i = 0; i < s->count; i++) {
    const Field *f = &s->fields[i];
    int apart = field_distance(name, length, f->name, f->length);
    if (apart < best) {
      best = apart;
      close = f;
    }
  }
  if (close)
    return luaL_error(L, "no field '%s'; there is '%s'", name, close->name);
  return luaL_error(L, "no field '%s'", name);
}

const Field *ipc_field_named(lua_State *L, const Layout *s, int key) {
  const Field *f = layout_find(s, lua_topointer(L, key));
  if (f || lua_type(L, key) != LUA_TSTRING)
    return f;
  size_t length;
  const char *name = lua_tolstring(L, key, &length);
  /* Lua has one string of each short name only; of a long one, many. */
  return ipc_layout_named(s, name, length);
}

/* ------------------------------------------------------------------ values */

static bool value_integer(lua_State *L, int index, const Type *t, Value *v) {
  int fits = 1;
  lua_Integer n;
  if (lua_isinteger(L, index))
    n = lua_tointeger(L, index);
  else if (lua_type(L, index) == LUA_TNUMBER)
    n = lua_tointegerx(L, index, &fits);
  else
    return false;
  v->kind = VALUE_INTEGER;
  v->integer = n;
  if (t->size == 8 || !fits)
    return fits;
  uint32_t bits = t->size * 8;
  uint64_t from = t->is_signed ? UINT64_C(1) << (bits - 1) : 0;
  return ((uint64_t)n + from) >> bits == 0;
}

bool ipc_value_take(lua_State *L, int index, const Type *t, Value *v) {
  switch (t->code) {
  case CODE_FLOAT:
  case CODE_DOUBLE:
  case CODE_REAL:
    v->kind = VALUE_NUMBER;
    v->number = lua_tonumber(L, index);
    return lua_type(L, index) == LUA_TNUMBER;
  case CODE_BOOLEAN:
    v->kind = VALUE_BOOLEAN;
    v->integer = lua_toboolean(L, index);
    return lua_isboolean(L, index);
  case CODE_BYTES:
  case CODE_TEXT:
    if (lua_type(L, index) != LUA_TSTRING)
      return false;
    v->kind = VALUE_BYTES;
    v->bytes = lua_tolstring(L, index, &v->size);
    return v->size <= t->size &&
           (t->code == CODE_BYTES || !memchr(v->bytes, 0, v->size));
  default:
    return value_integer(L, index, t, v);
  }
}

void ipc_value_push(lua_State *L, const Type *t, const Value *v) {
  switch (v->kind) {
  case VALUE_INTEGER:
    lua_pushinteger(L, (lua_Integer)v->integer);
    return;
  case VALUE_NUMBER:
    lua_pushnumber(L, (lua_Number)v->number);
    return;
  case VALUE_BOOLEAN:
    lua_pushboolean(L, v->integer != 0);
    return;
  default: {
    const char *end =
        t->code == CODE_TEXT ? memchr(v->bytes, 0, v->size) : NULL;
    lua_pushlstring(L, v->bytes, end ? (size_t)(end - v->bytes) : v->size);
  }
  }
}

/* ------------------------------------------------------------------ tables */

static void runs_add(Runs *r, const char *to, uint32_t size) {
  if (r->count == FIELDS_RUNS) {
    r->over = true;
    return;
  }
  r->run[r->count].offset = (uint32_t)(to - r->block);
  r->run[r->count++].size = size;
}

void ipc_fields_move(const Runs *runs, char *to) {
  for (uint32_t i = 0; i < runs->count; i++) {
    uint32_t offset = runs->run[i].offset;
    layout_move(to + offset, runs->block + offset, runs->run[i].size);
  }
}

static Target target_at(Target target, size_t offset) {
  if (target.to)
    target.to += offset;
  return target;
}

/* The value on top, of one element or of a whole field. */
static void fields_take(lua_State *L, const Type *t, uint32_t count,
                        Target target, const Path *path) {
  Value v = {.integer = 0};
  if (count || t->layout) {
    ipc_fields_put(L, lua_gettop(L), t, count, target, path);
    return;
  }
  if (!ipc_value_take(L, -1, t, &v))
    ipc_value_refuse(L, -1, t, path);
  if (target.to)
    layout_put(t, target.to, &v);
  if (target.runs)
    runs_add(target.runs, target.to, t->size);
  if (target.filled)
    *target.filled += t->size;
}

/* Slots: the key, the value. */
static void fields_element(lua_State *L, const Type *t, uint32_t count,
                           Target target, const Path *path) {
  lua_Integer i = lua_isinteger(L, -2) ? lua_tointeger(L, -2) : 0;
  if (i < 1 || i > (lua_Integer)count) {
    if (lua_type(L, -2) == LUA_TNUMBER)
      lua_pushfstring(L, "no element [%s] of %I", luaL_tolstring(L, -2, NULL),
                      (LUAI_UACINT)count);
    else
      lua_pushfstring(L, "an element's number expected, got %s",
                      luaL_typename(L, -2));
    path_error(L, path);
  }
  Path own = {path ? path->up : NULL, path ? path->field : NULL, (size_t)i};
  fields_take(L, t, 0, target_at(target, (size_t)(i - 1) * t->size), &own);
}

void ipc_fields_put(lua_State *L, int index, const Type *t, uint32_t count,
                    Target target, const Path *path) {
  if (lua_type(L, index) != LUA_TTABLE) {
    lua_pushfstring(L, "table expected, got %s", luaL_typename(L, index));
    path_error(L, path);
  }
  luaL_checkstack(L, 8, "structs in structs");
  lua_pushnil(L);
  while (lua_next(L, index)) {
    if (count) {
      fields_element(L, t, count, target, path);
    } else {
      const Field *f = ipc_field_named(L, t->layout, -2);
      if (!f) {
        ipc_field_unknown(L, t->layout, -2);
        return;
      }
      Path own = {path, f, 0};
      fields_take(L, &f->type, f->count, target_at(target, f->offset), &own);
    }
    lua_pop(L, 1);
  }
}

/* The same value in a table that is on top: it is used again if it is one. The
 * one to be filled is on top then. */
static void fields_fill(lua_State *L, int names, const Type *t, uint32_t count,
                        const char *from) {
  int old = lua_gettop(L);
  if (t->layout) { /* whose names are its own */
    lua_rawgetp(L, names, t->layout);
    lua_getiuservalue(L, -1, IPC_UV_NAMES);
    names = old + 2;
  }
  ipc_fields_push(L, names, t, count, from, lua_istable(L, old) ? old : 0);
  lua_replace(L, old);
  lua_settop(L, old);
}

static void fields_single(lua_State *L, const Type *t, const char *from) {
  Value v = {.integer = 0};
  layout_get(t, from, &v);
  ipc_value_push(L, t, &v);
}

/* The elements of an array into the table on top. */
static void fields_push_array(lua_State *L, int names, const Type *t,
                              uint32_t count, const char *from) {
  int table = lua_gettop(L), old = table + 1;
  for (uint32_t i = 0; i < count; i++) {
    const char *at = from + (size_t)i * t->size;
    if (!t->layout) {
      fields_single(L, t, at);
    } else {
      lua_rawgeti(L, table, (lua_Integer)i + 1);
      ipc_fields_push(L, names, t, 0, at, lua_istable(L, old) ? old : 0);
    }
    lua_rawseti(L, table, (lua_Integer)i + 1);
    lua_settop(L, table);
  }
}

/* The fields of a struct into the table on top. */
static void fields_push_struct(lua_State *L, int names, const Layout *s,
                               const char *from) {
  int table = lua_gettop(L);
  for (uint32_t i = 0; i < s->count; i++) {
    const Field *f = &s->fields[i];
    lua_rawgeti(L, names, (lua_Integer)i + 1);
    if (f->count || f->type.layout) {
      lua_pushvalue(L, -1);
      lua_rawget(L, table);
      fields_fill(L, names, &f->type, f->count, from + f->offset);
    } else {
      fields_single(L, &f->type, from + f->offset);
    }
    lua_rawset(L, table);
  }
}

void ipc_fields_push(lua_State *L, int names, const Type *t, uint32_t count,
                     const char *from, int into) {
  luaL_checkstack(L, 8, "structs in structs");
  if (into)
    lua_pushvalue(L, into);
  else if (t->layout && !count)
    lua_createtable(L, 0, (int)t->layout->count);
  else
    lua_createtable(L, (int)count, 0);
  if (t->layout && !count)
    fields_push_struct(L, names, t->layout, from);
  else
    fields_push_array(L, names, t, count, from);
}
