/* Lua values to MessagePack: encoding for channels and for ipc.pack, which is
 * in pack.c. Nothing here runs Lua code while a value is being encoded, so the
 * value cannot change under it. What the bytes look like is in put.h, decoding
 * in unpack.c, whole calls in envelope.c. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdint.h>
#include <string.h>

#include "buffer.h"
#include "encode.h"
#include "msgpack.h"
#include "put.h"
#include "view.h"

const char ipc_rpc_mark[1] = {'m'};

_Static_assert(sizeof(lua_Integer) == 8, "Lua integers of 64 bits");
_Static_assert(sizeof(double) == 8, "IEEE 754 doubles");

enum {
  ENCODE_BATCH = 16,      /* elements on Lua's stack at once */
  ENCODE_SLOTS = 32,      /* of that stack, for one table: a batch and more */
  ENCODE_HOLES = 1 << 24, /* nils that one marked array may add */
  PATH_KEY = 40           /* bytes of a key shown in an error */
};

/* How a table is being walked, which is how errors name its elements. */
enum {
  LIST,   /* by index */
  MAP,    /* by key, which is at table + 1 */
  MAP_KEY /* the same, inside a key that is itself a table */
};

/* --- errors --- */

static void path_key(lua_State *L, luaL_Buffer *b, int key) {
  size_t n;
  const char *s;
  switch (lua_type(L, key)) {
  case LUA_TSTRING: /* as written in Lua; what is not a name is quoted */
    s = lua_tolstring(L, key, &n);
    if (n <= PATH_KEY && n > 0 && !(s[0] >= '0' && s[0] <= '9') &&
        strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"
                  "0123456789") == n) {
      luaL_addchar(b, '.');
      luaL_addlstring(b, s, n);
      return;
    }
    luaL_addstring(b, "[\"");
    for (size_t i = 0; i < n && i < PATH_KEY; i++) {
      int plain = s[i] >= ' ' && s[i] <= '~' && s[i] != '"' && s[i] != '\\';
      luaL_addchar(b, plain ? s[i] : '?');
    }
    luaL_addstring(b, n > PATH_KEY ? "...\"]" : "\"]");
    return;
  case LUA_TNUMBER:
    if (lua_isinteger(L, key))
      lua_pushfstring(L, "[%I]", (LUAI_UACINT)lua_tointeger(L, key));
    else
      lua_pushfstring(L, "[%f]", (LUAI_UACNUMBER)lua_tonumber(L, key));
    break;
  case LUA_TBOOLEAN:
    luaL_addstring(b, lua_toboolean(L, key) ? "[true]" : "[false]");
    return;
  default:
    lua_pushfstring(L, "[%s]", luaL_typename(L, key));
  }
  luaL_addvalue(b);
}

/* Pushes the way to what is inside the first `depth` levels, as in
 * value.jobs[3]. Needs the levels' part of the stack as it is. */
static void path_push(Encode *e, int depth) {
  lua_State *L = e->L;
  luaL_checkstack(L, LUA_MINSTACK, NULL);
  luaL_Buffer b;
  luaL_buffinit(L, &b);
  luaL_addstring(&b, e->root ? e->root : "value");
  if (e->argument) {
    lua_pushfstring(L, " %d", e->argument);
    luaL_addvalue(&b);
  }
  for (int i = 0; i < depth; i++) {
    const Level *v = &e->levels[i];
    if (v->kind == MAP || v->kind == MAP_KEY) {
      path_key(L, &b, v->table + 1);
    } else {
      lua_pushfstring(L, "[%I]", (LUAI_UACINT)v->at);
      luaL_addvalue(&b);
    }
    if (v->kind == MAP_KEY)
      luaL_addstring(&b, " (the key itself)");
  }
  luaL_pushresult(&b);
}

/* Raises the text on top; where somebody named the whole, it is for them to say
 * where that was called. */
static int encode_raise(const Encode *e) {
  if (!e->root) {
    luaL_where(e->L, 1);
    lua_insert(e->L, -2);
    lua_concat(e->L, 2);
  }
  return lua_error(e->L);
}

static int encode_refuse(Encode *e, const char *why) {
  path_push(e, e->depth);
  lua_pushfstring(e->L, "%s: %s", lua_tostring(e->L, -1), why);
  return encode_raise(e);
}

