/* Lua values to MessagePack: ipc.pack, and encoding for channels. Nothing here
 * runs Lua code while a value is being encoded, so the value cannot change
 * under it. Decoding is in unpack.c. */

/***
 * @submodule ipc.values
 */
#include "prefix.h"

#include <lauxlib.h>
#include <lua.h>
#include <stdint.h>
#include <string.h>

#include "buffer.h"
#include "msgpack.h"

_Static_assert(sizeof(lua_Integer) == 8, "Lua integers of 64 bits");
_Static_assert(sizeof(double) == 8, "IEEE 754 doubles");

enum {
  PACK_DEPTH = 64,
  PACK_ROOM = 16,        /* more than any number or head takes */
  PACK_BATCH = 16,       /* elements on Lua's stack at once */
  PACK_HOLES = 1 << 24,  /* nils that one marked array may add */
  PACK_KEEP = 64 * 1024, /* bytes of scratch kept between calls */
  PATH_KEY = 40          /* bytes of a key shown in an error */
};

enum { STRINGS_AUTO, STRINGS_STR, STRINGS_BIN };

enum {
  LIST_MAYBE, /* by index; has as many keys as elements, holes not ruled out */
  LIST,       /* by index */
  MAP,        /* by lua_next; the key is at table + 1 */
  MAP_KEY     /* the same, inside a key that is itself a table */
};

/* A table being encoded. */
typedef struct Level {
  int table;           /* its stack index */
  int kind;            /* LIST_MAYBE ... */
  lua_Unsigned at;     /* LIST: elements begun; MAP: pairs begun */
  lua_Unsigned length; /* LIST: all elements */
  size_t head;         /* where its head is, counted from Encode.base */
  int empty;           /* the head it gets if it has no elements */
} Level;

typedef struct Encode {
  lua_State *L;
  char *at, *end; /* the next byte, and the end of the room */
  char *base;     /* where the encoding began */
  Buffer *out;    /* grows; NULL: the room is all there is */
  int strings;
  int depth; /* levels in use */
  Level levels[PACK_DEPTH];
} Encode;

/* --- bytes --- */

static char *put16(char *p, uint64_t v) {
  p[0] = (char)(v >> 8);
  p[1] = (char)v;
  return p + 2;
}

static char *put32(char *p, uint64_t v) {
  return put16(put16(p, v >> 16), v & 0xffff);
}

static char *put64(char *p, uint64_t v) {
  return put32(put32(p, v >> 32), v & 0xffffffff);
}

static char *put_head(char *p, int type) {
  *p = (char)type;
  return p + 1;
}

static char *put_integer(char *p, lua_Integer v) {
  uint64_t u = (uint64_t)v;
  if (v >= -32 && v <= 0x7f)
    return put_head(p, (int)(u & 0xff));
  if (v >= 0) {
    if (v <= 0xff)
      return put_head(put_head(p, 0xcc), (int)u);
    if (v <= 0xffff)
      return put16(put_head(p, 0xcd), u);
    if (v <= 0xffffffff)
      return put32(put_head(p, 0xce), u);
    return put64(put_head(p, 0xcf), u);
  }
  if (v >= INT8_MIN)
    return put_head(put_head(p, 0xd0), (int)(u & 0xff));
  if (v >= INT16_MIN)
    return put16(put_head(p, 0xd1), u);
  if (v >= INT32_MIN)
    return put32(put_head(p, 0xd2), u);
  return put64(put_head(p, 0xd3), u);
}

static char *put_float(char *p, lua_Number v) {
  double d = (double)v;
  uint64_t u;
  memcpy(&u, &d, sizeof u);
  return put64(put_head(p, 0xcb), u);
}

static char *put_str(char *p, size_t n) {
  if (n < 32)
    return put_head(p, 0xa0 | (int)n);
  if (n <= 0xff)
    return put_head(put_head(p, 0xd9), (int)n);
  if (n <= 0xffff)
    return put16(put_head(p, 0xda), n);
  return put32(put_head(p, 0xdb), n);
}

static char *put_bin(char *p, size_t n) {
  if (n <= 0xff)
    return put_head(put_head(p, 0xc4), (int)n);
  if (n <= 0xffff)
    return put16(put_head(p, 0xc5), n);
  return put32(put_head(p, 0xc6), n);
}

