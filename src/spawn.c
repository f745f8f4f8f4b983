/* What ipc.spawn, which is written in Lua, asks the system about this process.
 */
#include "prefix.h"

#include <lauxlib.h>
#include <limits.h>
#include <lua.h>
#include <sys/types.h>
#include <unistd.h>

#include "ipc.h"

#ifndef PATH_MAX
#define PATH_MAX 4096
#endif

/* () -> the path of the program that this process runs, or nil (proc(5)). */
static int spawn_program(lua_State *L) {
  char path[PATH_MAX];
  ssize_t n = readlink("/proc/self/exe", path, sizeof path);
  if (n <= 0 || (size_t)n == sizeof path)
    lua_pushnil(L);
  else
    lua_pushlstring(L, path, (size_t)n);
  return 1;
}

/* () -> the working directory, or nil. */
static int spawn_directory(lua_State *L) {
  char path[PATH_MAX];
  lua_pushstring(L, getcwd(path, sizeof path));
  return 1;
}

/* (handle) -> the seconds that its calls wait by default; nil: for ever, or it
 * is no channel. */
static int spawn_patience(lua_State *L) {
  const Handle *h = ipc_handle_at(L, 1);
  const Chan *c = h && h->channel ? (const Chan *)h : NULL;
  if (c && c->timeout != IPC_FOREVER)
    lua_pushnumber(L, (lua_Number)c->timeout / 1e9);
  else
    lua_pushnil(L);
  return 1;
}

static const luaL_Reg spawn_inner[] = {{"program", spawn_program},
                                       {"directory", spawn_directory},
                                       {"patience", spawn_patience},
                                       {NULL, NULL}};

const Room ipc_room_spawn = {.name = "spawn", .inner = spawn_inner};
