/* Values at an offset, by the formats of string.pack. Those of numbers only are
 * done here, without a string and without a protected call; all others, and
 * whatever is wrong with a call, are string.pack's own. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <limits.h>
#include <lua.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "view.h"

/***
 * @submodule ipc.bytes
 */

enum {
  FORMAT_ALIGN = 16,  /* the largest that string.pack knows */
  FORMAT_FIRST = 256, /* bytes that a format of unknown size is tried on */
  FORMAT_ITEMS = 32   /* of a format that is done here */
};

/* ------------------------------------------------------- numbers, done here */

typedef enum ItemKind {
  KIND_SIGNED,
  KIND_UNSIGNED,
  KIND_FLOAT,
  KIND_DOUBLE,
  KIND_NUMBER,
  KIND_PAD
} ItemKind;

typedef struct Item {
  uint8_t kind;
  uint8_t size; /* bytes, at most 8 */
  bool swapped; /* not in the byte order of this machine */
} Item;

typedef struct Layout {
  unsigned count;
  unsigned values; /* without the padding */
  size_t size;
  Item item[FORMAT_ITEMS];
} Layout;

static bool format_little(void) {
  const uint16_t one = 1;
  char first;
  memcpy(&first, &one, 1);
  return first == 1;
}

/* The size that may follow `i` and `I`: 0: one that is not done here. */
static size_t format_digits(const char **format, size_t otherwise) {
  const char *f = *format;
  if (*f < '0' || *f > '9')
    return otherwise;
  *format = f + 1;
  bool one = f[1] < '0' || f[1] > '9';
  return one && *f <= '8' ? (size_t)(*f - '0') : 0;
}

/* One letter; false: this one is not done here. */
static bool format_item(const char **format, Item *item) {
  size_t size = 0;
  ItemKind kind = KIND_SIGNED;
  char letter = *(*format)++;
  switch (letter) {
  case 'b':
  case 'B':
    size = sizeof(char);
    break;
  case 'h':
  case 'H':
    size = sizeof(short);
    break;
  case 'i':
  case 'I':
    size = format_digits(format, sizeof(int));
    break;
  case 'l':
  case 'L':
    size = sizeof(long);
    break;
  case 'j':
  case 'J':
    size = sizeof(lua_Integer);
    break;
  case 'T':
    size = sizeof(size_t);
    break;
  case 'f':
    size = sizeof(float);
    kind = KIND_FLOAT;
    break;
  case 'd':
    size = sizeof(double);
    kind = KIND_DOUBLE;
    break;
  case 'n':
    size = sizeof(lua_Number);
    kind = KIND_NUMBER;
    break;
  case 'x':
    size = 1;
    kind = KIND_PAD;
    break;
  default:
    return false;
  }
  if (kind == KIND_SIGNED && letter < 'a') /* B H I L J T */
    kind = KIND_UNSIGNED;
  item->kind = (uint8_t)kind;
  item->size = (uint8_t)size;
  return size > 0 && size <= sizeof(uint64_t);
}

/* Reads a format; false: it is not done here. */
static bool format_read(const char *format, size_t length, Layout *l) {
  bool little = format_little(), swapped = false;
  const char *end = format + length;
  l->count = l->values = 0;
  l->size = 0;
  while (format < end) {
    char c = *format;
    if (c == ' ' || c == '<' || c == '>' || c == '=') {
      format++;
      if (c != ' ')
        swapped = c != '=' && (c == '<') != little;
      continue;
    }
    Item *item = &l->item[l->count];
    if (l->count == FORMAT_ITEMS || !format_item(&format, item))
      return false;
    item->swapped = swapped;
    l->count++;
    l->values += item->kind != KIND_PAD;
    l->size += item->size;
  }
  return true;
}

static void format_swap(char *bytes, size_t size) {
  for (size_t i = 0; i < size / 2; i++) {
    char c = bytes[i];
    bytes[i] = bytes[size - 1 - i];
    bytes[size - 1 - i] = c;
  }
}

/* An integer as so many bytes of this machine's order. */
static void format_put(char *out, uint64_t n, size_t size) {
  if (size == sizeof n) {
    memcpy(out, &n, sizeof n);
  } else if (size == sizeof(uint32_t)) {
    uint32_t half = (uint32_t)n;
    memcpy(out, &half, sizeof half);
  } else {
    bool little = format_little();
    for (size_t i = 0; i < size; i++)
      out[little ? i : size - 1 - i] = (char)(unsigned char)(n >> (8 * i));
  }
}

static uint64_t format_get(const char *in, size_t size) {
  uint64_t n = 0;
  if (size == sizeof n) {
    memcpy(&n, in, sizeof n);
  } else if (size == sizeof(uint32_t)) {
    uint32_t half;
    memcpy(&half, in, sizeof half);
    n = half;
  } else {
    bool little = format_little();
    for (size_t i = 0; i < size; i++)
      n |= (uint64_t)(unsigned char)in[little ? i : size - 1 - i] << (8 * i);
  }
  return n;
}

