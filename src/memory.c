/* ipc.memory: what a whole memory can do beside what all bytes can: flush,
 * grow, lock, give locks of its own. How it is opened is in memories.c. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <string.h>

#include "bytes.h"
#include "memories.h"
#include "os.h"

/***
A memory: bytes that any processes of the system share. It has the methods of
`ipc.bytes`, and those here. A memory of a name or without one is a set of
participants, as `ipc.shm` is: of a killed one nothing is left behind.

The bytes are as the machines have them: what other machines are to read, write
with formats that say so ("<I4", ">d").

@module ipc.memory
@usage local counters <close> = assert(ipc.memory("/counters", 4096))
counters:add(0, 1)
*/

static Memory *memory_self(lua_State *L, const char *call, int *n) {
  Memory *m = (Memory *)ipc_handle_self(L);
  *n = ipc_handle_usable(&m->h) ? 0 : ipc_handle_refuse(L, &m->h, call);
  return m;
}

/* A range of the bytes in slots `index` and the next, by default all, and where
 * it is: 0; or the number of results of a failed call. */
static int memory_range(lua_State *L, Memory *m, int index, const char *call,
                        size_t *offset, size_t *count) {
  *offset = lua_isnoneornil(L, index) ? 0 : ipc_bytes_offset(L, index, &m->all);
  *count = ipc_bytes_count(L, index + 1, &m->all, *offset);
  int err = ipc_bytes_check(&m->all);
  return err ? ipc_view_fail(L, "ipc.memory", call, err) : 0;
}

static int memory_done(lua_State *L, const char *call, int err,
                       const char *why) {
  if (err)
    return ipc_fail(L, "ipc.memory", call, err, why);
  lua_pushboolean(L, 1);
  return 1;
}

/***
Writes what was changed to the disk, msync(2): until then it is in the system's
memory, where every process sees it, and a power cut loses it. An error of the
disk is told once. It asks, too, whether a file was cut short (EFAULT): bytes
that are missed in a file's last page are found out no other way, and read as
0.
@function memory:flush
@tparam[opt=0] ?integer offset
@tparam[opt=the rest] ?integer count
@tparam[opt=false] ?boolean async only begins to, and does not wait
@treturn boolean true; or nil, message, errno: EIO, ENOSPC; ENOTSUP of a file
opened with `private`
*/
static int memory_flush(lua_State *L) {
  int n;
  size_t offset, count;
  Memory *m = memory_self(L, "flush", &n);
  if (!n)
    n = memory_range(L, m, 2, "flush", &offset, &count);
  if (n)
    return n;
  if (!lua_isnoneornil(L, 4))
    luaL_checktype(L, 4, LUA_TBOOLEAN);
  if (m->f.copied)
    return memory_done(L, "flush", ENOTSUP, "what is written here stays here");
  int err = m->plain ? ipc_plain_look(&m->f) : 0;
  if (err)
    return ipc_view_fail(L, "ipc.memory", "flush", err);
  if (count)
    err = ipc_os_sync(m->all.bytes + offset, count, !lua_toboolean(L, 4));
  return memory_done(L, "flush", err, NULL);
}

/***
Tells the system how the bytes will be used, madvise(2).
@function memory:advise
@string what "willneed": read them ahead. "dontneed": give their pages back;
they are read anew from the file when they are used again (with `private`, what
was written here is forgotten). "sequential", "random": read much ahead, or
nothing. "normal": as before. "hugepage", "nohugepage": use huge pages for them,
or not
@tparam[opt=0] ?integer offset
@tparam[opt=the rest] ?integer count whole pages count that have them
@treturn boolean true; or nil, message, errno: ENOTSUP where the system knows
no such advice for this kind of memory
*/
static int memory_advise(lua_State *L) {
  static const char *const words[] = {
      [OS_NORMAL] = "normal",        [OS_SEQUENTIAL] = "sequential",
      [OS_RANDOM] = "random",        [OS_WILLNEED] = "willneed",
      [OS_DONTNEED] = "dontneed",    [OS_HUGEPAGE] = "hugepage",
      [OS_NOHUGEPAGE] = "nohugepage"};
  int n;
  size_t offset, count, what = 0;
  Memory *m = memory_self(L, "advise", &n);
  if (n)
    return n;
  const char *word = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
  while (what < sizeof words / sizeof *words && strcmp(words[what], word) != 0)
    what++;
  luaL_argcheck(L, what < sizeof words / sizeof *words, 2,
                "an advice expected: \"willneed\", \"dontneed\", ...");
  n = memory_range(L, m, 3, "advise", &offset, &count);
  if (n)
    return n;
  int err =
      count ? ipc_os_advise(m->all.bytes + offset, count, (OsAdvice)what) : 0;
  return memory_done(L, "advise", err, NULL);
}

