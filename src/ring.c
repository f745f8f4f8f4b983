/* Messages in shared memory; see ring.h. Between a lock and its release nothing
 * blocks, allocates or calls Lua; tail and head move by one store each, which
 * is what makes a message sent, or taken; everything read from the memory is
 * read once and checked against our own copy of the head. */
#include "prefix.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "os.h"
#include "ring.h"

enum {
  RING_SPINS = 100,     /* tries for a lock before it counts as held */
  RING_GLANCES = 16,    /* for the next message, before the kernel is asked */
  RING_PAUSES = 4,      /* between two of them */
  RING_LOOK = 64,       /* sends between looks for who receives */
  RING_BATCH = 64 << 10 /* bytes that recvmany copies at once */
};

static bool ring_sole(const Ring *r, uint32_t side) {
  return r->m.s.head.flags & side;
}

/* In the ring and aligned, whatever a hostile position says. */
RingRecord *ipc_ring_record(const Ring *r, uint64_t at) {
  return (RingRecord *)(void *)(r->bytes + (at & (r->ring - SEGMENT_RECORD)));
}

/* ------------------------------------------------------- what went wrong */

static int ring_failed(Ring *r, int err) {
  r->c.why = r->m.s.why;
  return err;
}

int ipc_ring_fault(Ring *r, SegmentFault fault) {
  return ring_failed(r, ipc_segment_fault(&r->m.s, fault));
}

int ipc_ring_check(Ring *r) {
  if (!r->m.s.base) {
    r->c.why = "there was no place for this process beside its parent";
    return EUSERS;
  }
  if (r->robbed) { /* of a lock: nothing there is ours any more */
    r->c.why = "this participant's place was taken";
    return ENOTRECOVERABLE;
  }
  int err = ipc_segment_check(&r->m.s);
  return err ? ring_failed(r, err) : 0;
}

/* ------------------------------------------------------------ who is there */

bool ipc_ring_suspects(Ring *r) {
  return atomic_load_explicit(&r->suspect, memory_order_relaxed) &&
         atomic_exchange(&r->suspect, false);
}

/* Whether those whom `want` needs were there and are not. The kernel is asked
 * when somebody came or left, and when a sleep passed. */
bool ipc_ring_gone(Ring *r, int want, bool ask) {
  int i = want == IPC_WRITE;
  uint32_t now = atomic_load_explicit(&SEGMENT_LIFE(&r->m.s)->changes,
                                      memory_order_relaxed);
  if (r->keepalive)
    return false;
  if (ask || now != r->seen[i]) {
    r->seen[i] = now;
    r->gone[i] = ipc_segment_gone(&r->m.s, i ? IPC_READ : IPC_WRITE);
  }
  return r->gone[i];
}

/* ------------------------------------------------------------------- locks */

/* 0; EAGAIN: another has it, and r->busy says so; ENOTRECOVERABLE. */
int ipc_ring_lock(Ring *r, _Atomic uint32_t *lock, bool ask) {
  int err;
  for (int i = 0; (err = ipc_segment_try(&r->m.s, lock)) == EAGAIN; i++) {
    if (i < RING_SPINS)
      continue;
    if (ask)
      err = ipc_segment_takeover(&r->m.s, lock);
    break;
  }
  if (err == EAGAIN)
    r->awaited = true;
  else if (!err && r->awaited) { /* who else waits is woken by our release */
    atomic_fetch_or(lock, SEGMENT_WAITS);
    r->awaited = false;
  }
  r->busy = err == EAGAIN ? lock : NULL;
  return err && err != EAGAIN ? ring_failed(r, err) : err;
}

int ipc_ring_unlock(Ring *r, _Atomic uint32_t *lock) {
  int err = ipc_segment_release(&r->m.s, lock);
  r->robbed = r->robbed || err;
  return err ? ring_failed(r, err) : 0;
}

/* --------------------------------------------------------------- positions */

/* Whether two positions can be head and tail. */
static bool ring_span(const Ring *r, uint64_t head, uint64_t tail) {
  return tail - head <= r->ring && (head | tail) % SEGMENT_RECORD == 0;
}

