/* luaopen_ipc_core: walks rooms.h and opens what stands below the rooms. */
#include "prefix.h"

#include <lauxlib.h>
#include <lua.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "ipc.h"
#include "msgpack.h"
#include "os.h"

/***
 * Inter-process communication: every mechanism of the kernel behind the same
 * calls. `local ipc = require "ipc"`.
 * @module ipc
 */

#define ROOM(name) extern const Room ipc_room_##name;
#define PART(name) extern const Room ipc_room_##name;
#include "rooms.h"
#undef ROOM
#undef PART

static const Room *const rooms[] = {
#define ROOM(name) &ipc_room_##name,
#define PART(name) &ipc_room_##name,
#include "rooms.h"
#undef ROOM
#undef PART
};

enum { ROOMS = sizeof rooms / sizeof *rooms };

const Room *ipc_room(const char *name) {
  size_t i = 0;
  while (i + 1 < ROOMS && strcmp(rooms[i]->name, name) != 0)
    i++;
  return rooms[i];
}

_Static_assert(ROOMS <= 64, "State.typed has a bit for each");

/* Whether its handles are called so, as most are: "ipc.pipe" are of pipe. */
static bool core_is_of(const Room *room, const HandleOps *ops) {
  return strcmp(ops->type + sizeof "ipc." - 1, room->name) == 0;
}

/* Is to be finished first the next time, if memory is short now. */
static void core_type(lua_State *L, State *S, unsigned i) {
  S->typing = i + 1;
  rooms[i]->types(L);
  lua_settop(L, 1);
  S->typing = 0;
  S->typed |= (uint64_t)1 << i;
}

/* (ops): the types of its room, which is looked for by name, then everywhere.
 */
static int core_types(lua_State *L) {
  const HandleOps *ops = lua_touserdata(L, 1);
  State *S = ipc_state(L);
  if (S->typing)
    core_type(L, S, S->typing - 1);
  for (int named = 1; named >= 0; named--) {
    for (unsigned i = 0; i < ROOMS; i++) {
      if (lua_rawgetp(L, LUA_REGISTRYINDEX, ops) != LUA_TNIL)
        return 0;
      lua_settop(L, 1);
      if (rooms[i]->types && !(S->typed >> i & 1) &&
          (!named || core_is_of(rooms[i], ops)))
        core_type(L, S, i);
    }
  }
  return 0;
}

void ipc_room_types(lua_State *L, const HandleOps *ops) {
  lua_pushcfunction(L, core_types);
  lua_pushlightuserdata(L, (void *)(uintptr_t)ops);
  lua_call(L, 1, 0);
}

/***
This process's id.
@function pid
@treturn integer
*/
static int core_pid(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)getpid());
  return 1;
}

/***
How many cores this process may run on now.
@function cpus
@treturn integer at least 1
*/
static int core_cpus(lua_State *L) {
  lua_pushinteger(L, ipc_os_cores());
  return 1;
}

static void core_capabilities(lua_State *L, unsigned capabilities) {
  static const struct {
    unsigned bit;
    const char *name;
  } names[] = {{IPC_LIVENESS, "liveness"},
               {IPC_TAG_INTEGER, "integer_tag"},
               {IPC_TAG_ADDRESS, "address_tag"},
               {IPC_HANDLES, "handles"},
               {IPC_MANY_READERS, "many_readers"},
               {IPC_MANY_WRITERS, "many_writers"},
               {IPC_EMPTY, "empty"},
               {IPC_DESCRIPTOR, "descriptor"}};
  lua_createtable(L, 0, 8);
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    lua_pushboolean(L, (capabilities & names[i].bit) != 0);
    lua_setfield(L, -2, names[i].name);
  }
}

/***
The mechanisms that this system has, one row for each way to use one.
@function mechanisms
@treturn {table,...} rows: `name`, `room`, `address` (what `ipc.pair` opens it
by), `direction`, `unit`, `reach`, and `capabilities`: a table of `liveness`,
`integer_tag`, `address_tag`, `handles`, `many_readers`, `many_writers`,
`empty`, `descriptor`
*/
static int core_mechanisms(lua_State *L) {
  lua_newtable(L);
  for (size_t i = 0, n = 0; i < ROOMS; i++) {
    for (const Kind *k = rooms[i]->kinds; k && k->name; k++) {
      if (rooms[i]->has && !rooms[i]->has(k))
        continue;
      const char *const fields[][2] = {
          {"name", k->name},       {"room", rooms[i]->name},
          {"address", k->address}, {"direction", k->direction},
          {"unit", k->unit},       {"reach", k->reach}};
      lua_createtable(L, 0, 7);
      for (size_t f = 0; f < sizeof fields / sizeof *fields; f++) {
        lua_pushstring(L, fields[f][1]);
        lua_setfield(L, -2, fields[f][0]);
      }
      core_capabilities(L, k->capabilities);
      lua_setfield(L, -2, "capabilities");
      lua_rawseti(L, -2, (lua_Integer)++n);
    }
  }
  return 1;
}

