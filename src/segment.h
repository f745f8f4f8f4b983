/* Memory that processes share, who of them lives, and locks that outlive their
 * holders. Knows no messages (ring.h) and no Lua.
 *
 * The bytes are public: the reference tells programs in other languages. All
 * numbers are in the byte order of the machine that made the segment, all
 * fields naturally aligned. */
#ifndef IPC_SEGMENT_H
#define IPC_SEGMENT_H

/***
The bytes of `ipc.shm`, `ipc.queue`, `ipc.mmap` and `ipc.broadcast`, for
programs in other languages that take part. spec/support/joiner.c is such a
program.

Numbers are in the byte order of the machine that made the file, fields aligned;
those below "changes" are read and written by atomic operations only, of 4 and 8
bytes. A name `/x` is the file `/dev/shm/x` on Linux.

    at 0, never changes          size
      0 "lua-ipc\n"                8
      8 version, 1                 4
     12 0x01020304                 4  tells the byte order
     16 kind                       4  1 ring, 2 broadcast, 3 memory,
                                      4 locks, 5 journal
     20 flags                      4  1 one writer, 2 one reader, 4 leases,
                                      8 persists, 16 membarrier,
                                      32 holds, 64 latest (broadcast)
     24 head                       4  bytes before the ring
     28 slots                      4  participants, at most 4000
     32 ring                       8  bytes, a power of two
     40 longest message            8
     48 head + ring                8
     56 made, ns since 1970        8
     64 a random number           16
     80 bytes in front             8  memory: the user's, else 0
     88 more                       4  bytes behind the participants
    124 CRC-32 of the 124 bytes    4  as zlib.crc32
    changes
    128 state                      4  1 in use, 2 its name is gone
    132 fault                      4  not 0: nobody uses it any more
    136 changes                    4  of who is there
    140 readers that came          4
    144 writers that came          4
    256 writers' lock              4
    260 number of the next message 4
    264 tail                       8  the next message goes there
    272 tail that 260 belongs to   8
    288 broadcast: the newest      8  where it begins
    384 readers' lock              4
    392 head                       8  the next to be received
    408 leases: end of the offered 8
    424 leases: offer some again   4
    512 readers' event             4
    640 writers' event             4
    648 enough                     8  no writer waits for less than this head
    1024 + 64 * slot, participants
      0 tag                        4  generation << 8 | 1 reads | 2 writes
      4 process id                 4  for people
      8 broadcast: reads next      8  all ones: nothing
     16 broadcast: its number      4

**Positions** are multiples of 16 that only grow; a position stands at
`head + position % ring`. Between head and tail are records: size (4), number of
the message (4), leases: owner (4), how often offered (4), the bytes, and up to
15 more to the next multiple of 16. Bytes may go on at the ring's beginning, the
16 in front do not. `0 <= tail - head <= ring`, or it is broken: write `fault`
and stop.

**Who is alive** the kernel says, by locks of one byte of an open file
description (F_OFD_SETLK, exclusive), at 0x4000010000000000: that byte is the
registry; 0x1000 + slot behind it has who reads, 0x2000 + slot who writes,
0x3000
+ slot whoever has the slot. One is asked for with F_OFD_GETLK. Nobody is alive
on another's word.

**To join**, open (O_NOFOLLOW), look at all of the first 128 bytes, map. Lock
the registry (try again after a moment). No links, or state not 1: start anew.
Nobody has a slot and flag 8 is not set: it is stale; write state 2, unlink it,
start anew. A side for one that has one: no. Else take the first slot whose
0x3000 byte can be locked, and then those of your roles; if the low 12 bits of a
lock are slot + 1, its owner is dead: write 0 there. Store 2^64 - 1 at 8, the
process id, and a tag with the next generation (modulo 2^19). If nobody was
there: 0 into both locks, 1 at 424 unless 392 is 408, 0 at 140. Add 1 to those
that came of your roles and to "changes", rouse both events, unlock the
registry.
**To leave**, store 2^64 - 1 at 8, unlock your bytes, add to "changes", rouse
both; without flag 8, if nobody has a slot: lock the registry, look again, write
state 2, unlink the name if it is still this file.

**Locks** are 0 or their owner: slot + 1 | generation << 12, with bit 31 when
somebody waits. To lock, exchange 0 for yourself. Else set bit 31 and sleep on
it (futex, shared between processes) for some milliseconds; after that, if the
slot has another generation or its 0x3000 byte is not locked, the owner is
dead: exchange just what you saw for yourself | bit 31. To unlock, exchange
yourself for 0 and wake one if bit 31 was set. Anything else there: you lost it;
touch nothing. A side made for one takes no lock.

**Events**: to sleep, set bit 0 of the event; with flag 16, membarrier
(GLOBAL_EXPEDITED); look again at what you wait for; futex-wait for what you
set, for at most some milliseconds; then look who is dead. To tell, after a
change: a full fence, and if bit 0 is set, rouse: clear it, add 2, wake all.

**To send**, lock; if `head` is before `tail + need - ring`, unlock, store that
position at 648, and sleep on 640 until it is not, or until readers came and no
reader's byte is locked: closed. Write the record at the tail (its number: at
260 if 272 is the tail, else one more than that of the last record before the
tail). Store the tail, which sends it; then 260 and 272. Unlock, tell 512. **To
receive**, lock; if head is tail, unlock and sleep on 512; when writers came and
no writer's byte is locked look once more: closed. Copy, store the new head,
unlock; tell 640 if the head is not before 648.

**Leases**: under the readers' lock, 408 is the end of what was offered. Take a
record there: its owner becomes yourself (as in a lock), 408 moves behind it.
When 424 is set (exchange it for 0), or after a sleep that nothing ended, those
between head and 408 whose owner is 0 or dead come first; add 1 to how often. To
acknowledge, exchange yourself for 2^32 - 1; to give back, for 0, and set 424
and rouse 512. Head moves over acknowledged records, under the readers' lock.

**Cells** of locks fill what is behind the participants (kind 4: one; kind 3:
`locks` of them), 64 + 4 * slots bytes each, rounded up to 64:

      0 what it is                 8  1 mutex, 2 rwlock, 3 semaphore,
                                      4 condition, 5 event, 6 barrier, 256
                                      permits are nobody's, 512 an event clears
                                      itself; permits or parties << 32
      8 lock                       4  the mutex; else taken for changes
     12 its holder died            4
     16 rwlock: writers that left, semaphore: permits more than at first,
        condition: next slot to be told, event: set                 4
     20 slots in use               4
     24 barrier                    8  round << 32 | died << 12 | arrived; of
                                      `died` bit 0 is the last round's
     32 event                      4  of all who wait
     64 + 4 * slot                 4  rwlock: 1 reads, 2 writes, 3 wants to, 4
                                      died writing; semaphore: permits;
                                      condition: told << 15 | waiting; barrier:
                                      round << 12 | arrived

A slot's word is changed by its owner alone (of a condition, by who tells; under
`lock`, to 0 if the owner is dead; of a condition, under the registry's lock),
and what they sum up to is what counts: readers, writers and permits are taken
under `lock` and given back without. A mutex is taken as any lock, but from a
dead owner 12 is set to 1; whoever takes a dead one's slot leaves 4095 in its
mutexes, which anybody takes, and 4 for its writing. After each change 32 is
told.

**Broadcast**: each reader is at its own position, in its slot; head is where
the oldest whole record begins. What a reader copies counts only if head is not
beyond it afterwards.
@module ipc.layout
*/

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "ipc.h"