/* The tail, once it is not `at`. Where retrying has paid that is worth a
 * moment: the writer is at work. */
static uint64_t ring_glance(const Ring *r, uint64_t at) {
  const SegmentSide *w = SEGMENT_WRITERS(&r->m.s);
  uint64_t tail = atomic_load_explicit(&w->at, memory_order_acquire);
  if (r->c.spin[0].penalty == 0 && r->c.spin[0].budget)
    for (int i = 0; tail == at && i < RING_GLANCES; i++) {
      for (int pause = 0; pause < RING_PAUSES; pause++)
        ipc_os_pause(); /* each look takes the line from the writer */
      tail = atomic_load_explicit(&w->at, memory_order_acquire);
    }
  return tail;
}

/* The tail, seen from a position before it: 0; EAGAIN: nothing is there. */
static int ring_tail(Ring *r, uint64_t at) {
  if (at != r->tail)
    return 0;
  uint64_t tail = ring_glance(r, at);
  if (!ring_span(r, at, tail))
    return ipc_ring_fault(r, SEGMENT_POSITIONS);
  r->tail = tail;
  return tail == at ? EAGAIN : 0;
}

/* The size of the record at a position, within `room` bytes. */
int ipc_ring_size(Ring *r, uint64_t at, uint64_t room, size_t *size) {
  uint32_t n =
      atomic_load_explicit(&ipc_ring_record(r, at)->size, memory_order_relaxed);
  if (n > r->m.s.head.maxsize || ipc_ring_need(n) > room)
    return ipc_ring_fault(r, SEGMENT_LENGTH);
  *size = n;
  return 0;
}

/* Walks what is between head and tail, which must not move meanwhile: are they
 * records? */
static bool ring_walk(const Ring *r, uint64_t head, uint64_t tail) {
  if (!ring_span(r, head, tail))
    return false;
  for (uint64_t at = head; at != tail;) {
    const RingRecord *record = ipc_ring_record(r, at);
    uint32_t size = atomic_load_explicit(&record->size, memory_order_relaxed);
    if (size > r->m.s.head.maxsize || ipc_ring_need(size) > tail - at)
      return false;
    at += ipc_ring_need(size);
  }
  return true;
}

int ipc_ring_sound(Segment *s) {
  Ring r = {.m.s = *s, .bytes = s->base + s->head.head, .ring = s->head.ring};
  uint64_t head = atomic_load(&SEGMENT_READERS(s)->at),
           taken = atomic_load(&SEGMENT_READERS(s)->taken),
           tail = atomic_load(&SEGMENT_WRITERS(s)->at);
  bool offered = !(s->head.flags & SEGMENT_LEASE) ||
                 (ring_span(&r, head, taken) && ring_span(&r, taken, tail));
  if (offered && ring_walk(&r, head, tail))
    return 0;
  s->why = "it is damaged: between head and tail are no messages";
  return EBADMSG;
}

/* The number of the next message: what a writer noted last. One that was killed
 * between that and the store that sends left the number in the record that it
 * wrote behind the tail. */
uint32_t ipc_ring_number(const Ring *r, uint64_t tail) {
  const SegmentSide *w = SEGMENT_WRITERS(&r->m.s);
  const RingRecord *unsent = ipc_ring_record(r, tail);
  if (atomic_load_explicit(&w->counted, memory_order_acquire) == tail)
    return atomic_load_explicit(&w->number, memory_order_relaxed);
  return atomic_load_explicit(&unsent->number, memory_order_relaxed);
}

void ipc_ring_place(Ring *r) {
  r->bytes = r->m.s.base + r->m.s.head.head;
  r->ring = r->m.s.head.ring;
}

int ipc_ring_begin(Ring *r) {
  ipc_ring_place(r);
  r->seen[0] = r->seen[1] = r->m.s.changes - 1;
  r->head = r->at = atomic_load(&SEGMENT_READERS(&r->m.s)->at);
  r->tail = atomic_load(&SEGMENT_WRITERS(&r->m.s)->at);
  if (!r->c.writer || !ring_sole(r, SEGMENT_SOLE_WRITER)) {
    r->tail = r->at; /* others may move both: what it is, the lock will tell */
    return 0;
  }
  if (!ring_span(r, r->head, r->tail))
    return ipc_ring_fault(r, SEGMENT_POSITIONS);
  r->number = ipc_ring_number(r, r->tail);
  return 0;
}

