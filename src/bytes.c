/* What Lua can do with the bytes of a view or a memory: read, write, fill,
 * find, compare, copy. All that may run Lua or raise comes before the owner is
 * asked whether the bytes are there; from then on until they are copied nothing
 * does.
 */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "record.h"
#include "view.h"

/***
Bytes in place: what views (`ipc.view`) and memories (`ipc.memory`) have in
common. Offsets are in bytes and count from 0; what is out of bounds raises.
`#bytes` is how many there are.

Another process may change the bytes at any time: what a call reads, it reads
once. Only single words (`load`, `store`, `add` ...) change as a whole; for
more, take a lock, or see `ipc.struct`.

A call on bytes that are gone answers nil, message, errno: `"closed"`, EPIPE
when what they belong to was closed; EFAULT when the memory was lost (a file
that somebody truncated); ECHILD in a process that was forked by others than
`ipc.fork`.
@module ipc.bytes
*/

/* ------------------------------------------------------------- the callee */

void ipc_bytes_stranger(lua_State *L) {
  lua_getfield(L, lua_upvalueindex(BYTES_META), "__name");
  luaL_typeerror(L, 1, lua_tostring(L, -1));
}

void ipc_bytes_readonly(lua_State *L, const View *v) {
  luaL_error(L, "%s: these bytes are only to be read", v->type);
}

size_t ipc_bytes_number(lua_State *L, int index, const char *what,
                        size_t most) {
  luaL_checktype(L, index, LUA_TNUMBER);
  lua_Integer n = luaL_checkinteger(L, index);
  if (n < 0 || (lua_Unsigned)n > most) {
    char text[96];
    snprintf(text, sizeof text, "%s %lld is not within 0..%zu", what,
             (long long)n, most);
    luaL_argerror(L, index, text);
  }
  return (size_t)n;
}

void ipc_bytes_beyond(lua_State *L, int index, const View *v, size_t offset,
                      size_t size) {
  char text[96];
  snprintf(text, sizeof text, "%zu bytes at offset %zu, but the %s has %zu",
           size, offset,
           strncmp(v->type, "ipc.", 4) == 0 ? v->type + 4 : v->type, v->size);
  luaL_argerror(L, index, text);
}

size_t ipc_bytes_rest(lua_State *L, int index, const View *v, size_t offset) {
  if (lua_isnoneornil(L, index))
    return v->size - offset;
  size_t size = ipc_bytes_number(L, index, "count", PTRDIFF_MAX);
  ipc_bytes_fit(L, index - 1, v, offset, size);
  return size;
}

/* --------------------------------------------------------- strings or views */

/* Bytes that a call takes: of a string, or of a view or memory. */
typedef struct Source {
  const char *bytes; /* NULL: v has them */
  View *v;
  size_t offset, size;
} Source;

static Source bytes_source(lua_State *L, int index) {
  Source s = {0};
  if (lua_type(L, index) == LUA_TSTRING) {
    s.bytes = lua_tolstring(L, index, &s.size);
    return s;
  }
  if (lua_getmetatable(L, index)) { /* as a rule it is of self's kind */
    if (lua_rawequal(L, -1, lua_upvalueindex(BYTES_META)))
      s.v = (View *)(void *)((char *)lua_touserdata(L, index) +
                             lua_tointeger(L, lua_upvalueindex(BYTES_PLACE)));
    lua_pop(L, 1);
  }
  if (!s.v)
    s.v = ipc_view_at(L, index);
  if (!s.v)
    luaL_typeerror(L, index, "string");
  ipc_view_alive(L, s.v);
  s.size = s.v->size;
  return s;
}

/* A part of it: an offset in slot `index` and a count in the next, both
 * optional. */
static void source_part(lua_State *L, int index, Source *s) {
  const View all = {.type = s->v ? s->v->type : "string", .size = s->size};
  s->offset = lua_isnoneornil(L, index) ? 0 : ipc_bytes_offset(L, index, &all);
  s->size = ipc_bytes_count(L, index + 1, &all, s->offset);
}

static int source_check(const Source *s) {
  return s->v ? ipc_bytes_check(s->v) : 0;
}

/* Once source_check said 0. */
static const char *source_bytes(const Source *s) {
  return (s->v ? s->v->bytes : s->bytes) + s->offset;
}

/* Both may be touched. */
static int bytes_check_both(View *v, const Source *s) {
  int err = ipc_bytes_check(v);
  return err ? err : source_check(s);
}

/* The end of a call that wrote: pushes the offset after it. */
static int bytes_wrote(lua_State *L, const View *v, const char *call,
                       size_t after, int err) {
  if (err)
    return ipc_view_fail(L, v->type, call, err);
  lua_pushinteger(L, (lua_Integer)after);
  return 1;
}

