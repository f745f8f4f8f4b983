/* Option tables, checked: unknown names, wrong types and ranges raise. */
#include "prefix.h"

#include <lauxlib.h>
#include <lua.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "ipc.h"

/***
 * @submodule ipc
 */

/***
What every mechanism takes, so that changing an address changes nothing else;
one that means nothing for a mechanism is accepted there. All of a channel:
`timeout`, seconds that calls wait by default (for ever); `linger`, seconds that
close waits for accepted messages (1); `maxsize`, bytes of a message (64 MiB);
`spin`, seconds that a wait retries before it sleeps (70e-6; 0: never). Of what
has a name: `create` (true, false, "new"), `temporary`, `permissions` ("0600"),
`retry` (seconds, or true), `keepalive`.
@table options
*/
static const char *const option_common[] = {
    "create",  "temporary", "permissions", "retry", "keepalive",
    "timeout", "maxsize",   "linger",      "spin",  NULL};

static bool option_known(const char *name, const char *const names[]) {
  for (; *names; names++)
    if (strcmp(name, *names) == 0)
      return true;
  return false;
}

static void option_check_common(lua_State *L, int index);

void ipc_options(lua_State *L, int index, const char *const names[]) {
  if (lua_isnoneornil(L, index))
    return;
  luaL_checktype(L, index, LUA_TTABLE);
  lua_pushnil(L);
  while (lua_next(L, index)) {
    lua_pop(L, 1);
    if (lua_type(L, -1) != LUA_TSTRING)
      luaL_argerror(L, index, "an option's name must be a string");
    const char *name = lua_tostring(L, -1);
    if (!option_known(name, names) && !option_known(name, option_common))
      luaL_argerror(L, index, lua_pushfstring(L, "unknown option '%s'", name));
  }
  option_check_common(L, index);
}

/* Pushes the option; its type, LUA_TNIL when absent. */
static int option_get(lua_State *L, int index, const char *name) {
  if (lua_isnoneornil(L, index)) {
    lua_pushnil(L);
    return LUA_TNIL;
  }
  lua_pushstring(L, name);
  return lua_rawget(L, index);
}

static int option_error(lua_State *L, int index, const char *name,
                        const char *expected) {
  return luaL_argerror(L, index,
                       lua_pushfstring(L, "option '%s': %s expected, got %s",
                                       name, expected, luaL_typename(L, -1)));
}

bool ipc_option_flag(lua_State *L, int index, const char *name,
                     bool otherwise) {
  int type = option_get(L, index, name);
  if (type != LUA_TNIL && type != LUA_TBOOLEAN)
    option_error(L, index, name, "boolean");
  bool flag = type == LUA_TNIL ? otherwise : lua_toboolean(L, -1);
  lua_pop(L, 1);
  return flag;
}

size_t ipc_option_size(lua_State *L, int index, const char *name, size_t least,
                       size_t most, size_t otherwise) {
  int type = option_get(L, index, name);
  if (type == LUA_TNIL) {
    lua_pop(L, 1);
    return otherwise;
  }
  int isnum = 0;
  lua_Integer n = type == LUA_TNUMBER ? lua_tointegerx(L, -1, &isnum) : 0;
  if (!isnum)
    option_error(L, index, name, "integer");
  if (n < 0 || (lua_Unsigned)n < least || (lua_Unsigned)n > most)
    luaL_argerror(L, index,
                  lua_pushfstring(L, "option '%s': %I is not in %I .. %I", name,
                                  (LUAI_UACINT)n, (LUAI_UACINT)least,
                                  (LUAI_UACINT)most));
  lua_pop(L, 1);
  return (size_t)n;
}

Nanos ipc_option_time(lua_State *L, int index, const char *name,
                      Nanos otherwise) {
  int type = option_get(L, index, name);
  Nanos time = otherwise;
  if (type != LUA_TNIL) {
    if (type != LUA_TNUMBER)
      option_error(L, index, name, "seconds");
    lua_Number seconds = lua_tonumber(L, -1);
    if (seconds != seconds)
      luaL_argerror(L, index,
                    lua_pushfstring(L, "option '%s': not a number", name));
    time = ipc_seconds(seconds);
  }
  lua_pop(L, 1);
  return time;
}

int ipc_option_choice(lua_State *L, int index, const char *name,
                      const char *const choices[]) {
  int type = option_get(L, index, name);
  int choice = 0;
  if (type != LUA_TNIL) {
    const char *word = type == LUA_TSTRING ? lua_tostring(L, -1) : "";
    while (choices[choice] && strcmp(choices[choice], word) != 0)
      choice++;
    if (!choices[choice]) {
      luaL_Buffer b;
      luaL_buffinit(L, &b);
      for (int i = 0; choices[i]; i++) {
        luaL_addstring(&b, i ? " or \"" : "\"");
        luaL_addstring(&b, choices[i]);
        luaL_addchar(&b, '"');
      }
      luaL_pushresult(&b);
      luaL_argerror(L, index,
                    lua_pushfstring(L, "option '%s': %s expected", name,
                                    lua_tostring(L, -1)));
    }
  }
  lua_pop(L, 1);
  return choice;
}

