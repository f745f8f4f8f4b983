/* Included by clang-tidy before each source file: Lua's headers do not say that
 * these functions never return, and the analyser would go on behind them. */
#include "../src/prefix.h"

#include <lauxlib.h>

#define NEVER __attribute__((noreturn))
LUA_API int lua_error(lua_State *L) NEVER;
LUALIB_API int luaL_error(lua_State *L, const char *fmt, ...) NEVER;
LUALIB_API int luaL_argerror(lua_State *L, int arg, const char *text) NEVER;
LUALIB_API int luaL_typeerror(lua_State *L, int arg, const char *name) NEVER;
