/* Forking: the copy of this process that runs a Lua function. */
#ifndef IPC_FORK_H
#define IPC_FORK_H

#include "child.h"
#include "ipc.h"

/* What the parent has of a child just born. */
typedef struct Birth {
  Child *child;       /* the caller's, empty until then */
  int socket;         /* the channel to it */
  int where;          /* the slot that says which line forked */
  const char *failed; /* what did, when an errno was returned; or NULL */
  int err;            /* why something cannot be taken along */
} Birth;

/* Forks. The child calls the function in slot 1 with the arguments in slots
 * 2 .. n and never returns. 0 or an errno. Raises if one of the handles it
 * takes along has moved away; nothing has happened then. */
int ipc_fork_start(lua_State *L, int n, Birth *b);

/* The ends that the child took along are closed here. May run Lua. */
void ipc_fork_move(lua_State *L, int n, Birth *b);

/* Pushes " (x.lua:12)", the line that calls; its index. */
int ipc_fork_where(lua_State *L);

#endif
