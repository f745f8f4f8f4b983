/* libFuzzer: Lua values built as the input says, encoded and decoded. They
 * must come back equal, or be refused by an error that names a path. */
#include "../../src/prefix.h"

#include "values.h"

enum { ALLOWED = 64, DEEPEST = 70, SHARED = 8 }; /* tables in tables */

typedef struct Script {
  const uint8_t *at, *end;
  int holes;  /* nil inside arrays is a hole; otherwise ipc.null */
  int odd;    /* there is something that cannot be encoded */
  int shared; /* uses of earlier tables left: each may double the size */
} Script;

static unsigned next_byte(Script *s) { return s->at < s->end ? *s->at++ : 0; }

static uint64_t next_number(Script *s, int bytes) {
  uint64_t n = 0;
  while (bytes-- > 0)
    n = n << 8 | next_byte(s);
  return n;
}

static void build(lua_State *L, Script *s, int depth);

static void build_string(lua_State *L, Script *s) {
  luaL_Buffer b;
  size_t n = next_byte(s);
  if (n == 255)
    n = 255 + next_number(s, 1) * 300;
  char *to = luaL_buffinitsize(L, &b, n + 1);
  for (size_t i = 0; i < n; i++)
    to[i] = s->at < s->end && i < 300 ? (char)next_byte(s) : 'x';
  luaL_pushresultsize(&b, n);
}

static void build_number(lua_State *L, Script *s) {
  uint64_t bits = next_number(s, 8);
  double d;
  memcpy(&d, &bits, sizeof d);
  lua_pushnumber(L, (lua_Number)d);
}

/* The index of the ith of n elements, in an order of its own. */
static int build_index(int order, int i, int n) {
  switch (order) {
  case 0:
    return n + 1 - i;
  case 1: /* odd ones first */
    return i <= (n + 1) / 2 ? 2 * i - 1 : 2 * (i - (n + 1) / 2);
  default:
    return i;
  }
}

/* Makes an array a little less than one. */
static void build_flaw(lua_State *L, Script *s, int n) {
  switch (next_byte(s) % 8) {
  case 0:
    lua_pushnil(L);
    lua_rawseti(L, -2, (lua_Integer)next_byte(s) % (n + 1));
    return;
  case 1: /* the last some */
    for (int i = n - (int)next_byte(s) % (n + 1); i <= n; i++) {
      lua_pushnil(L);
      lua_rawseti(L, -2, i);
    }
    return;
  case 2:
    lua_pushboolean(L, 1);
    lua_rawseti(L, -2, n + (lua_Integer)next_byte(s) % 4);
    return;
  case 3:
    lua_pushfstring(L, "%d", (int)next_byte(s) % (n + 2));
    lua_pushboolean(L, 1);
    lua_rawset(L, -3);
    return;
  default:
    return;
  }
}

/* Up to `n` elements. */
static void build_array(lua_State *L, Script *s, int depth, int n) {
  int order = (int)next_byte(s) % 4, mark = (int)next_byte(s) % 4 == 0;
  lua_createtable(L, order == 3 ? (int)next_byte(s) % (n + 1) : 0, 0);
  for (int i = 1; i <= n; i++) {
    build(L, s, depth + 1);
    if (mark && s->holes && next_byte(s) % 4 == 0) {
      lua_pop(L, 1);
      lua_pushnil(L);
    }
    lua_rawseti(L, -2, build_index(order, i, n));
  }
  if (mark)
    ipc_mark_set(L, IPC_MARK_ARRAY);
  else
    build_flaw(L, s, n);
}

static void build_map(lua_State *L, Script *s, int depth, int n) {
  lua_newtable(L);
  while (n-- > 0) {
    switch (next_byte(s) % 8) {
    case 0:
      lua_pushinteger(L, (lua_Integer)next_number(s, 8));
      break;
    case 1:
      lua_pushinteger(L, (lua_Integer)next_byte(s) % 20);
      break;
    case 2: /* no NaN */
      lua_pushnumber(L, (lua_Number)next_number(s, 2) / 8);
      break;
    case 3:
      build(L, s, depth + 1);
      if (lua_isnil(L, -1) || (lua_islightuserdata(L, -1)) ||
          (lua_type(L, -1) == LUA_TNUMBER && !lua_isinteger(L, -1))) {
        lua_pop(L, 1);
        lua_pushboolean(L, 1);
      }
      break;
    default:
      build_string(L, s);
    }
    build(L, s, depth + 1);
    if (lua_type(L, -2) == LUA_TSTRING && next_byte(s) % 8 == 0) {
      lua_pushvalue(L, -2);
      lua_pushnil(L);
      lua_rawset(L, -5); /* a node that was used and is free again */
    }
    lua_rawset(L, -3);
  }
  if (next_byte(s) % 4 == 0)
    ipc_mark_set(L, IPC_MARK_MAP);
}