static char *put_ext(char *p, size_t n, int type) {
  if (n == 1 || n == 2 || n == 4 || n == 8 || n == 16)
    p = put_head(p, n == 1   ? 0xd4
                    : n == 2 ? 0xd5
                    : n == 4 ? 0xd6
                    : n == 8 ? 0xd7
                             : 0xd8);
  else if (n <= 0xff)
    p = put_head(put_head(p, 0xc7), (int)n);
  else if (n <= 0xffff)
    p = put16(put_head(p, 0xc8), n);
  else
    p = put32(put_head(p, 0xc9), n);
  return put_head(p, type);
}

static char *put_array(char *p, uint64_t n) {
  if (n < 16)
    return put_head(p, 0x90 | (int)n);
  if (n <= 0xffff)
    return put16(put_head(p, 0xdc), n);
  return put32(put_head(p, 0xdd), n);
}

/* Is it UTF-8 as RFC 3629 has it: shortest forms, no surrogates, up to
 * U+10FFFF? */
static int utf8_valid(const char *string, size_t n) {
  const unsigned char *s = (const unsigned char *)string;
  const unsigned char *end = s + n;
  while (s < end) {
    uint64_t eight;
    if (end - s >= (ptrdiff_t)sizeof eight) {
      memcpy(&eight, s, sizeof eight);
      if (!(eight & 0x8080808080808080)) {
        s += sizeof eight;
        continue;
      }
    }
    unsigned c = *s++;
    if (c < 0x80)
      continue;
    int more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
    if (c < 0xc2 || c > 0xf4 || end - s < more)
      return 0;
    unsigned low = 0x80, high = 0xbf; /* of the second byte */
    if (c == 0xe0)
      low = 0xa0;
    else if (c == 0xed)
      high = 0x9f;
    else if (c == 0xf0)
      low = 0x90;
    else if (c == 0xf4)
      high = 0x8f;
    if (*s < low || *s > high)
      return 0;
    for (s++; more > 1; more--, s++)
      if ((*s & 0xc0) != 0x80)
        return 0;
  }
  return 1;
}

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
  luaL_addstring(&b, "value");
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

static int encode_refuse(Encode *e, const char *why) {
  path_push(e, e->depth);
  luaL_error(e->L, "%s: %s", lua_tostring(e->L, -1), why);
  return 0;
}

static int encode_refuse_type(Encode *e, int index, int key) {
  lua_State *L = e->L;
  const char *name = luaL_typename(L, index);
  if (luaL_getmetafield(L, index, "__name") == LUA_TSTRING)
    name = lua_tostring(L, -1);
  const char *article = strchr("aeio", name[0]) && name[0] ? "an" : "a";
  path_push(e, e->depth);
  luaL_error(L, "%s: %s %s cannot be packed%s", lua_tostring(L, -1), article,
             name, key ? " as a key" : "");
  return 0;
}

/* Nested too deep: because a table contains itself? Then say which one. */
static int encode_refuse_depth(Encode *e) {
  lua_State *L = e->L;
  for (int to = 1; to < e->depth; to++)
    for (int from = 0; from < to; from++)
      if (lua_rawequal(L, e->levels[to].table, e->levels[from].table)) {
        path_push(e, to);
        path_push(e, from);
        luaL_error(L, "%s: a cycle, back to %s", lua_tostring(L, -2),
                   lua_tostring(L, -1));
        return 0;
      }
  luaL_error(L, "value: tables nested deeper than %d", PACK_DEPTH);
  return 0;
}

/* --- room --- */

/* Lua has no way to raise its own memory error; this is the same text. */
static int encode_starve(lua_State *L) {
  luaL_error(L, "not enough memory");
  return 0;
}

