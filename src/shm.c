/* Shared memory as a channel: a ring in memory that any processes of the system
 * open by a name, or that has none and is handed on. */
#include "prefix.h"

#include <lauxlib.h>
#include <lua.h>

#include "os.h"
#include "rings.h"

/***
 * @submodule ipc
 */

static const HandleOps shm_handle = {.type = "ipc.shm",
                                     .descriptor = ipc_ring_descriptor,
                                     .arm = ipc_ring_arm,
                                     .wait = ipc_ring_wait,
                                     .ready = ipc_ring_ready,
                                     .close = ipc_ring_close,
                                     .forking = ipc_ring_forking,
                                     .forked = ipc_ring_forked,
                                     .give = ipc_rings_give,
                                     .events = true};

static void shm_read(lua_State *L, int index, SegmentAsk *ask) {
  ipc_rings_side(L, index, "readers", SEGMENT_SOLE_READER, ask);
  ipc_member_flag(L, index, "lease", SEGMENT_LEASE, ask);
}

static const char *const shm_options[] = {RINGS_OPTIONS, "readers", "lease",
                                          NULL};

static const RingRoom shm_rings = {.m =
                                       RINGS_MEMBER("shm", SEGMENT_RING, false),
                                   .handle = &shm_handle,
                                   .ops = &ipc_ring_ops,
                                   .options = shm_options,
                                   .read = shm_read,
                                   .begin = ipc_ring_begin};

/***
Opens a ring of messages in shared memory by its name: the fastest channel
between processes of one system, for any number of them at each end. No death of
one of them, whatever it was doing, harms the others. (For the bytes themselves
see `ipc.memory`.)

Who names a `capacity`, or `size` and `count`, makes the ring if there is none;
who does not only opens it, or answers ENOENT (`retry` waits). The ring goes
with the last process that has it open, unless `persist`; what all of them left
by being killed is removed by the next that opens the name.

A handle opened "r" receives and one opened "w" sends; `recv` answers `"closed"`
when no process that sends is left, `send` when none that receives is left (of a
killed one it learns within 64 messages, or when the ring is full); before the
first came, both wait. The handle stays usable in both processes after
`ipc.fork`.

With `lease = true` a message that `take` gave is kept until it is acknowledged;
when its process dies it is offered to another.
@function shm
@string name `"/frames"`: a slash and 1 to 200 characters, the first not a dot
@string mode "r", "w" or "rw"
@tparam[opt] table options every room's, and `capacity`: bytes of the ring,
rounded up to a power of two and to pages, of which a message takes its own,
rounded up to 16, and 16; or `size` and `count`: so many messages of so many
bytes, the most one may have. `writers`, `readers`: 1 or "many" (the default):
of a side made for one a second gets EBUSY, and it takes no lock. `lease`.
`keepalive`: never `"closed"` because others left. `persist`: the last one out
leaves it. `participants`: handles that may have it open at once (112). `huge`:
in huge pages: a nameless one in those the system has reserved (ENOSPC names the
sysctl), a named one in those it makes, if it does. `prefault`: pages are
touched at once. `create`, `permissions`, `retry`: whether, how and how long.
What exists already must be as asked: EEXIST
@treturn channel with `reserve`, `peek`, `take`, `remove`; stats adds `depth`
(messages in it), `used` and `capacity` (bytes), `takeovers` (locks of dead
processes taken); or nil, message, errno: ENOENT, EEXIST, EACCES (also for one
that another user made, unless `create = false`), EBUSY, EUSERS (no place for
another participant), EBADMSG (a file that is not ours), ENOSPC, ENOTSUP (no
locks of open file descriptions here, or made by another version)
@usage local frames = assert(ipc.shm("/frames", "w", { capacity = 1 << 20 }))
frames:put { n = 1 }
*/
static int shm_open_name(lua_State *L) { return ipc_rings_open(L, &shm_rings); }

/***
A ring in shared memory without a name: two ends, any number of processes at
each (`dup`, `ipc.fork`, `put` through a unix socket hand them on).
@function queue
@tparam[opt] table options those of `ipc.shm`; `capacity` is 1 MiB by default
@treturn channel that receives
@treturn channel that sends; or nil, message, errno as `ipc.shm`
@usage local r, w = ipc.queue { size = 256, count = 1000 }
*/
static int shm_queue(lua_State *L) {
  lua_settop(L, 1);
  int n = ipc_rings_ends(L, 1, &shm_rings);
  return n;
}

static int shm_pair(lua_State *L) { return ipc_rings_pair(L, &shm_rings); }

static int shm_place(lua_State *L) { return ipc_rings_place(L, &shm_rings); }

static int shm_take(lua_State *L, Given *g) {
  return ipc_rings_take(L, g, &shm_rings);
}

static void shm_setup(lua_State *L) { ipc_rings_setup(L, &shm_handle); }

static const luaL_Reg shm_functions[] = {
    {"shm", shm_open_name}, {"queue", shm_queue}, {NULL, NULL}};

static const char *const shm_schemes[] = {"shm", NULL};

static const Kind shm_kinds[] = {
    {"shared memory", "shm", "both ways", "message", "this system",
     IPC_LIVENESS | IPC_MANY_READERS | IPC_MANY_WRITERS | IPC_EMPTY |
         IPC_DESCRIPTOR},
    {NULL, NULL, NULL, NULL, NULL, 0}};

static bool shm_has(const Kind *k) {
  (void)k;
  return ipc_segment_possible();
}

static const Limit shm_limits[] = {
    {"vm.nr_hugepages", "nameless rings with huge = true", "huge pages"},
    {NULL, NULL, NULL}};

const Room ipc_room_shm = {.name = "shm",
                           .schemes = shm_schemes,
                           .functions = shm_functions,
                           .kinds = shm_kinds,
                           .has = shm_has,
                           .limits = shm_limits,
                           .pair = shm_pair,
                           .open = shm_open_name,
                           .place = shm_place,
                           .take = shm_take,
                           .types = shm_setup};
