/* What a record and an array of them share: their bytes, read and written with
 * all that may run Lua or raise before the bytes are asked for; from then on
 * until they are copied nothing does. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <string.h>

#include "fields.h"
#include "ipc.h"
#include "node.h"
#include "record.h"
#include "versioned.h"
#include "view.h"

enum { NODE_RETRIES = 1 << 14 /* of a versioned store that is overtaken */ };

const char ipc_record_key = 0, ipc_vector_key = 0, ipc_weak_key = 0;

/* ---------------------------------------------------------- into the bytes */

int ipc_node_check(const Node *n) {
  int err = ipc_view_check(n->view);
  if (!err && n->end > n->view->size)
    err = EFAULT;
  return err;
}

static const char *node_type(const Node *n) {
  return n->magic == &ipc_vector_key ? "ipc.vector" : "ipc.record";
}

int ipc_node_fail(lua_State *L, const Node *n, const char *call, int err) {
  ipc_view_alive(L, n->view);
  return ipc_fail(L, node_type(n), call, err,
                  err == ECHILD   ? "it belongs to the process that forked"
                  : err == EFAULT ? "the memory was lost"
                  : err == EAGAIN ? "others overwrite it all the time"
                  : err == EBADMSG
                      ? "its bytes are of no store: store all fields"
                      : NULL);
}

int ipc_node_raise(lua_State *L, const Node *n, const char *call, int err) {
  ipc_node_fail(L, n, call, err);
  return ipc_raise(L);
}

static void node_writable(lua_State *L, const Node *n) {
  if (!n->view->writable)
    luaL_error(L, "%s: these bytes are only to be read", node_type(n));
}

/* Copies `size` bytes from `offset` of the node on: of a versioned record, of
 * one moment. */
static int node_read(const Node *n, size_t offset, size_t size, char *to,
                     uint32_t *ticket) {
  int err = node_check(n);
  if (err)
    return err;
  if (n->whole)
    err = ipc_versioned_load(node_bytes(n), n->whole->size,
                             (uint32_t)(n->inner + offset), (uint32_t)size, to,
                             ticket);
  else
    memcpy(to, node_bytes(n) + offset, size);
  int lost = node_recheck(n);
  return lost ? lost : err;
}

/* A buffer of `size` bytes: `local`, which has NODE_SHORT, or one that is
 * pushed. */
static char *node_buffer(lua_State *L, size_t size, char *local) {
  return size <= NODE_SHORT ? local : lua_newuserdatauv(L, size, 0);
}

/* ----------------------------------------------------------------- reading */

int ipc_node_push(lua_State *L, const Node *n, const Type *t, size_t offset) {
  Value v = {.integer = 0};
  uint32_t ticket;
  char local[NODE_SHORT];
  bool direct = t->code == CODE_BYTES && !n->whole && t->size > NODE_SHORT;
  if (direct) {
    int err = ipc_node_check(n);
    return err ? err : ipc_view_push(L, n->view, n->place + offset, t->size);
  }
  char *bytes = node_buffer(L, t->size, local);
  int err = node_read(n, offset, t->size, bytes, &ticket);
  if (err)
    return err;
  layout_get(t, bytes, &v);
  ipc_value_push(L, t, &v);
  return 0;
}

int ipc_node_get(lua_State *L, const Node *n, const Type *t, size_t offset) {
  int err = ipc_node_push(L, n, t, offset);
  return err ? ipc_node_raise(L, n, "index", err) : 1;
}

Node *ipc_node_new(lua_State *L, const void *magic, bool parent) {
  Node *n =
      lua_newuserdatauv(L, sizeof *n, parent ? NODE_CHILDREN : NODE_STRUCT);
  *n = (Node){.magic = magic};
  lua_insert(L, -3);
  lua_setiuservalue(L, -3, NODE_STRUCT);
  lua_setiuservalue(L, -2, NODE_BYTES);
  lua_rawgetp(L, LUA_REGISTRYINDEX, magic);
  lua_setmetatable(L, -2);
  return n;
}

Node ipc_node_element(const Node *n, size_t i, size_t *offset) {
  Node element = *n;
  *offset = (i - 1) * n->type->size;
  if (n->type->layout->versioned) {
    element.whole = n->type->layout;
    element.place += *offset;
    *offset = 0;
  }
  return element;
}

/* Pushes the ipc.struct of a layout that is in that of the node at `self`; or
 * that itself, if there is no layout. */