/* The value in slot `index` as an item; false: it is not one, or does not fit,
 * which string.pack says best. */
static bool item_put(lua_State *L, int index, const Item *item, char *out) {
  switch (item->kind) {
  case KIND_PAD:
    *out = 0;
    return true;
  case KIND_SIGNED:
  case KIND_UNSIGNED: {
    if (!lua_isinteger(L, index))
      return false;
    uint64_t n = (uint64_t)lua_tointeger(L, index);
    if (item->size < sizeof n) {
      uint64_t half = UINT64_C(1) << (8 * item->size - 1);
      if (item->kind == KIND_SIGNED ? n + half >= 2 * half : n >= 2 * half)
        return false;
    }
    format_put(out, n, item->size);
    break;
  }
  default: {
    if (lua_type(L, index) != LUA_TNUMBER)
      return false;
    lua_Number n = lua_tonumber(L, index);
    float f = (float)n;
    double d = (double)n;
    const void *from = &n;
    if (item->kind == KIND_FLOAT)
      from = &f;
    else if (item->kind == KIND_DOUBLE)
      from = &d;
    memcpy(out, from, item->size);
  }
  }
  if (item->swapped)
    format_swap(out, item->size);
  return true;
}

static void item_push(lua_State *L, const Item *item, const char *in) {
  char turned[sizeof(uint64_t)];
  if (item->swapped) {
    memcpy(turned, in, item->size);
    format_swap(turned, item->size);
    in = turned;
  }
  if (item->kind == KIND_FLOAT) {
    float f;
    memcpy(&f, in, sizeof f);
    lua_pushnumber(L, (lua_Number)f);
  } else if (item->kind == KIND_DOUBLE) {
    double d;
    memcpy(&d, in, sizeof d);
    lua_pushnumber(L, (lua_Number)d);
  } else if (item->kind == KIND_NUMBER) {
    lua_Number n;
    memcpy(&n, in, sizeof n);
    lua_pushnumber(L, n);
  } else if (item->kind != KIND_PAD) {
    uint64_t n = format_get(in, item->size);
    uint64_t half = UINT64_C(1) << (8 * item->size - 1);
    if (item->kind == KIND_SIGNED && item->size < sizeof n)
      n = (n ^ half) - half;
    lua_pushinteger(L, (lua_Integer)n);
  }
}

/* Packs slots from 4 on; the results, or 0: not done here. */
static int pack_numbers(lua_State *L, View *v, size_t offset) {
  Layout l;
  char bytes[FORMAT_ITEMS * sizeof(uint64_t)];
  size_t length, at = 0;
  const char *format = lua_tolstring(L, 3, &length);
  if (!format_read(format, length, &l) || l.size > v->size - offset)
    return 0;
  int index = 4;
  for (unsigned i = 0; i < l.count; i++) {
    if (!item_put(L, index, &l.item[i], bytes + at))
      return 0;
    index += l.item[i].kind != KIND_PAD;
    at += l.item[i].size;
  }
  int err = ipc_bytes_check(v);
  if (!err && at) {
    memcpy(v->bytes + offset, bytes, at);
    err = ipc_bytes_check(v);
  }
  if (err)
    return ipc_view_fail(L, v->type, "pack", err);
  lua_pushinteger(L, (lua_Integer)(offset + at));
  return 1;
}

static int unpack_numbers(lua_State *L, View *v, size_t offset) {
  Layout l;
  char bytes[FORMAT_ITEMS * sizeof(uint64_t)];
  size_t length, at = 0;
  const char *format = lua_tolstring(L, 3, &length);
  if (!format_read(format, length, &l) || l.size > v->size - offset)
    return 0;
  luaL_checkstack(L, (int)l.values + 4, "too many results");
  int err = ipc_bytes_check(v);
  if (!err && l.size) {
    memcpy(bytes, v->bytes + offset, l.size);
    err = ipc_bytes_check(v);
  }
  if (err)
    return ipc_view_fail(L, v->type, "unpack", err);
  for (unsigned i = 0; i < l.count; i++) {
    item_push(L, &l.item[i], bytes + at);
    at += l.item[i].size;
  }
  lua_pushinteger(L, (lua_Integer)(offset + at));
  return (int)l.values + 1;
}

/* ------------------------------------------------------- string.pack's own */

/* string.pack and its like align by what came before. The format at `index` for
 * bytes that begin at `offset`: how many it pads itself with in front. */