/* ------------------------------------------------------------------ leases */

/* Gives the room of what is acknowledged back. Under the readers' lock. */
static int lease_advance(Ring *r) {
  SegmentSide *side = SEGMENT_READERS(&r->m.s);
  uint64_t head = atomic_load(&side->at), taken = atomic_load(&side->taken);
  if (!ring_span(r, head, taken))
    return ipc_ring_fault(r, SEGMENT_POSITIONS);
  while (head != taken) {
    size_t size = 0;
    if (atomic_load(&ipc_ring_record(r, head)->owner) != RING_DONE)
      break;
    int err = ipc_ring_size(r, head, taken - head, &size);
    if (err)
      return err;
    head += ipc_ring_need(size);
  }
  atomic_store_explicit(&side->at, head, memory_order_release);
  return 0;
}

/* For who needs room: somebody acknowledged, perhaps, and was killed. */
static void lease_try_advance(Ring *r) {
  SegmentSide *side = SEGMENT_READERS(&r->m.s);
  if (ipc_segment_try(&r->m.s, &side->lock))
    return;
  (void)lease_advance(r);
  (void)ipc_ring_unlock(r, &side->lock);
}

/* An offered one whose reader gave it back or died: *at, or EAGAIN; *others:
 * some are still with living ones. Under the readers' lock. */
static int lease_returned(Ring *r, bool ask, uint64_t *at, bool *others) {
  SegmentSide *side = SEGMENT_READERS(&r->m.s);
  uint64_t taken = atomic_load(&side->taken);
  uint64_t here = atomic_load(&side->at);
  *others = false;
  if (!ring_span(r, here, taken)) /* or the walk has no end */
    return ipc_ring_fault(r, SEGMENT_POSITIONS);
  while (here != taken) {
    size_t size = 0;
    uint32_t owner = atomic_load(&ipc_ring_record(r, here)->owner);
    int err = ipc_ring_size(r, here, taken - here, &size);
    bool dead = owner == RING_FREE;
    if (!err && ask && !dead && owner != RING_DONE && owner != r->m.s.me)
      err = ipc_segment_dead(&r->m.s, owner, &dead);
    if (err)
      return ring_failed(r, err);
    if (dead) {
      *at = here;
      return 0;
    }
    *others |= owner != RING_DONE && owner != r->m.s.me;
    here += ipc_ring_need(size);
  }
  return EAGAIN;
}

int ipc_ring_reclaim(Ring *r, bool *others) {
  SegmentSide *side = SEGMENT_READERS(&r->m.s);
  uint64_t at;
  *others = true;
  int err = ipc_ring_lock(r, &side->lock, true);
  if (err)
    return err;
  atomic_store(&side->again, 0);
  err = lease_returned(r, true, &at, others);
  if (!err) {
    atomic_store(&ipc_ring_record(r, at)->owner, RING_FREE);
    atomic_store(&side->again, 1);
  }
  int lost = ipc_ring_unlock(r, &side->lock);
  return lost ? lost : err;
}

/* The next one to be offered: *at and its size. Under the readers' lock. */
static int lease_next(Ring *r, bool ask, uint64_t *at, size_t *size) {
  SegmentSide *side = SEGMENT_READERS(&r->m.s);
  bool others = true, gone = ipc_ring_gone(r, IPC_READ, ask);
  int err = lease_advance(r), found = EAGAIN;
  if (!err && (atomic_exchange(&side->again, 0) || ask || gone)) {
    found = lease_returned(r, ask || gone, at, &others);
    err = found == EAGAIN ? 0 : found;
  }
  if (err)
    return err;
  uint64_t tail =
      atomic_load_explicit(&SEGMENT_WRITERS(&r->m.s)->at, memory_order_acquire);
  uint64_t taken = atomic_load(&side->taken);
  if (!ring_span(r, taken, tail))
    return ipc_ring_fault(r, SEGMENT_POSITIONS);
  if (found == 0) {
    atomic_store(&side->again, 1); /* perhaps not the only one */
    atomic_fetch_add(&ipc_ring_record(r, *at)->offered, 1);
    atomic_store(&ipc_ring_record(r, *at)->owner, r->m.s.me);
    return ipc_ring_size(r, *at, taken - *at, size);
  }
  if (taken == tail)
    return gone && !others ? EPIPE : EAGAIN;
  err = ipc_ring_size(r, taken, tail - taken, size);
  if (err)
    return err;
  *at = taken;
  atomic_store(&ipc_ring_record(r, taken)->offered, 1);
  atomic_store(&ipc_ring_record(r, taken)->owner, r->m.s.me);
  atomic_store(&side->taken, taken + ipc_ring_need(*size));
  return 0;
}