static void node_struct(lua_State *L, int self, const Layout *s) {
  lua_getiuservalue(L, self, NODE_STRUCT);
  if (!s || ipc_layout_at(L, -1) == s)
    return;
  lua_getiuservalue(L, -1, IPC_UV_NAMES);
  lua_rawgetp(L, -1, s);
  lua_replace(L, -3);
  lua_pop(L, 1);
}

void ipc_node_memory(lua_State *L) {
  if (node_at(L, -1, &ipc_record_key) || node_at(L, -1, &ipc_vector_key)) {
    lua_getiuservalue(L, -1, NODE_BYTES);
    lua_replace(L, -2);
  }
  const View *v = ipc_view_test(L, -1);
  if (v && v->parent) {
    lua_getiuservalue(L, -1, 1);
    lua_replace(L, -2);
  }
}

static bool layout_nests(const Layout *s) {
  for (uint32_t i = 0; i < s->count; i++)
    if (s->fields[i].count || s->fields[i].type.layout)
      return true;
  return false;
}

int ipc_node_child(lua_State *L, const Node *n, const Type *t, uint32_t count,
                   size_t offset, lua_Integer key) {
  if (lua_getiuservalue(L, 1, NODE_CHILDREN) != LUA_TTABLE) {
    lua_pop(L, 1);
    lua_newtable(L);
    lua_rawgetp(L, LUA_REGISTRYINDEX, &ipc_weak_key);
    lua_setmetatable(L, -2);
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, 1, NODE_CHILDREN);
  }
  lua_getiuservalue(L, 1, NODE_BYTES);
  node_struct(L, 1, count ? NULL : t->layout); /* where *c->type is */
  bool parent = count ? t->layout != NULL : layout_nests(t->layout);
  Node *c = ipc_node_new(L, count ? &ipc_vector_key : &ipc_record_key, parent);
  c->view = n->view;
  c->type = count ? t : &t->layout->self;
  c->whole = n->whole;
  c->place = n->place;
  c->count = count;
  c->end = n->end;
  if (c->whole) {
    c->inner = n->inner + offset;
  } else {
    c->place += offset;
    c->end = c->place + (size_t)t->size * (count ? count : 1);
    if (!count && t->layout->versioned)
      c->whole = t->layout;
  }
  lua_pushvalue(L, -1);
  lua_rawseti(L, -3, key);
  return 1;
}

static size_t type_bytes(const Type *t, uint32_t count) {
  size_t size = t->layout ? (size_t)t->layout->size : t->size;
  return size * (count ? count : 1);
}

int ipc_node_table(lua_State *L, const Node *n, const Type *t, uint32_t count,
                   size_t offset, int into) {
  char local[NODE_SHORT];
  uint32_t ticket = 0;
  size_t size = type_bytes(t, count);
  int self = lua_gettop(L);
  if (!lua_isnoneornil(L, into))
    luaL_checktype(L, into, LUA_TTABLE);
  char *bytes = node_buffer(L, size, local);
  int err = node_read(n, offset, size, bytes, &ticket);
  if (err)
    return ipc_node_fail(L, n, "load", err);
  node_struct(L, self, t->layout);
  lua_getiuservalue(L, -1, IPC_UV_NAMES);
  ipc_fields_push(L, lua_gettop(L), t, count, bytes,
                  lua_isnoneornil(L, into) ? 0 : into);
  if (!n->whole)
    return 1;
  lua_pushinteger(L, ticket);
  return 2;
}

/* ----------------------------------------------------------------- writing */

/* What a versioned record is to have: `size` bytes; or values noted in `runs`;
 * or those of the table in slot `table`. The first that there is. */
typedef struct Change {
  const char *bytes;
  size_t size;
  const Runs *runs;
  int table;
  const Type *type;
  uint32_t count;
  bool all; /* it is all of the record: what it was does not matter */
} Change;

static void change_make(lua_State *L, const Change *c, char *to) {
  Target target = {to, NULL, NULL};
  if (c->bytes)
    memcpy(to, c->bytes, c->size);
  else if (c->runs)
    ipc_fields_move(c->runs, to);
  else
    ipc_fields_put(L, c->table, c->type, c->count, target, NULL);
}

/* A store of the whole record, as it is, with these changed. May push a
 * buffer. */
