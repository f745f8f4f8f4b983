/* MessagePack to Lua values: ipc.unpack, and decoding for channels. One loop
 * builds the tables of a value on the Lua stack, without recursion. What the
 * bytes may cost is checked before anything is made of them. Values in pieces
 * are in decoder.c, encoding in encode.c. */

/***
 * @submodule ipc.values
 */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdint.h>
#include <string.h>

#include "msgpack.h"
#include "unpack.h"

enum {
  UNPACK_FRAMES = 64,       /* on the C stack; deeper limits use a userdata */
  UNPACK_DEPTH_MAX = 10000, /* 2 slots of Lua's stack (1,000,000) each */
  UNPACK_AHEAD = 1024       /* elements a new table has room for, at most */
};

const ValueLimits ipc_value_limits = {
    .bytes = 16 * 1024 * 1024,
    .depth = 64,
    .values = 1000000,
    .tables = 100000,
    .keys = 1024,
};

void ipc_decode_start(Decode *d) {
  d->foreign = NULL;
  d->depth = 0;
  d->values = 1;
  d->tables = 0;
  d->owed = 0;
  d->taken = 0;
  d->need = 1;
}

static int decode_refuse(Decode *d, size_t offset, const char *cause,
                         uint64_t count) {
  d->offset = offset;
  d->cause = cause;
  d->count = (lua_Integer)count;
  return EBADMSG;
}

void ipc_decode_explain(lua_State *L, const Decode *d) {
  lua_pushfstring(L, "offset %I: ", (LUAI_UACINT)d->offset);
  lua_pushfstring(L, d->cause, (LUAI_UACINT)d->count);
  lua_concat(L, 2);
}

/* --- bytes --- */

static lua_Number get_float32(const unsigned char *p) {
  uint32_t u = get32(p);
  float f;
  memcpy(&f, &u, sizeof f);
  return (lua_Number)f;
}

static lua_Number get_float64(const unsigned char *p) {
  uint64_t u = get64(p);
  double f;
  memcpy(&f, &u, sizeof f);
  return (lua_Number)f;
}

/* Two's complement to lua_Integer, without a conversion that the compiler may
 * define. */
static lua_Integer get_signed(uint64_t u, int bits) {
  uint64_t sign = (uint64_t)1 << (bits - 1);
  if (u < sign)
    return (lua_Integer)u;
  return -(lua_Integer)(sign - 1 - (u - sign)) - 1;
}

const unsigned char ipc_head_size[32] = {
    1, 0, 1, 1,    /* nil, never used, false, true */
    2, 3, 5,       /* bin */
    3, 4, 6,       /* ext */
    5, 9,          /* float */
    2, 3, 5, 9,    /* uint */
    2, 3, 5, 9,    /* int */
    2, 2, 2, 2, 2, /* fixext */
    2, 3, 5,       /* str */
    3, 5,          /* array */
    3, 5           /* map */
};

/* --- one value --- */

/* Is the value on top of the stack a key? It is not a string. */
static int key_check(lua_State *L, Decode *d, Frame *f, size_t offset) {
  if (lua_type(L, -1) == LUA_TNUMBER) {
    if (lua_isinteger(L, -1)) {
      f->marked |= lua_tointeger(L, -1) == 1;
    } else {
      lua_Number n = lua_tonumber(L, -1);
      if (n != n)
        return decode_refuse(d, offset, "NaN as a key", 0);
      f->marked |= n == 1;
    }
  }
  if (++f->keys > d->limits.keys)
    return decode_refuse(d, offset,
                         "more than %I keys of one map that are not strings",
                         d->limits.keys);
  return 0;
}

/* Pushes the table of an array (n elements) or map (n pairs) and, unless it is
 * empty, makes it the innermost frame. `offset` is where its head starts, and
 * `head` its size. */
static int decode_open(lua_State *L, Decode *d, int state, uint64_t n,
                       size_t offset, size_t head) {
  uint64_t items = state == FRAME_ARRAY ? n : 2 * n;
  const ValueLimits *limits = &d->limits;
  if (d->depth == limits->depth)
    return decode_refuse(d, offset, "nested deeper than %I", limits->depth);
  if (d->tables == limits->tables)
    return decode_refuse(d, offset, "more than %I tables", limits->tables);
  /* Each open container still counts the element under way. */
  if (d->owed - d->depth + items > limits->bytes - offset - head)
    return decode_refuse(d, offset,
                         state == FRAME_ARRAY
                             ? "an array of %I elements, more than bytes left"
                             : "a map of %I pairs, more than bytes left",
                         n);
  if (items > limits->values - d->values)
    return decode_refuse(d, offset, "more than %I values", limits->values);
  d->tables++;
  d->values += (uint32_t)items;
  if (!lua_checkstack(L, LUA_MINSTACK))
    luaL_error(L, "not enough memory");
  int ahead = n < UNPACK_AHEAD ? (int)n : UNPACK_AHEAD;
  if (state == FRAME_ARRAY)
    lua_createtable(L, ahead, 0);
  else
    lua_createtable(L, 0, ahead);
  if (n) {
    d->owed += (size_t)items;
    d->frames[d->depth++] =
        (Frame){(uint32_t)items, 0, 0, (unsigned char)state, 0};
  } else if (state != FRAME_ARRAY) {
    ipc_mark_set(L, IPC_MARK_MAP);
  }
  return 0;
}

