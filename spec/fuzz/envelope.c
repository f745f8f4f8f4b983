/* libFuzzer: any bytes as messages of calls, found whole and in any pieces.
 * Both must find the same end; what is found must decode within its limits and
 * leave nothing but its parts. The first byte chooses limits and how the pieces
 * end. */
#include "../../src/prefix.h"

#include <errno.h>

#include "../../src/envelope.h"
#include "values.h"

typedef struct Input {
  const char *bytes;
  size_t size;
  unsigned choice;
  EnvelopeLimits limits;
} Input;

/* As ipc_scan, of pieces: each is all that there is so far, in memory of its
 * own, so that reading past its end is seen. */
static int scan_pieces(const Input *in, Scan *s) {
  size_t have = 0;
  unsigned seed = in->choice;
  ipc_scan_start(s);
  for (;;) {
    char *piece = malloc(have + 1);
    if (!piece)
      abort();
    if (have)
      memcpy(piece + 1, in->bytes, have);
    int err = ipc_scan(s, piece + 1, have, in->limits.values.bytes);
    free(piece);
    if (err != EAGAIN || have == in->size)
      return err;
    seed = seed * 1103515245 + 12345;
    have += (seed >> 16) % 7 + 1;
    have = have < in->size ? have : in->size;
  }
}

static int fuzz_ext(lua_State *L, const char *bytes, size_t size,
                    UnpackForeign *f) {
  EnvelopeExts *x = (EnvelopeExts *)f;
  lua_pushlstring(L, bytes, size);
  x->told = bytes[-1] == 1;
  return x->told ? EBADMSG : 0;
}

static int try(lua_State *L) {
  const Input *in = lua_touserdata(L, 1);
  Scan whole, pieces;
  ipc_scan_start(&whole);
  int err = ipc_scan(&whole, in->bytes, in->size, in->limits.values.bytes);
  check(scan_pieces(in, &pieces) == err, "pieces end as the whole does");
  if (err)
    return 0;
  check(pieces.at == whole.at && whole.at <= in->size, "at the same byte");
  EnvelopeExts x = {.f = {.type = -1, .unpack = fuzz_ext}};
  char *copy = malloc(whole.at);
  if (!copy)
    abort();
  memcpy(copy, in->bytes, whole.at);
  int top = lua_gettop(L);
  int n = ipc_envelope_decode(L, copy, whole.at, &in->limits, in->choice & 1,
                              in->choice & 2 ? &x : NULL);
  free(copy);
  if (n == 0) {
    check(lua_gettop(L) == top + 1 && lua_isstring(L, -1), "a text");
    return 0;
  }
  check(lua_gettop(L) == top + n, "as many as it says");
  check(n >= 2 && n <= in->limits.params + 8, "not more than allowed");
  lua_Integer kind = lua_tointeger(L, top + 1);
  check(lua_isinteger(L, top + 1) && kind >= 0 && kind <= 3, "a kind");
  if (kind != ENVELOPE_NOTIFICATION)
    check(lua_isinteger(L, top + 2), "an id");
  else if (lua_isnil(L, top + 2))
    check(n == 3 && lua_type(L, top + 3) == LUA_TSTRING, "a text");
  else
    check(lua_type(L, top + 2) == LUA_TSTRING, "a method");
  if (kind == ENVELOPE_REQUEST || kind == ENVELOPE_INVALID)
    check(lua_type(L, top + 3) == LUA_TSTRING, "a method, or a text");
  return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 1)
    return 0;
  Input in = {
      (const char *)data + 1, size - 1, data[0], {ipc_value_limits, 100, 250}};
  if (data[0] & 0x80) {
    in.limits.values.bytes = 60;
    in.limits.values.depth = 3;
    in.limits.values.values = 20;
    in.limits.values.tables = 5;
    in.limits.values.keys = 2;
    in.limits.method = 6;
    in.limits.params = 4;
  }
  if (data[0] & 0x40)
    in.limits.values.depth = 100;
  run(try, &in);
  return 0;
}
