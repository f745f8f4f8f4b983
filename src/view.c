/* ipc.view: bytes that belong to something else, read and written in place. All
 * that may run Lua or raise comes before the owner is asked whether the bytes
 * are there; from then on until they are copied nothing does. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ipc.h"
#include "view.h"

/***
A view: bytes of a queue or a memory where they are, without a copy. It reads
and writes them by the formats of `string.pack`, at offsets in bytes that count
from 0; alignment counts from the view's start.

Another process may change the bytes at any time: what a call reads, it reads
once. A view that was reserved for writing ends by `commit`, any other by
`release`; a view that is left by its scope or the collector is dropped: what
was reserved is given back, what was looked at is still there to be received.
Using a view that has ended raises. When what the bytes belong to is closed,
every call answers nil, `"closed"`, EPIPE; EFAULT when the memory was lost (a
file that somebody truncated).

A view goes where bytes go: `send`, `sendmany` and `sendmsg` take one in place
of a string, and `put` encodes it as binary.
@module ipc.view
@usage local v <close> = assert(w:reserve(64))
local at = v:pack(0, "<I4d", 7, 0.5)
assert(v:commit(at))
*/

enum {
  VIEW_ALIGN = 16,  /* the largest that string.pack knows */
  VIEW_SHORT = 256, /* more than any string that Lua makes one of its kind */
  VIEW_FIRST = 256  /* bytes that a format of unknown size is tried on */
};

/* Upvalues of every method. */
enum { UP_META = 1, UP_PACK, UP_UNPACK, UP_SIZE, UP_TOP = UP_SIZE };

static const char view_key; /* registry: the metatable */

/* ------------------------------------------------------------------- life */

View *ipc_view_new(lua_State *L, int owner, const ViewOps *ops) {
  owner = lua_absindex(L, owner);
  View *v = lua_newuserdatauv(L, sizeof *v, 1);
  *v = (View){.ops = ops, .owner = lua_touserdata(L, owner), .ended = "close"};
  lua_pushvalue(L, owner);
  lua_setiuservalue(L, -2, 1);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &view_key);
  lua_setmetatable(L, -2);
  return v;
}

View *ipc_view_test(lua_State *L, int index) {
  if (lua_type(L, index) != LUA_TUSERDATA || !lua_getmetatable(L, index))
    return NULL;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &view_key);
  bool same = lua_rawequal(L, -1, -2);
  lua_pop(L, 2);
  return same ? lua_touserdata(L, index) : NULL;
}

int ipc_view_check(const View *v) {
  return v->open ? v->ops->check(v->owner, v) : EBADF;
}

static int view_end(View *v, const char *call, bool done, size_t size) {
  int err = v->ops->check(v->owner, v);
  v->open = false;
  v->ended = call;
  if (err == EPIPE || err == ECHILD)
    return err;
  int failed = v->ops->end(v->owner, v, done && !err, size);
  return err ? err : failed;
}

static View *view_any(lua_State *L) {
  View *v = lua_touserdata(L, 1);
  if (v && lua_getmetatable(L, 1)) {
    bool mine = lua_rawequal(L, -1, lua_upvalueindex(UP_META));
    lua_pop(L, 1);
    if (mine)
      return v;
  }
  luaL_typeerror(L, 1, "ipc.view");
  return NULL;
}

static void view_alive(lua_State *L, const View *v) {
  if (!v->open)
    luaL_error(L, "ipc.view: used after %s()", v->ended);
}

static View *view_self(lua_State *L) {
  View *v = view_any(L);
  view_alive(L, v);
  return v;
}

static View *view_writable(lua_State *L) {
  View *v = view_self(L);
  if (!v->writable)
    luaL_error(L, "ipc.view: these bytes are only to be read");
  return v;
}

static int view_fail(lua_State *L, const char *type, const char *call,
                     int err) {
  return ipc_fail(L, type, call, err,
                  err == ECHILD   ? "this view belongs to the process that "
                                    "forked"
                  : err == EFAULT ? "the memory was lost"
                                  : NULL);
}

/* ------------------------------------------------------- into and out of it */