static int node_change(lua_State *L, const Node *n, size_t offset,
                       const Change *c) {
  char local[NODE_SHORT];
  uint32_t size = n->whole->size, ticket;
  char *bytes = node_buffer(L, size, local);
  int err = EAGAIN;
  for (uint32_t i = 0; err == EAGAIN && i < NODE_RETRIES; i++) {
    err = node_check(n);
    if (err)
      break;
    bool hurry = i % 16 == 15; /* others never leave it alone */
    uint64_t word = ipc_versioned_await(node_bytes(n), size, hurry);
    ticket = (uint32_t)word;
    if (c->all)
      memset(bytes, 0, size);
    else
      err = ipc_versioned_load(node_bytes(n), size, 0, size, bytes, &ticket);
    if (err)
      break;
    if (ticket != (uint32_t)word) {
      err = EAGAIN;
      continue;
    }
    change_make(L, c, bytes + n->inner + offset);
    err = ipc_versioned_store(node_bytes(n), size, bytes, word);
  }
  int lost = node_recheck(n);
  return lost ? lost : err;
}

/* Bytes that nobody else changes, over `size` of the node's. */
static int node_write(lua_State *L, const Node *n, size_t offset,
                      const char *bytes, size_t size) {
  if (n->whole) {
    Change c = {.bytes = bytes, .size = size};
    c.all = size == n->whole->size;
    return node_change(L, n, offset, &c);
  }
  int err = node_check(n);
  if (err)
    return err;
  memcpy(node_bytes(n) + offset, bytes, size);
  return node_recheck(n);
}

/* What the table in slot 3 has of a record or an array. */
static int node_put_table(lua_State *L, const Node *n, const Type *t,
                          uint32_t count, size_t offset, const Path *path) {
  char local[NODE_SHORT];
  Runs runs;
  runs.block = local;
  runs.count = 0;
  runs.over = false;
  bool small = type_bytes(t, count) <= NODE_SHORT;
  size_t filled = 0;
  Target first = {small ? local : NULL, small ? &runs : NULL, &filled};
  ipc_fields_put(L, 3, t, count, first, path);
  small = small && !runs.over;
  if (n->whole) {
    Change c = {.runs = small ? &runs : NULL, .table = 3, .type = t};
    c.count = count;
    c.all = filled == n->whole->filled;
    return node_change(L, n, offset, &c);
  }
  int err = node_check(n);
  if (err)
    return err;
  Target second = {node_bytes(n) + offset, NULL, NULL};
  if (small)
    ipc_fields_move(&runs, second.to);
  else
    ipc_fields_put(L, 3, t, count, second, path);
  return node_recheck(n);
}

static bool type_same(const Type *a, const Type *b) {
  if (a->layout || b->layout)
    return a->layout == b->layout;
  return a->code == b->code && a->size == b->size && a->swapped == b->swapped &&
         a->is_signed == b->is_signed;
}

/* What another view in slot 3 has, which is of the same struct; -1: it is
 * none. */
static int node_put_node(lua_State *L, const Node *n, const Type *t,
                         uint32_t count, size_t offset) {
  const Node *from = node_at(L, 3, count ? &ipc_vector_key : &ipc_record_key);
  if (!from || from->count != count || !type_same(from->type, t))
    return -1;
  char local[NODE_SHORT];
  uint32_t ticket;
  size_t size = type_bytes(t, count);
  char *bytes = node_buffer(L, size, local);
  int err = node_read(from, 0, size, bytes, &ticket);
  return err ? err : node_write(L, n, offset, bytes, size);
}

int ipc_node_put(lua_State *L, const Node *n, const Type *t, uint32_t count,
                 size_t offset, const Path *path) {
  node_writable(L, n);
  int err = -1;
  if (lua_type(L, 3) == LUA_TUSERDATA)
    err = node_put_node(L, n, t, count, offset);
  return err >= 0 ? err : node_put_table(L, n, t, count, offset, path);
}

/* A single value into a versioned record. */
static int node_set_whole(lua_State *L, const Node *n, const Type *t,
                          size_t offset, const Value *v) {
  char local[NODE_SHORT], *bytes = node_buffer(L, t->size, local);
  layout_put(t, bytes, v);
  return node_write(L, n, offset, bytes, t->size);
}

int ipc_node_set(lua_State *L, const Node *n, const Type *t, size_t offset,
                 const Path *path) {
  Value v = {.integer = 0};
  if (!ipc_value_take(L, 3, t, &v))
    return ipc_value_refuse(L, 3, t, path);
  node_writable(L, n);
  if (n->whole)
    return node_set_whole(L, n, t, offset, &v);
  int err = node_check(n);
  if (err)
    return err;
  layout_put(t, node_bytes(n) + offset, &v);
  return node_recheck(n);
}