/* ------------------------------------------------------------------ methods */

/***
Copies bytes out.
@function bytes:read
@tparam[opt=0] ?integer offset
@tparam[opt=the rest] ?integer count
@treturn string the bytes; or nil, message, errno
*/
static int bytes_read(lua_State *L) {
  View *v = ipc_bytes_alive(L);
  size_t offset = lua_isnoneornil(L, 2) ? 0 : ipc_bytes_offset(L, 2, v);
  size_t size = ipc_bytes_count(L, 3, v, offset);
  int err = ipc_view_push(L, v, offset, size);
  return err ? ipc_view_fail(L, v->type, "read", err) : 1;
}

static int bytes_put(lua_State *L, View *v, const char *call, size_t offset,
                     const Source *s) {
  int err = bytes_check_both(v, s);
  if (!err && s->size) {
    memmove(v->bytes + offset, source_bytes(s), s->size);
    err = bytes_check_both(v, s);
  }
  return bytes_wrote(L, v, call, offset + s->size, err);
}

/***
Copies bytes in.
@function bytes:write
@tparam integer offset
@tparam string|view|memory bytes
@treturn integer the offset after them; or nil, message, errno
*/
static int bytes_write(lua_State *L) {
  View *v = ipc_bytes_writable(L);
  size_t offset = ipc_bytes_offset(L, 2, v);
  Source s = bytes_source(L, 3);
  ipc_bytes_fit(L, 2, v, offset, s.size);
  return bytes_put(L, v, "write", offset, &s);
}

/***
Copies a part of other bytes in, at once: between memories, or within one, where
the two may overlap.
@function bytes:copy
@tparam integer offset where to
@tparam string|view|memory from
@tparam[opt=0] ?integer from_offset
@tparam[opt=the rest] ?integer count
@treturn integer the offset after them; or nil, message, errno
@usage local frame <close> = assert(ipc.memory(nil, 1 << 20))
frame:copy(0, frame, 4096, 4096)
*/
static int bytes_copy(lua_State *L) {
  View *v = ipc_bytes_writable(L);
  size_t offset = ipc_bytes_offset(L, 2, v);
  Source s = bytes_source(L, 3);
  source_part(L, 4, &s);
  ipc_bytes_fit(L, 2, v, offset, s.size);
  return bytes_put(L, v, "copy", offset, &s);
}

/***
Sets bytes to one value.
@function bytes:fill
@tparam integer byte 0 to 255
@tparam[opt=0] ?integer offset
@tparam[opt=the rest] ?integer count
@treturn integer the offset after them; or nil, message, errno
*/
static int bytes_fill(lua_State *L) {
  View *v = ipc_bytes_writable(L);
  int byte = (int)ipc_bytes_number(L, 2, "byte", 255);
  size_t offset = lua_isnoneornil(L, 3) ? 0 : ipc_bytes_offset(L, 3, v);
  size_t size = v->size - offset;
  if (!lua_isnoneornil(L, 4))
    size = ipc_bytes_number(L, 4, "count", size);
  int err = ipc_bytes_check(v);
  if (!err && size) {
    memset(v->bytes + offset, byte, size);
    err = ipc_bytes_check(v);
  }
  return bytes_wrote(L, v, "fill", offset + size, err);
}

/***
Where a string is found next, byte for byte (no pattern), in time that grows
with the bytes looked through and no faster.
@function bytes:find
@tparam string|view|memory what
@tparam[opt=0] ?integer offset to look from
@tparam[opt=the rest] ?integer count of bytes to look through: what is found
lies within
@treturn ?integer the offset of its first byte; nil alone: it is not there; or
nil, message, errno
*/
static int bytes_find(lua_State *L) {
  View *v = ipc_bytes_alive(L);
  Source s = bytes_source(L, 2);
  size_t offset = lua_isnoneornil(L, 3) ? 0 : ipc_bytes_offset(L, 3, v);
  size_t size = ipc_bytes_count(L, 4, v, offset);
  if (s.v) { /* what others may change is looked for as it is now */
    int failed = ipc_view_push(L, s.v, 0, s.size);
    if (failed)
      return ipc_view_fail(L, v->type, "find", failed);
    s.v = NULL;
    s.bytes = lua_tostring(L, -1);
    ipc_view_alive(L, v);
  }
  int err = ipc_bytes_check(v);
  bool there = s.size == 0;
  size_t found = offset;
  if (!err && s.size > 0 && s.size <= size) {
    const char *at = memmem(v->bytes + offset, size, s.bytes, s.size);
    there = at != NULL;
    found = at ? (size_t)(at - v->bytes) : 0;
  }
  if (!err)
    err = ipc_bytes_check(v);
  if (err)
    return ipc_view_fail(L, v->type, "find", err);
  if (there)
    lua_pushinteger(L, (lua_Integer)found);
  else
    lua_pushnil(L);
  return 1;
}

