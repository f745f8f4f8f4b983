/* errno to Lua: the world's answer is nil, message, errno. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <string.h>

#include "ipc.h"
#include "os.h"

/***
 * @submodule ipc
 */

/* The errors that users branch on, or may meet. */
/* clang-format off */
#define ERRNO_MAP(X) \
  X(E2BIG) X(EACCES) X(EADDRINUSE) X(EADDRNOTAVAIL) X(EAFNOSUPPORT) \
  X(EAGAIN) X(EBADF) X(EBADMSG) X(EBUSY) X(ECANCELED) X(ECHILD) \
  X(ECONNABORTED) X(ECONNREFUSED) X(ECONNRESET) X(EDEADLK) X(EDESTADDRREQ) \
  X(EDOM) X(EEXIST) X(EFAULT) X(EFBIG) X(EHOSTUNREACH) X(EIDRM) X(EILSEQ) \
  X(EINPROGRESS) X(EINTR) X(EINVAL) X(EIO) X(EISCONN) X(EISDIR) X(ELOOP) \
  X(EMFILE) X(EMLINK) X(EMSGSIZE) X(ENAMETOOLONG) X(ENETDOWN) \
  X(ENETUNREACH) X(ENFILE) X(ENOBUFS) X(ENODEV) X(ENOENT) X(ENOEXEC) \
  X(ENOLCK) X(ENOMEM) X(ENOMSG) X(ENOPROTOOPT) X(ENOSPC) X(ENOSYS) \
  X(ENOTCONN) X(ENOTDIR) X(ENOTEMPTY) X(ENOTRECOVERABLE) X(ENOTSOCK) \
  X(ENOTSUP) X(ENOTTY) X(ENXIO) X(EOVERFLOW) X(EOWNERDEAD) X(EPERM) \
  X(EPIPE) X(EPROTO) X(EPROTOTYPE) X(ERANGE) X(EROFS) X(ESPIPE) X(ESRCH) \
  X(ESTALE) X(ETIMEDOUT) X(ETOOMANYREFS) X(ETXTBSY) X(EUSERS) X(EXDEV)
/* clang-format on */

static const struct {
  const char *name;
  int number;
} errno_names[] = {
#define ERRNO_ROW(name) {#name, name},
    ERRNO_MAP(ERRNO_ROW)
#undef ERRNO_ROW
};

/* The words that never change; every other text may. */
static const char *error_word(int err) {
  switch (err) {
  case ETIMEDOUT:
    return "timeout";
  case EPIPE:
    return "closed";
  case EOWNERDEAD:
    return "died";
  case ECANCELED:
    return "cancelled";
  case EINTR:
    return "interrupted";
  default:
    return NULL;
  }
}

int ipc_fail(lua_State *L, const char *type, const char *call, int err,
             const char *detail) {
  const char *word = error_word(err);
  lua_pushnil(L);
  if (word)
    lua_pushstring(L, word);
  else if (detail)
    lua_pushfstring(L, "%s.%s: %s: %s", type, call, detail, strerror(err));
  else
    lua_pushfstring(L, "%s.%s: %s", type, call, strerror(err));
  lua_pushinteger(L, err);
  return 3;
}

void ipc_limit_raise(lua_State *L, const char *name) {
  if (strncmp(name, "RLIMIT_", 7) == 0)
    lua_pushfstring(L, "setrlimit(2) %s, limits.conf(5)", name);
  else
    lua_pushfstring(L, "sysctl -w %s=...", name);
}

int ipc_fail_limit(lua_State *L, const char *type, const char *call, int err,
                   const char *what, const char *limit) {
  long long value = 0;
  luaL_Buffer b;
  luaL_buffinit(L, &b);
  if (what) {
    luaL_addstring(&b, what);
    luaL_addstring(&b, ", but ");
  }
  luaL_addstring(&b, limit);
  if (ipc_os_limit(limit, &value) == 0) {
    if (value < 0)
      lua_pushliteral(L, " is unlimited");
    else
      lua_pushfstring(L, " is %I", (LUAI_UACINT)value);
    luaL_addvalue(&b);
  }
  luaL_addstring(&b, " (");
  ipc_limit_raise(L, limit);
  luaL_addvalue(&b);
  luaL_addstring(&b, ")");
  luaL_pushresult(&b);
  return ipc_fail(L, type, call, err, lua_tostring(L, -1));
}

static const char error_key; /* registry: the metatable of error objects */

static int error_tostring(lua_State *L) {
  lua_getfield(L, 1, "message");
  luaL_tolstring(L, -1, NULL);
  return 1;
}

void ipc_error_push(lua_State *L, int message, int number) {
  message = lua_absindex(L, message);
  number = lua_absindex(L, number);
  lua_createtable(L, 0, 2);
  lua_pushvalue(L, message);
  lua_setfield(L, -2, "message");
  lua_pushvalue(L, number);
  lua_setfield(L, -2, "errno");
  lua_rawgetp(L, LUA_REGISTRYINDEX, &error_key);
  lua_setmetatable(L, -2);
}

int ipc_raise(lua_State *L) {
  ipc_error_push(L, -2, -1);
  return lua_error(L);
}

/***
Error numbers by name and names by number: `ipc.errno.EPIPE` is 32 on Linux,
`ipc.errno[32]` is `"EPIPE"`. Branch on these, never on message texts: only
`"timeout"` (ETIMEDOUT), `"closed"` (EPIPE), `"died"` (EOWNERDEAD),
`"cancelled"` (ECANCELED) and `"interrupted"` (EINTR) are fixed words. Numbers
are those of errno(3) on the running system.
@table errno
*/
void ipc_errno_open(lua_State *L) {
  lua_createtable(L, 0, 2 * (int)(sizeof errno_names / sizeof *errno_names));
  for (size_t i = 0; i < sizeof errno_names / sizeof *errno_names; i++) {
    lua_pushstring(L, errno_names[i].name);
    lua_pushvalue(L, -1);
    lua_pushinteger(L, errno_names[i].number);
    lua_rawset(L, -4);
    lua_rawseti(L, -2, errno_names[i].number);
  }
  lua_setfield(L, -2, "errno");

  lua_createtable(L, 0, 2);
  lua_pushliteral(L, "ipc.error");
  lua_setfield(L, -2, "__name");
  lua_pushcfunction(L, error_tostring);
  lua_setfield(L, -2, "__tostring");
  lua_rawsetp(L, LUA_REGISTRYINDEX, &error_key);
}
