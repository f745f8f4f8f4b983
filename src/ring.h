/* Messages in shared memory: a ring that any number of processes fill and
 * drain, that no death of one of them can wedge. On segment.h; no Lua but for
 * the handle. */
#ifndef IPC_RING_H
#define IPC_RING_H

#include "member.h"
#include "segment.h"
#include "waiter.h"

/* In front of each message, at a multiple of 16. The bytes follow; the next
 * record begins at the next multiple of 16. */
typedef struct RingRecord {
  _Atomic uint32_t size;
  _Atomic uint32_t number;  /* of the message, modulo 2^32 */
  _Atomic uint32_t owner;   /* leases: who has it; RING_FREE, RING_DONE */
  _Atomic uint32_t offered; /* leases: how often it was */
} RingRecord;

_Static_assert(sizeof(RingRecord) == SEGMENT_RECORD &&
                   offsetof(RingRecord, offered) == 12,
               "records are as documented");

enum { RING_FREE = 0 };
#define RING_DONE UINT32_C(0xffffffff)

typedef struct Ring Ring;

/* What waits for us, once somebody polls; what it may look at. */
typedef struct RingJob {
  Sleeper sleeper;
  Ring *ring;
  int want;
  SegmentWide at, need;           /* what is enough */
  _Atomic uint32_t *_Atomic busy; /* or: a lock to wait for */
  uint64_t from;                  /* `at` and `busy` of the last look */
  _Atomic uint32_t *held;
} RingJob;

struct Ring {
  Chan c;
  Member m;
  const struct RingRoom *room;
  char *bytes;      /* the ring itself, twice */
  uint64_t ring;    /* bytes of it */
  uint64_t at;      /* sole reader, subscriber: reads here */
  uint64_t tail;    /* seen last; of a sole writer, its own */
  uint64_t head;    /* seen last */
  uint64_t need;    /* bytes of room that the last send did not find */
  uint32_t number;  /* sole writer: of the next; subscriber: expected */
  uint32_t writes;  /* sends since others were last looked for */
  uint32_t seen[2]; /* changes when others were looked for */
  bool gone[2];     /* and were not there: writers, readers */
  bool keepalive;   /* nobody asks */
  bool reserved;    /* a view of what is to be sent is out */
  bool peeked;      /* a view of what is received is out */
  bool leased;      /* recv has a message that is not taken yet */
  bool counted;     /* subscriber: `number` is known */
  bool ended;       /* who received has gone: sending is over */
  bool robbed;      /* of a lock that was ours */
  bool awaited;     /* a lock: others may wait for it, too */
  uint32_t looks;   /* takes since the dead were last looked for */
  unsigned tickets; /* out */
  bool untold;      /* readers that sleep do not know of all that was sent */
  uint32_t lost;    /* broadcast: messages, before the one in hand */
  Nanos slice;      /* of the next sleep; 0: the first */
  uint64_t through; /* messages, when the last sleep began */
  uint64_t losses;
  atomic_bool suspect;    /* a sleep passed: look who is dead */
  _Atomic uint32_t *busy; /* a lock that the last op did not get */
  Buffer ahead;           /* copied messages: sizes, each with its bytes */
  size_t ahead_at;
  char small[40]; /* Lua reads short strings twice: not out of the ring */
  RingJob *job[2];
};

extern const ChanOps ipc_ring_ops;

/* HandleOps. */
int ipc_ring_descriptor(const Handle *h, int want);
int ipc_ring_arm(Handle *h, int want, Sleepers *by);
int ipc_ring_wait(Handle *h, int want, Nanos deadline);
int ipc_ring_ready(Handle *h, int want, bool ask_kernel);
void ipc_ring_close(Handle *h, How how);
int ipc_ring_forking(Handle *h);
void ipc_ring_forked(Handle *h, bool child);

/* The segment is joined: positions are read. 0, EAGAIN, ENOTRECOVERABLE. */
int ipc_ring_begin(Ring *r);

/* The next message in place, for a sole reader. */
int ipc_ring_peek(Ring *r, Message *m);

/* What this participant has not acknowledged is offered again. */
void ipc_ring_give_back(Ring *r);

/* Leases: 0: one that was offered is free again, its owner being dead; EAGAIN:
 * none is (*others: living ones have some); ENOTRECOVERABLE. */
int ipc_ring_reclaim(Ring *r, bool *others);

/* The segment is another now: where its ring is. */
void ipc_ring_place(Ring *r);

/* SegmentAsk.sound: whether what is between head and tail are records. */
int ipc_ring_sound(Segment *s);

/* Bytes that a message takes in the ring. */
static inline uint64_t ipc_ring_need(uint64_t size) {
  return SEGMENT_RECORD +
         (size + SEGMENT_RECORD - 1) / SEGMENT_RECORD * SEGMENT_RECORD;
}

/* Room for a message of `size` bytes, for a sole writer: *bytes is writable
 * until commit, which sends the first `size` of them; SIZE_MAX: none. */
int ipc_ring_reserve(Ring *r, size_t size, char **bytes);
int ipc_ring_commit(Ring *r, size_t size);

/* Leases: the next message is ours until done; `place` names it. ENOBUFS: too
 * many are out. */
int ipc_ring_take(Ring *r, Message *m, uint64_t *place, uint32_t *offered);
/* Acknowledges it, or offers it again. ESTALE: it is not ours any more. */
int ipc_ring_settle(Ring *r, uint64_t place, bool done);

/* For the ops of kinds of ring: a fault noted, or one noted before (0: none);
 * whether a sleep passed without a change since the last op; whether those whom
 * `want` needs were there and are gone; locks: 0, EAGAIN, ENOTRECOVERABLE. */
int ipc_ring_fault(Ring *r, SegmentFault fault);
int ipc_ring_check(Ring *r);
bool ipc_ring_suspects(Ring *r);
bool ipc_ring_gone(Ring *r, int want, bool ask);
int ipc_ring_lock(Ring *r, _Atomic uint32_t *lock, bool ask);
int ipc_ring_unlock(Ring *r, _Atomic uint32_t *lock);

/* Records: where one is, its size (checked against `room` bytes), the number of
 * the next one (under the writers' lock). */
RingRecord *ipc_ring_record(const Ring *r, uint64_t at);
int ipc_ring_size(Ring *r, uint64_t at, uint64_t room, size_t *size);
uint32_t ipc_ring_number(const Ring *r, uint64_t tail);

/* Writes one; makes all up to `tail` sent; makes short bytes our own; wakes
 * writers if `head` is what they wait for. */
void ipc_ring_write(Ring *r, uint64_t at, uint32_t number, const Message *m);
void ipc_ring_commit_tail(Ring *r, uint64_t tail, uint32_t number);
void ipc_ring_steady(Ring *r, Message *m);
void ipc_ring_tell_writers(Ring *r, uint64_t head);

/* ChanOps.shutdown and figure of all rings. */
int ipc_ring_shutdown(Chan *c);
bool ipc_ring_figure(Chan *c, unsigned i, Figure *f);

/* broadcast: the position of the slowest subscriber, or `tail`. */
uint64_t ipc_ring_slowest(const Ring *r, uint64_t tail);

/* ChanOps.dup and HandleOps.give of all rings: in rings.c. */
int ipc_rings_dup(lua_State *L, Chan *c);
int ipc_rings_give(Handle *h, Given *g);

#endif
