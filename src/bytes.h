/* What the methods of bytes (bytes.c, format.c, words.c) share. They exist once
 * and serve every type that has a View; see view.h. */
#ifndef IPC_BYTES_H
#define IPC_BYTES_H

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "ipc.h"
#include "view.h"

/* Upvalues of every method: the metatable of its self, how far behind the
 * beginning of a self its View is, and functions of the string library. */
enum {
  BYTES_META = 1,
  BYTES_PLACE,
  BYTES_PACK,
  BYTES_UNPACK,
  BYTES_PACKSIZE,
  BYTES_TOP = BYTES_PACKSIZE
};

/* Raises that slot 1 is no self. */
void ipc_bytes_stranger(lua_State *L);

/* The View that a method was called on. */
static inline View *ipc_bytes_self(lua_State *L) {
  char *self = lua_touserdata(L, 1);
  bool mine = false;
  if (self && lua_getmetatable(L, 1)) {
    mine = lua_rawequal(L, -1, lua_upvalueindex(BYTES_META));
    lua_pop(L, 1);
  }
  if (!mine)
    ipc_bytes_stranger(L);
  self += (size_t)lua_tointeger(L, lua_upvalueindex(BYTES_PLACE));
  return (View *)(void *)self;
}

/* The same, of one that has not ended. */
static inline View *ipc_bytes_alive(lua_State *L) {
  View *v = ipc_bytes_self(L);
  if (!v->open || v->parent)
    ipc_view_alive(L, v);
  return v;
}

/* The same, of one that may be written. */
void ipc_bytes_readonly(lua_State *L, const View *v);
static inline View *ipc_bytes_writable(lua_State *L) {
  View *v = ipc_bytes_alive(L);
  if (!v->writable)
    ipc_bytes_readonly(L, v);
  return v;
}

/* An offset, a count: 0 to `most`, or it raises. */
size_t ipc_bytes_number(lua_State *L, int index, const char *what, size_t most);

static inline size_t ipc_bytes_offset(lua_State *L, int index, const View *v) {
  if (lua_isinteger(L, index)) {
    lua_Unsigned n = (lua_Unsigned)lua_tointeger(L, index);
    if (n <= v->size)
      return (size_t)n;
  }
  return ipc_bytes_number(L, index, "offset", v->size);
}

/* Raises, blaming the argument, that there are no `size` bytes at `offset`. */
void ipc_bytes_beyond(lua_State *L, int index, const View *v, size_t offset,
                      size_t size);

static inline void ipc_bytes_fit(lua_State *L, int index, const View *v,
                                 size_t offset, size_t size) {
  if (size > v->size - offset)
    ipc_bytes_beyond(L, index, v, offset, size);
}

/* How many bytes from `offset` on: slot `index`, or all that follow. */
size_t ipc_bytes_rest(lua_State *L, int index, const View *v, size_t offset);
static inline size_t ipc_bytes_count(lua_State *L, int index, const View *v,
                                     size_t offset) {
  if (lua_isinteger(L, index)) {
    lua_Unsigned n = (lua_Unsigned)lua_tointeger(L, index);
    if (n <= v->size - offset)
      return (size_t)n;
  }
  return ipc_bytes_rest(L, index, v, offset);
}

/* Why the bytes of a View that has not ended cannot be touched: before and
 * after, see ViewOps.check. */
static inline int ipc_bytes_check(View *v) {
  const Handle *h = v->handle;
  if (h && v->lost && ipc_handle_usable(h) &&
      !atomic_load_explicit(v->lost, memory_order_relaxed))
    return 0;
  return v->ops->check(v->owner, v);
}

/* Adds functions to the metatable on top: names that begin with two underscores
 * to itself, the others to its __index. */
void ipc_bytes_functions(lua_State *L, const luaL_Reg *functions, size_t place);

/* Adds all methods of bytes. */
void ipc_bytes_methods(lua_State *L, size_t place);

/* format.c */
int ipc_bytes_pack(lua_State *L);
int ipc_bytes_unpack(lua_State *L);

/* words.c */
int ipc_bytes_load(lua_State *L);
int ipc_bytes_store(lua_State *L);
int ipc_bytes_add(lua_State *L);
int ipc_bytes_sub(lua_State *L);
int ipc_bytes_band(lua_State *L);
int ipc_bytes_bor(lua_State *L);
int ipc_bytes_xchg(lua_State *L);
int ipc_bytes_cas(lua_State *L);
int ipc_bytes_wait(lua_State *L);
int ipc_bytes_wake(lua_State *L);

/* Makes the type of those who wait. */
void ipc_words_open(lua_State *L);

#endif