/* ----------------------------------------------------------------- layout */

#define SEGMENT_MAGIC "lua-ipc\n"
#define SEGMENT_ORDER UINT32_C(0x01020304)

enum {
  SEGMENT_VERSION = 1,
  SEGMENT_RECORD = 16,  /* positions are multiples of it */
  SEGMENT_PARTS = 1024, /* offset of the participants */
  SEGMENT_SLOTS = 112,  /* participants, by default: two pages in all */
  SEGMENT_SLOTS_MOST = 4000
};

/* What is in it. */
enum {
  SEGMENT_RING = 1,
  SEGMENT_BROADCAST = 2,
  SEGMENT_MEMORY = 3, /* the user's bytes, in front of the head */
  SEGMENT_LOCKS = 4,  /* locks alone */
  SEGMENT_JOURNAL = 5 /* what those who use a journal agree on */
};

/* How it is used, settled when it is made. */
enum {
  SEGMENT_SOLE_WRITER = 1, /* and it takes no lock */
  SEGMENT_SOLE_READER = 2,
  SEGMENT_LEASE = 4,    /* what is received stays until it is acknowledged */
  SEGMENT_PERSIST = 8,  /* the last one out leaves it */
  SEGMENT_BARRIER = 16, /* who sleeps pays for the fence: membarrier(2) */
  SEGMENT_HOLD = 32,    /* broadcast: slow subscribers hold the sender back */
  SEGMENT_LATEST = 64   /* broadcast: only the newest counts */
};

/* Positions are words of 64 bits that need no lock to be read and written.
 * Where the processor has none there are no segments: a stand-in lets the rest
 * compile. */