/***
Makes a file larger; the new bytes are 0, and all there. Of a plain file that no
other handle of this library has open, in any process (others' programs are not
asked). Views stay what they are, and `#memory` tells.
@function memory:resize
@tparam integer size bytes: not fewer than it has
@treturn boolean true; or nil, message, errno: EBUSY, ENOSPC, EFBIG; ENOTSUP of
what is no plain file, or where there are no locks of open file descriptions
*/
static int memory_resize(lua_State *L) {
  int n;
  Memory *m = memory_self(L, "resize", &n);
  if (n)
    return n;
  size_t size = ipc_bytes_number(L, 2, "size", PTRDIFF_MAX);
  if (!m->all.writable)
    ipc_bytes_readonly(L, &m->all);
  if (!m->plain || m->f.copied)
    return memory_done(L, "resize", ENOTSUP, "not a plain file that is shared");
  if (size < m->all.size)
    luaL_argerror(L, 2,
                  lua_pushfstring(L, "%I bytes: it has %I, and never shrinks",
                                  (LUAI_UACINT)size, (LUAI_UACINT)m->all.size));
  int err = ipc_bytes_check(&m->all);
  if (!err && size > m->all.size) {
    ipc_view_unsettle(&m->all);
    err = ipc_plain_grow(&m->f, size, m->m.path);
    ipc_memories_settle(m);
  }
  return memory_done(L, "resize", err,
                     err == EBUSY     ? "others have it open"
                     : err == EFAULT  ? "the memory was lost"
                     : err == ENOTSUP ? "no locks of open file descriptions"
                                      : NULL);
}

/* What takes locks on the file, for the call in slot 1. */
static FileLockAsk memory_lockable(Memory *m, const char *call) {
  return (FileLockAsk){.locks = &m->locks,
                       .fd = &m->fd,
                       .call = call,
                       .reads = m->plain && (!m->f.write || m->f.copied)};
}

/***
Locks a range of bytes against other handles and other programs, as lockf(3) and
fcntl(2) do. It is a word among those who ask: who takes no lock is not kept
from the bytes. A killed process holds none. A program that locks the whole file
beyond its end (lockf with 0) keeps others from opening it with this library,
and it must wait until they have closed it.
@function memory:lock
@tparam[opt=0] ?integer offset
@tparam[opt=the rest] ?integer count at least 1
@tparam[opt="rw"] ?string mode "rw": alone; "r": with others that ask for "r"
@tparam[opt=the memory's] ?number timeout seconds
@treturn filelock to be left by its scope, or by `unlock`; or nil, message,
errno: `"timeout"` (ETIMEDOUT); EDEADLK: this very handle has locked some of it;
ENOTSUP where there are no locks of open file descriptions
@usage local held <close> = assert(m:lock(0, 64, "rw", 5))
*/
static int memory_lock(lua_State *L) {
  int n;
  size_t offset, count;
  lua_settop(L, 5);
  Memory *m = memory_self(L, "lock", &n);
  if (!n)
    n = memory_range(L, m, 2, "lock", &offset, &count);
  if (n)
    return n;
  FileLockAsk ask = memory_lockable(m, "lock");
  ask.at = offset;
  ask.count = count;
  luaL_argcheck(L, count > 0, 3, "no bytes: at least 1");
  return ipc_filelock(L, &ask, 4, m->timeout);
}

/***
Locks the file as a whole, as flock(1) and flock(2) do, which have nothing to do
with `lock`. Else as that.
@function memory:flock
@tparam[opt="rw"] ?string mode "rw": alone; "r": with others that ask for "r"
@tparam[opt=the memory's] ?number timeout seconds
@treturn filelock; or nil, message, errno
*/
static int memory_flock(lua_State *L) {
  int n;
  lua_settop(L, 3);
  Memory *m = memory_self(L, "flock", &n);
  if (n)
    return n;
  FileLockAsk ask = memory_lockable(m, "flock");
  return ipc_filelock(L, &ask, 2, m->timeout);
}

/* The methods of locks = n. */
static int memory_cell(lua_State *L, const char *call, uint32_t kind) {
  int n;
  lua_settop(L, 3);
  Memory *m = memory_self(L, call, &n);
  if (n)
    return n;
  luaL_checktype(L, 2, LUA_TNUMBER);
  if (!m->m.begun)
    return m->plain ? luaL_argerror(L, 2, "the memory was made without 'locks'")
                    : memory_done(L, call, ECHILD, NULL);
  return ipc_lock_in(L, &m->m.s, &m->cells, kind);
}

/***
One of the locks of `locks = n`, as `ipc.mutex` is one with a name.
@function memory:mutex
@tparam integer i from 1
@treturn mutex; or nil, message, errno: EEXIST: this one is used as another kind
@usage local m = assert(ipc.memory("/state", 4096, { locks = 2 }))
local held <close> = assert(m:mutex(1):lock(5))
*/
static int memory_mutex(lua_State *L) {
  return memory_cell(L, "mutex", CELL_MUTEX);
}

/***
The same, as `ipc.rwlock`.
@function memory:rwlock
@tparam integer i
@treturn rwlock; or nil, message, errno
*/
static int memory_rwlock(lua_State *L) {
  return memory_cell(L, "rwlock", CELL_RWLOCK);
}