int ipc_ring_take(Ring *r, Message *m, uint64_t *place, uint32_t *offered) {
  SegmentSide *side = SEGMENT_READERS(&r->m.s);
  bool ask = ipc_ring_suspects(r) || ++r->looks % RING_LOOK == 0;
  size_t size = 0;
  int err = ipc_ring_check(r);
  if (err)
    return err;
  uint64_t taken = atomic_load(&side->taken);
  r->busy = NULL;
  if (!ask && !atomic_load(&side->again) &&
      !ipc_ring_gone(r, IPC_READ, false) && ring_glance(r, taken) == taken)
    return EAGAIN;
  err = ipc_ring_lock(r, &side->lock, ask);
  if (err) {
    if (ask)
      atomic_store(&r->suspect, true); /* whose lock it is comes first */
    return err;
  }
  err = lease_next(r, ask, place, &size);
  int lost = ipc_ring_unlock(r, &side->lock);
  if (err || lost)
    return err ? err : lost;
  m->bytes = (char *)ipc_ring_record(r, *place) + SEGMENT_RECORD;
  m->size = size;
  if (size > r->c.limit) {
    (void)ipc_ring_settle(r, *place, true);
    return EMSGSIZE;
  }
  *offered = atomic_load(&ipc_ring_record(r, *place)->offered);
  return 0;
}

int ipc_ring_settle(Ring *r, uint64_t place, bool done) {
  SegmentSide *side = SEGMENT_READERS(&r->m.s);
  uint32_t mine = r->m.s.me;
  if (!atomic_compare_exchange_strong(&ipc_ring_record(r, place)->owner, &mine,
                                      done ? RING_DONE : RING_FREE))
    return ESTALE;
  if (!done) {
    atomic_store(&side->again, 1);
    ipc_segment_rouse(SEGMENT_READ(&r->m.s));
    return 0;
  }
  lease_try_advance(r);
  ipc_segment_tell(&r->m.s, SEGMENT_WRITE(&r->m.s));
  return 0;
}

/* Whatever this participant has not acknowledged is offered again at once; who
 * is killed leaves that to the others. */
void ipc_ring_give_back(Ring *r) {
  SegmentSide *side = SEGMENT_READERS(&r->m.s);
  if (!(r->m.s.head.flags & SEGMENT_LEASE) || !(r->m.s.roles & IPC_READ) ||
      ipc_ring_check(r) || ipc_ring_lock(r, &side->lock, true))
    return;
  uint64_t here = atomic_load(&side->at), taken = atomic_load(&side->taken);
  size_t size = 0;
  while (ring_span(r, here, taken) && here != taken &&
         !ipc_ring_size(r, here, taken - here, &size)) {
    uint32_t mine = r->m.s.me;
    atomic_compare_exchange_strong(&ipc_ring_record(r, here)->owner, &mine,
                                   RING_FREE);
    here += ipc_ring_need(size);
  }
  atomic_store(&side->again, 1);
  (void)ipc_ring_unlock(r, &side->lock);
  ipc_segment_rouse(SEGMENT_READ(&r->m.s));
}

static int lease_recv(Ring *r, Message *m) {
  uint32_t offered;
  if (!r->leased) {
    int err = ipc_ring_take(r, m, &r->at, &offered);
    if (err)
      return err;
    r->leased = true;
  }
  size_t size = 0;
  int err = ipc_ring_size(r, r->at, r->ring, &size);
  if (err)
    return err;
  m->bytes = (char *)ipc_ring_record(r, r->at) + SEGMENT_RECORD;
  m->size = size;
  return 0;
}

