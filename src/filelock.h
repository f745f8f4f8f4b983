/* Locks on a file that other programs take, too: on ranges of its bytes,
 * lockf(3), and on the whole, flock(1). The Lua half of whatever handle has a
 * file; a guard holds each. */
#ifndef IPC_FILELOCK_H
#define IPC_FILELOCK_H

#include "ipc.h"

typedef struct FileLock FileLock;

/* What a handle has locked: in it, zeroed. */
typedef struct FileLocks {
  FileLock *first;
} FileLocks;

/* A lock to be taken, of the handle in slot 1, which is usable. */
typedef struct FileLockAsk {
  FileLocks *locks;
  const int *fd;      /* the handle's, now; -1: it has none */
  const char *call;   /* "lock", "flock" */
  uint64_t at, count; /* bytes; count 0: the whole file, flock(2) */
  bool reads;         /* the descriptor cannot write: no bytes alone */
  bool alone;         /* by the mode that was asked for */
} FileLockAsk;

/* The mode is in slot `mode` ("r" or "rw", which nil is, too), the timeout in
 * the next, where nil is `otherwise`. Answers a guard, or nil, message, errno:
 * EDEADLK: the handle has it already. A tail call. */
int ipc_filelock(lua_State *L, const FileLockAsk *ask, int mode,
                 Nanos otherwise);

/* Before the file is closed: all that is locked is given back. */
void ipc_filelocks_end(FileLocks *locks);

/* Makes the type of guards. */
void ipc_filelock_open(lua_State *L);

#endif
