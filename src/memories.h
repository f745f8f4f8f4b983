/* ipc.memory as a handle: a participant, or a plain file; how it is opened,
 * closed, taken along by a fork and passed on. Its methods are in memory.c. */
#ifndef IPC_MEMORIES_H
#define IPC_MEMORIES_H

#include "filelock.h"
#include "lock.h"
#include "member.h"
#include "plain.h"
#include "view.h"

typedef struct Memory {
  Handle h;
  View all;
  Member m;
  Plain f;
  bool plain;            /* it is f, and m is nobody */
  _Atomic bool *damaged; /* pages were lost; NULL: not ours any more */
  Nanos timeout;         /* the default of every call */
  FileLocks locks;       /* of others' kind */
  LockPlace *cells;      /* what is had of locks = n */
  int fd;                /* what has them; -1: nothing has */
} Memory;

extern const HandleOps ipc_memories_handle;
extern const MemberRoom ipc_memories_named;

/* Where the bytes are now. */
void ipc_memories_settle(Memory *m);

/* ipc.memory; Room.take. */
int ipc_memories_open(lua_State *L);
int ipc_memories_take(lua_State *L, Given *g);

#endif