/* --------------------------------------------------------------- receiving */

/* Writers that wait are woken once it is worth it: see ring_announce. */
void ipc_ring_tell_writers(Ring *r, uint64_t head) {
  SegmentEvent *e = SEGMENT_WRITE(&r->m.s);
  if (r->m.s.head.flags & SEGMENT_BARRIER)
    atomic_signal_fence(memory_order_seq_cst);
  else
    atomic_thread_fence(memory_order_seq_cst);
  if (!(atomic_load_explicit(&e->count, memory_order_acquire) & 1))
    return;
  uint64_t enough = atomic_load_explicit(&e->enough, memory_order_relaxed);
  if ((int64_t)(head - enough) >= 0)
    ipc_segment_rouse(e);
}

static void ring_publish(Ring *r) {
  SegmentSide *side = SEGMENT_READERS(&r->m.s);
  atomic_store_explicit(&side->at, r->at, memory_order_release);
  ipc_ring_tell_writers(r, r->at);
}

/* Lua hashes short strings and then copies them: both from here. */
void ipc_ring_steady(Ring *r, Message *m) {
  if (m->size > sizeof r->small)
    return;
  memcpy(r->small, m->bytes, m->size);
  m->bytes = r->small;
}

/* Nothing is there: EAGAIN, or EPIPE when nobody is left to send and a second
 * look finds nothing either. 0: it found something. */
static int ring_idle(Ring *r, uint64_t at) {
  if (!ipc_ring_gone(r, IPC_READ, ipc_ring_suspects(r)))
    return EAGAIN;
  int err = ring_tail(r, at);
  return err == EAGAIN ? EPIPE : err;
}

static int recv_sole(Ring *r, Message *m) {
  int err = ring_tail(r, r->at);
  if (err == EAGAIN)
    err = ring_idle(r, r->at);
  if (!err)
    err = ipc_ring_size(r, r->at, r->tail - r->at, &m->size);
  if (err)
    return err;
  m->bytes = (char *)ipc_ring_record(r, r->at) + SEGMENT_RECORD;
  if (m->size <= r->c.limit)
    return 0;
  r->at += ipc_ring_need(m->size);
  ring_publish(r);
  return EMSGSIZE;
}

/* Copies messages from *at up to `tail` behind r->ahead, as many as there is
 * room for; ENOBUFS: *need more bytes are needed for the first. */
static int recv_copy(Ring *r, uint64_t *at, uint64_t tail, size_t *need) {
  size_t most = r->c.batch ? r->c.batch : 1;
  for (size_t n = 0; n < most && *at != tail; n++) {
    size_t size = 0;
    int err = ipc_ring_size(r, *at, tail - *at, &size);
    if (err)
      return err;
    size_t entry = sizeof size + (size <= r->c.limit ? size : 0);
    if (r->ahead.room - r->ahead.size < entry) {
      *need = entry;
      return n ? 0 : ENOBUFS;
    }
    char *to = r->ahead.bytes + r->ahead.size;
    memcpy(to, &size, sizeof size);
    memcpy(to + sizeof size, (char *)ipc_ring_record(r, *at) + SEGMENT_RECORD,
           entry - sizeof size);
    r->ahead.size += entry;
    *at += ipc_ring_need(size);
  }
  return 0;
}

/* What is in hand of the copies. EMSGSIZE: it was not copied. */
static int recv_ahead(Ring *r, Message *m) {
  memcpy(&m->size, r->ahead.bytes + r->ahead_at, sizeof m->size);
  m->bytes = r->ahead.bytes + r->ahead_at + sizeof m->size;
  if (m->size <= r->c.limit)
    return 0;
  r->ahead_at += sizeof m->size;
  return EMSGSIZE;
}