static int encode_refuse_type(Encode *e, int index, int key) {
  lua_State *L = e->L;
  const char *name = luaL_typename(L, index);
  if (luaL_getmetafield(L, index, "__name") == LUA_TSTRING)
    name = lua_tostring(L, -1);
  const char *article = strchr("aeio", name[0]) && name[0] ? "an" : "a";
  path_push(e, e->depth);
  lua_pushfstring(L, "%s: %s %s cannot be packed%s", lua_tostring(L, -1),
                  article, name, key ? " as a key" : "");
  return encode_raise(e);
}

/* Nested too deep: because a table contains itself? Then say which one. */
static int encode_refuse_depth(Encode *e) {
  lua_State *L = e->L;
  for (int to = 1; to < e->depth; to++)
    for (int from = 0; from < to; from++)
      if (lua_rawequal(L, e->levels[to].table, e->levels[from].table)) {
        path_push(e, to);
        path_push(e, from);
        lua_pushfstring(L, "%s: a cycle, back to %s", lua_tostring(L, -2),
                        lua_tostring(L, -1));
        return encode_raise(e);
      }
  path_push(e, 0);
  lua_pushfstring(L, "%s: tables nested deeper than %d", lua_tostring(L, -1),
                  e->most);
  return encode_raise(e);
}

/* --- room --- */

/* Lua has no way to raise its own memory error; this is the same text. */
static int encode_starve(lua_State *L) {
  luaL_error(L, "not enough memory");
  return 0;
}

int ipc_encode_grow(Encode *e, size_t more) {
  if (!e->out)
    return 0;
  size_t used = (size_t)(e->at - e->base);
  if (more > PTRDIFF_MAX - used || ipc_buffer_reserve(e->out, used + more))
    return encode_starve(e->L);
  e->base = e->out->bytes + e->out->size;
  e->at = e->base + used;
  e->end = e->out->bytes + e->out->room;
  return 1;
}

/* --- scalars: all answer 1, or 0 if the room is spent --- */

static int encode_string(Encode *e, int index, int key) {
  size_t n;
  const char *s = lua_tolstring(e->L, index, &n);
  if (ipc_value_too_long(n))
    return encode_refuse(e, "a string longer than 4294967295 bytes");
  if (!encode_room(e, ENCODE_ROOM + n))
    return 0;
  int bin = !key && e->strings != IPC_STRINGS_STR &&
            (e->strings == IPC_STRINGS_BIN || !(ascii(s, n) || utf8(s, n)));
  char *p = bin ? put_bin(e->at, n) : put_str(e->at, n);
  memcpy(p, s, n);
  e->at = p + n;
  return 1;
}

/* Its bytes as they are now. */
static int encode_view(Encode *e, View *v) {
  if (!v->open)
    return encode_refuse(e, "an ipc.view that has ended");
  if (ipc_value_too_long(v->size))
    return encode_refuse(e, "a view longer than 4294967295 bytes");
  if (!encode_room(e, ENCODE_ROOM + v->size))
    return 0;
  char *p = put_bin(e->at, v->size);
  int err = ipc_view_check(v);
  if (!err && v->size) {
    memcpy(p, v->bytes, v->size);
    err = ipc_view_check(v);
  }
  if (err)
    return encode_refuse(e, err == EFAULT ? "an ipc.view whose memory was lost"
                                          : "an ipc.view of what is closed");
  e->at = p + v->size;
  return 1;
}

/* Whether a userdata's metatable has the mark of what travels by reference. */
static bool encode_marks(Encode *e, int index) {
  lua_State *L = e->L;
  if (!lua_getmetatable(L, index))
    return false;
  bool marks = lua_rawgetp(L, -1, ipc_rpc_mark) != LUA_TNIL;
  lua_pop(L, 2);
  return marks;
}

static int encode_userdata(Encode *e, int index, int key) {
  int type;
  size_t n;
  char bytes[PACK_FOREIGN];
  const char *s = ipc_ext_test(e->L, index, &type, &n);
  View *v = s || key ? NULL : ipc_view_test(e->L, index);
  if (v)
    return encode_view(e, v);
  if (!s && e->foreign && !key) {
    type = e->foreign->type;
    n = e->foreign->pack(e->L, index, e->foreign, bytes);
    s = n ? bytes : NULL;
    if (!s && e->foreign->why)
      return encode_refuse(e, e->foreign->why);
  }
  if (!s)
    return encode_refuse_type(e, index, key);
  if (!encode_room(e, ENCODE_ROOM + n))
    return 0;
  char *p = put_ext(e->at, n, type & 0xff);
  memcpy(p, s, n);
  e->at = p + n;
  return 1;
}

