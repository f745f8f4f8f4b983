/* A mapped file as a channel: the ring of shared memory in a file of the
 * user's, which keeps what nobody received. */
#include "prefix.h"

#include <lauxlib.h>
#include <lua.h>

#include "os.h"
#include "rings.h"

/***
 * @submodule ipc
 */

static const HandleOps mmap_handle = {.type = "ipc.mmap",
                                      .descriptor = ipc_ring_descriptor,
                                      .arm = ipc_ring_arm,
                                      .wait = ipc_ring_wait,
                                      .ready = ipc_ring_ready,
                                      .close = ipc_ring_close,
                                      .forking = ipc_ring_forking,
                                      .forked = ipc_ring_forked,
                                      .give = ipc_rings_give,
                                      .events = true};

static void mmap_read(lua_State *L, int index, SegmentAsk *ask) {
  ipc_rings_side(L, index, "readers", SEGMENT_SOLE_READER, ask);
  ipc_member_flag(L, index, "lease", SEGMENT_LEASE, ask);
  ask->flags |= SEGMENT_PERSIST;
  ask->insists &= ~(uint32_t)SEGMENT_PERSIST;
}

static const char *const mmap_options[] = {RINGS_OPTIONS, "readers", "lease",
                                           NULL};

static const RingRoom mmap_rings = {
    .m = RINGS_MEMBER("mmap", SEGMENT_RING, true),
    .handle = &mmap_handle,
    .ops = &ipc_ring_ops,
    .options = mmap_options,
    .read = mmap_read,
    .begin = ipc_ring_begin};

/***
Opens a ring of messages in a file, as `ipc.shm` does in memory: the file
outlives its processes and the system, and what nobody received is there for the
next that opens it. (For the bytes themselves see `ipc.memory`.)

What was sent survives any kill, and a restart of the system that writes its
files back; a power cut may damage it, which opening it then tells (or lose it:
see `ipc.journal`). `recv` answers `"closed"` when nobody who sends is left and
everything was received; a writer that comes first fills the ring, whoever
received before it was opened.
@function mmap
@string path of the file; in a directory that exists
@string mode "r", "w" or "rw"
@tparam[opt] table options those of `ipc.shm`; `persist` is always so.
`temporary`: the close of who made it removes it
@treturn channel as of `ipc.shm`; or nil, message, errno: as there, and EBADMSG
for a file that is not such a ring, or is damaged; it is not touched
@usage local log = assert(ipc.mmap("events.ring", "w", { capacity = 1 << 16 }))
log:put { at = os.time() }
*/
static int mmap_open(lua_State *L) { return ipc_rings_open(L, &mmap_rings); }

static int mmap_pair(lua_State *L) { return ipc_rings_pair(L, &mmap_rings); }

static int mmap_take(lua_State *L, Given *g) {
  return ipc_rings_take(L, g, &mmap_rings);
}

static void mmap_setup(lua_State *L) { ipc_rings_setup(L, &mmap_handle); }

static const luaL_Reg mmap_functions[] = {{"mmap", mmap_open}, {NULL, NULL}};

static const char *const mmap_schemes[] = {"mmap", NULL};

static const Kind mmap_kinds[] = {
    {"memory map", "mmap", "both ways", "message", "this system",
     IPC_LIVENESS | IPC_MANY_READERS | IPC_MANY_WRITERS | IPC_EMPTY |
         IPC_DESCRIPTOR},
    {NULL, NULL, NULL, NULL, NULL, 0}};

static bool mmap_has(const Kind *k) {
  (void)k;
  return ipc_segment_possible();
}

const Room ipc_room_mmap = {.name = "mmap",
                            .schemes = mmap_schemes,
                            .functions = mmap_functions,
                            .kinds = mmap_kinds,
                            .has = mmap_has,
                            .pair = mmap_pair,
                            .open = mmap_open,
                            .take = mmap_take,
                            .types = mmap_setup};
