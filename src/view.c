/* ipc.view: how bytes that belong to something else are lent to Lua, and how
 * that ends. What is done with them is in bytes.c, format.c and words.c. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdint.h>
#include <string.h>

#include "bytes.h"
#include "ipc.h"
#include "view.h"

/***
A view: bytes of a queue or a memory where they are, without a copy, or a range
of these. It has the methods of `ipc.bytes`.

A view that was reserved for writing ends by `commit`, any other by `release`; a
view that is left by its scope or the collector is dropped: what was reserved is
given back, what was looked at is still there to be received. Using a view that
has ended raises, as does using a range of one. When what the bytes belong to is
closed, every call answers nil, `"closed"`, EPIPE; EFAULT when the memory was
lost (a file that somebody truncated).

A view goes where bytes go: `send`, `sendmany` and `sendmsg` take one in place
of a string, and `put` encodes it as binary.
@module ipc.view
@usage local v <close> = assert(w:reserve(64))
local at = v:pack(0, "<I4d", 7, 0.5)
assert(v:commit(at))
*/

enum {
  VIEW_SHORT = 256, /* more than any string that Lua makes one of */
  VIEW_DEPTH = 100  /* ranges of ranges */
};

static const char view_key;  /* registry: the metatable of ipc.view */
static const char place_key; /* in a metatable: where its userdata's View is */

/* ------------------------------------------------------------------- life */

/* Makes their metatable, before the first of them, and leaves it on top. */
static void view_type(lua_State *L);

View *ipc_view_new(lua_State *L, int owner, const ViewOps *ops) {
  owner = lua_absindex(L, owner);
  View *v = lua_newuserdatauv(L, sizeof *v, 1);
  *v = (View){.ops = ops,
              .type = "ipc.view",
              .owner = lua_touserdata(L, owner),
              .ended = "close"};
  lua_pushvalue(L, owner);
  lua_setiuservalue(L, -2, 1);
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &view_key) == LUA_TNIL) {
    lua_pop(L, 1);
    view_type(L);
  }
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

View *ipc_view_at(lua_State *L, int index) {
  if (lua_type(L, index) != LUA_TUSERDATA || !lua_getmetatable(L, index))
    return NULL;
  char *v = NULL;
  if (lua_rawgetp(L, -1, &place_key) == LUA_TNUMBER)
    v = (char *)lua_touserdata(L, index) + (size_t)lua_tointeger(L, -1);
  lua_pop(L, 2);
  return (View *)(void *)v;
}

void ipc_view_alive(lua_State *L, const View *v) {
  for (; v; v = v->parent)
    if (!v->open)
      luaL_error(L, "%s: used after %s()", v->type, v->ended);
}

bool ipc_view_open_all(const View *v) {
  while (v && v->open)
    v = v->parent;
  return !v;
}

int ipc_view_check(View *v) {
  return v->open ? v->ops->check(v->owner, v) : EBADF;
}

int ipc_view_fail(lua_State *L, const char *type, const char *call, int err) {
  return ipc_fail(L, type, call, err,
                  err == ECHILD ? "this belongs to the process that forked"
                  : err == EFAULT
                      ? "the memory was lost (its file was cut, or had "
                        "holes and no room to fill them)"
                      : NULL);
}

int ipc_view_push(lua_State *L, View *v, size_t offset, size_t size) {
  char bytes[VIEW_SHORT]; /* of short strings Lua takes the hash first */
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

int ipc_view_string(lua_State *L, int index, const char *type,
                    const char *call) {
  View *v = ipc_view_test(L, index);
  if (!v)
    luaL_typeerror(L, index, "string");
  ipc_view_alive(L, v);
  int err = ipc_view_push(L, v, 0, v->size);
  if (err)
    return ipc_view_fail(L, type, call, err);
  lua_replace(L, index);
  return 0;
}

/* ------------------------------------------------------------------ ranges */

static int range_check(void *owner, View *v) {
  View *parent = owner;
  int err = ipc_view_check(parent);
  if (!err)
    v->bytes = parent->bytes + v->place;
  return err;
}

static const ViewOps range_ops = {.check = range_check};

View *ipc_view_range(lua_State *L, int index, View *v, size_t offset,
                     size_t size) {
  if (v->depth >= VIEW_DEPTH)
    luaL_error(L, "%s: ranges of %d ranges", v->type, VIEW_DEPTH);
  View *range = ipc_view_new(L, index, &range_ops);
  range->owner = range->parent = v;
  range->depth = v->depth + 1;
  range->place = offset;
  range->size = size;
  range->writable = v->writable;
  range->open = true;
  return range;
}

void ipc_view_unsettle(View *v) {
  for (ViewWait *w = v->waits; w; w = w->next)
    w->stop(w);
}

/* ----------------------------------------------------------------- its end */

static int view_end(View *v, const char *call, bool done, size_t size) {
  int err = ipc_view_check(v);
  v->open = false;
  v->ended = call;
  if (err == EPIPE || err == ECHILD)
    return err;
  int failed = v->ops->end ? v->ops->end(v->owner, v, done && !err, size) : 0;
  return err ? err : failed;
}

/***
Ends a view that was reserved: what it has is sent.
@function view:commit
@tparam[opt=all] ?integer size only so many bytes, from the start
@treturn boolean true; or nil, message, errno
*/
static int view_commit(lua_State *L) {
  View *v = ipc_bytes_alive(L);
  if (!v->commits)
    return luaL_error(L, "ipc.view: not reserved: release() ends it");
  size_t size =
      lua_isnoneornil(L, 2) ? v->size : ipc_bytes_number(L, 2, "size", v->size);
  int err = view_end(v, "commit", true, size);
  if (err)
    return ipc_view_fail(L, v->type, "commit", err);
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
  View *v = ipc_bytes_alive(L);
  if (v->commits)
    return luaL_error(L, "ipc.view: reserved: commit() sends it, close() "
                         "gives it back");
  int err = view_end(v, "release", true, v->size);
  if (err)
    return ipc_view_fail(L, v->type, "release", err);
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
  View *v = ipc_bytes_self(L);
  if (v->open)
    view_end(v, "close", false, 0);
  lua_pushboolean(L, 1);
  return 1;
}

static int view_tostring(lua_State *L) {
  const View *v = ipc_bytes_self(L);
  if (ipc_view_open_all(v))
    lua_pushfstring(L, "ipc.view (%I bytes)", (LUAI_UACINT)v->size);
  else
    lua_pushliteral(L, "ipc.view (ended)");
  return 1;
}

/* ----------------------------------------------------------------- tables */

static const luaL_Reg view_methods[] = {{"commit", view_commit},
                                        {"release", view_release},
                                        {"close", view_close},
                                        {"__tostring", view_tostring},
                                        {"__close", view_close},
                                        {"__gc", view_close},
                                        {NULL, NULL}};

void ipc_view_methods(lua_State *L, size_t place) {
  lua_pushinteger(L, (lua_Integer)place);
  lua_rawsetp(L, -2, &place_key);
  ipc_bytes_methods(L, place);
}

static void view_type(lua_State *L) {
  luaL_checkstack(L, 12, NULL);
  lua_newtable(L);
  lua_pushliteral(L, "ipc.view");
  lua_setfield(L, -2, "__name");
  lua_pushliteral(L, "ipc");
  lua_setfield(L, -2, "__metatable");
  lua_newtable(L);
  lua_setfield(L, -2, "__index");
  ipc_view_methods(L, 0);
  ipc_bytes_functions(L, view_methods, 0);
  lua_pushvalue(L, -1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &view_key);
}