/* One turn under the lock, after which head says that they are ours. */
static int recv_turn(Ring *r, bool ask, size_t *need) {
  SegmentSide *side = SEGMENT_READERS(&r->m.s);
  uint64_t now = atomic_load_explicit(&side->at, memory_order_acquire);
  r->busy = NULL;
  if (ring_glance(r, now) == now) /* no lock to find that out */
    return EAGAIN;
  int err = ipc_ring_lock(r, &side->lock, ask);
  if (err)
    return err;
  uint64_t at = atomic_load_explicit(&side->at, memory_order_relaxed);
  uint64_t tail =
      atomic_load_explicit(&SEGMENT_WRITERS(&r->m.s)->at, memory_order_acquire);
  if (!ring_span(r, at, tail))
    err = ipc_ring_fault(r, SEGMENT_POSITIONS);
  else if (at == tail)
    err = EAGAIN;
  else
    err = recv_copy(r, &at, tail, need);
  if (!err && atomic_load_explicit(r->m.s.damaged, memory_order_relaxed))
    err = ipc_ring_check(r); /* what was copied are zeros, perhaps */
  if (!err)
    atomic_store_explicit(&side->at, at, memory_order_release);
  int lost = ipc_ring_unlock(r, &side->lock);
  err = lost ? lost : err;
  if (err)
    r->ahead.size = r->ahead_at = 0;
  else
    ipc_ring_tell_writers(r, at);
  return err;
}

static int recv_shared(Ring *r, Message *m) {
  bool ask = ipc_ring_suspects(r), last = false;
  for (;;) {
    size_t need = 0;
    if (r->ahead_at < r->ahead.size)
      return recv_ahead(r, m);
    r->ahead.size = r->ahead_at = 0;
    int err = recv_turn(r, ask, &need);
    if (err == ENOBUFS) {
      if (r->c.batch && need < RING_BATCH)
        need = RING_BATCH;
      err = ipc_buffer_reserve(&r->ahead, need);
    } else if (err == EAGAIN && !r->busy && ipc_ring_gone(r, IPC_READ, ask)) {
      if (last)
        return EPIPE;
      last = true; /* what they sent before they went comes first */
      ask = false;
      continue;
    }
    if (err)
      return err;
  }
}

/* What Lua is to copy out of the ring: with no page of it lost until here. */
static int ring_lend(Ring *r, Message *m) {
  const size_t page = 4096; /* or more */
  const volatile char *bytes = m->bytes;
  for (size_t i = 0; i < m->size; i += page)
    (void)bytes[i];
  if (m->size)
    (void)bytes[m->size - 1];
  ipc_ring_steady(r, m);
  return ipc_ring_check(r);
}

static int ring_recv(Chan *c, Message *m) {
  Ring *r = (Ring *)c;
  int err = c->ended ? c->ended : ipc_ring_check(r);
  if (err)
    return err;
  if (r->peeked) {
    c->why = "a view of what is received next is not released";
    return EBUSY;
  }
  if (r->m.s.head.flags & SEGMENT_LEASE)
    err = lease_recv(r, m);
  else if (ring_sole(r, SEGMENT_SOLE_READER))
    err = recv_sole(r, m);
  else
    err = recv_shared(r, m);
  if (err == EPIPE && !r->tickets) /* a ticket may be given back */
    c->ended = err;
  if (!err && !r->ahead.size)
    err = ring_lend(r, m);
  return err;
}

int ipc_ring_peek(Ring *r, Message *m) {
  int err = r->c.ended ? r->c.ended : ipc_ring_check(r);
  if (!err && r->peeked) {
    r->c.why = "a view of what is received next is not released";
    err = EBUSY;
  }
  if (!err)
    err = recv_sole(r, m);
  if (err == EPIPE)
    r->c.ended = err;
  if (!err)
    r->c.serial++; /* a recv under way must not take it, too */
  return err;
}

static void ring_took(Chan *c, size_t size) {
  Ring *r = (Ring *)c;
  if (!r->m.s.base) /* a finaliser closed it meanwhile */
    return;
  if (r->leased) {
    r->leased = false;
    (void)ipc_ring_settle(r, r->at, true);
  } else if (ring_sole(r, SEGMENT_SOLE_READER)) {
    r->at += ipc_ring_need(size);
    if (!c->batch)
      ring_publish(r);
  } else {
    r->ahead_at += sizeof size + size;
  }
}

