/* Locks that outlive their holders, as words of a segment: one cell each, of
 * equal size, in the kind's own bytes. No Lua, nothing that blocks; what has to
 * wait answers EAGAIN and says which word to sleep on. */
#ifndef IPC_CELL_H
#define IPC_CELL_H

#include "segment.h"

/* What a cell is: settled by the first who uses it. */
enum {
  CELL_MUTEX = 1,
  CELL_RWLOCK,
  CELL_SEMAPHORE,
  CELL_CONDITION,
  CELL_EVENT,
  CELL_BARRIER,
  CELL_KINDS
};

/* And how. */
enum {
  CELL_KIND = 0xff,
  CELL_COUNTS = 0x100, /* semaphore: permits are nobody's */
  CELL_AUTO = 0x200    /* event: who waited clears it */
};

enum {
  CELL_PERMITS = INT32_MAX, /* at most */
  CELL_PARTIES = SEGMENT_SLOTS_MOST,
  CELL_WAITING = 0x7fff /* calls that wait for a condition through one slot */
};

typedef struct Cell {
  SegmentWide is; /* kind | flags | permits or parties << 32; 0: nothing yet */
  _Atomic uint32_t lock;   /* the mutex; else held while changes are made */
  _Atomic uint32_t broken; /* its holder died, and nobody has repaired */
  /* rwlock: writers that left; semaphore of counts: permits given less those
   * taken; condition: whose turn it is; event: whether it is set */
  _Atomic uint32_t state;
  _Atomic uint32_t top; /* slots from here on never had anything of it */
  SegmentWide round;    /* barrier: number << 32 | history << 12 | arrived */
  SegmentEvent event;
  uint8_t unused[16];
  /* What each slot has of it; 0: nothing. rwlock: one of CELL_READS ...;
   * semaphore: permits; condition: told << 15 | waiting; barrier: round << 12 |
   * arrived. */
  _Atomic uint32_t held[];
} Cell;

/* rwlock: what a slot does. */
enum {
  CELL_READS = 1,
  CELL_WRITES,
  CELL_WANTS, /* to write */
  CELL_LEFT   /* its owner died writing, and nobody has noted so */
};

/* A mutex whose owner died and has no slot any more. */
#define CELL_ORPHAN UINT32_C(0xfff)

#if SEGMENT_POSSIBLE
_Static_assert(offsetof(Cell, lock) == 8 && offsetof(Cell, round) == 24 &&
                   offsetof(Cell, event) == 32 && offsetof(Cell, held) == 64,
               "cells are as documented");
#endif

/* One user of a cell; the caller fills the first part. */
typedef struct CellUse {
  Segment *s;
  Cell *cell;
  uint32_t how;   /* kind and flags */
  uint32_t count; /* permits, parties */
  bool suspect;   /* ask the kernel who is dead */

  bool waited; /* for a lock: others may, too */
  /* After EAGAIN: sleep while *word is value. */
  _Atomic uint32_t *word;
  uint32_t value;
  uint32_t takeovers; /* of what the dead held */
} CellUse;

/* What this process has of one cell, through any handle. */
typedef struct CellOwn {
  const void *holder; /* mutex, rwlock: who has it here */
  uint32_t held;  /* rwlock: CELL_READS, ...; permits; told, arrived calls */
  uint32_t round; /* barrier: that `held` counts in */
} CellOwn;

/* Bytes of a cell for so many participants. */
uint32_t ipc_cell_size(uint32_t slots);

/* How many there are; the i-th, from 0. */
uint32_t ipc_cell_count(const Segment *s);
Cell *ipc_cell_at(const Segment *s, uint32_t i);

/* Makes it such a thing, if it is nothing yet. What it is then: kind and flags,
 * *count. */
uint32_t ipc_cell_make(Cell *c, uint32_t how, uint32_t *count);
/* What it is, or 0. */
uint32_t ipc_cell_is(const Cell *c, uint32_t *count);

/* SegmentAsk.swept, where all the kind's own bytes are cells: gives back what a
 * dead owner of the slot had of all cells; of one. */
void ipc_cell_swept(Segment *s, unsigned slot);
void ipc_cell_sweep(Segment *s, Cell *c, unsigned slot);

/* All of these: 0; EAGAIN: not now; ENOTRECOVERABLE: a word is not what it can
 * be. */

int ipc_cell_lock(CellUse *u);
int ipc_cell_unlock(CellUse *u);
/* The same where another call of this process has it: for whom to sleep on. */
int ipc_cell_lock_behind(CellUse *u);

/* To read or to write. `wish`: who comes to read later waits, until it has it
 * or ipc_cell_unwant. `since` is the caller's, 0 when its call begins. */
int ipc_cell_share(CellUse *u, CellOwn *own, bool write, bool wish,
                   uint32_t *since);
void ipc_cell_unshare(CellUse *u, CellOwn *own);
/* Who waited to write does not any more. */
void ipc_cell_unwant(CellUse *u, const CellOwn *own);

int ipc_cell_acquire(CellUse *u, CellOwn *own, uint32_t n);
/* EOVERFLOW: more than there can be. */
int ipc_cell_give(CellUse *u, CellOwn *own, uint32_t n);

/* One more call waits; 0 or ENOBUFS. Until it was told. Afterwards it ends;
 * what it was told goes to another if it has not acted on it. */
int ipc_cell_expect(CellUse *u);
int ipc_cell_told(CellUse *u, CellOwn *own);
void ipc_cell_unexpect(CellUse *u, CellOwn *own, bool told, bool acted);
/* Tells up to n of them. */
void ipc_cell_notify(Segment *s, Cell *c, uint32_t n);

void ipc_cell_set(CellUse *u, bool on);
bool ipc_cell_is_set(const Cell *c);
int ipc_cell_await(CellUse *u);

/* Arrives in *round; *last: that ended it. */
int ipc_cell_arrive(CellUse *u, CellOwn *own, uint32_t *round, bool *last);
/* Whether the round is over: 0; EOWNERDEAD: one of its parties died. */
int ipc_cell_passed(CellUse *u, uint32_t round);
/* Takes an arrival back; else as passed. ETIMEDOUT: it is taken back. */
int ipc_cell_withdraw(CellUse *u, CellOwn *own, uint32_t round);

/* For stats. rwlock: readers, writers, those who want to write; semaphore: free
 * ones in n[0]; condition: waiting; barrier: arrived, rounds. */
void ipc_cell_figures(const CellUse *u, uint32_t n[3]);

#endif
