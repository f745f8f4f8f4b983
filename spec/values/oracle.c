/* libmsgpack as an oracle for lua-ipc's values, and as their measure.
 *
 * echo IN OUT      decodes every frame and encodes it again
 * make SEED N OUT  encodes N random values
 * check SEED N IN  decodes N frames and compares them with the same N values
 * bench ROUNDS     reads one MessagePack value from standard input, prints the
 *                  nanoseconds of an encode, of a decode, and of building its
 *                  Lua tables from the decoded tree, a line a round
 *
 * A frame is a length of 4 bytes, big-endian, and MessagePack.
 * cc -O2 oracle.c -lmsgpackc -llua5.4 */
#define _GNU_SOURCE 1
#include <lauxlib.h>
#include <lua.h>
#include <msgpack.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void fail(const char *format, ...) {
  va_list args;
  va_start(args, format);
  vfprintf(stderr, format, args);
  va_end(args);
  fputc('\n', stderr);
  exit(1);
}

static FILE *must_open(const char *path, const char *mode) {
  FILE *f = fopen(path, mode);
  if (!f)
    fail("cannot open %s", path);
  return f;
}

/* --- frames --- */

static char *frame_read(FILE *f, size_t *size) {
  unsigned char head[4];
  if (fread(head, 1, 4, f) != 4)
    return NULL;
  *size = (size_t)head[0] << 24 | (size_t)head[1] << 16 | (size_t)head[2] << 8 |
          head[3];
  char *bytes = malloc(*size + 1);
  if (!bytes || fread(bytes, 1, *size, f) != *size)
    fail("a frame is cut short");
  return bytes;
}

static void frame_write(FILE *f, const char *bytes, size_t size) {
  unsigned char head[4] = {(unsigned char)(size >> 24),
                           (unsigned char)(size >> 16),
                           (unsigned char)(size >> 8), (unsigned char)size};
  if (fwrite(head, 1, 4, f) != 4 || fwrite(bytes, 1, size, f) != size)
    fail("cannot write");
}

/* --- random values --- */

static uint64_t state;