#if ATOMIC_INT_LOCK_FREE == 2 && ATOMIC_LLONG_LOCK_FREE == 2
#define SEGMENT_POSSIBLE 1
typedef _Atomic uint64_t SegmentWide;
#else
#define SEGMENT_POSSIBLE 0
typedef _Atomic uint32_t SegmentWide;
#endif

/* At 0, of a memory behind the user's bytes; never changes once others can see
 * it. */
typedef struct SegmentHead {
  char magic[8];
  uint32_t version, order;
  uint32_t kind, flags;
  uint32_t head;    /* bytes before the ring: whole pages */
  uint32_t slots;   /* participants */
  uint64_t ring;    /* bytes of the ring: a power of two, whole pages; or 0 */
  uint64_t maxsize; /* bytes of a message; of a memory: bytes, as asked for */
  uint64_t total;   /* before + head + ring: the size of the file */
  uint64_t created; /* ns since 1970 */
  uint8_t id[16];   /* random */
  uint64_t before;  /* bytes in front of the head: whole pages; or 0 */
  uint32_t extra;   /* of the kind's own, behind the participants */
  uint8_t unused[32];
  uint32_t crc; /* CRC-32 (IEEE 802.3) of the 124 bytes before */
} SegmentHead;

/* A memory's file ends with it. */
typedef struct SegmentFoot {
  char magic[8];
  uint64_t head; /* where the head is */
} SegmentFoot;

/* At 128. */
typedef struct SegmentLife {
  _Atomic uint32_t state;   /* 1: in use; 2: its name goes, or is gone */
  _Atomic uint32_t fault;   /* SegmentFault: nobody uses it any more */
  _Atomic uint32_t changes; /* counts who came, left or was found dead */
  _Atomic uint32_t readers; /* that came so far; since somebody was there */
  _Atomic uint32_t writers; /* that came so far */
} SegmentLife;

/* At 256: what writers change; at 384: what readers change. */
typedef struct SegmentSide {
  _Atomic uint32_t lock;
  _Atomic uint32_t number; /* of the next message, modulo 2^32 */
  SegmentWide at;          /* the position: tail or head; never wraps */
  SegmentWide counted;     /* the tail that goes with `number` */
  SegmentWide taken;       /* leases: what was offered ends here */
  SegmentWide last;        /* broadcast: the newest message begins here */
  _Atomic uint32_t again;  /* leases: some are to be offered again */
} SegmentSide;

/* At 512: readers sleep on it; at 640: writers do. */
typedef struct SegmentEvent {
  _Atomic uint32_t count; /* bit 0: somebody sleeps, perhaps */
  uint32_t unused;
  SegmentWide enough; /* writers: not to be woken before this head */
} SegmentEvent;

/* At 1024 + 64 * slot. */
typedef struct SegmentPart {
  _Atomic uint32_t tag; /* generation << 8 | roles */
  _Atomic uint32_t pid; /* for people to read; means nothing to us */
  SegmentWide at; /* broadcast: what this one reads next; all ones: none */
  _Atomic uint32_t number; /* of the message there, modulo 2^32 */
  uint8_t unused[44];
} SegmentPart;

#if SEGMENT_POSSIBLE
_Static_assert(sizeof(SegmentHead) == 128 &&
                   offsetof(SegmentHead, ring) == 32 &&
                   offsetof(SegmentHead, id) == 64 &&
                   offsetof(SegmentHead, before) == 80 &&
                   offsetof(SegmentHead, extra) == 88 &&
                   sizeof(SegmentFoot) == 16 &&
                   offsetof(SegmentHead, crc) == 124,
               "the head is as documented");
_Static_assert(offsetof(SegmentLife, writers) == 16 &&
                   offsetof(SegmentSide, at) == 8 &&
                   offsetof(SegmentSide, again) == 40 &&
                   offsetof(SegmentEvent, enough) == 8 &&
                   offsetof(SegmentPart, at) == 8 &&
                   offsetof(SegmentPart, number) == 16 &&
                   sizeof(SegmentPart) == 64,
               "the words are as documented");
#endif

/* What was found wrong with shared bytes. */
typedef enum SegmentFault {
  SEGMENT_SOUND,
  SEGMENT_POSITIONS, /* head and tail contradict each other */
  SEGMENT_LENGTH,    /* a record is longer than what is there */
  SEGMENT_OWNER,     /* a lock belongs to nobody that can be, or to us */
  SEGMENT_LOST,      /* our lock or place was taken from us */
  SEGMENT_TRUNCATED, /* the file lost pages */
  SEGMENT_FAULTS
} SegmentFault;