static int decode_uint64(lua_State *L, Decode *d, uint64_t u, size_t offset) {
  if (u <= INT64_MAX)
    lua_pushinteger(L, (lua_Integer)u);
  else if (d->limits.uint64 == IPC_UINT64_FLOAT)
    lua_pushnumber(L, (lua_Number)u);
  else if (d->limits.uint64 == IPC_UINT64_WRAP)
    lua_pushinteger(L, get_signed(u, 64));
  else
    return decode_refuse(d, offset, "an integer above 2^63-1", 0);
  return 0;
}

int ipc_decode_run(lua_State *L, Decode *d, const unsigned char **from,
                   const unsigned char *end) {
  const unsigned char *start = *from, *p = start;
  Frame *f = d->depth ? &d->frames[d->depth - 1] : NULL;
  for (;;) {
    size_t there = (size_t)(end - p);
    size_t offset = d->taken + (size_t)(p - start);
    size_t head = 1;
    uint64_t need = 1; /* of the whole element */
    uint64_t n;        /* its length or number */
    int bad = 0;
    if (!there)
      goto cut;
    unsigned type = *p;
    if (type < 0x80) {
      lua_pushinteger(L, (lua_Integer)type);
    } else if (type >= 0xe0) {
      lua_pushinteger(L, (lua_Integer)type - 0x100);
    } else if (type >= 0xc0) {
      need = head = ipc_head_size[type - 0xc0];
      if (!head) {
        bad = decode_refuse(d, offset, "byte c1 starts no value", 0);
        goto out;
      }
      if (head > there)
        goto cut;
      switch (type) {
      case 0xc0:
        if (f && f->state == FRAME_KEY) {
          bad = decode_refuse(d, offset, "nil as a key", 0);
          goto out;
        }
        if (!f || d->limits.nulls) {
          lua_pushlightuserdata(L, NULL);
          break;
        }
        f->marked = 1;
        if (f->state == FRAME_ARRAY) {
          f->index++;
          p++;
          goto counted;
        }
        lua_pushnil(L); /* removes an equal key before it */
        break;
      case 0xc2:
      case 0xc3:
        lua_pushboolean(L, type == 0xc3);
        break;
      case 0xca:
        lua_pushnumber(L, get_float32(p + 1));
        break;
      case 0xcb:
        lua_pushnumber(L, get_float64(p + 1));
        break;
      case 0xcc:
        lua_pushinteger(L, p[1]);
        break;
      case 0xcd:
        lua_pushinteger(L, (lua_Integer)get16(p + 1));
        break;
      case 0xce:
        lua_pushinteger(L, (lua_Integer)get32(p + 1));
        break;
      case 0xcf:
        bad = decode_uint64(L, d, get64(p + 1), offset);
        if (bad)
          goto out;
        break;
      case 0xd0:
        lua_pushinteger(L, get_signed(p[1], 8));
        break;
      case 0xd1:
        lua_pushinteger(L, get_signed(get16(p + 1), 16));
        break;
      case 0xd2:
        lua_pushinteger(L, get_signed(get32(p + 1), 32));
        break;
      case 0xd3:
        lua_pushinteger(L, get_signed(get64(p + 1), 64));
        break;
      case 0xc4:
      case 0xd9:
        n = p[1];
        goto string;
      case 0xc5:
      case 0xda:
        n = get16(p + 1);
        goto string;
      case 0xc6:
      case 0xdb:
        n = get32(p + 1);
        goto string;
      case 0xc7:
        n = p[1];
        goto ext;
      case 0xc8:
        n = get16(p + 1);
        goto ext;
      case 0xc9:
        n = get32(p + 1);
        goto ext;
      case 0xdc:
        n = get16(p + 1);
        goto array;
      case 0xdd:
        n = get32(p + 1);
        goto array;
      case 0xde:
        n = get16(p + 1);
        goto map;
      case 0xdf:
        n = get32(p + 1);
        goto map;
      default: /* 0xd4 ... 0xd8 */
        n = (uint64_t)1 << (type - 0xd4);
        goto ext;
      }
    } else if (type >= 0xa0) {
      n = type & 0x1f;
    string:
      need = head + n;
      if (need > there)
        goto cut;
      lua_pushlstring(L, (const char *)p + head, (size_t)n);
      p += need;
      if (f && f->state == FRAME_KEY) {
        f->state = FRAME_VALUE;
        goto counted;
      }
      goto pushed;
    ext:
      need = head + n;
      if (need > there)
        goto cut;
      if (d->tables++ == d->limits.tables) {
        bad = decode_refuse(d, offset, "more than %I tables", d->limits.tables);
        goto out;
      }
      if (d->foreign &&
          (d->foreign->type < 0 || p[head - 1] == d->foreign->type)) {
        if (d->foreign->unpack(L, (const char *)p + head, (size_t)n,
                               d->foreign)) {
          bad = decode_refuse(d, offset,
                              "a handle that did not come along, or cannot be "
                              "had here",
                              0);
          goto out;
        }
      } else {
        ipc_ext_push(L, (int)get_signed(p[head - 1], 8), (const char *)p + head,
                     (size_t)n);
      }
    } else if (type >= 0x90) {
      n = type & 0x0f;
    array:
      bad = decode_open(L, d, FRAME_ARRAY, n, offset, head);
      goto opened;
    } else {
      n = type & 0x0f;
    map:
      bad = decode_open(L, d, FRAME_KEY, n, offset, head);
    opened:
      if (bad)
        goto out;
      if (n) {
        p += head;
        f = &d->frames[d->depth - 1];
        continue;
      }
    }
    p += need;
  pushed: /* the element is on top of the stack */
    if (!f)
      goto out;
    if (f->state == FRAME_ARRAY) {
      lua_rawseti(L, -2, (lua_Integer)++f->index);
    } else if (f->state == FRAME_VALUE) {
      lua_rawset(L, -3);
      f->state = FRAME_KEY;
    } else {
      bad = key_check(L, d, f, offset);
      if (bad)
        goto out;
      f->state = FRAME_VALUE;
    }
  counted:
    d->owed--;
    if (--f->left)
      continue;
    if (f->marked)
      ipc_mark_set(L, f->state == FRAME_ARRAY ? IPC_MARK_ARRAY : IPC_MARK_MAP);
    d->depth--;
    f = d->depth ? &d->frames[d->depth - 1] : NULL;
    goto pushed;
  cut:
    if (need <= d->limits.bytes - offset) {
      d->need = (size_t)need;
      bad = EAGAIN;
    } else if (d->whole) {
      bad = decode_refuse(d, offset, "cut short: %I bytes are missing",
                          need - there);
    } else {
      bad = decode_refuse(d, offset, "more than %I bytes", d->limits.bytes);
    }
  out:
    d->taken += (size_t)(p - start);
    *from = p;
    return bad;
  }
}