static void ring_settle(Chan *c) {
  Ring *r = (Ring *)c;
  if (r->m.s.base && ring_sole(r, SEGMENT_SOLE_READER) &&
      !(r->m.s.head.flags & SEGMENT_LEASE))
    ring_publish(r);
}

/* ----------------------------------------------------------------- sending */

/* Whether this end may send: 0, EPIPE, EBUSY, or a fault. */
static int ring_may_send(Ring *r, bool ask) {
  int err = ipc_ring_check(r);
  if (err)
    return err;
  if (r->reserved) {
    r->c.why = "a view of what is sent next is not committed";
    return EBUSY;
  }
  if (++r->writes % RING_LOOK == 0)
    ask = true;
  r->ended = r->ended || ipc_ring_gone(r, IPC_WRITE, ask);
  return r->ended ? EPIPE : 0;
}

/* Whether there is room for `need` bytes behind tail. */
static int ring_room(Ring *r, uint64_t tail, uint64_t need) {
  if (tail + need - r->head <= r->ring)
    return 0;
  if (need > r->ring)
    return EMSGSIZE;
  SegmentSide *readers = SEGMENT_READERS(&r->m.s);
  if (r->m.s.head.flags & SEGMENT_LEASE)
    lease_try_advance(r);
  uint64_t head = atomic_load_explicit(&readers->at, memory_order_acquire);
  if (!ring_span(r, head, tail))
    return ipc_ring_fault(r, SEGMENT_POSITIONS);
  r->head = head;
  r->need = need;
  return tail + need - head <= r->ring ? 0 : EAGAIN;
}

void ipc_ring_write(Ring *r, uint64_t at, uint32_t number, const Message *m) {
  RingRecord *record = ipc_ring_record(r, at);
  atomic_store_explicit(&record->size, (uint32_t)m->size, memory_order_relaxed);
  atomic_store_explicit(&record->number, number, memory_order_relaxed);
  atomic_store_explicit(&record->owner, RING_FREE, memory_order_relaxed);
  atomic_store_explicit(&record->offered, 0, memory_order_relaxed);
  memcpy((char *)record + SEGMENT_RECORD, m->bytes, m->size);
}

/* They are sent by the store of the tail, which is the last: see
 * ipc_ring_number. */
void ipc_ring_commit_tail(Ring *r, uint64_t tail, uint32_t number) {
  SegmentSide *w = SEGMENT_WRITERS(&r->m.s);
  atomic_store_explicit(&w->counted, tail, memory_order_release);
  atomic_store_explicit(&w->number, number, memory_order_release);
  atomic_store_explicit(&w->at, tail, memory_order_release);
}

/* Writes as many as there is room for, from `tail` on. */
static int ring_fill(Ring *r, uint64_t tail, uint32_t number, const Message *m,
                     size_t count, size_t *sent) {
  int err = 0;
  for (*sent = 0; *sent < count; ++*sent) {
    uint64_t need = ipc_ring_need(m[*sent].size);
    err = ring_room(r, tail, need);
    if (err)
      break;
    ipc_ring_write(r, tail, number++, &m[*sent]);
    tail += need;
  }
  if (*sent > 0) {
    ipc_ring_commit_tail(r, tail, number);
    r->tail = tail;
    r->number = number;
  }
  return err;
}

static int ring_put(Ring *r, const Message *m, size_t count, size_t *sent) {
  SegmentSide *w = SEGMENT_WRITERS(&r->m.s);
  bool ask = ipc_ring_suspects(r);
  int err = ring_may_send(r, ask);
  if (err)
    return err;
  r->busy = NULL;
  if (ring_sole(r, SEGMENT_SOLE_WRITER)) {
    err = ring_fill(r, r->tail, r->number, m, count, sent);
  } else {
    err = ipc_ring_lock(r, &w->lock, ask);
    if (err)
      return err;
    uint64_t tail = atomic_load_explicit(&w->at, memory_order_relaxed);
    err = tail % SEGMENT_RECORD
              ? ipc_ring_fault(r, SEGMENT_POSITIONS)
              : ring_fill(r, tail, ipc_ring_number(r, tail), m, count, sent);
    int lost = ipc_ring_unlock(r, &w->lock);
    err = lost ? lost : err;
  }
  return err;
}