static int encode_special(Encode *e, int index) {
  const char *bytes;
  size_t size;
  if (!e->special->pack(e->L, index, e->special, &bytes, &size))
    return 0;
  if (!encode_room(e, ENCODE_ROOM + size))
    return 0;
  e->at = put_ext(e->at, size - 1, (unsigned char)bytes[0]);
  memcpy(e->at, bytes + 1, size - 1);
  e->at += size - 1;
  return 1;
}

static int encode_other(Encode *e, int index, int type, int key) {
  switch (type) {
  case LUA_TBOOLEAN:
    e->at = put_head(e->at, lua_toboolean(e->L, index) ? 0xc3 : 0xc2);
    return 1;
  case LUA_TNIL:
    e->at = put_head(e->at, 0xc0);
    return 1;
  case LUA_TLIGHTUSERDATA:
    if (lua_touserdata(e->L, index))
      return encode_refuse_type(e, index, key);
    if (key)
      return encode_refuse(e, "ipc.null cannot be packed as a key");
    e->at = put_head(e->at, 0xc0);
    return 1;
  case LUA_TUSERDATA:
    if (e->special && !key && encode_marks(e, index))
      return encode_special(e, index);
    return encode_userdata(e, index, key);
  case LUA_TFUNCTION:
    if (e->special && !key)
      return encode_special(e, index);
  /* fall through */
  default:
    return encode_refuse_type(e, index, key);
  }
}

/* Anything but a table. */
static inline int encode_scalar(Encode *e, int index, int type, int key) {
  if (type == LUA_TSTRING)
    return encode_string(e, index, key);
  if (!encode_room(e, ENCODE_ROOM))
    return 0;
  if (type != LUA_TNUMBER)
    return encode_other(e, index, type, key);
  if (lua_isinteger(e->L, index))
    e->at = put_integer(e->at, lua_tointeger(e->L, index));
  else
    e->at = put_float(e->at, lua_tonumber(e->L, index));
  return 1;
}

/* --- tables --- */

/* The length of a table marked as an array. */
static lua_Unsigned array_length(Encode *e, Level *v) {
  lua_State *L = e->L;
  lua_Unsigned items = 0, length = 0;
  v->kind = MAP; /* errors name the key */
  lua_pushnil(L);
  for (; lua_next(L, v->table); lua_pop(L, 1)) {
    lua_Unsigned n;
    if (lua_isinteger(L, -2) && lua_tointeger(L, -2) >= 1) {
      n = (lua_Unsigned)lua_tointeger(L, -2);
      items++;
    } else if (lua_type(L, -2) == LUA_TSTRING && lua_isinteger(L, -1) &&
               lua_tointeger(L, -1) >= 0 &&
               strcmp(lua_tostring(L, -2), "n") == 0) {
      n = (lua_Unsigned)lua_tointeger(L, -1);
    } else {
      encode_refuse(e, "not an index, in a table marked as an array");
      return 0;
    }
    if (n > length)
      length = n;
  }
  v->kind = LIST;
  v->at = length;
  if (length - items > ENCODE_HOLES)
    encode_refuse(e, "too many nils before it");
  v->at = 0;
  return length;
}

static int encode_table(Encode *e);

/* The value on top of the stack. A table leaves something above it for the
 * caller to drop. */
static int encode_value(Encode *e, int type) {
  return type == LUA_TTABLE ? encode_table(e) : encode_scalar(e, -1, type, 0);
}

/* The sixteenth pair of a map has come and is on top of the stack: counts the
 * others and makes room for a longer head. */
static int map_widen(Encode *e, const Level *v) {
  lua_State *L = e->L;
  uint64_t n = 16;
  lua_pushvalue(L, -2);
  for (; lua_next(L, v->table); n++)
    lua_pop(L, 1);
  if (n > UINT32_MAX)
    return encode_refuse(e, "a table of more than 4294967295 pairs");
  if (!encode_room(e, ENCODE_ROOM))
    return 0;
  char *head = e->base + v->head;
  size_t wider = n <= 0xffff ? 2 : 4;
  memmove(head + 1 + wider, head + 1, (size_t)(e->at - head) - 1);
  e->at += wider;
  if (wider == 2)
    put16(put_head(head, 0xde), n);
  else
    put32(put_head(head, 0xdf), n);
  return 1;
}