/* --- whole values --- */

static int value_decode(lua_State *L, const char *bytes, size_t size,
                        const ValueLimits *limits, UnpackForeign *f) {
  Frame few[UNPACK_FRAMES];
  Decode d;
  if (!limits)
    limits = &ipc_value_limits;
  luaL_checkstack(L, LUA_MINSTACK, NULL);
  if (size > limits->bytes) {
    decode_refuse(&d, 0, "more than %I bytes", limits->bytes);
    ipc_decode_explain(L, &d);
    return EBADMSG;
  }
  int top = lua_gettop(L);
  d.limits = *limits;
  d.limits.bytes = size;
  d.whole = 1;
  d.frames = few;
  if (limits->depth > UNPACK_FRAMES)
    d.frames = lua_newuserdatauv(L, limits->depth * sizeof(Frame), 0);
  ipc_decode_start(&d);
  d.foreign = f;
  const unsigned char *p = (const unsigned char *)bytes;
  const unsigned char *end = p + size;
  int bad = ipc_decode_run(L, &d, &p, end);
  if (!bad && p < end)
    bad = decode_refuse(&d, d.taken, "%I bytes after the value",
                        (size_t)(end - p));
  if (bad) {
    lua_settop(L, top);
    ipc_decode_explain(L, &d);
  } else if (d.frames != few) {
    lua_remove(L, top + 1);
  }
  return bad;
}

int ipc_value_decode_within(lua_State *L, const char *bytes, size_t size,
                            const ValueLimits *limits) {
  return value_decode(L, bytes, size, limits, NULL);
}

int ipc_value_decode_with(lua_State *L, const char *bytes, size_t size,
                          UnpackForeign *f) {
  return value_decode(L, bytes, size, NULL, f);
}

int ipc_value_decode(lua_State *L, const char *bytes, size_t size) {
  return ipc_value_decode_within(L, bytes, size, NULL);
}

/* --- options --- */

static void option_error(lua_State *L, int index, const char *name,
                         const char *what) {
  luaL_argerror(L, index, lua_pushfstring(L, "option '%s' %s", name, what));
}