static int ring_sendmany(Chan *c, const Message *m, size_t count,
                         size_t *sent) {
  Ring *r = (Ring *)c;
  *sent = 0;
  int err = ring_put(r, m, count, sent);
  if (*sent > 0)
    r->untold = true;
  if (r->untold && !c->quiet) { /* also where nothing more can be sent now */
    r->untold = false;
    ipc_segment_tell(&r->m.s, SEGMENT_READ(&r->m.s));
  }
  return err;
}

static int ring_send(Chan *c, const Message *m) {
  size_t sent;
  return ring_sendmany(c, m, 1, &sent);
}

static int ring_flush(Chan *c) {
  (void)c; /* a message is in the ring or not */
  return 0;
}

/* No more from us: others that wait look whether anybody is left. */
int ipc_ring_shutdown(Chan *c) {
  Ring *r = (Ring *)c;
  if (!r->m.s.base)
    return 0;
  ipc_member_spare_end(&r->m);
  ipc_segment_resign(&r->m.s, IPC_WRITE);
  return 0;
}

int ipc_ring_reserve(Ring *r, size_t size, char **bytes) {
  int err = ring_may_send(r, ipc_ring_suspects(r));
  if (!err)
    err = ring_room(r, r->tail, ipc_ring_need(size));
  if (err)
    return err;
  r->reserved = true;
  *bytes = (char *)ipc_ring_record(r, r->tail) + SEGMENT_RECORD;
  return 0;
}

int ipc_ring_commit(Ring *r, size_t size) {
  r->reserved = false;
  if (size == SIZE_MAX)
    return 0;
  int err = r->c.shut ? EPIPE : ipc_ring_check(r);
  if (err)
    return err;
  RingRecord *record = ipc_ring_record(r, r->tail);
  atomic_store_explicit(&record->size, (uint32_t)size, memory_order_relaxed);
  atomic_store_explicit(&record->number, r->number++, memory_order_relaxed);
  atomic_store_explicit(&record->owner, RING_FREE, memory_order_relaxed);
  atomic_store_explicit(&record->offered, 0, memory_order_relaxed);
  r->tail += ipc_ring_need(size);
  ipc_ring_commit_tail(r, r->tail, r->number);
  ipc_segment_tell(&r->m.s, SEGMENT_READ(&r->m.s));
  return 0;
}

/* ----------------------------------------------------------------- figures */

bool ipc_ring_figure(Chan *c, unsigned i, Figure *f) {
  Ring *r = (Ring *)c;
  if (!r->m.s.base) /* a child that got no place of its own */
    return false;
  const SegmentSide *w = SEGMENT_WRITERS(&r->m.s),
                    *d = SEGMENT_READERS(&r->m.s);
  uint64_t tail = atomic_load(&w->at), head = atomic_load(&d->at);
  uint64_t used = ring_span(r, head, tail) ? tail - head : 0;
  switch (i) {
  case 0: /* between two looks: at most one for each record that fits */
    *f = (Figure){"depth", 0};
    if (used && r->bytes)
      f->value = (uint32_t)(ipc_ring_number(r, tail) -
                            atomic_load(&ipc_ring_record(r, head)->number));
    if (f->value > used / SEGMENT_RECORD)
      f->value = used / SEGMENT_RECORD;
    return true;
  case 1:
    *f = (Figure){"used", used};
    return true;
  case 2:
    *f = (Figure){"capacity", r->ring};
    return true;
  case 3:
    *f = (Figure){"takeovers", r->m.s.takeovers};
    return true;
  case 4:
    if (r->m.s.head.kind != SEGMENT_BROADCAST)
      return false;
    *f = (Figure){"lost", r->losses};
    return true;
  default:
    return false;
  }
}

const ChanOps ipc_ring_ops = {.recv = ring_recv,
                              .took = ring_took,
                              .send = ring_send,
                              .sendmany = ring_sendmany,
                              .flush = ring_flush,
                              .shutdown = ipc_ring_shutdown,
                              .settle = ring_settle,
                              .figure = ipc_ring_figure,
                              .dup = ipc_rings_dup,
                              .quiet = true};