/* 1, or 0 if the room is fixed and spent. */
static int encode_grow(Encode *e, size_t more) {
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

static int encode_room(Encode *e, size_t more) {
  return (size_t)(e->end - e->at) >= more || encode_grow(e, more);
}

/* --- scalars: all answer 1, or 0 if the room is spent --- */

static int encode_string(Encode *e, int index, int key) {
  size_t n;
  const char *s = lua_tolstring(e->L, index, &n);
  if (ipc_value_too_long(n))
    return encode_refuse(e, "a string longer than 4294967295 bytes");
  if (!encode_room(e, PACK_ROOM + n))
    return 0;
  int bin = !key && e->strings != STRINGS_STR &&
            (e->strings == STRINGS_BIN || !utf8_valid(s, n));
  char *p = bin ? put_bin(e->at, n) : put_str(e->at, n);
  memcpy(p, s, n);
  e->at = p + n;
  return 1;
}

static int encode_userdata(Encode *e, int index, int key) {
  int type;
  size_t n;
  const char *s = ipc_ext_test(e->L, index, &type, &n);
  if (!s)
    return encode_refuse_type(e, index, key);
  if (!encode_room(e, PACK_ROOM + n))
    return 0;
  char *p = put_ext(e->at, n, type & 0xff);
  memcpy(p, s, n);
  e->at = p + n;
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
    return encode_userdata(e, index, key);
  default:
    return encode_refuse_type(e, index, key);
  }
}

/* Anything but a table. */
static inline int encode_scalar(Encode *e, int index, int type, int key) {
  if (type == LUA_TSTRING)
    return encode_string(e, index, key);
  if (!encode_room(e, PACK_ROOM))
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

/* Counts the pairs after the key on top of the stack, popping it. */
static lua_Unsigned pairs_after(lua_State *L, int table) {
  lua_Unsigned n = 0;
  for (; lua_next(L, table); n++)
    lua_pop(L, 1);
  return n;
}

/* Has the table exactly n pairs? Then it is a list if it has no holes up to n.
 */
static int pairs_are(lua_State *L, int table, lua_Unsigned n) {
  lua_Unsigned seen = 0;
  lua_pushnil(L);
  while (lua_next(L, table)) {
    if (++seen > n) {
      lua_settop(L, table);
      return 0;
    }
    lua_pop(L, 1);
  }
  return seen == n;
}

static int list_has_holes(lua_State *L, const Level *v) {
  for (lua_Unsigned i = v->at + 1; i <= v->length; i++) {
    int type = lua_rawgeti(L, v->table, (lua_Integer)i);
    lua_pop(L, 1);
    if (type == LUA_TNIL)
      return 1;
  }
  return 0;
}

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
  if (length - items > PACK_HOLES)
    encode_refuse(e, "too many nils before it");
  v->at = 0;
  return length;
}

/* Starts or restarts a table as a map. The head is written when its size is
 * known; most have less than 16 pairs and need one byte. */
static void map_begin(Encode *e, Level *v) {
  e->at = e->base + v->head + 1;
  v->kind = MAP;
  v->at = 0;
  lua_pushnil(e->L);
}

/* The sixteenth pair has come, its key and value on top of the stack: counts
 * the others and makes room for a longer head. */
