/* Results and errors in a file, for after the end: written once by the child,
 * read once by its parent. A count, a boolean and the values, as MessagePack.
 */
#include "prefix.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "ipc.h"
#include "msgpack.h"
#include "os.h"
#include "report.h"

/* A nil before all, where no count can be one: the child has begun. */
enum { REPORT_MARK = 0xC0 };

/* What was one value there is one here, whatever it takes. */
static const ValueLimits report_limits = {.bytes = SIZE_MAX,
                                          .depth = 64,
                                          .values = UINT32_MAX,
                                          .tables = UINT32_MAX,
                                          .keys = UINT32_MAX};

/* (value, ...) -> their encodings one after the other, in S->scratch. */
static int report_encode(lua_State *L) {
  State *S = ipc_state(L);
  int n = lua_gettop(L);
  lua_pushinteger(L, n);
  S->scratch.size = 0;
  ipc_value_encode(L, -1, &S->scratch);
  for (int i = 1; i <= n; i++)
    ipc_value_encode(L, i, &S->scratch);
  return 0;
}

/* Encodes an error and its text: the two on top of the stack, which go. */
static bool report_encode_error(lua_State *L) {
  lua_pushcfunction(L, report_encode);
  lua_insert(L, -3);
  lua_pushboolean(L, 0);
  lua_insert(L, -3);
  if (lua_pcall(L, 3, 0, 0) == LUA_OK)
    return true;
  lua_pop(L, 1);
  return false;
}

bool ipc_report_begin(int fd) {
  const unsigned char begun = REPORT_MARK;
  return ipc_os_write_file(fd, (const char *)&begun, 1) == 0;
}

bool ipc_report_leave(lua_State *L, int base, bool ok, int fd) {
  State *S = ipc_state(L);
  lua_checkstack(L, 8);
  if (ok)
    lua_pushnil(L);
  else
    lua_pushvalue(L, base + 2); /* the error's text */
  lua_insert(L, ++base);
  lua_pushboolean(L, ok);
  lua_insert(L, base + 1);
  lua_pushcfunction(L, report_encode);
  lua_insert(L, base + 1);
  if (lua_pcall(L, lua_gettop(L) - base - 1, 0, 0) != LUA_OK) {
    /* What it returned, or raised, cannot travel: say so instead, or say at
     * least what the error says. */
    if (!ok)
      lua_copy(L, base, -1);
    lua_pushvalue(L, -1);
    if (!report_encode_error(L))
      return false;
  }
  int err = ipc_os_write_file(fd, S->scratch.bytes, S->scratch.size);
  if (!err)
    return true;
  /* There is room for the reason, perhaps. */
  (void)(ftruncate(fd, 0) || lseek(fd, 0, SEEK_SET));
  lua_pushfstring(L, "its results could not be left: %s", strerror(err));
  lua_pushvalue(L, -1);
  if (report_encode_error(L))
    (void)ipc_os_write_file(fd, S->scratch.bytes, S->scratch.size);
  return false;
}

/* Reads what the child left; the buffer's contents end with it. */
static int report_read(int fd, Buffer *b) {
  b->size = 0;
  for (;;) {
    if (ipc_buffer_reserve(b, 4096))
      return ENOMEM;
    ssize_t n =
        pread(fd, b->bytes + b->size, b->room - b->size, (off_t)b->size);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      return errno;
    if (n == 0)
      return 0;
    b->size += (size_t)n;
  }
}

Report ipc_report_push(lua_State *L, int fd) {
  Buffer *b = &ipc_state(L)->scratch;
  int err = fd < 0 ? EBADF : report_read(fd, b);
  if (err == ENOMEM) /* the report is still there: ask again */
    luaL_error(L, "not enough memory");
  if (err || b->size == 0)
    return REPORT_NONE;
  size_t size, at = (unsigned char)b->bytes[0] == REPORT_MARK;
  if (b->size == at)
    return REPORT_BEGUN;
  /* As a string: decoding runs Lua's allocator, and scratch is anybody's. */
  lua_pushlstring(L, b->bytes, b->size);
  int text = lua_gettop(L), values = text + 1;
  const char *bytes = lua_tolstring(L, text, &size);
  ipc_decoder_push_within(L, &report_limits);
  lua_Integer left = -1;
  while (left != 0) {
    size_t used = 0;
    luaL_checkstack(L, 8, "too many results");
    if (ipc_decoder_feed(L, values, bytes + at, size - at, &used)) {
      lua_settop(L, text - 1);
      return REPORT_BROKEN;
    }
    at += used;
    if (left < 0) {
      left = lua_tointeger(L, -1);
      lua_pop(L, 1);
      continue;
    }
    if (lua_islightuserdata(L, -1)) { /* ipc.null */
      lua_pop(L, 1);
      lua_pushnil(L);
    }
    left--;
  }
  lua_remove(L, values);
  lua_remove(L, text);
  return REPORT_WHOLE;
}
