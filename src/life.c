/* The life of a child that runs a Lua function: the channel to its parent, and
 * what it leaves for it. A fork (fork.c) and a program of its own both live so.
 */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cmsg.h"
#include "ipc.h"
#include "life.h"
#include "os.h"
#include "report.h"

/* ----------------------------------------------------------------- its end */

static int life_traceback(lua_State *L) {
  lua_settop(L, 1);
  const char *message = luaL_tolstring(L, 1, NULL); /* a copy: 1 stays as is */
  luaL_traceback(L, L, message, 1);
  lua_createtable(L, 2, 0);
  lua_insert(L, -2);
  lua_rawseti(L, -2, 2); /* the text */
  lua_pushvalue(L, 1);
  lua_rawseti(L, -2, 1); /* the value */
  return 1;
}

/* Accepted messages, and what is owed, leave before the child does, for as long
 * as the most patient channel of those lingers. False if some did not. */
static bool life_drain(lua_State *L, State *S) {
  Nanos linger = 0;
  ipc_flush_rests(L, S);
  for (const Chan *c = S->rests; c; c = c->rest.next)
    if (c->linger > linger)
      linger = c->linger;
  for (const Owed *o = S->owed; o; o = o->next)
    if (o->to->linger > linger)
      linger = o->to->linger;
  Nanos deadline = linger == IPC_FOREVER ? linger : ipc_now() + linger;
  while (ipc_has_rests(S)) {
    int err = ipc_now() < deadline ? ipc_sleep(S, 0, deadline) : ETIMEDOUT;
    if (err && err != EINTR && !(err == ETIMEDOUT && ipc_now() < deadline))
      break; /* not: time to look again at what is owed */
    ipc_flush_rests(L, S);
  }
  if (S->owed)
    return false;
  for (Handle *h = S->handles; h; h = h->next)
    if (h->channel && (((Chan *)h)->lost || ((Chan *)h)->rest.link))
      return false;
  return true;
}

/* -------------------------------------------------------------- its parent */

static const char parent_key; /* registry: the channel to it */

/* (descriptor [, handles]) */
static int life_adopt(lua_State *L) {
  lua_pushcfunction(L, ipc_room("socket")->adopt);
  lua_insert(L, 1);
  lua_call(L, lua_gettop(L) - 1, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &parent_key);
  return 0;
}

int ipc_life_parent(lua_State *L) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &parent_key);
  return 1;
}

_Noreturn void ipc_life_run(lua_State *L, int n, int channel, int report) {
  State *S = ipc_state(L);
  int status = LUA_OK;
  if (channel >= 0) {
    lua_pushcfunction(L, life_adopt);
    lua_pushinteger(L, channel);
    status = lua_pcall(L, 1, 0, 0);
  }
  if (status == LUA_OK)
    lua_settop(L, n); /* else the message stays on top */
  lua_pushcfunction(L, life_traceback);
  lua_insert(L, 1);
  if (status == LUA_OK)
    status = lua_pcall(L, n - 1, LUA_MULTRET, 1);
  if (status != LUA_OK) {
    bool packed = lua_istable(L, -1); /* else: no memory for a traceback */
    lua_copy(L, -1, 2); /* not replace: it is there already after a call */
    lua_settop(L, 2);
    if (packed) {
      lua_rawgeti(L, 2, 1);
      lua_rawgeti(L, 2, 2);
      lua_remove(L, 2);
    } else {
      lua_pushvalue(L, 2);
    }
  }
  if (!life_drain(L, S) && status == LUA_OK) {
    status = LUA_ERRRUN;
    lua_settop(L, 1);
    lua_pushliteral(L, "bytes that were accepted could not be sent");
    lua_pushvalue(L, -1);
  }
  bool told = ipc_report_leave(L, 1, status == LUA_OK, report);
  ipc_state_release(S, IPC_EXIT);
  fflush(NULL);
  _exit(status == LUA_OK && told ? EXIT_SUCCESS : EXIT_FAILURE);
}

/* ------------------------------------------------------ a program of its own
 */

static bool life_is(int fd, mode_t kind, int access) {
  struct stat st;
  int flags = fcntl(fd, F_GETFL);
  return flags >= 0 && fstat(fd, &st) == 0 && (st.st_mode & S_IFMT) == kind &&
         (flags & O_ACCMODE) == access;
}

int ipc_life_begin(lua_State *L) {
  if (!life_is(LIFE_CHANNEL, S_IFSOCK, O_RDWR) ||
      !life_is(LIFE_REPORT, S_IFREG, O_RDWR))
    return ipc_fail(L, "ipc", "spawn", EBADF, "not started by ipc.spawn");
  int next = LIFE_HELD, held = -1;
  if (life_is(LIFE_HELD, S_IFIFO, O_WRONLY))
    held = next++;
  for (int fd = LIFE_CHANNEL; fd < next; fd++)
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
  int err = ipc_os_adopt(next);
  if (err)
    return ipc_fail(L, "ipc", "spawn", err, "cannot follow its parent");
  ipc_os_hold((const int[2]){held, LIFE_REPORT});
  (void)ipc_report_begin(LIFE_REPORT); /* where it fails, so does the end */
  if (getpgrp() != getpid())           /* the terminal's Ctrl-C is for both */
    ipc_os_leave_interrupt();
  lua_pushcfunction(L, life_adopt);
  lua_pushinteger(L, LIFE_CHANNEL);
  lua_pushinteger(L, CMSG_MOST);
  lua_call(L, 2, 0);
  return ipc_life_parent(L);
}

int ipc_life_finish(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  luaL_checkstack(L, 20, NULL);
  ipc_life_run(L, lua_gettop(L), -1, LIFE_REPORT);
}