static uint64_t option_count(lua_State *L, int index, const char *name,
                             uint64_t least, uint64_t most) {
  lua_Integer n;
  int is = 0;
  n = lua_type(L, -1) == LUA_TNUMBER ? lua_tointegerx(L, -1, &is) : 0;
  if (!is || n < 0 || (uint64_t)n < least || (uint64_t)n > most)
    option_error(L, index, name,
                 lua_pushfstring(L, "is an integer from %I to %I",
                                 (LUAI_UACINT)least, (LUAI_UACINT)most));
  return (uint64_t)n;
}

static void option_set(lua_State *L, int index, const char *name,
                       ValueLimits *limits) {
  if (strcmp(name, "bytes") == 0) {
    limits->bytes = (size_t)option_count(L, index, name, 1, PTRDIFF_MAX);
  } else if (strcmp(name, "depth") == 0) {
    limits->depth = (uint32_t)option_count(L, index, name, 0, UNPACK_DEPTH_MAX);
  } else if (strcmp(name, "values") == 0) {
    limits->values = (uint32_t)option_count(L, index, name, 1, INT32_MAX);
  } else if (strcmp(name, "tables") == 0) {
    limits->tables = (uint32_t)option_count(L, index, name, 0, INT32_MAX);
  } else if (strcmp(name, "keys") == 0) {
    limits->keys = (uint32_t)option_count(L, index, name, 0, INT32_MAX);
  } else if (strcmp(name, "nulls") == 0) {
    if (!lua_isboolean(L, -1))
      option_error(L, index, name, "is true or false");
    limits->nulls = (unsigned char)lua_toboolean(L, -1);
  } else if (strcmp(name, "uint64") == 0) {
    static const char *const choices[] = {"float", "error", "wrap"};
    const char *s = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "";
    unsigned char i = 0;
    while (i < 3 && strcmp(s, choices[i]) != 0)
      i++;
    if (i == 3)
      option_error(L, index, name, "is \"float\", \"error\" or \"wrap\"");
    limits->uint64 = i;
  } else {
    luaL_argerror(L, index, lua_pushfstring(L, "unknown option '%s'", name));
  }
}

void ipc_value_options(lua_State *L, int index, ValueLimits *limits) {
  if (lua_isnoneornil(L, index))
    return;
  index = lua_absindex(L, index);
  luaL_checktype(L, index, LUA_TTABLE);
  luaL_checkstack(L, LUA_MINSTACK, NULL);
  lua_pushnil(L);
  for (; lua_next(L, index); lua_pop(L, 1)) {
    if (lua_type(L, -2) != LUA_TSTRING)
      luaL_argerror(L, index, "names of options are strings");
    option_set(L, index, lua_tostring(L, -2), limits);
  }
}

/* --- ipc.unpack --- */

int ipc_unpack_fail(lua_State *L, const char *who, int error) {
  lua_pushfstring(L, "%s: %s", who, lua_tostring(L, -1));
  lua_pushnil(L);
  lua_insert(L, -2);
  lua_pushinteger(L, error);
  return 3;
}

/*** The value that these bytes are, all of them.
 *
 * @function unpack
 * @param bytes a string, which may come from anyone: what it can cost is
 * bounded by the options
 * @param[opt] options a table: `nulls = true` gives `ipc.null` for nil inside
 * tables (where it is otherwise absent); `uint64` says what an integer above
 * 2^63-1 becomes, `"float"` (as Lua's numerals do; the default), `"error"` or
 * `"wrap"` (the same 64 bits as a negative integer); and limits, each exceeded
 * by an error: `bytes` (16 MiB), `depth` of tables (64), `values` in all
 * (1,000,000), `tables` in all, extension values counted (100,000), `keys` of
 * one map that are not strings (1024: integers can be chosen so that they
 * collide)
 * @return[1] the value, never nil (`ipc.null` is in its place), though it may
 * be false
 * @return[2] nil
 * @return[2] a message that names the offset and the cause
 * @return[2] EBADMSG
 * @usage local v, message = ipc.unpack("\x92\1\xc0", { nulls = true })
 */
static int unpack_unpack(lua_State *L) {
  luaL_checktype(L, 1, LUA_TSTRING);
  ValueLimits limits = ipc_value_limits;
  if (!lua_isnoneornil(L, 2))
    ipc_value_options(L, 2, &limits);
  size_t size;
  const char *bytes = lua_tolstring(L, 1, &size);
  if (!ipc_value_decode_within(L, bytes, size, &limits))
    return 1;
  return ipc_unpack_fail(L, "ipc.unpack", EBADMSG);
}

void ipc_unpack_open(lua_State *L) {
  lua_pushcfunction(L, unpack_unpack);
  lua_setfield(L, -2, "unpack");
}
