/* Handles on cells (cell.h): a lock of its own, or one of those in a memory.
 * What each kind does is in lockkinds.c; by what names and options, in locks.c.
 */
#ifndef IPC_LOCK_H
#define IPC_LOCK_H

#include "cell.h"
#include "member.h"
#include "watch.h"

typedef struct Lock Lock;

/* What this process has of the cells of one segment, through any handle. */
typedef struct LockPlace {
  Segment *s;     /* NULL: it is gone */
  Lock *locks;    /* handles on it */
  unsigned users; /* they, and whose segment it is */
  uint32_t count;
  CellOwn own[];
} LockPlace;

struct Lock {
  Handle h;
  Member m;         /* in a memory: nobody */
  Handle *memory;   /* or NULL; user value 1 keeps it */
  LockPlace *place; /* NULL until it is open */
  Lock *next, **link;
  unsigned index; /* of the cell */
  CellUse u;
  const char *base;   /* of the segment, where u.cell was looked up */
  const Lock *behind; /* u.word is this one's: a mutex that a wait takes back */
  Watch watch;
  Nanos slice;
  Nanos looked;        /* when it was last asked who is dead */
  bool pending;        /* the last attempt has to wait */
  bool lapsed;         /* a sleep passed */
  atomic_bool suspect; /* the same, in a thread */
  Nanos timeout;       /* of every call, by default */
  uint64_t serial;     /* counts guards */
  uint64_t live;       /* the one that has it now */
  Buffer grants;       /* semaphore: LockGrant, the oldest first */
  struct LockClaim *claims;
};

/* Permits that are this handle's. */
typedef struct LockGrant {
  uint64_t serial;
  uint32_t n;
} LockGrant;

/* User values: what keeps a memory. */
enum { LOCK_UV_MEMORY = 1, LOCK_UVS };

/* A to-be-closed value: what a call got. */
typedef struct LockGuard {
  Lock *lock; /* user value 1 keeps it */
  uint64_t serial;
  uint32_t n;
  unsigned generation; /* of the process that has it */
} LockGuard;

/* What a call that waits has told others, taken back however it ends. */
typedef struct LockClaim {
  Lock *lock;                     /* user value 1 keeps it */
  struct LockClaim *next, **link; /* among the handle's */
  bool live;
  bool told;      /* condition: it was */
  uint32_t round; /* barrier: it arrived in; rwlock: see ipc_cell_share */
  uint64_t guard; /* condition: the guard that had the mutex */
} LockClaim;

/* By CELL_ kind. */
extern const HandleOps *const ipc_lock_types[CELL_KINDS];
extern const char *const ipc_lock_names[CELL_KINDS];

/* A closed handle of this kind on the stack. */
Lock *ipc_lock_new(lua_State *L, uint32_t kind);

/* Its cell, which must be what it is for; then it is known to the place. 0,
 * ENOMEM. */
int ipc_lock_enter(Lock *l, LockPlace **place, Segment *s, unsigned index);

/* The attempt has to wait: what it answers. */
static inline int ipc_lock_later(Lock *l) {
  l->pending = true;
  return -IPC_READ;
}

/* Whether calls may go on: looks up the cell. 0 or an errno. An attempt at what
 * may wait begins so, and asks who is dead if a sleep passed. */
int ipc_lock_check(Lock *l);
int ipc_lock_begin(Lock *l);
CellOwn *ipc_lock_own(const Lock *l);

/* Pushes nil, message, errno. `why`: more than the errno says, or NULL. */
int ipc_lock_fail(lua_State *L, const Lock *l, const char *call, int err,
                  const char *why);

/* Gives back all that this handle has. `dead`: as if its process had died. */
void ipc_lock_leave(Lock *l, bool dead);

/* Pushes a guard that has nothing yet; a claim; and has the one in a slot taken
 * back when the call ends. */
LockGuard *ipc_lock_guard(lua_State *L, int handle);
LockClaim *ipc_lock_claim(lua_State *L, int handle);

/* lockkinds.c: what the guard has is given back; what a claim has told. */
int ipc_lock_undo(Lock *l, uint64_t serial, uint32_t n);
void ipc_lock_unclaim(LockClaim *c);
extern const luaL_Reg *const ipc_lock_methods[CELL_KINDS];

/* lockopen.c: opens one by what is on the stack, (name, options); Room.take;
 * what it was opened by. */
int ipc_lock_open(lua_State *L, uint32_t kind);
int ipc_lock_take(lua_State *L, Given *g);
const MemberRoom *ipc_lock_room(const Lock *l);

/* Registry: the word "owner_dead". */
extern const char ipc_lock_dead[];

/* Makes all types. */
void ipc_lock_setup(lua_State *L);

/* ------------------------------------------------------------ in a memory */

/* The methods mutex(i), ... of a memory: the handle of it in slot 1 is used and
 * its segment is s; the i-th cell (from 1), which is in slot 2, as `kind`; slot
 * 3 has its permits, parties or options. Pushes a handle, or nil, message,
 * errno. *place is the memory's, NULL at first. */
int ipc_lock_in(lua_State *L, Segment *s, LockPlace **place, uint32_t kind);

/* Before the memory's bytes move: threads that look at them end. */
void ipc_lock_pause(LockPlace *place);
/* Before the memory is closed: what its locks have is given back; IPC_CLOSE: in
 * order. *place becomes NULL. In a child that shares it: nothing is had. */
void ipc_lock_part(LockPlace **place, How how, bool foreign);
void ipc_lock_forked(LockPlace *place);

#endif