/***
The same, as `ipc.semaphore`.
@function memory:semaphore
@tparam integer i
@tparam[opt] integer|table permits or the options of one; who names none opens
one that is made
@treturn semaphore; or nil, message, errno
*/
static int memory_semaphore(lua_State *L) {
  return memory_cell(L, "semaphore", CELL_SEMAPHORE);
}

/***
The same, as `ipc.condition`.
@function memory:condition
@tparam integer i
@treturn condition; or nil, message, errno
*/
static int memory_condition(lua_State *L) {
  return memory_cell(L, "condition", CELL_CONDITION);
}

/***
The same, as `ipc.event`.
@function memory:event
@tparam integer i
@tparam[opt] ?table options
@treturn event; or nil, message, errno
*/
static int memory_event(lua_State *L) {
  return memory_cell(L, "event", CELL_EVENT);
}

/***
The same, as `ipc.barrier`.
@function memory:barrier
@tparam integer i
@tparam[opt] integer|table parties or the options of one
@treturn barrier; or nil, message, errno
*/
static int memory_barrier(lua_State *L) {
  return memory_cell(L, "barrier", CELL_BARRIER);
}

/***
Removes the name at once. Who has it open goes on with it; the next to open the
name makes another.
@function memory:remove
@treturn boolean true; or nil, message, errno: ENOENT when it is gone, or the
name is another's by now
*/
static int memory_remove(lua_State *L) {
  int n;
  Memory *m = memory_self(L, "remove", &n);
  if (n)
    return n;
  if (!m->plain)
    return ipc_member_remove(L, &ipc_memories_named);
  int err = m->m.path ? ipc_plain_remove(&m->f, m->m.path) : ENOENT;
  if (err)
    return ipc_fail(L, "ipc.memory", "remove", err,
                    m->m.path ? m->m.path : "it has no name");
  lua_pushboolean(L, 1);
  return 1;
}

/***
Gives the bytes back; also what `<close>` does. Views of them answer `"closed"`
from then on. Any number of times.
@function memory:close
@treturn boolean true
*/
static int memory_end(lua_State *L) {
  Handle *h = ipc_handle_closable(L);
  if (ipc_handle_begin_close(L, h))
    ipc_handle_close(L, h);
  lua_pushboolean(L, 1);
  return 1;
}

/***
Sets how long every later call waits by default.
@function memory:settimeout
@tparam ?number seconds nil: for ever; 0: never
@treturn boolean true
*/
static int memory_settimeout(lua_State *L) {
  Memory *m = (Memory *)ipc_handle_self(L);
  ipc_check_timeout(L, 2);
  m->timeout =
      lua_isnoneornil(L, 2) ? IPC_FOREVER : ipc_seconds(lua_tonumber(L, 2));
  lua_pushboolean(L, 1);
  return 1;
}

/***
What it is.
@function memory:stats
@treturn table `size` in bytes; of what has participants, `participants`: how
many have it open now
*/
static int memory_stats(lua_State *L) {
  const Memory *m = (const Memory *)ipc_handle_self(L);
  lua_createtable(L, 0, 2);
  lua_pushinteger(L, (lua_Integer)m->all.size);
  lua_setfield(L, -2, "size");
  if (ipc_handle_usable(&m->h) && m->m.begun) {
    lua_Integer count = 0;
    for (unsigned slot = 0; slot < m->m.s.head.slots; slot++)
      count += slot == m->m.s.slot || !ipc_segment_vacant(&m->m.s, slot);
    lua_pushinteger(L, count);
    lua_setfield(L, -2, "participants");
  }
  return 1;
}

static int memory_tostring(lua_State *L) {
  const Memory *m = (const Memory *)ipc_handle_closable(L);
  if (m->h.open && !m->h.closing)
    lua_pushfstring(L, "ipc.memory (%I bytes)", (LUAI_UACINT)m->all.size);
  else
    lua_pushliteral(L, "ipc.memory (closed)");
  return 1;
}

static const luaL_Reg memory_methods[] = {{"flush", memory_flush},
                                          {"advise", memory_advise},
                                          {"resize", memory_resize},
                                          {"lock", memory_lock},
                                          {"flock", memory_flock},
                                          {"mutex", memory_mutex},
                                          {"rwlock", memory_rwlock},
                                          {"semaphore", memory_semaphore},
                                          {"condition", memory_condition},
                                          {"event", memory_event},
                                          {"barrier", memory_barrier},
                                          {"remove", memory_remove},
                                          {"close", memory_end},
                                          {"__close", memory_end},
                                          {"settimeout", memory_settimeout},
                                          {"stats", memory_stats},
                                          {"__tostring", memory_tostring},
                                          {NULL, NULL}};

static void memory_setup(lua_State *L) {
  ipc_filelock_open(L);
  ipc_words_open(L);
  ipc_handle_type(L, &ipc_memories_handle, memory_methods);
  ipc_view_methods(L, offsetof(Memory, all));
  lua_pop(L, 1);
}

static const luaL_Reg memory_functions[] = {{"memory", ipc_memories_open},
                                            {NULL, NULL}};

const Room ipc_room_memory = {.name = "memory",
                              .functions = memory_functions,
                              .take = ipc_memories_take,
                              .types = memory_setup};