static size_t format_lead(lua_State *L, int index, size_t offset) {
  const char *format = lua_tostring(L, index);
  return strchr(format, '!') ? offset % FORMAT_ALIGN : 0;
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
static int format_strange(lua_State *L, const View *v) {
  return luaL_error(L, "%s: the string library is not Lua's", v->type);
}

/* Writes the string in slot 3 from its byte `skip` on, and pushes the offset
 * after it. */
static int pack_put(lua_State *L, View *v, size_t offset, size_t skip) {
  size_t size;
  const char *bytes = lua_tolstring(L, 3, &size);
  size -= skip;
  ipc_view_alive(L, v); /* Lua may have run since it was asked first */
  ipc_bytes_fit(L, 2, v, offset, size);
  int err = ipc_bytes_check(v);
  if (!err && size) {
    memcpy(v->bytes + offset, bytes + skip, size);
    err = ipc_bytes_check(v);
  }
  if (err)
    return ipc_view_fail(L, v->type, "pack", err);
  lua_pushinteger(L, (lua_Integer)(offset + size));
  return 1;
}

/***
Writes values by a format of `string.pack`; alignment counts from the bytes'
start. Formats of up to 32 numbers and padding are fast.
@function bytes:pack
@tparam integer offset
@string format
@param ... values
@treturn integer the offset after what was written; or nil, message, errno. What
does not fit raises, with nothing written
@usage local at = v:pack(0, "<I4", #name)
at = v:pack(at, "z", name)
*/
int ipc_bytes_pack(lua_State *L) {
  View *v = ipc_bytes_writable(L);
  size_t offset = ipc_bytes_offset(L, 2, v);
  luaL_checktype(L, 3, LUA_TSTRING);
  int n = pack_numbers(L, v, offset);
  if (n)
    return n;
  size_t lead = format_lead(L, 3, offset);
  luaL_checkstack(L, 4, NULL);
  format_pad(L, 3, lead);
  lua_pushvalue(L, lua_upvalueindex(BYTES_PACK));
  lua_insert(L, 3);
  int status = lua_pcall(L, lua_gettop(L) - 3, 1, 0);
  if (status != LUA_OK)
    return format_raise(L, status, 3);
  if (lua_type(L, 3) != LUA_TSTRING || lua_rawlen(L, 3) < lead)
    return format_strange(L, v);
  return pack_put(L, v, offset, lead);
}

/* How many bytes the padded format in slot 4 reads behind the first `lead`;
 * false: that depends on the bytes. */
static bool unpack_size(lua_State *L, const View *v, size_t lead,
                        size_t *size) {
  if (strpbrk(lua_tostring(L, 3), "sz"))
    return false;
  lua_pushvalue(L, lua_upvalueindex(BYTES_PACKSIZE));
  lua_pushvalue(L, 4);
  int status = lua_pcall(L, 1, 1, 0);
  if (status != LUA_OK)
    format_raise(L, status, 3);
  lua_Integer all = lua_isinteger(L, -1) ? lua_tointeger(L, -1) : -1;
  lua_pop(L, 1);
  if (all < (lua_Integer)lead)
    format_strange(L, v);
  *size = (size_t)all - lead;
  return true;
}

/* string.unpack of slot 3 with the first `size` bytes at `offset` and `lead`
 * bytes before them: its results, and LUA_OK; or its error. An errno of the
 * view goes to *err. */
static int unpack_try(lua_State *L, View *v, size_t offset, size_t lead,
                      size_t size, int *err) {
  lua_settop(L, 4);
  lua_pushvalue(L, lua_upvalueindex(BYTES_UNPACK));
  lua_pushvalue(L, 3);
  *err = ipc_view_push(L, v, offset - lead, lead + size);
  if (*err)
    return LUA_OK;
  lua_pushinteger(L, (lua_Integer)lead + 1);
  return lua_pcall(L, 3, LUA_MULTRET, 0);
}

/***
Reads values by a format of `string.pack`. The bytes are copied once before they
are looked at; a length or an end that they tell (`s`, `z`) is looked for within
the bytes only.
@function bytes:unpack
@tparam integer offset
@string format
@return the values, then the offset after what was read; or nil, message, errno.
What goes beyond the end raises, as in `string.unpack`
*/
int ipc_bytes_unpack(lua_State *L) {
  View *v = ipc_bytes_alive(L);
  size_t offset = ipc_bytes_offset(L, 2, v), rest = v->size - offset, size;
  luaL_checktype(L, 3, LUA_TSTRING);
  int n = unpack_numbers(L, v, offset);
  if (n)
    return n;
  lua_settop(L, 3);
  size_t lead = format_lead(L, 3, offset);
  lua_pushvalue(L, 3);
  format_pad(L, 4, lead);
  if (unpack_size(L, v, lead, &size))
    ipc_bytes_fit(L, 2, v, offset, size);
  else
    size = rest < FORMAT_FIRST ? rest : FORMAT_FIRST;
  for (;;) {
    int err;
    ipc_view_alive(L, v);
    int status = unpack_try(L, v, offset, lead, size, &err);
    if (err)
      return ipc_view_fail(L, v->type, "unpack", err);
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
    return format_strange(L, v);
  lua_Integer after = lua_tointeger(L, -1) - 1;
  lua_pop(L, 1);
  lua_pushinteger(L, (lua_Integer)(offset - lead) + after);
  return lua_gettop(L) - 4;
}
