/* libFuzzer: any bytes, whole and in any pieces. The two must agree, and what
 * decodes must encode, decode again to an equal value, and from then on give
 * the same bytes. Where the pieces end, and the options, are taken from the
 * last bytes of the input. */
#include "../../src/prefix.h"

#include <errno.h>

#include "values.h"

typedef struct Input {
  const char *bytes;
  size_t size;
  unsigned piece;
  ValueLimits limits;
} Input;

/* The first value of the input in pieces: on the stack, or its error. */
static int decode_pieces(lua_State *L, const Input *in, size_t *taken) {
  ipc_decoder_push_within(L, &in->limits);
  unsigned seed = in->piece;
  int result = EAGAIN;
  *taken = 0;
  while (result == EAGAIN && *taken < in->size) {
    seed = seed * 1103515245 + 12345;
    size_t n = (seed >> 16) % (in->piece % 9 + 1) + 1, used;
    if (n > in->size - *taken)
      n = in->size - *taken;
    char *piece = malloc(n); /* so that reading past its end is seen */
    if (!piece)
      abort();
    memcpy(piece, in->bytes + *taken, n);
    result = ipc_decoder_feed(L, -1, piece, n, &used);
    check(used <= n, "took more than there was");
    check(result != EAGAIN || used == n, "EAGAIN with bytes left");
    *taken += used;
    free(piece);
  }
  lua_remove(L, result == EAGAIN ? -1 : -2);
  return result;
}

/* Encodes what is at 3 into a buffer at 4, decodes it and encodes that. */
static void again(lua_State *L, const Input *in) {
  Buffer *out = buffer_push(L);
  ipc_value_encode(L, 3, out);
  size_t size = out->size;
  ValueLimits wide = ipc_value_limits;
  wide.nulls = in->limits.nulls;
  check(ipc_value_decode_within(L, out->bytes, size, &wide) == 0,
        "what was encoded decodes");
  check(same(L, 3, -1), "and is the same");
  ipc_value_encode(L, -1, out);
  check(out->size == 2 * size, "and is encoded as long");
}

static int try(lua_State *L) {
  const Input *in = lua_touserdata(L, 1);
  size_t taken;
  int whole = ipc_value_decode_within(L, in->bytes, in->size, &in->limits);
  check(lua_gettop(L) == 2, "one result");
  int pieces = decode_pieces(L, in, &taken);
  if (whole == 0) {
    check(pieces == 0 && taken == in->size, "pieces take the whole");
    check(lua_gettop(L) == 3 && same(L, 2, 3), "pieces give the same");
  } else {
    check(whole == EBADMSG && lua_type(L, 2) == LUA_TSTRING, "an error");
    if (pieces != 0)
      return 0;
    /* They gave a value that has bytes behind it. */
    check(lua_gettop(L) == 3 && taken < in->size, "the whole is refused");
    check(ipc_value_decode_within(L, in->bytes, taken, &in->limits) == 0,
          "without those bytes it is not");
    check(same(L, 3, 4), "but the same");
  }
  lua_settop(L, 3);
  again(L, in);
  return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 2)
    return 0;
  Input in = {(const char *)data, size - 2, data[size - 1], ipc_value_limits};
  in.limits.nulls = data[size - 2] & 1;
  in.limits.uint64 = (unsigned char)(data[size - 2] >> 1) % 3;
  if (data[size - 2] & 0x80) {
    in.limits.depth = 5;
    in.limits.values = 40;
    in.limits.tables = 10;
    in.limits.keys = 3;
  }
  run(try, &in);
  return 0;
}