/* ---------------------------------------------------------------- in use */

typedef struct Segment Segment;

typedef struct SegmentAsk {
  const char *path; /* NULL: nameless */
  int create;       /* IPC_ATTACH ... */
  unsigned roles;   /* IPC_READ, IPC_WRITE */
  unsigned permissions;
  uint32_t kind, flags, slots;
  uint32_t places;  /* slots that an existing one must have; 0: any */
  uint32_t insists; /* the flags that an existing one must have just so */
  uint64_t ring;    /* bytes, as ipc_segment_ring has them; 0: any */
  uint64_t maxsize; /* bytes; 0: any, or what fits. A memory's own */
  uint32_t extra;   /* bytes of the kind's own, of a new one */
  bool kept; /* the file is a user's: nobody alive does not make it stale */
  bool huge, populate;
  int (*sound)(Segment *s); /* looks at what the dead left; 0 or an errno */
  /* The slot's former owner is dead: what it held of the kind's own is given
   * back. Under the registry's lock. NULL: there is nothing. */
  void (*swept)(Segment *s, unsigned slot);
} SegmentAsk;

/* One participant. Zeroed but for fd -1 it is nobody. */
struct Segment {
  int fd;    /* its own open file description: by it the kernel knows */
  bool made; /* by us */
  unsigned slot;
  uint32_t me; /* what our locks hold */
  unsigned roles;
  uint32_t changes;      /* seen last */
  SegmentHead head;      /* the copy that counts */
  char *bytes;           /* what is mapped: a memory's bytes */
  char *base;            /* the head there; NULL: not mapped */
  _Atomic bool *damaged; /* pages were lost */
  void *guard;
  void (*swept)(Segment *s, unsigned slot);
  dev_t device;
  ino_t inode;
  const char *why; /* of an error that is not the system's */
  uint32_t takeovers;
};

/* Whether there can be any here. */
bool ipc_segment_possible(void);

/* Takes part: makes or opens what is asked for. Tries once; 0, or EAGAIN:
 * somebody is just joining or leaving; ENOENT; EEXIST; EBUSY: the side is made
 * for one, and taken; EUSERS: no slot is free; EACCES: another user's;
 * EBADMSG: not ours; ENOMSG: a file that is no memory of ours; ENOTSUP: ours,
 * but not for this machine; ENOSPC ... */
int ipc_segment_attach(Segment *s, const SegmentAsk *ask);

/* Where the head of a memory's file is, as its foot says. ENOMSG: it has none.
 */
int ipc_segment_foot(int fd, uint64_t *head);

/* Whether a file begins as what is no memory does. */
bool ipc_segment_is(int fd);

/* A second participant of what `like` takes part in; as attach, and those who
 * join or leave just then are waited for, `patience` ns at the most. */
int ipc_segment_second(Segment *s, const Segment *like, const char *path,
                       unsigned roles, Nanos patience);

/* Becomes the participant whose descriptor this is (it moved here). 0 and the
 * descriptor is ours; else it is still the caller's. */
int ipc_segment_adopt(Segment *s, int fd, uint32_t kind, unsigned slot,
                      unsigned roles);

/* The slot of a lock's owner; of nobody, or nonsense, one that none can have.
 */
static inline uint32_t ipc_segment_slot(uint32_t owner) {
  return (owner & 0xfff) - 1;
}

/* Leaves, and what becomes of the name: it stays; it goes if nobody is left; it
 * goes. Waits a moment at the most. */
typedef enum SegmentLeave {
  SEGMENT_LEAVE,
  SEGMENT_SETTLE,
  SEGMENT_REMOVE
} SegmentLeave;
void ipc_segment_leave(Segment *s, const char *path, SegmentLeave how);

/* Gives a role up; others are told. */
void ipc_segment_resign(Segment *s, unsigned roles);

/* Lets go without leaving: the description is elsewhere now. */
void ipc_segment_abandon(Segment *s);

/* Removes ".NAME.0123456789abcdef" beside a path that ends in NAME, of any
 * digits: segments on their way to a name, or without one, of killed processes.
 */
void ipc_segment_sweep(const char *path);

/* Whether the path is (still) this object's. */
bool ipc_segment_named(const Segment *s, const char *path);

/* Removes the name, if it is still this object's. EAGAIN as attach. */
int ipc_segment_remove(Segment *s, const char *path);

/* Whether anybody else has one of these roles. Asks the kernel. */
bool ipc_segment_others(const Segment *s, unsigned roles);