static int map_widen(Encode *e, Level *v) {
  lua_pushvalue(e->L, -2);
  uint64_t n = 16 + pairs_after(e->L, v->table);
  if (n > UINT32_MAX)
    return encode_refuse(e, "a table of more than 4294967295 pairs");
  if (!encode_room(e, PACK_ROOM))
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

static void map_end(Encode *e, const Level *v) {
  if (v->at < 16)
    e->base[v->head] = (char)(v->at ? 0x80 | (int)v->at : v->empty);
}

/* Begins the table on top of the stack as what its mark and its keys say. */
static int table_open(Encode *e) {
  lua_State *L = e->L;
  if (e->depth == PACK_DEPTH)
    return encode_refuse_depth(e);
  if (!lua_checkstack(L, PACK_BATCH + LUA_MINSTACK))
    return encode_starve(L);
  if (!encode_room(e, PACK_ROOM))
    return 0;
  Level *v = &e->levels[e->depth++];
  v->table = lua_gettop(L);
  v->head = (size_t)(e->at - e->base);
  v->at = 0;
  v->empty = 0x90;
  int mark = ipc_mark_test(L, v->table);
  if (mark == IPC_MARK_ARRAY) {
    v->length = array_length(e, v);
  } else {
    v->length = mark == IPC_MARK_MAP ? 0 : lua_rawlen(L, v->table);
    v->kind = LIST_MAYBE;
    if (mark == IPC_MARK_MAP)
      v->empty = 0x80;
    if (v->length == 0 || !pairs_are(L, v->table, v->length)) {
      map_begin(e, v);
      return 1;
    }
  }
  if (v->length > UINT32_MAX)
    return encode_refuse(e, "in a table of more than 4294967295 elements");
  e->at = put_array(e->at, v->length);
  return 1;
}

enum { STEP_SPENT, STEP_DOWN, STEP_DONE };

static int map_step(Encode *e, Level *v) {
  lua_State *L = e->L;
  for (;;) {
    int type;
    if (v->kind == MAP_KEY) { /* back from the key; its value is on top */
      v->kind = MAP;
      type = lua_type(L, -1);
    } else {
      if (!lua_next(L, v->table))
        break;
      if (++v->at == 16 && !map_widen(e, v))
        return STEP_SPENT;
      type = lua_type(L, -2);
      if (type == LUA_TTABLE) {
        v->kind = MAP_KEY;
        lua_pushvalue(L, -2);
        return STEP_DOWN;
      }
      if (!encode_scalar(e, -2, type, 1))
        return STEP_SPENT;
      type = lua_type(L, -1);
    }
    if (type == LUA_TTABLE)
      return STEP_DOWN;
    if (!encode_scalar(e, -1, type, 0))
      return STEP_SPENT;
    lua_pop(L, 1);
  }
  map_end(e, v);
  return STEP_DONE;
}

/* Writes scalars until an element is a table (pushed: DOWN) or there are no
 * more (DONE). A hole is found before the first table goes down, so that what
 * has to be written again as a map is never more than the scalars of one table.
 */
static int list_step(Encode *e, Level *v) {
  lua_State *L = e->L;
  int pushed = 0;
  while (v->at < v->length) {
    if (pushed++ == PACK_BATCH) { /* popping them one by one costs more */
      lua_settop(L, v->table);
      pushed = 1;
    }
    int type = lua_rawgeti(L, v->table, (lua_Integer)++v->at);
    if (v->kind == LIST_MAYBE && (type == LUA_TNIL || type == LUA_TTABLE)) {
      if (type == LUA_TNIL || list_has_holes(L, v)) {
        lua_settop(L, v->table);
        map_begin(e, v);
        return map_step(e, v);
      }
      v->kind = LIST;
    }
    if (type == LUA_TTABLE)
      return STEP_DOWN;
    if (!encode_scalar(e, -1, type, 0))
      return STEP_SPENT;
  }
  return STEP_DONE;
}

/* Encodes the value on top of the stack and pops it. 1, or 0 if the room is
 * spent. */
static int encode_value(Encode *e) {
  lua_State *L = e->L;
  int type = lua_type(L, -1);
  if (type != LUA_TTABLE) {
    if (!encode_scalar(e, -1, type, 0))
      return 0;
    lua_pop(L, 1);
    return 1;
  }
  int step = STEP_DOWN;
  do {
    if (step == STEP_DOWN && !table_open(e))
      return 0;
    Level *v = &e->levels[e->depth - 1];
    step = v->kind <= LIST ? list_step(e, v) : map_step(e, v);
    if (step == STEP_SPENT)
      return 0;
    if (step == STEP_DONE) {
      int top = v->table - 1;
      if (--e->depth > 0 && e->levels[e->depth - 1].kind <= LIST)
        top = e->levels[e->depth - 1].table; /* and what its batch left */
      lua_settop(L, top);
    }
  } while (e->depth > 0);
  return 1;
}

static void encode_begin(Encode *e, lua_State *L, Buffer *out, int strings) {
  e->L = L;
  e->at = e->end = e->base = NULL;
  e->out = out;
  e->strings = strings;
  e->depth = 0;
}

/* Both encode the value on top of the stack and pop it. */
static void encode_to(lua_State *L, Buffer *out, int strings) {
  Encode e;
  encode_begin(&e, L, out, strings);
  encode_grow(&e, PACK_ROOM);
  if (!encode_value(&e))
    luaL_error(L, "not enough memory");
  out->size += (size_t)(e.at - e.base);
}

static size_t encode_at(lua_State *L, char *bytes, size_t room, int strings) {
  int top = lua_gettop(L) - 1;
  Encode e;
  encode_begin(&e, L, NULL, strings);
  e.at = e.base = bytes;
  e.end = bytes + room;
  size_t size = encode_value(&e) ? (size_t)(e.at - e.base) : 0;
  lua_settop(L, top);
  return size;
}

void ipc_value_encode(lua_State *L, int index, Buffer *out) {
  luaL_checkstack(L, LUA_MINSTACK, NULL);
  lua_pushvalue(L, index);
  encode_to(L, out, STRINGS_AUTO);
}

size_t ipc_value_encode_at(lua_State *L, int index, char *bytes, size_t room) {
  luaL_checkstack(L, LUA_MINSTACK, NULL);
  lua_pushvalue(L, index);
  return encode_at(L, bytes, room, STRINGS_AUTO);
}

/* --- ipc.pack --- */

/* Bytes of C memory that pack uses again and again. */
typedef struct Scratch {
  int open;
  Buffer buffer;
} Scratch;

static int scratch_gc(lua_State *L) {
  Scratch *s = lua_touserdata(L, 1);
  s->open = 0;
  ipc_buffer_free(&s->buffer);
  return 0;
}

/* The state is closing and the scratch already gone: C memory would have no
 * owner now, so Lua's is used, doubled until the value fits. */
static int pack_closing(lua_State *L, int strings) {
  for (size_t room = 1024;; room *= 2) {
    if (room > PTRDIFF_MAX / 2)
      return luaL_error(L, "not enough memory");
    char *bytes = lua_newuserdatauv(L, room, 0);
    lua_pushvalue(L, 1);
    size_t size = encode_at(L, bytes, room, strings);
    if (size) {
      lua_pushlstring(L, bytes, size);
      return 1;
    }
    lua_pop(L, 1);
  }
}

static int pack_options(lua_State *L) {
  int strings = STRINGS_AUTO;
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_settop(L, 2);
  lua_pushnil(L);
  for (; lua_next(L, 2); lua_pop(L, 1)) {
    const char *name = luaL_tolstring(L, -2, NULL);
    const char *choice =
        lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "";
    if (lua_type(L, -3) != LUA_TSTRING || strcmp(name, "strings") != 0)
      luaL_argerror(L, 2, lua_pushfstring(L, "unknown option '%s'", name));
    if (strcmp(choice, "str") == 0)
      strings = STRINGS_STR;
    else if (strcmp(choice, "bin") == 0)
      strings = STRINGS_BIN;
    else
      luaL_argerror(L, 2, "option 'strings' is \"str\" or \"bin\"");
    lua_pop(L, 1);
  }
  return strings;
}

/*** The bytes of a value.
 *
 * Raises on what has no place in them (functions, threads, foreign userdata,
 * cycles, tables nested deeper than 64), naming the way there:
 * `value.jobs[3].callback: a function cannot be packed`.
 *
 * @function pack
 * @param value anything listed above, nil too
 * @param[opt] options a table: `strings = "str"` packs every string as str,
 * `strings = "bin"` every string that is not a key as bin; by default what is
 * valid UTF-8 is str and the rest bin
 * @return a string
 * @usage ipc.pack { 0, 17, "add", { 1, 2 } }
 */
static int pack_pack(lua_State *L) {
  int strings = STRINGS_AUTO;
  if (lua_gettop(L) != 1) {
    luaL_checkany(L, 1);
    if (!lua_isnoneornil(L, 2))
      strings = pack_options(L);
    lua_settop(L, 1);
  }
  Scratch *s = lua_touserdata(L, lua_upvalueindex(1));
  if (!s->open)
    return pack_closing(L, strings);
  s->buffer.size = 0;
  encode_to(L, &s->buffer, strings);
  lua_pushlstring(L, s->buffer.bytes, s->buffer.size);
  if (s->buffer.room > PACK_KEEP)
    ipc_buffer_free(&s->buffer);
  return 1;
}

void ipc_pack_open(lua_State *L) {
  Scratch *s = lua_newuserdatauv(L, sizeof *s, 0);
  *s = (Scratch){1, {NULL, 0, 0}};
  lua_createtable(L, 0, 1);
  lua_pushcfunction(L, scratch_gc);
  lua_setfield(L, -2, "__gc");
  lua_setmetatable(L, -2);
  lua_pushcclosure(L, pack_pack, 1);
  lua_setfield(L, -2, "pack");
}