/* The first pair is on top of the stack. The head is written when it is known
 * how many there are; most maps have less than 16 and need one byte. */
static int encode_map(Encode *e, Level *v) {
  lua_State *L = e->L;
  int key = v->table + 1;
  v->kind = MAP;
  v->at = 0;
  e->at = e->base + v->head + 1;
  do {
    if (++v->at == 16 && !map_widen(e, v))
      return 0;
    int type = lua_type(L, -2);
    if (type == LUA_TTABLE) {
      v->kind = MAP_KEY;
      lua_pushvalue(L, -2);
      if (!encode_table(e))
        return 0;
      lua_settop(L, key + 1);
      v->kind = MAP;
    } else if (!encode_scalar(e, -2, type, 1)) {
      return 0;
    }
    if (!encode_value(e, lua_type(L, -1)))
      return 0;
    lua_settop(L, key);
  } while (lua_next(L, v->table));
  if (v->at < 16)
    e->base[v->head] = (char)(0x80 | (int)v->at);
  return 1;
}

/* It has a hole: begins again. */
static int encode_map_after_all(Encode *e, Level *v) {
  lua_settop(e->L, v->table);
  lua_pushnil(e->L);
  lua_next(e->L, v->table);
  return encode_map(e, v);
}

/* From the end: if any key is no index, the end is missing. */
static int list_has_hole(lua_State *L, const Level *v, lua_Unsigned n) {
  for (; n > v->at; n--) {
    int type = lua_rawgeti(L, v->table, (lua_Integer)n);
    lua_pop(L, 1);
    if (type == LUA_TNIL)
      return 1;
  }
  return 0;
}

/* By index. A table of n pairs that is not marked is a list if it has no hole
 * up to n. All of it is looked at before its first table is written, so that
 * what must be written again as a map is never more than the scalars of one
 * table. Elements stay on the stack for a while: popping each costs more. */
static int encode_list(Encode *e, Level *v, lua_Unsigned n, int marked) {
  lua_State *L = e->L;
  int table = v->table, full = 0;
  v->kind = LIST;
  v->at = 0;
  if (n > UINT32_MAX)
    return encode_refuse(e, "in a table of more than 4294967295 elements");
  e->at = put_array(e->at, n);
  for (lua_Unsigned i = 1; i <= n; i++) {
    if (full)
      lua_settop(L, table);
    int type = lua_rawgeti(L, table, (lua_Integer)i);
    v->at = i;
    if (type == LUA_TNUMBER && lua_isinteger(L, -1)) { /* the most frequent */
      if (!encode_room(e, ENCODE_ROOM))
        return 0;
      e->at = put_integer(e->at, lua_tointeger(L, -1));
    } else if (type == LUA_TTABLE || type == LUA_TNIL) {
      if (!marked && (type == LUA_TNIL || list_has_hole(L, v, n)))
        return encode_map_after_all(e, v);
      marked = 1;
      if (!encode_value(e, type))
        return 0;
    } else if (!encode_scalar(e, -1, type, 0)) {
      return 0;
    }
    full = type == LUA_TTABLE || i % ENCODE_BATCH == 0;
  }
  return 1;
}

/* The table itself is special. */
static int encode_marked(Encode *e, const Level *v) {
  if (e->depth > 1 && v[-1].kind == MAP_KEY) {
    e->depth--;
    return encode_refuse_type(e, v->table, 1);
  }
  return encode_special(e, v->table);
}

/* A table that is marked as no value of this encoding. */
static int encode_stranger(Encode *e, int table) {
  lua_State *L = e->L;
  e->depth--;
  const char *name = "table";
  if (luaL_getmetafield(L, table, "__name") == LUA_TSTRING)
    name = lua_tostring(L, -1);
  path_push(e, e->depth);
  lua_pushfstring(L,
                  "%s: an %s cannot be packed: only calls of "
                  "ipc.rpc know it",
                  lua_tostring(L, -1), name);
  return encode_raise(e);
}

/* As what its mark says, or else its keys: one that is no integer makes it a
 * map, and in most maps the first one is none. */
