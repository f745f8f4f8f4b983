/* Locks by a name, or without one: mutex, rwlock, semaphore, condition, event,
 * barrier. What they do is in lockkinds.c. */
#include "prefix.h"

#include <lauxlib.h>
#include <lua.h>

#include "lock.h"

/***
 * @submodule ipc
 */

/***
Opens a mutex by its name, or makes one without a name (for `ipc.fork`, and to
be put through a unix socket). One handle at a time has it, of all processes; a
holder that is killed loses it at once, and who locks next is told.

Every lock goes with the last process that has it open, unless `persist`. The
handle stays usable in both processes after `ipc.fork`; what it has stays the
parent's.
@function mutex
@tparam ?string name `"/lock"`: a slash and 1 to 200 characters, the first not a
dot
@tparam[opt] table options every room's, and `persist`: the last one out leaves
it; `participants`: handles that may have it open at once (112); `huge`,
`prefault` as `ipc.shm`. `timeout`: the default of its calls
@treturn mutex with lock, unlock, consistent; or nil, message, errno as
`ipc.shm`: EEXIST also when the name is another kind of lock's
@usage local mutex = assert(ipc.mutex "/lock")
local held <close> = assert(mutex:lock(5))
*/
static int locks_mutex(lua_State *L) { return ipc_lock_open(L, CELL_MUTEX); }

/***
Opens, or makes, a lock that many have to read or one has to write.
@function rwlock
@tparam ?string name as `ipc.mutex`
@tparam[opt] table options as `ipc.mutex`
@treturn rwlock with read, write, unlock, consistent; or nil, message, errno
@usage local rw = assert(ipc.rwlock "/table")
local shared <close> = assert(rw:read(5))
*/
static int locks_rwlock(lua_State *L) { return ipc_lock_open(L, CELL_RWLOCK); }

/***
Opens, or makes, a number of permits. Those that a process has when it dies
return. Who names no `permits` only opens one that is there.
@function semaphore
@tparam ?string name as `ipc.mutex`
@tparam[opt] table options as `ipc.mutex`, and `permits`: how many there are (1
where there is no name); `owned = false`: permits are nobody's: anybody may
release, also to begin with 0, and those of the dead are gone
@treturn semaphore with acquire, release; or nil, message, errno
@usage local places = assert(ipc.semaphore("/places", { permits = 4 }))
local place <close> = assert(places:acquire())
*/
static int locks_semaphore(lua_State *L) {
  return ipc_lock_open(L, CELL_SEMAPHORE);
}

/***
Opens, or makes, a condition: what those who have a mutex wait for until others
changed it.
@function condition
@tparam ?string name as `ipc.mutex`
@tparam[opt] table options as `ipc.mutex`
@treturn condition with wait, notify, notify_all; or nil, message, errno
@usage local changed = assert(ipc.condition "/changed")
*/
static int locks_condition(lua_State *L) {
  return ipc_lock_open(L, CELL_CONDITION);
}

/***
Opens, or makes, an event: a flag that is waited for. `ipc.poll` waits for it,
too.
@function event
@tparam ?string name as `ipc.mutex`
@tparam[opt] table options as `ipc.mutex`, and `auto`: who waited clears it, so
that each set lets one go on
@treturn event with wait, set, clear, is_set; or nil, message, errno
@usage local ready = assert(ipc.event "/ready")
assert(ready:set())
*/
static int locks_event(lua_State *L) { return ipc_lock_open(L, CELL_EVENT); }

/***
Opens, or makes, a barrier: where so many parties wait for each other, again and
again. Who names no `parties` only opens one that is there.
@function barrier
@tparam ?string name as `ipc.mutex`
@tparam[opt] table options as `ipc.mutex`, and `parties`: how many, 1 to 4000
@treturn barrier with wait; or nil, message, errno
@usage local start = assert(ipc.barrier("/start", { parties = 4 }))
assert(start:wait(10))
*/
static int locks_barrier(lua_State *L) {
  return ipc_lock_open(L, CELL_BARRIER);
}

static const luaL_Reg locks_functions[] = {{"mutex", locks_mutex},
                                           {"rwlock", locks_rwlock},
                                           {"semaphore", locks_semaphore},
                                           {"condition", locks_condition},
                                           {"event", locks_event},
                                           {"barrier", locks_barrier},
                                           {NULL, NULL}};

const Room ipc_room_locks = {.name = "locks",
                             .functions = locks_functions,
                             .take = ipc_lock_take,
                             .types = ipc_lock_setup};
