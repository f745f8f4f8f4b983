/* For specs whose peer is not this library: another program, a fork(2) that it
 * does not know of, and a Lua state that is not ours. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

/* exec({descriptor, ...}, program, argument, ...) -> only nil, message
 * The descriptors are close-on-exec and non-blocking until then. */
static int peer_exec(lua_State *L) {
  enum { MOST = 16 };
  const char *argument[MOST + 1] = {NULL};
  int n = lua_gettop(L) - 1;
  luaL_argcheck(L, n >= 1 && n <= MOST, 2, "1 to 16 words");
  for (int i = 0; i < n; i++)
    argument[i] = luaL_checkstring(L, i + 2);
  luaL_checktype(L, 1, LUA_TTABLE);
  for (int i = 1; lua_rawgeti(L, 1, i) == LUA_TNUMBER; i++) {
    int fd = (int)lua_tointeger(L, -1);
    fcntl(fd, F_SETFD, 0);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
  }
  unsetenv("LD_PRELOAD"); /* it is for us, not for others */
  execvp(argument[0], (char *const *)argument);
  lua_pushnil(L);
  lua_pushstring(L, strerror(errno));
  return 2;
}

/* fork(function): calls it in a child of fork(2), and waits for that one */
static int peer_fork(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  pid_t pid = fork();
  if (pid == 0) {
    lua_call(L, 0, 0);
    fflush(NULL);
    _exit(0);
  }
  if (pid > 0)
    waitpid(pid, NULL, 0);
  return 0;
}

/* state(code) -> the integer that it returns; the state is never closed */
static int peer_state(lua_State *L) {
  lua_State *other = luaL_newstate();
  if (!other)
    return luaL_error(L, "not enough memory");
  luaL_openlibs(other);
  if (luaL_dostring(other, luaL_checkstring(L, 1)))
    return luaL_error(L, "%s", lua_tostring(other, -1));
  lua_pushinteger(L, lua_tointeger(other, -1));
  return 1;
}

/* ignore(signal [, false]): the action of a host that knows nothing of ours */
static int peer_ignore(lua_State *L) {
  int number = (int)luaL_checkinteger(L, 1);
  bool ignored = lua_isnone(L, 2) || lua_toboolean(L, 2);
  signal(number, ignored ? SIG_IGN : SIG_DFL);
  return 0;
}

int luaopen_spec_peer(lua_State *L);
int luaopen_spec_peer(lua_State *L) {
  static const luaL_Reg functions[] = {{"exec", peer_exec},
                                       {"fork", peer_fork},
                                       {"ignore", peer_ignore},
                                       {"state", peer_state},
                                       {NULL, NULL}};
  luaL_newlib(L, functions);
  return 1;
}
