/* Locks on files, and the guards that hold them; see filelock.h. The kernel has
 * no deadlines for these: they are tried again after naps that grow. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>

#include "filelock.h"
#include "os.h"

/***
A lock on a file, or on bytes of it, as `lock` and `flock` of a memory give it:
it is held until its scope is left, `unlock` is called or the memory is closed.
The memory holds it, not the coroutine, and no process that is forked has it.
@module ipc.filelock
@usage do
  local held <close> = assert(m:lock(0, 8, "rw", 5))
  m:store(0, m:load(0) + 1)
end
*/

enum { NAP_MOST = 16000 }; /* us */

/* A handle, so that taking it can wait and yield like any call. */
struct FileLock {
  Handle h;
  FileLock *next, **link; /* among what the file's handle has; NULL: not yet */
  Handle *owner;
  FileLockAsk ask;
  uint32_t nap;
};

/* ------------------------------------------------------------ system half */

/* Whether the owner has some of it already: the kernel would not tell. */
static bool filelock_overlaps(const FileLock *g) {
  for (const FileLock *o = g->ask.locks->first; o; o = o->next) {
    bool whole = !g->ask.count, other_whole = !o->ask.count;
    if (whole && other_whole)
      return true;
    if (!whole && !other_whole && g->ask.at < o->ask.at + o->ask.count &&
        o->ask.at < g->ask.at + g->ask.count)
      return true;
  }
  return false;
}

static int filelock_try(FileLock *g) {
  const FileLockAsk *ask = &g->ask;
  if (filelock_overlaps(g))
    return EDEADLK;
  if (*ask->fd < 0)
    return ENOTSUP;
  int err = ask->count
                ? ipc_os_range_lock(*ask->fd, ask->at, ask->count, ask->alone)
                : ipc_os_lock_file(*ask->fd, ask->alone);
  if (err)
    return err;
  g->next = ask->locks->first;
  g->link = &ask->locks->first;
  if (g->next)
    g->next->link = &g->next;
  ask->locks->first = g;
  return 0;
}

/* At once, wherever else the file's description may be. */
static void filelock_release(const FileLock *g) {
  if (*g->ask.fd < 0)
    return;
  if (g->ask.count)
    (void)ipc_os_range_unlock(*g->ask.fd, g->ask.at, g->ask.count);
  else
    ipc_os_unlock_file(*g->ask.fd);
}

static void filelock_close(Handle *h, How how) {
  FileLock *g = (FileLock *)h;
  (void)how;
  if (!g->link)
    return;
  *g->link = g->next;
  if (g->next)
    g->next->link = g->link;
  g->link = NULL;
  if (!h->foreign && g->owner->open)
    filelock_release(g);
}

void ipc_filelocks_end(FileLocks *locks) {
  for (const FileLock *g = locks->first; g; g = g->next)
    if (g->h.generation == ipc_generation)
      filelock_release(g);
}

static int filelock_descriptor(const Handle *h, int want) {
  (void)h, (void)want;
  return -1;
}

static int filelock_ready(Handle *h, int want, bool ask_kernel) {
  (void)h, (void)want, (void)ask_kernel;
  return EAGAIN;
}

static const HandleOps filelock_handle = {.type = "ipc.filelock",
                                          .descriptor = filelock_descriptor,
                                          .ready = filelock_ready,
                                          .close = filelock_close,
                                          .interest = IPC_NEVER};

/* ---------------------------------------------------------------- Lua half */

/* Slots: 1 the guard, 2 the deadline. */
static int filelock_failed(lua_State *L, Handle *h, int err) {
  const FileLock *g = (const FileLock *)h;
  ipc_handle_release(h, IPC_CLOSE);
  return ipc_fail(L, g->owner->ops->type, g->ask.call, err,
                  err == EDEADLK   ? "this handle has locked it"
                  : err == ENOTSUP ? "no such locks here"
                                   : NULL);
}

static int filelock_attempt(lua_State *L, Handle *h) {
  FileLock *g = (FileLock *)h;
  if (!ipc_handle_usable(g->owner)) {
    ipc_handle_release(h, IPC_CLOSE);
    return ipc_handle_refuse(L, g->owner, g->ask.call);
  }
  int err = filelock_try(g);
  if (err == EAGAIN) {
    g->nap = g->nap == 0 ? 1000 : g->nap * 2;
    if (g->nap > NAP_MOST)
      g->nap = NAP_MOST;
    h->nap = g->nap;
    return -IPC_READ;
  }
  if (err)
    return filelock_failed(L, h, err);
  lua_pushvalue(L, 1);
  return 1;
}

static const Op filelock_op = {.name = "lock",
                               .attempt = filelock_attempt,
                               .failed = filelock_failed,
                               .want = IPC_READ,
                               .deadline = 2,
                               .top = 2};

int ipc_filelock(lua_State *L, const FileLockAsk *ask, int mode,
                 Nanos otherwise) {
  int timeout = mode + 1, wants = ipc_check_mode(L, mode, IPC_READ | IPC_WRITE);
  luaL_argcheck(L, wants != IPC_WRITE, mode, "\"r\" or \"rw\" expected");
  if (ask->reads && ask->count && wants != IPC_READ)
    luaL_argerror(L, mode, "the file is only read here: lock it \"r\"");
  ipc_check_timeout(L, timeout);
  FileLock *g = ipc_handle_new(L, sizeof *g, &filelock_handle, 1);
  g->owner = lua_touserdata(L, 1);
  g->ask = *ask;
  g->ask.alone = wants != IPC_READ;
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, 1);
  lua_pushvalue(L, timeout);
  if (lua_isnil(L, -1) && otherwise != IPC_FOREVER) {
    lua_pushnumber(L, (lua_Number)otherwise / 1e9);
    lua_replace(L, -2);
  }
  lua_replace(L, 2);
  lua_replace(L, 1);
  lua_settop(L, 2);
  ipc_handle_open(&g->h);
  return ipc_run(L, &filelock_op);
}

/***
Gives the lock back; also what `<close>` does. Any number of times.
@function filelock:unlock
@treturn boolean true
*/
static int filelock_unlock(lua_State *L) {
  ipc_handle_release(ipc_handle_closable(L), IPC_CLOSE);
  lua_pushboolean(L, 1);
  return 1;
}

static int filelock_tostring(lua_State *L) {
  const FileLock *g = (const FileLock *)ipc_handle_closable(L);
  lua_pushfstring(L, "ipc.filelock (%s)",
                  g->link && g->owner->open ? "locked" : "unlocked");
  return 1;
}

static const luaL_Reg filelock_methods[] = {{"unlock", filelock_unlock},
                                            {"close", filelock_unlock},
                                            {"__close", filelock_unlock},
                                            {"__tostring", filelock_tostring},
                                            {NULL, NULL}};

void ipc_filelock_open(lua_State *L) {
  ipc_handle_type(L, &filelock_handle, filelock_methods);
  lua_pop(L, 1);
}