/***
The system's limits that bound mechanisms, as they are now.
@function limits
@treturn {table,...} rows: `mechanism` (a room's name), `name` (of the sysctl or
resource), `what` it bounds, `value` (a number; infinity for none; absent where
it cannot be read), `unit`, and `raise`: where to change it
@usage for _, l in ipairs(ipc.limits()) do print(l.what, l.value, l.raise) end
*/
static int core_limits(lua_State *L) {
  lua_newtable(L);
  for (size_t i = 0, n = 0; i < ROOMS; i++) {
    for (const Limit *l = rooms[i]->limits; l && l->name; l++) {
      long long value = 0;
      lua_createtable(L, 0, 6);
      const char *const fields[][2] = {{"mechanism", rooms[i]->name},
                                       {"name", l->name},
                                       {"what", l->what},
                                       {"unit", l->unit}};
      for (size_t f = 0; f < sizeof fields / sizeof *fields; f++) {
        lua_pushstring(L, fields[f][1]);
        lua_setfield(L, -2, fields[f][0]);
      }
      if (ipc_os_limit(l->name, &value) == 0) {
        if (value < 0)
          lua_pushnumber(L, HUGE_VAL);
        else
          lua_pushinteger(L, value);
        lua_setfield(L, -2, "value");
      }
      ipc_limit_raise(L, l->name);
      lua_setfield(L, -2, "raise");
      lua_rawseti(L, -2, (lua_Integer)++n);
    }
  }
  return 1;
}

/* A room's own table: what addresses and other modules reach it by. */
static void core_room(lua_State *L, const Room *room) {
  const luaL_Reg slots[] = {
      {"pair", room->pair},     {"open", room->open},
      {"listen", room->listen}, {"connect", room->connect},
      {"place", room->place},   {"adopt", room->adopt}};
  lua_newtable(L);
  if (room->functions)
    luaL_setfuncs(L, room->functions, 0);
  if (room->inner)
    luaL_setfuncs(L, room->inner, 0);
  if (room->more)
    room->more(L);
  for (size_t i = 0; i < sizeof slots / sizeof *slots; i++) {
    if (!slots[i].func)
      continue;
    lua_pushcfunction(L, slots[i].func);
    lua_setfield(L, -2, slots[i].name);
  }
  lua_newtable(L);
  for (int i = 0; room->schemes && room->schemes[i]; i++) {
    lua_pushstring(L, room->schemes[i]);
    lua_rawseti(L, -2, i + 1);
  }
  lua_setfield(L, -2, "schemes");
}

int luaopen_ipc_core(lua_State *L);

/* The flat functions, and each room's table by its name. */
__attribute__((visibility("default"))) int luaopen_ipc_core(lua_State *L) {
  static const luaL_Reg functions[] = {{"pid", core_pid},
                                       {"cpus", core_cpus},
                                       {"mechanisms", core_mechanisms},
                                       {"limits", core_limits},
                                       {NULL, NULL}};
  luaL_checkversion(L);
  ipc_state_open(L);
  lua_newtable(L); /* flat */
  luaL_setfuncs(L, functions, 0);
  ipc_errno_open(L);
  ipc_wait_open(L);
  ipc_task_open(L);
  ipc_msgpack_open(L);
  ipc_chan_open(L);
  lua_newtable(L); /* rooms */
  for (size_t i = 0; i < ROOMS; i++) {
    if (rooms[i]->setup)
      rooms[i]->setup(L);
    if (rooms[i]->functions) {
      lua_pushvalue(L, -2);
      luaL_setfuncs(L, rooms[i]->functions, 0);
      lua_pop(L, 1);
    }
    core_room(L, rooms[i]);
    lua_setfield(L, -2, rooms[i]->name);
  }
  ipc_task_push(L);
  lua_setfield(L, -2, "task");
  lua_pushvalue(L, -2);
  lua_setfield(L, -2, "flat");
  return 1;
}