static int encode_pairs(Encode *e, Level *v) {
  lua_State *L = e->L;
  int mark = IPC_MARK_NONE;
  if (lua_getmetatable(L, v->table)) {
    bool special = lua_rawgetp(L, -1, ipc_rpc_mark) != LUA_TNIL;
    lua_settop(L, v->table);
    if (special)
      return e->special ? encode_marked(e, v) : encode_stranger(e, v->table);
    mark = ipc_mark_test(L, v->table);
  }
  lua_Unsigned n = 0;
  if (mark == IPC_MARK_ARRAY) {
    n = array_length(e, v);
  } else {
    lua_pushnil(L);
    if (!lua_next(L, v->table)) {
      e->at = put_head(e->at, mark == IPC_MARK_MAP ? 0x80 : 0x90);
      return 1;
    }
    if (mark == IPC_MARK_MAP || !lua_isinteger(L, -2))
      return encode_map(e, v);
    do {
      lua_pop(L, 1);
      n++;
    } while (lua_next(L, v->table));
  }
  return encode_list(e, v, n, mark == IPC_MARK_ARRAY);
}

/* The table on top of the stack. */
static int encode_table(Encode *e) {
  if (e->depth == e->most)
    return encode_refuse_depth(e);
  if (!encode_room(e, ENCODE_ROOM))
    return 0;
  Level *v = &e->levels[e->depth++];
  int table = lua_gettop(e->L);
  v->table = table;
  v->head = (size_t)(e->at - e->base);
  if (table + ENCODE_SLOTS > e->slots) {
    if (!lua_checkstack(e->L, 2 * ENCODE_SLOTS))
      return encode_starve(e->L);
    e->slots = table + 2 * ENCODE_SLOTS;
  }
  int good = encode_pairs(e, v);
  e->depth--;
  return good;
}

void ipc_encode_begin(Encode *e, lua_State *L, Buffer *out) {
  e->L = L;
  e->foreign = NULL;
  e->special = NULL;
  e->root = NULL;
  e->argument = 0;
  e->at = e->end = e->base = NULL;
  e->out = out;
  e->strings = IPC_STRINGS_AUTO;
  e->slots = 0;
  e->depth = 0;
  e->most = ENCODE_DEPTH;
  e->levels = e->few;
  if (out && out->bytes) {
    e->at = e->base = out->bytes + out->size;
    e->end = out->bytes + out->room;
  }
}

int ipc_encode_index(Encode *e, int index) {
  int type = lua_type(e->L, index);
  if (type != LUA_TTABLE)
    return encode_scalar(e, index, type, 0);
  int top = lua_gettop(e->L);
  lua_pushvalue(e->L, index);
  if (!encode_table(e))
    return 0;
  lua_settop(e->L, top);
  return 1;
}

void ipc_encode_end(Encode *e) { e->out->size += (size_t)(e->at - e->base); }

void ipc_encode(lua_State *L, Buffer *out, int strings, PackForeign *f) {
  Encode e;
  ipc_encode_begin(&e, L, out);
  e.strings = strings;
  e.foreign = f;
  encode_value(&e, lua_type(L, -1)); /* never short of room: out grows */
  ipc_encode_end(&e);
}

size_t ipc_encode_at(lua_State *L, char *bytes, size_t room, int strings) {
  Encode e;
  ipc_encode_begin(&e, L, NULL);
  e.strings = strings;
  e.at = e.base = bytes;
  e.end = bytes + room;
  return encode_value(&e, lua_type(L, -1)) ? (size_t)(e.at - e.base) : 0;
}

void ipc_value_encode_with(lua_State *L, int index, Buffer *out,
                           PackForeign *f) {
  int top = lua_gettop(L);
  luaL_checkstack(L, LUA_MINSTACK, NULL);
  lua_pushvalue(L, index);
  ipc_encode(L, out, IPC_STRINGS_AUTO, f);
  lua_settop(L, top);
}

void ipc_value_encode(lua_State *L, int index, Buffer *out) {
  ipc_value_encode_with(L, index, out, NULL);
}

size_t ipc_value_encode_at(lua_State *L, int index, char *bytes, size_t room) {
  int top = lua_gettop(L);
  luaL_checkstack(L, LUA_MINSTACK, NULL);
  lua_pushvalue(L, index);
  size_t size = ipc_encode_at(L, bytes, room, IPC_STRINGS_AUTO);
  lua_settop(L, top);
  return size;
}