/* A table built before, perhaps one that is being built: a cycle. */
static void build_shared(lua_State *L, Script *s) {
  int i = (int)next_byte(s) % 4 + 1;
  if (s->shared > 0 && lua_gettop(L) > i && lua_istable(L, 1 + i)) {
    s->shared--;
    s->odd = 1; /* it may be a cycle, or too deep */
    lua_pushvalue(L, 1 + i);
  } else {
    lua_pushinteger(L, i);
  }
}

static void build(lua_State *L, Script *s, int depth) {
  luaL_checkstack(L, LUA_MINSTACK, NULL);
  if (depth >= ALLOWED)
    s->odd = 1;
  unsigned op = s->at < s->end ? next_byte(s) : 0;
  int n = (int)(op >> 4);
  switch (depth < DEEPEST ? op % 16 : op % 8) {
  case 0:
    if (s->holes)
      lua_pushboolean(L, 0);
    else
      lua_pushlightuserdata(L, NULL);
    return;
  case 1:
    lua_pushboolean(L, n & 1);
    return;
  case 2:
    lua_pushinteger(L, (lua_Integer)next_number(s, n % 9) - (n & 8 ? 40 : 0));
    return;
  case 3:
    lua_pushinteger(L, (lua_Integer)(0 - next_number(s, n % 9)));
    return;
  case 4:
    build_number(L, s);
    return;
  case 5:
  case 6:
    build_string(L, s);
    return;
  case 7:
    build_string(L, s);
    {
      size_t size;
      const char *bytes = lua_tolstring(L, -1, &size);
      ipc_ext_push(L, (int)next_byte(s) - 128, bytes, size);
      lua_remove(L, -2);
    }
    return;
  case 8:
  case 9:
  case 10:
    build_array(L, s, depth, n);
    return;
  case 11:
    build_array(L, s, depth, (int)next_byte(s));
    return;
  case 12:
  case 13:
    build_map(L, s, depth, n);
    return;
  case 14:
    build_map(L, s, depth, (int)next_byte(s) % 40);
    return;
  default:
    if (n) {
      build_shared(L, s);
      return;
    }
    s->odd = 1;
    lua_getglobal(L, "print");
  }
}

static int encode(lua_State *L) {
  ipc_value_encode(L, 1, lua_touserdata(L, 2));
  return 0;
}

/* Has the table at 2 the keys 1..n and no other? */
static int is_list(lua_State *L) {
  lua_Integer n = 0, i = 1;
  lua_pushnil(L);
  for (; lua_next(L, 2); n++)
    lua_pop(L, 1);
  while (i <= n && lua_rawgeti(L, 2, i) != LUA_TNIL) {
    lua_pop(L, 1);
    i++;
  }
  lua_settop(L, 3);
  return i > n;
}

/* At 2 the value, at 3 its bytes. */
static void compare(lua_State *L, const Script *s, const Buffer *out) {
  ValueLimits limits = ipc_value_limits;
  limits.nulls = !s->holes;
  check(ipc_value_decode_within(L, out->bytes, out->size, &limits) == 0,
        "what was encoded decodes");
  check(same(L, 2, -1), "and is the same");
  if (lua_istable(L, 2) && ipc_mark_test(L, 2) == IPC_MARK_NONE) {
    int head = (unsigned char)out->bytes[0];
    int array = (head & 0xf0) == 0x90 || head == 0xdc || head == 0xdd;
    check(array == is_list(L), "an array if its keys are 1..n");
  }
  char *fixed = malloc(out->size); /* so that a write past its end is seen */
  if (!fixed)
    abort();
  size_t n = ipc_value_encode_at(L, 2, fixed, out->size);
  check(n == 0 || (n == out->size && memcmp(fixed, out->bytes, n) == 0),
        "fits and is the same, or does not fit");
  for (size_t less = 0; less < out->size; less += 1 + less / 2)
    check(ipc_value_encode_at(L, 2, fixed, less) == 0, "does not fit");
  free(fixed);
}

static int try(lua_State *L) {
  Script *s = lua_touserdata(L, 1);
  build(L, s, 0);
  check(lua_gettop(L) == 2, "one value");
  Buffer *out = buffer_push(L);
  lua_pushcfunction(L, encode);
  lua_pushvalue(L, 2);
  lua_pushvalue(L, 3);
  if (lua_pcall(L, 2, 0, 0) == LUA_OK) {
    check(out->size > 0, "some bytes");
    compare(L, s, out);
  } else {
    check(s->odd, lua_tostring(L, -1));
    check(strstr(lua_tostring(L, -1), "value") != NULL, "names the way");
    check(out->size == 0, "nothing was added");
  }
  return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 2)
    return 0;
  Script s = {data + 1, data + size, data[0] & 1, 0, SHARED};
  run(try, &s);
  return 0;
}