static uint64_t next_random(void) { /* splitmix64 */
  uint64_t z = state += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

static unsigned below(unsigned n) { return (unsigned)(next_random() % n); }

static int64_t random_integer(void) {
  uint64_t edge = (uint64_t)1 << below(64);
  switch (below(3)) {
  case 0:
    return (int64_t)below(180) - 40;
  case 1:
    return (int64_t)next_random();
  default:
    return (int64_t)((below(2) ? edge : 0 - edge) + below(3) - 1);
  }
}

static size_t random_length(void) {
  static const size_t lengths[] = {0,  1,  2,  3,  4,  5,   8,   15,
                                   16, 17, 31, 32, 33, 255, 256, 300};
  return below(3) ? below(20) : lengths[below(16)];
}

static size_t random_bytes(char *to, int ascii) {
  size_t n = random_length();
  for (size_t i = 0; i < n; i++)
    to[i] = (char)(ascii ? 0x20 + below(0x5f) : below(256));
  return n;
}

static void random_key(msgpack_packer *pk, unsigned i) {
  char bytes[512];
  size_t n;
  switch (below(4)) { /* no two keys of a map alike */
  case 0:
    msgpack_pack_int64(pk, (int64_t)i * 1000 + below(1000));
    return;
  case 1:
    msgpack_pack_double(pk, i + 0.5);
    return;
  default:
    n = random_bytes(bytes, (int)below(2));
    bytes[n++] = (char)i;
    if (below(2)) {
      msgpack_pack_str_with_body(pk, bytes, n);
    } else {
      msgpack_pack_bin_with_body(pk, bytes, n);
    }
  }
}

static void random_value(msgpack_packer *pk, int depth) {
  char bytes[512];
  size_t n;
  unsigned i, count;
  switch (below(depth ? 12 : 9)) {
  case 0:
    msgpack_pack_nil(pk);
    return;
  case 1:
    if (below(2))
      msgpack_pack_true(pk);
    else
      msgpack_pack_false(pk);
    return;
  case 2:
  case 3:
    msgpack_pack_int64(pk, random_integer());
    return;
  case 4:
    if (below(2))
      msgpack_pack_double(pk, (double)random_integer() / 1000);
    else
      msgpack_pack_float(pk, (float)random_integer() / 16);
    return;
  case 5:
  case 6:
    n = random_bytes(bytes, (int)below(3));
    msgpack_pack_str_with_body(pk, bytes, n);
    return;
  case 7:
    n = random_bytes(bytes, 0);
    msgpack_pack_bin_with_body(pk, bytes, n);
    return;
  case 8:
    n = random_bytes(bytes, 0);
    msgpack_pack_ext_with_body(pk, bytes, n, (int8_t)below(256));
    return;
  case 9:
  case 10:
    count = below(20) ? below(6) : below(40);
    msgpack_pack_array(pk, count);
    for (i = 0; i < count; i++)
      random_value(pk, depth - 1);
    return;
  default:
    count = below(20) ? below(6) : below(40);
    msgpack_pack_map(pk, count);
    for (i = 0; i < count; i++) {
      random_key(pk, i);
      random_value(pk, depth - 1);
    }
  }
}

/* --- comparison --- */

static int is_utf8(const char *s, size_t n) {
  for (size_t i = 0; i < n;) {
    unsigned char c = (unsigned char)s[i++];
    int more = c < 0x80 ? 0 : c >> 5 == 6 ? 1 : c >> 4 == 14 ? 2 : 3;
    uint32_t point = more == 0 ? c : c & (0x3fu >> more);
    if ((c >= 0x80 && c < 0xc0) || c >= 0xf8 || n - i < (size_t)more)
      return 0;
    for (int k = 0; k < more; k++, i++) {
      if (((unsigned char)s[i] & 0xc0) != 0x80)
        return 0;
      point = point << 6 | ((unsigned char)s[i] & 0x3f);
    }
    static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    if (point < least[more] || point > 0x10ffff ||
        (point >= 0xd800 && point <= 0xdfff))
      return 0;
  }
  return 1;
}

/* An empty string's pointer may be NULL. */
static const char *string_of(const msgpack_object *o, size_t *n) {
  const char *s = NULL;
  *n = 0;
  if (o->type == MSGPACK_OBJECT_STR) {
    *n = o->via.str.size;
    s = o->via.str.ptr;
  } else if (o->type == MSGPACK_OBJECT_BIN) {
    *n = o->via.bin.size;
    s = o->via.bin.ptr;
  } else {
    return NULL;
  }
  return *n ? s : "";
}

static int is_float(const msgpack_object *o) {
  return o->type == MSGPACK_OBJECT_FLOAT32 || o->type == MSGPACK_OBJECT_FLOAT64;
}

/* Is `got` what Lua makes of `sent`? Strings are str if UTF-8 or a key, else
 * bin; floats are doubles; maps have no order. */
static int same(const msgpack_object *sent, const msgpack_object *got,
                int key) {
  size_t n, m;
  const char *s = string_of(sent, &n), *g = string_of(got, &m);
  if (s)
    return g && n == m && (n == 0 || memcmp(s, g, n) == 0) &&
           (got->type == MSGPACK_OBJECT_STR) == (key || is_utf8(s, n));
  if (is_float(sent))
    return got->type == MSGPACK_OBJECT_FLOAT64 && sent->via.f64 == got->via.f64;
  if (sent->type != got->type)
    return 0;
  if (sent->type == MSGPACK_OBJECT_ARRAY) {
    if (sent->via.array.size != got->via.array.size)
      return 0;
    for (uint32_t i = 0; i < sent->via.array.size; i++)
      if (!same(&sent->via.array.ptr[i], &got->via.array.ptr[i], 0))
        return 0;
    return 1;
  }
  if (sent->type == MSGPACK_OBJECT_MAP) {
    if (sent->via.map.size != got->via.map.size)
      return 0;
    for (uint32_t i = 0; i < sent->via.map.size; i++) {
      const msgpack_object_kv *a = &sent->via.map.ptr[i], *b = got->via.map.ptr;
      uint32_t k = 0;
      while (k < got->via.map.size && !same(&a->key, &b[k].key, 1))
        k++;
      if (k == got->via.map.size || !same(&a->val, &b[k].val, 0))
        return 0;
    }
    return 1;
  }
  return msgpack_object_equal(*sent, *got);
}

/* --- commands --- */

static void decode(msgpack_unpacked *u, const char *bytes, size_t size) {
  size_t at = 0;
  if (msgpack_unpack_next(u, bytes, size, &at) != MSGPACK_UNPACK_SUCCESS ||
      at != size)
    fail("not one value");
}

static void echo(const char *from, const char *to) {
  FILE *in = must_open(from, "rb"), *out = must_open(to, "wb");
  msgpack_sbuffer sb;
  msgpack_sbuffer_init(&sb);
  msgpack_packer pk;
  msgpack_packer_init(&pk, &sb, msgpack_sbuffer_write);
  msgpack_unpacked u;
  msgpack_unpacked_init(&u);
  char *bytes;
  size_t size;
  while ((bytes = frame_read(in, &size)) != NULL) {
    decode(&u, bytes, size);
    msgpack_sbuffer_clear(&sb);
    msgpack_pack_object(&pk, u.data);
    frame_write(out, sb.data, sb.size);
    free(bytes);
  }
  msgpack_unpacked_destroy(&u);
  msgpack_sbuffer_destroy(&sb);
  fclose(in);
  if (fclose(out))
    fail("cannot write");
}

/* With `check` compares the file's frames, else writes them. */
static void generate(const char *seed, const char *count, const char *path,
                     int check) {
  state = strtoull(seed, NULL, 10);
  long n = strtol(count, NULL, 10);
  FILE *f = must_open(path, check ? "rb" : "wb");
  msgpack_unpacked a, b;
  msgpack_unpacked_init(&a);
  msgpack_unpacked_init(&b);
  msgpack_sbuffer sb;
  msgpack_sbuffer_init(&sb);
  msgpack_packer pk;
  msgpack_packer_init(&pk, &sb, msgpack_sbuffer_write);
  for (long i = 0; i < n; i++) {
    msgpack_sbuffer_clear(&sb);
    random_value(&pk, 4);
    if (!check) {
      frame_write(f, sb.data, sb.size);
      continue;
    }
    size_t size;
    char *bytes = frame_read(f, &size);
    if (!bytes)
      fail("only %ld frames", i);
    decode(&a, sb.data, sb.size);
    decode(&b, bytes, size);
    if (!same(&a.data, &b.data, 0)) {
      msgpack_object_print(stderr, a.data);
      fputs("\n", stderr);
      msgpack_object_print(stderr, b.data);
      fail("\nvalue %ld differs", i);
    }
    free(bytes);
  }
  msgpack_unpacked_destroy(&a);
  msgpack_unpacked_destroy(&b);
  msgpack_sbuffer_destroy(&sb);
  if (fclose(f))
    fail("cannot write");
}

/* --- measuring --- */

static void build(lua_State *L, const msgpack_object *o) {
  switch (o->type) {
  case MSGPACK_OBJECT_BOOLEAN:
    lua_pushboolean(L, o->via.boolean);
    return;
  case MSGPACK_OBJECT_POSITIVE_INTEGER:
  case MSGPACK_OBJECT_NEGATIVE_INTEGER:
    lua_pushinteger(L, (lua_Integer)o->via.i64);
    return;
  case MSGPACK_OBJECT_FLOAT32:
  case MSGPACK_OBJECT_FLOAT64:
    lua_pushnumber(L, o->via.f64);
    return;
  case MSGPACK_OBJECT_STR:
  case MSGPACK_OBJECT_BIN:
    lua_pushlstring(L, o->via.str.ptr, o->via.str.size);
    return;
  case MSGPACK_OBJECT_ARRAY:
    lua_createtable(L, (int)o->via.array.size, 0);
    for (uint32_t i = 0; i < o->via.array.size; i++) {
      build(L, &o->via.array.ptr[i]);
      lua_rawseti(L, -2, (lua_Integer)i + 1);
    }
    return;
  case MSGPACK_OBJECT_MAP:
    lua_createtable(L, 0, (int)o->via.map.size);
    for (uint32_t i = 0; i < o->via.map.size; i++) {
      build(L, &o->via.map.ptr[i].key);
      build(L, &o->via.map.ptr[i].val);
      lua_rawset(L, -3);
    }
    return;
  default:
    lua_pushnil(L);
  }
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void bench(int rounds) {
  static char bytes[1 << 20];
  size_t size = fread(bytes, 1, sizeof bytes, stdin);
  long times = 40000000 / ((long)size + 200);
  msgpack_unpacked u, again;
  msgpack_unpacked_init(&u);
  msgpack_unpacked_init(&again);
  decode(&u, bytes, size);
  msgpack_sbuffer sb;
  msgpack_sbuffer_init(&sb);
  msgpack_packer pk;
  msgpack_packer_init(&pk, &sb, msgpack_sbuffer_write);
  lua_State *L = luaL_newstate();
  if (!L)
    fail("no memory");
  while (rounds-- > 0) {
    double t0 = now();
    for (long i = 0; i < times; i++) {
      msgpack_sbuffer_clear(&sb);
      msgpack_pack_object(&pk, u.data);
    }
    double t1 = now();
    for (long i = 0; i < times; i++)
      decode(&again, bytes, size);
    double t2 = now();
    for (long i = 0; i < times; i++) {
      build(L, &u.data);
      lua_settop(L, 0);
    }
    double t3 = now();
    printf("%.1f %.1f %.1f\n", (t1 - t0) / (double)times,
           (t2 - t1) / (double)times, (t3 - t2) / (double)times);
  }
  lua_close(L);
  msgpack_unpacked_destroy(&u);
  msgpack_unpacked_destroy(&again);
  msgpack_sbuffer_destroy(&sb);
}

int main(int argc, char **argv) {
  const char *command = argc > 1 ? argv[1] : "";
  if (argc == 4 && strcmp(command, "echo") == 0)
    echo(argv[2], argv[3]);
  else if (argc == 5 && strcmp(command, "make") == 0)
    generate(argv[2], argv[3], argv[4], 0);
  else if (argc == 5 && strcmp(command, "check") == 0)
    generate(argv[2], argv[3], argv[4], 1);
  else if (argc == 3 && strcmp(command, "bench") == 0)
    bench(atoi(argv[2]));
  else
    fail("usage: see the top of oracle.c");
  return 0;
}