int ipc_option_create(lua_State *L, int index) {
  int type = option_get(L, index, "create"), create = IPC_CREATE;
  if (type == LUA_TSTRING && strcmp(lua_tostring(L, -1), "new") == 0)
    create = IPC_CREATE_NEW;
  else if (type == LUA_TBOOLEAN)
    create = lua_toboolean(L, -1) ? IPC_CREATE : IPC_ATTACH;
  else if (type != LUA_TNIL)
    option_error(L, index, "create", "boolean or \"new\"");
  lua_pop(L, 1);
  return create;
}

unsigned ipc_option_permissions(lua_State *L, int index) {
  int type = option_get(L, index, "permissions");
  unsigned mode = 0600;
  if (type != LUA_TNIL) {
    const char *text = type == LUA_TSTRING ? lua_tostring(L, -1) : "";
    size_t digits = strspn(text, "01234567");
    if (digits == 0 || text[digits] || digits > 4)
      option_error(L, index, "permissions", "a string like \"0600\"");
    mode = (unsigned)strtoul(text, NULL, 8);
    if (mode > 0777)
      luaL_argerror(L, index, "option 'permissions': more than \"0777\"");
  }
  lua_pop(L, 1);
  return mode;
}

Nanos ipc_option_retry(lua_State *L, int index) {
  Nanos time;
  if (option_get(L, index, "retry") == LUA_TBOOLEAN)
    time = lua_toboolean(L, -1) ? IPC_FOREVER : 0;
  else
    time = ipc_option_time(L, index, "retry", 0);
  lua_pop(L, 1);
  return time;
}

int ipc_check_mode(lua_State *L, int index, int otherwise) {
  static const char *const words[] = {"r", "w", "rw", NULL};
  static const int modes[] = {IPC_READ, IPC_WRITE, IPC_READ | IPC_WRITE};
  if (lua_isnoneornil(L, index) && otherwise)
    return otherwise;
  const char *word =
      lua_type(L, index) == LUA_TSTRING ? lua_tostring(L, index) : "";
  for (int i = 0; words[i]; i++)
    if (strcmp(words[i], word) == 0)
      return modes[i];
  return luaL_argerror(L, index, "mode \"r\", \"w\" or \"rw\" expected");
}

/* Those of named things are checked where there is no name, too. */
static void option_check_common(lua_State *L, int index) {
  (void)ipc_option_create(L, index);
  (void)ipc_option_permissions(L, index);
  (void)ipc_option_retry(L, index);
  (void)ipc_option_flag(L, index, "temporary", false);
  (void)ipc_option_flag(L, index, "keepalive", false);
}

/* ---------------------------------------------------------------- signals */

static const struct {
  const char *name;
  int number;
} signals[] = {{"TERM", SIGTERM},   {"KILL", SIGKILL},     {"INT", SIGINT},
               {"HUP", SIGHUP},     {"QUIT", SIGQUIT},     {"USR1", SIGUSR1},
               {"USR2", SIGUSR2},   {"STOP", SIGSTOP},     {"CONT", SIGCONT},
               {"TSTP", SIGTSTP},   {"ALRM", SIGALRM},     {"PIPE", SIGPIPE},
               {"CHLD", SIGCHLD},   {"ABRT", SIGABRT},     {"SEGV", SIGSEGV},
               {"BUS", SIGBUS},     {"FPE", SIGFPE},       {"ILL", SIGILL},
               {"TRAP", SIGTRAP},   {"XCPU", SIGXCPU},     {"XFSZ", SIGXFSZ},
               {"SYS", SIGSYS},     {"TTIN", SIGTTIN},     {"TTOU", SIGTTOU},
               {"WINCH", SIGWINCH}, {"VTALRM", SIGVTALRM}, {"URG", SIGURG}};

const char *ipc_signal_name(int number) {
  for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
    if (signals[i].number == number)
      return signals[i].name;
  return NULL;
}

int ipc_signal_number(lua_State *L, int index) {
  if (lua_isinteger(L, index)) {
    lua_Integer n = lua_tointeger(L, index);
    return n >= 0 && n < 128 ? (int)n : -1;
  }
  const char *name =
      lua_type(L, index) == LUA_TSTRING ? lua_tostring(L, index) : "";
  for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
    if (strcmp(signals[i].name, name) == 0)
      return signals[i].number;
  return -1;
}

int ipc_check_signal(lua_State *L, int index, int otherwise) {
  if (lua_isnoneornil(L, index))
    return otherwise;
  int number = ipc_signal_number(L, index);
  if (number >= 0)
    return number;
  return luaL_argerror(L, index, "a signal expected: \"TERM\", \"KILL\", 15");
}