/* An offset or a count: 0 to `most`. */
static size_t view_number(lua_State *L, int index, const char *what,
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

static size_t view_offset(lua_State *L, int index, const View *v) {
  return view_number(L, index, "offset", v->size);
}

static void view_fits(lua_State *L, const View *v, size_t offset, size_t size) {
  if (size <= v->size - offset)
    return;
  char text[96];
  snprintf(text, sizeof text, "%zu bytes at offset %zu, but the view has %zu",
           size, offset, v->size);
  luaL_argerror(L, 2, text);
}

/* Pushes bytes [offset, offset + size), which are there, read once: of short
 * strings Lua takes the hash first and the bytes then. 0 or an errno, and
 * nothing pushed. No Lua code and no finaliser runs before they are copied. */
static int view_push(lua_State *L, const View *v, size_t offset, size_t size) {
  char bytes[VIEW_SHORT];
  int err = ipc_view_check(v);
  if (err)
    return err;
  if (size <= sizeof bytes) {
    if (size)
      memcpy(bytes, v->bytes + offset, size);
    err = ipc_view_check(v);
    if (!err)
      lua_pushlstring(L, bytes, size);
    return err;
  }
  lua_pushlstring(L, v->bytes + offset, size);
  if (ipc_view_check(v) != EFAULT) /* a finaliser may have ended it by now */
    return 0;
  lua_pop(L, 1);
  return EFAULT;
}

/* Writes the string at `index` from its byte `skip` on, and pushes the offset
 * after it; the number of results. */
static int view_put(lua_State *L, const View *v, const char *call,
                    size_t offset, int index, size_t skip) {
  size_t size;
  const char *bytes = lua_tolstring(L, index, &size);
  size -= skip;
  view_alive(L, v); /* Lua may have run since it was asked first */
  view_fits(L, v, offset, size);
  int err = ipc_view_check(v);
  if (!err && size) {
    memcpy(v->bytes + offset, bytes + skip, size);
    err = ipc_view_check(v);
  }
  if (err)
    return view_fail(L, "ipc.view", call, err);
  lua_pushinteger(L, (lua_Integer)(offset + size));
  return 1;
}

int ipc_view_string(lua_State *L, int index, const char *type,
                    const char *call) {
  const View *v = ipc_view_test(L, index);
  if (!v)
    luaL_typeerror(L, index, "string");
  view_alive(L, v);
  int err = view_push(L, v, 0, v->size);
  if (err)
    return view_fail(L, type, call, err);
  lua_replace(L, index);
  return 0;
}

/***
Copies bytes out.
@function view:read
@tparam[opt=0] ?integer offset
@tparam[opt=the rest] ?integer count
@treturn string the bytes; or nil, message, errno
*/
static int view_read(lua_State *L) {
  View *v = view_self(L);
  size_t offset = lua_isnoneornil(L, 2) ? 0 : view_offset(L, 2, v);
  size_t size = v->size - offset;
  if (!lua_isnoneornil(L, 3)) {
    size = view_number(L, 3, "count", PTRDIFF_MAX);
    view_fits(L, v, offset, size);
  }
  int err = view_push(L, v, offset, size);
  return err ? view_fail(L, "ipc.view", "read", err) : 1;
}

/***
Copies bytes in.
@function view:write
@tparam integer offset
@tparam string|view bytes
@treturn integer the offset after them; or nil, message, errno
*/
static int view_write(lua_State *L) {
  View *v = view_writable(L);
  size_t offset = view_offset(L, 2, v);
  if (lua_type(L, 3) != LUA_TSTRING) {
    int n = ipc_view_string(L, 3, "ipc.view", "write");
    if (n)
      return n;
  }
  return view_put(L, v, "write", offset, 3, 0);
}

/***
Sets bytes to one value.
@function view:fill
@tparam integer byte 0 to 255
@tparam[opt=0] ?integer offset
@tparam[opt=the rest] ?integer count
@treturn integer the offset after them; or nil, message, errno
*/
static int view_fill(lua_State *L) {
  View *v = view_writable(L);
  int byte = (int)view_number(L, 2, "byte", 255);
  size_t offset = lua_isnoneornil(L, 3) ? 0 : view_offset(L, 3, v);
  size_t size = v->size - offset;
  if (!lua_isnoneornil(L, 4))
    size = view_number(L, 4, "count", size);
  int err = ipc_view_check(v);
  if (!err && size) {
    memset(v->bytes + offset, byte, size);
    err = ipc_view_check(v);
  }
  if (err)
    return view_fail(L, "ipc.view", "fill", err);
  lua_pushinteger(L, (lua_Integer)(offset + size));
  return 1;
}

/* ---------------------------------------------------------------- formats */

/* string.pack and its like align by what came before. The format at `index` for
 * bytes that begin at `offset`: how many it pads itself with in front. */
static size_t format_lead(lua_State *L, int index, size_t offset) {
  const char *format = lua_tostring(L, index);
  return strchr(format, '!') ? offset % VIEW_ALIGN : 0;
}

static void format_pad(lua_State *L, int index, size_t lead) {
  if (lead == 0)
    return;
  lua_pushlstring(L, "xxxxxxxxxxxxxxx", lead);
  lua_pushvalue(L, index);
  lua_concat(L, 2);
  lua_replace(L, index);
}

/* Of the error on top: the argument that string.pack and its like blame, and
 * why; 0: it is about something else. */
static int format_blames(lua_State *L, const char **why) {
  static const char start[] = "bad argument #";
  const char *text =
      lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : NULL;
  if (!text || strncmp(text, start, sizeof start - 1) != 0)
    return 0;
  char *end;
  long argument = strtol(text + sizeof start - 1, &end, 10);
  *why = strchr(end, '(');
  bool whole = *why && (*why)[1] != '\0';
  return whole && argument > 0 && argument < 1 << 24 ? (int)argument : 0;
}

/* Raises the error on top as one of the caller's: what was blamed on an
 * argument of string.pack is blamed on ours, at `ours` for the first. */
static int format_raise(lua_State *L, int status, int ours) {
  const char *why = NULL;
  int argument = format_blames(L, &why);
  if (argument) {
    lua_pushlstring(L, why + 1, strlen(why) - 2); /* without parentheses */
    return luaL_argerror(L, ours + argument - 1, lua_tostring(L, -1));
  }
  if (status != LUA_ERRRUN || lua_type(L, -1) != LUA_TSTRING)
    return lua_error(L);
  return luaL_error(L, "%s", lua_tostring(L, -1));
}

/* Someone put something else in the place of string.pack. */
static int format_strange(lua_State *L) {
  return luaL_error(L, "ipc.view: the string library is not Lua's");
}

/***
Writes values by a format of `string.pack`.
@function view:pack
@tparam integer offset
@string format
@param ... values
@treturn integer the offset after what was written; or nil, message, errno. What
does not fit raises, with nothing written
@usage local at = v:pack(0, "<I4", #name)
at = v:pack(at, "z", name)
*/
static int view_pack(lua_State *L) {
  View *v = view_writable(L);
  size_t offset = view_offset(L, 2, v);
  luaL_checktype(L, 3, LUA_TSTRING);
  size_t lead = format_lead(L, 3, offset);
  luaL_checkstack(L, 4, NULL);
  format_pad(L, 3, lead);
  lua_pushvalue(L, lua_upvalueindex(UP_PACK));
  lua_insert(L, 3);
  int status = lua_pcall(L, lua_gettop(L) - 3, 1, 0);
  if (status != LUA_OK)
    return format_raise(L, status, 3);
  if (lua_type(L, 3) != LUA_TSTRING || lua_rawlen(L, 3) < lead)
    return format_strange(L);
  return view_put(L, v, "pack", offset, 3, lead);
}

/* How many bytes the padded format in slot 4 reads behind the first `lead`;
 * false: that depends on the bytes. */
static bool unpack_size(lua_State *L, size_t lead, size_t *size) {
  if (strpbrk(lua_tostring(L, 3), "sz"))
    return false;
  lua_pushvalue(L, lua_upvalueindex(UP_SIZE));
  lua_pushvalue(L, 4);
  int status = lua_pcall(L, 1, 1, 0);
  if (status != LUA_OK)
    format_raise(L, status, 3);
  lua_Integer all = lua_isinteger(L, -1) ? lua_tointeger(L, -1) : -1;
  lua_pop(L, 1);
  if (all < (lua_Integer)lead)
    format_strange(L);
  *size = (size_t)all - lead;
  return true;
}

/* string.unpack of slot 3 with the first `size` bytes at `offset` and `lead`
 * bytes before them: its results, and LUA_OK; or its error. An errno of the
 * view goes to *err. */
static int unpack_try(lua_State *L, const View *v, size_t offset, size_t lead,
                      size_t size, int *err) {
  lua_settop(L, 4);
  lua_pushvalue(L, lua_upvalueindex(UP_UNPACK));
  lua_pushvalue(L, 3);
  *err = view_push(L, v, offset - lead, lead + size);
  if (*err)
    return LUA_OK;
  lua_pushinteger(L, (lua_Integer)lead + 1);
  return lua_pcall(L, 3, LUA_MULTRET, 0);
}

/***
Reads values by a format of `string.pack`. The bytes are copied once before they
are looked at; a length or an end that they tell (`s`, `z`) is looked for within
the view only.
@function view:unpack
@tparam integer offset
@string format
@return the values, then the offset after what was read; or nil, message, errno.
What goes beyond the view raises, as in `string.unpack`
*/
static int view_unpack(lua_State *L) {
  View *v = view_self(L);
  size_t offset = view_offset(L, 2, v), rest = v->size - offset, size;
  luaL_checktype(L, 3, LUA_TSTRING);
  lua_settop(L, 3);
  size_t lead = format_lead(L, 3, offset);
  lua_pushvalue(L, 3);
  format_pad(L, 4, lead);
  if (unpack_size(L, lead, &size))
    view_fits(L, v, offset, size);
  else
    size = rest < VIEW_FIRST ? rest : VIEW_FIRST;
  for (;;) {
    int err;
    view_alive(L, v);
    int status = unpack_try(L, v, offset, lead, size, &err);
    if (err)
      return view_fail(L, "ipc.view", "unpack", err);
    if (status == LUA_OK)
      break;
    const char *why;
    int argument = format_blames(L, &why);
    if (argument == 2 && size == rest) { /* the data: too short */
      lua_pushlstring(L, why + 1, strlen(why) - 2);
      return luaL_argerror(L, 2, lua_tostring(L, -1));
    }
    if (argument != 2)
      return format_raise(L, status, 3);
    size = size > rest / 8 ? rest : size * 8;
  }
  if (lua_gettop(L) < 5 || !lua_isinteger(L, -1))
    return format_strange(L);
  lua_Integer after = lua_tointeger(L, -1) - 1;
  lua_pop(L, 1);
  lua_pushinteger(L, (lua_Integer)(offset - lead) + after);
  return lua_gettop(L) - 4;
}

/* ----------------------------------------------------------------- its end */

/***
Ends a view that was reserved: what it has is sent.
@function view:commit
@tparam[opt=all] ?integer size only so many bytes, from the start
@treturn boolean true; or nil, message, errno
*/
static int view_commit(lua_State *L) {
  View *v = view_self(L);
  if (!v->commits)
    return luaL_error(L, "ipc.view: not reserved: release() ends it");
  size_t size =
      lua_isnoneornil(L, 2) ? v->size : view_number(L, 2, "size", v->size);
  int err = view_end(v, "commit", true, size);
  if (err)
    return view_fail(L, "ipc.view", "commit", err);
  lua_pushboolean(L, 1);
  return 1;
}

/***
Ends a view that was not reserved: a message is taken by it, and its bytes may
be written anew.
@function view:release
@treturn boolean true; or nil, message, errno
*/
static int view_release(lua_State *L) {
  View *v = view_self(L);
  if (v->commits)
    return luaL_error(L, "ipc.view: reserved: commit() sends it, close() "
                         "gives it back");
  int err = view_end(v, "release", true, v->size);
  if (err)
    return view_fail(L, "ipc.view", "release", err);
  lua_pushboolean(L, 1);
  return 1;
}

/***
Drops the view, as leaving its scope does; again is harmless. What was reserved
is given back unsent; a message that was looked at is still there.
@function view:close
@treturn boolean true
*/
static int view_close(lua_State *L) {
  View *v = view_any(L);
  if (v->open)
    view_end(v, "close", false, 0);
  lua_pushboolean(L, 1);
  return 1;
}

static int view_len(lua_State *L) {
  const View *v = view_self(L);
  lua_pushinteger(L, (lua_Integer)v->size);
  return 1;
}

static int view_tostring(lua_State *L) {
  const View *v = view_any(L);
  if (v->open)
    lua_pushfstring(L, "ipc.view (%I bytes)", (LUAI_UACINT)v->size);
  else
    lua_pushliteral(L, "ipc.view (ended)");
  return 1;
}

/* ----------------------------------------------------------------- tables */

static const luaL_Reg view_methods[] = {
    {"pack", view_pack},       {"unpack", view_unpack}, {"read", view_read},
    {"write", view_write},     {"fill", view_fill},     {"commit", view_commit},
    {"release", view_release}, {"close", view_close},   {NULL, NULL}};

static const luaL_Reg view_meta[] = {{"__len", view_len},
                                     {"__tostring", view_tostring},
                                     {"__close", view_close},
                                     {"__gc", view_close},
                                     {NULL, NULL}};

/* Pushes the upvalues of the metatable at `meta`: it and string.pack, unpack,
 * packsize, as they are when the module is loaded. */
static void view_upvalues(lua_State *L, int meta) {
  static const char *const names[] = {"pack", "unpack", "packsize"};
  lua_pushvalue(L, meta);
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

void ipc_view_open(lua_State *L) {
  luaL_checkstack(L, 12, NULL);
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &view_key) == LUA_TNIL) {
    lua_newtable(L);
    int meta = lua_gettop(L);
    lua_pushliteral(L, "ipc.view");
    lua_setfield(L, meta, "__name");
    lua_pushliteral(L, "ipc");
    lua_setfield(L, meta, "__metatable");
    view_upvalues(L, meta);
    luaL_setfuncs(L, view_meta, UP_TOP);
    lua_newtable(L);
    view_upvalues(L, meta);
    luaL_setfuncs(L, view_methods, UP_TOP);
    lua_setfield(L, meta, "__index");
    lua_rawsetp(L, LUA_REGISTRYINDEX, &view_key);
  }
  lua_pop(L, 1);
}