/* Whether others had one of these roles, and none has it now. */
bool ipc_segment_gone(const Segment *s, unsigned roles);

/* Notes what is wrong, for everybody; returns the errno that says so. */
int ipc_segment_fault(Segment *s, SegmentFault fault);

/* 0, or the errno of a fault that was found before (s->why tells it). */
int ipc_segment_explain(Segment *s); /* once there is one */
static inline int ipc_segment_check(Segment *s);

/* Whether the owner of a lock or lease, as the word holds it, is gone. Asks the
 * kernel. EBADMSG is a fault. */
int ipc_segment_dead(Segment *s, uint32_t owner, bool *dead);

/* Whether nobody has this slot. Asks the kernel. */
bool ipc_segment_vacant(const Segment *s, unsigned slot);

/* Takes the registry's lock: nobody joins, and no slot has another owner, until
 * it is given back. Tries once: 0 or EAGAIN. */
int ipc_segment_pin(const Segment *s);
void ipc_segment_unpin(const Segment *s);

/* The bytes of a capacity: at least so many, as a ring can have them; 0: too
 * many. */
uint64_t ipc_segment_ring(uint64_t bytes);

#define SEGMENT_LIFE(s) ((SegmentLife *)(void *)((s)->base + 128))
#define SEGMENT_WRITERS(s) ((SegmentSide *)(void *)((s)->base + 256))
#define SEGMENT_READERS(s) ((SegmentSide *)(void *)((s)->base + 384))
#define SEGMENT_READ(s) ((SegmentEvent *)(void *)((s)->base + 512))
#define SEGMENT_WRITE(s) ((SegmentEvent *)(void *)((s)->base + 640))
#define SEGMENT_PART(s, i)                                                     \
  ((SegmentPart *)(void *)((s)->base + SEGMENT_PARTS) + (i))

/* The kind's own bytes, s->head.extra of them: 0 in a new one, aligned to 64.
 */
#define SEGMENT_EXTRA(s) ((void *)SEGMENT_PART(s, (s)->head.slots))

static inline int ipc_segment_check(Segment *s) {
  if (!atomic_load_explicit(s->damaged, memory_order_relaxed) &&
      !atomic_load_explicit(&SEGMENT_LIFE(s)->fault, memory_order_relaxed))
    return 0;
  return ipc_segment_explain(s);
}

/* ------------------------------------------------------------------ locks */

/* A lock: 0, or its owner: slot + 1 in the low 12 bits, the generation of the
 * slot in the next 19; the highest bit: somebody waits. */
#define SEGMENT_WAITS UINT32_C(0x80000000)

/* 0; EAGAIN: it is another's. ENOTRECOVERABLE. */
static inline int ipc_segment_try(Segment *s, _Atomic uint32_t *lock) {
  uint32_t nobody = 0;
  if (atomic_compare_exchange_strong_explicit(
          lock, &nobody, s->me, memory_order_acquire, memory_order_relaxed))
    return 0;
  if ((nobody & ~SEGMENT_WAITS) == s->me)
    return ipc_segment_fault(s, SEGMENT_OWNER);
  return EAGAIN;
}

/* Sleeps until a lock may be free, for `ns` at the most. 0: try. ETIMEDOUT,
 * EINTR. */
int ipc_segment_await(const Segment *s, _Atomic uint32_t *lock, Nanos ns);

/* Without the sleep: false and what to sleep on. True: look again. */
bool ipc_segment_expect(const Segment *s, _Atomic uint32_t *lock,
                        uint32_t *value);

/* If its owner is dead it is ours: 0; EAGAIN: it lives. ENOTRECOVERABLE. */
int ipc_segment_takeover(Segment *s, _Atomic uint32_t *lock);

/* 0, or ENOTRECOVERABLE: it was not ours any more, and nothing may be touched.
 */
int ipc_segment_release(Segment *s, _Atomic uint32_t *lock);

/* ----------------------------------------------------------------- events */

/* Announces a sleep: what is to be waited for must be looked at again between
 * this and the wait on the value it returns. */
uint32_t ipc_segment_announce(const Segment *s, SegmentEvent *e);

/* After a change: wakes who announced a sleep. */
void ipc_segment_rouse(SegmentEvent *e);
static inline void ipc_segment_tell(const Segment *s, SegmentEvent *e) {
  if (s->head.flags & SEGMENT_BARRIER)
    atomic_signal_fence(memory_order_seq_cst);
  else
    atomic_thread_fence(memory_order_seq_cst);
  if (atomic_load_explicit(&e->count, memory_order_relaxed) & 1)
    ipc_segment_rouse(e);
}

#endif