/***
Compares with other bytes, as unsigned numbers from the first that differs.
@function bytes:compare
@tparam integer offset
@tparam string|view|memory other
@tparam[opt=0] ?integer other_offset
@tparam[opt=the rest of other] ?integer count
@treturn integer -1: these come first; 0: they are the same; 1; or nil, message,
errno
@usage assert(m:compare(0, "lua-ipc\n") == 0)
*/
static int bytes_compare(lua_State *L) {
  View *v = ipc_bytes_alive(L);
  size_t offset = ipc_bytes_offset(L, 2, v);
  Source s = bytes_source(L, 3);
  source_part(L, 4, &s);
  ipc_bytes_fit(L, 2, v, offset, s.size);
  int err = bytes_check_both(v, &s), order = 0;
  if (!err && s.size) {
    order = memcmp(v->bytes + offset, source_bytes(&s), s.size);
    err = bytes_check_both(v, &s);
  }
  if (err)
    return ipc_view_fail(L, v->type, "compare", err);
  lua_pushinteger(L, (order > 0) - (order < 0));
  return 1;
}

/***
A part of the bytes as a view, whose offsets count from the part's beginning. It
keeps what it is of alive; that one's end (close, commit) is its own, too.
@function bytes:range
@tparam integer offset
@tparam[opt=the rest] ?integer count
@treturn view ends by `release` or `close`, which changes nothing of what it is
of
@usage local second = m:range(4096, 4096)
second:fill(0)
*/
static int bytes_range(lua_State *L) {
  View *v = ipc_bytes_alive(L);
  size_t offset = ipc_bytes_offset(L, 2, v);
  size_t size = ipc_bytes_count(L, 3, v, offset);
  ipc_view_range(L, 1, v, offset, size);
  return 1;
}

static int bytes_len(lua_State *L) {
  const View *v = ipc_bytes_alive(L);
  lua_pushinteger(L, (lua_Integer)v->size);
  return 1;
}

/* ----------------------------------------------------------------- tables */

static const luaL_Reg bytes_methods[] = {
    {"read", bytes_read},         {"write", bytes_write},
    {"copy", bytes_copy},         {"fill", bytes_fill},
    {"find", bytes_find},         {"compare", bytes_compare},
    {"range", bytes_range},       {"pack", ipc_bytes_pack},
    {"unpack", ipc_bytes_unpack}, {"load", ipc_bytes_load},
    {"store", ipc_bytes_store},   {"add", ipc_bytes_add},
    {"sub", ipc_bytes_sub},       {"band", ipc_bytes_band},
    {"bor", ipc_bytes_bor},       {"xchg", ipc_bytes_xchg},
    {"cas", ipc_bytes_cas},       {"wait", ipc_bytes_wait},
    {"wake", ipc_bytes_wake},     {"view", ipc_struct_view},
    {"__len", bytes_len},         {NULL, NULL}};

/* Pushes the upvalues of the metatable at `meta`: see BYTES_META. Of the string
 * library, as it is when the module is loaded. */
static void bytes_upvalues(lua_State *L, int meta, size_t place) {
  static const char *const names[] = {"pack", "unpack", "packsize"};
  lua_pushvalue(L, meta);
  lua_pushinteger(L, (lua_Integer)place);
  lua_getfield(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  bool loaded = lua_getfield(L, -1, "string") == LUA_TTABLE;
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    lua_pushnil(L);
    if (loaded) {
      lua_pushstring(L, names[i]);
      lua_rawget(L, -3 - (int)i);
      lua_replace(L, -2);
    }
  }
  lua_rotate(L, -5, 3); /* the library's tables to the top */
  lua_pop(L, 2);
}

void ipc_bytes_functions(lua_State *L, const luaL_Reg *functions,
                         size_t place) {
  int meta = lua_gettop(L);
  luaL_checkstack(L, 12, NULL);
  lua_getfield(L, meta, "__index");
  for (const luaL_Reg *f = functions; f->name; f++) {
    bytes_upvalues(L, meta, place);
    lua_pushcclosure(L, f->func, BYTES_TOP);
    lua_setfield(L, strncmp(f->name, "__", 2) == 0 ? meta : -2, f->name);
  }
  lua_pop(L, 1);
}

void ipc_bytes_methods(lua_State *L, size_t place) {
  ipc_bytes_functions(L, bytes_methods, place);
}
