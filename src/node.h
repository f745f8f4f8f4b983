/* A record, or an array, of bytes that are somewhere, seen through a struct:
 * what record.c and vector.c share. Functions that answer an errno have pushed
 * nothing but buffers then. */
#ifndef IPC_NODE_H
#define IPC_NODE_H

#include <lauxlib.h>
#include <lua.h>

#include "fields.h"
#include "ipc.h"
#include "layout.h"
#include "view.h"

/* What marks our userdata, checked with their size: less work than comparing
 * metatables. The keys of these in the registry, too. */
extern const char ipc_record_key, ipc_vector_key;
extern const char ipc_weak_key; /* the metatable of tables with weak values */

typedef struct Node {
  const void *magic; /* one of the keys */
  View *view;
  const Type *type;    /* of a record: itself; of an array: of its elements */
  const Layout *whole; /* the versioned struct that it is in; or NULL */
  size_t place;        /* its offset in the view; that of `whole` if any */
  size_t inner;        /* its offset within `whole` */
  size_t count;        /* elements; of a record 0 */
  size_t end;          /* the offset behind the last byte, in the view */
} Node;

/* User values: what has the bytes, the outermost struct, children by index or
 * by field, weak. */
enum { NODE_BYTES = 1, NODE_STRUCT, NODE_CHILDREN };

enum { NODE_SHORT = 512 }; /* bytes that are gathered on the C stack */

/* The node of that kind at `index`, or NULL. */
static inline Node *node_at(lua_State *L, int index, const void *magic) {
  Node *n = lua_touserdata(L, index);
  return n && lua_rawlen(L, index) == sizeof *n && n->magic == magic ? n : NULL;
}

/* Pushes nil, message, errno. */
int ipc_node_fail(lua_State *L, const Node *n, const char *call, int err);

/* Raises the same: an access has one result. */
int ipc_node_raise(lua_State *L, const Node *n, const char *call, int err);

/* node_get of what that leaves out. */
int ipc_node_get(lua_State *L, const Node *n, const Type *t, size_t offset);

/* 0: the bytes may be touched. To be asked again after that. */
int ipc_node_check(const Node *n);

/* The same, without a call if all is well. */
static inline int node_check(const Node *n) {
  const View *v = n->view;
  const Handle *h = v->handle;
  bool well = h && v->open && ipc_handle_usable(h) && v->lost &&
              !atomic_load_explicit(v->lost, memory_order_relaxed) &&
              n->end <= v->size;
  return well ? 0 : ipc_node_check(n);
}

/* The same after the bytes were touched. */
static inline int node_recheck(const Node *n) {
  const View *v = n->view;
  bool well = v->handle && v->lost &&
              !atomic_load_explicit(v->lost, memory_order_relaxed);
  return well ? 0 : ipc_node_check(n);
}

static inline char *node_bytes(const Node *n) {
  return n->view->bytes + n->place;
}

/* Pushes the value at `offset`, which is no struct: 1, or it raises. */
static inline int node_get(lua_State *L, const Node *n, const Type *t,
                           size_t offset) {
  uint8_t code = t->code;
  if (n->whole || code > CODE_DOUBLE)
    return ipc_node_get(L, n, t, offset);
  int err = node_check(n);
  if (err)
    return ipc_node_raise(L, n, "index", err);
  if (code <= CODE_INT64) {
    int64_t i = layout_integer(code, node_bytes(n) + offset);
    err = node_recheck(n);
    lua_pushinteger(L, (lua_Integer)i);
  } else {
    double d = layout_real(code, node_bytes(n) + offset);
    err = node_recheck(n);
    lua_pushnumber(L, (lua_Number)d);
  }
  return err ? ipc_node_raise(L, n, "index", err) : 1;
}

/* Pushes a new node, with the user values on top (bytes, struct), which it
 * takes; `parent`: it may have children. */
Node *ipc_node_new(lua_State *L, const void *magic, bool parent);

/* The i-th element, from 1, of an array of structs; *offset is where it begins
 * in that. */
Node ipc_node_element(const Node *n, size_t i, size_t *offset);

/* node_child of what that does not find. */
int ipc_node_child(lua_State *L, const Node *n, const Type *t, uint32_t count,
                   size_t offset, lua_Integer key);

/* Pushes what is at `offset` of the node in slot 1: a record of the type, or an
 * array of `count`; always the same one under the same key as long as anybody
 * has it. 1. */
static inline int node_child(lua_State *L, const Node *n, const Type *t,
                             uint32_t count, size_t offset, lua_Integer key) {
  if (lua_getiuservalue(L, 1, NODE_CHILDREN) == LUA_TTABLE &&
      lua_rawgeti(L, -1, key) != LUA_TNIL)
    return 1;
  return ipc_node_child(L, n, t, count, offset, key);
}

/* Pushes the value at `offset`, which is no struct: 0 or an errno. */
int ipc_node_push(lua_State *L, const Node *n, const Type *t, size_t offset);

/* Pushes the table of what is at `offset` of the node, whose userdata is on
 * top; slot `into` has one to be used, or nil. The number of results, 3 of a
 * failure. */
int ipc_node_table(lua_State *L, const Node *n, const Type *t, uint32_t count,
                   size_t offset, int into);

/* Writes slot 3, a value of a type that is no struct: 0 or an errno. */
int ipc_node_set(lua_State *L, const Node *n, const Type *t, size_t offset,
                 const Path *path);

/* Writes slot 3, a table or another node: 0 or an errno. */
int ipc_node_put(lua_State *L, const Node *n, const Type *t, uint32_t count,
                 size_t offset, const Path *path);

/* Replaces a view of a memory on top, through a struct or not, by that
 * memory. */
void ipc_node_memory(lua_State *L);

/* Adds what arrays have to the metatables: see ipc_record_open. */
void ipc_vector_open(lua_State *L);

/* Makes the metatable of that key, and true; or puts the one there is on top.
 */
bool ipc_node_type(lua_State *L, const void *key, const char *name,
                   const luaL_Reg *meta);

#endif
