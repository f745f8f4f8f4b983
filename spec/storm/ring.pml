/* The ring's lock, takeover, sleeping, joining and closing as a model for
 * Spin, with SIGKILL possible before every step. What the model may do, the
 * code may do; what it must never do stands in the asserts. Memory is taken
 * to be sequentially consistent: an order that a missing fence would allow is
 * written out as a seeded bug.
 *
 * spec/storm/model runs it. By hand:
 *
 *   spin -DWRITERS=2 -DCRASHES=1 -a ring.pml && cc -O2 -DSAFETY pan.c -o pan
 *   ./pan -m1000000; spin -DWRITERS=2 -DCRASHES=1 -t -p ring.pml   (the trail)
 *
 * One step of a process is one access to shared memory or one system call; an
 * atomic{} holds one such access, what the process then decides by itself,
 * and the bookkeeping of the proof ("ghosts", which no process reads). */

/* ---- parameters ---------------------------------------------------------- */

#ifndef WRITERS
#define WRITERS 1 /* joined from the start; each sends MESSAGES, then leaves */
#endif
#ifndef READERS
#define READERS 1 /* joined from the start; each receives until closed */
#endif
#ifndef LATE_WRITERS
#define LATE_WRITERS 0 /* join a slot that became free, whenever they like */
#endif
#ifndef LATE_READERS
#define LATE_READERS 0
#endif
#ifndef MESSAGES
#define MESSAGES 1
#endif
#ifndef CAP
#define CAP 1 /* messages the ring holds */
#endif
#ifndef CRASHES
#define CRASHES 0 /* processes killed, at most */
#endif
#ifndef GENS
#define GENS 3 /* generations of a slot until they repeat; 2^24 in truth */
#endif
#ifndef QUITS
#define QUITS 0 /* 1: a reader may also leave after any message */
#endif
#ifndef LEASE
#define LEASE 0 /* 1: the readers take messages and acknowledge them later */
#endif
#ifndef NACKS
#define NACKS 0 /* messages given back by the living, at most; with LEASE */
#endif
#ifndef ROBBED
#define ROBBED 0 /* 1: a writer's descriptor may be closed under it while it
                    lives. With READERS=0: the lock alone must stand that */
#endif

/* Without slices that end by themselves every run must come to its end, however
 * the peers are scheduled: the graph of the states has no cycle. With -DENDS
 * spec/storm/model looks for one (pan.c compiled with -DNP, pan -l).
 *
 * When does a sleep end that nobody ends?
 * ANY    at any time: every order of steps is tried, a sleep is no step at all
 *        and wake-ups do not matter. For safety.
 * QUIET  when nothing else can move: then a slice is over for all who sleep.
 *        PATIENCE such slices without progress are a hang.
 * NEVER  no slices: each lost wake-up is a deadlock. Without crashes. */
#define ANY 0
#define QUIET 1
#define NEVER 2
#ifndef SLICES
#define SLICES ANY
#endif
#ifndef PATIENCE
#define PATIENCE 3
#endif

/* The seeded bug, one of: */
#define NO_TAKEOVER 1    /* the lock of the dead is left to them */
#define TAKEOVER_ALIVE 2 /* nobody asks whether the owner is dead */
#define TAKEOVER_STORE 3 /* a store in place of the CAS from the dead value */
#define EARLY_COMMIT 4   /* tail before payload */
#define EARLY_ACK 5      /* head before the payload is copied out */
#define NO_LOOK 6        /* closed without looking for messages again */
#define NO_SWEEP 7       /* a joiner leaves the dead owner's tag in the locks */
#define NO_FENCE 8       /* wake looks for sleepers before the commit is out */
#define LATE_BIT 9       /* prep after the second look */
#define PLAIN_UNLOCK 10  /* unlock stores 0, whoever the owner now is */
#define SILENT_UNLOCK 11 /* W is dropped without a wake */
#define SILENT_LEAVE 12  /* the last one of a side wakes nobody */
#define LEASE_KEPT 13    /* what the dead had taken is not offered again */
#define LEASE_ALIVE 14   /* it is, of the living too */
#define RD_BEFORE_TAG 15 /* a record is passed before it has an owner, and is
                            not offered again without one */
#define BUSY 16          /* who waits looks again at once in place of sleeping */
#ifndef BUG
#define BUG 0
#endif

/* ---- shared memory and kernel -------------------------------------------- */

#define SLOTS (WRITERS + READERS)
#define PEERS (SLOTS + LATE_WRITERS + LATE_READERS)
#define TOTAL ((WRITERS + LATE_WRITERS) * MESSAGES)

#define P 0 /* producers: plock, pseq */
#define C 1 /* consumers: clock, cseq */

#define WAITERS 128 /* the W bit of a lock word */
#define TAG(slot, gen) (1 + (slot) * GENS + (gen))
#define SLOT(v) ((((v) & 127) - 1) / GENS)
#define GEN(v) ((((v) & 127) - 1) % GENS)

byte word[2]; /* plock, clock: 0 or TAG, with or without WAITERS */
bit seq[2];   /* pseq, cseq: bit 0, somebody may be asleep; the count see below */
byte tail, head;
byte begins[CAP], ends[CAP]; /* a payload takes two steps to write or to read */
byte rd, owner[CAP];         /* leases: [head, rd) is taken, by whom; */
bool finished[CAP], ret;         /* acknowledged; something was given back */
byte gen[4];                 /* PART */
bool gone;                   /* LIFE: state dead */

#define NONE 255
#define WRITES 1
#define READS 2
byte held[4];  /* by slot the role byte that is locked: 0, WRITES or READS */
byte registry; /* REG: 0 or who holds it, + 1 */

/* One probe of a range of bytes. There are four slots at most. */
#define FREE(slot) (slot < SLOTS && held[slot] == 0)
#define ANY_FREE (FREE(0) || FREE(1) || FREE(2) || FREE(3))
#define NONE_HELD (!held[0] && !held[1] && !held[2] && !held[3])
#define NONE_HOLDS(r) (held[0] != r && held[1] != r && held[2] != r && held[3] != r)

/* Futex queues, a set of peers each: plock, clock, pseq, cseq. */
byte asleep[4];
#define LOCKQ(side) (side)
#define EVENTQ(side) (2 + (side))

/* ---- ghosts -------------------------------------------------------------- */

byte alive;        /* the peers that began and did not end */
byte killed;       /* and those that execute nothing more */
byte robbed;       /* the living whose bytes are free */
byte kills, robberies;
bool armed = true; /* the killer may strike */
byte inside[2];    /* the living between lock and unlock */
byte order[TOTAL + 1]; /* the messages in the order of their commits */
byte arrivals;     /* writers that joined late */
byte ticket[4]; /* who of the living has taken it, + 1 */
byte acked, nacks;
byte slices;       /* passed without progress */

#define BIT(id) (1 << (id))

inline progress() { slices = 0 }

inline entered(side) {
  assert(!(inside[side] & ~robbed)); /* at most one of the living */
  inside[side] = inside[side] | BIT(id)
}

/* ---- futex --------------------------------------------------------------- */

#if SLICES == ANY
#define futex_wait(queue, same) skip
#define wake_one(queue) skip
#define wake_all(queue) skip
#else
inline futex_wait(queue, same) {
  atomic {
    if
    :: same -> asleep[queue] = asleep[queue] | BIT(id)
    :: else
    fi
  };
  !(asleep[queue] & BIT(id))
}

inline wake_one(queue) { /* which one, nobody knows */
  atomic {
    if
    :: asleep[queue] & 1 -> asleep[queue] = asleep[queue] & ~1
    :: asleep[queue] & 2 -> asleep[queue] = asleep[queue] & ~2
    :: asleep[queue] & 4 -> asleep[queue] = asleep[queue] & ~4
    :: asleep[queue] & 8 -> asleep[queue] = asleep[queue] & ~8
    :: asleep[queue] & 16 -> asleep[queue] = asleep[queue] & ~16
    :: asleep[queue] & 32 -> asleep[queue] = asleep[queue] & ~32
    :: asleep[queue] == 0
    fi
  }
}

#define wake_all(queue) asleep[queue] = 0
#endif

/* ---- event counts -------------------------------------------------------- */

/* Of the count matters only whether it is still what a peer has read: that is
 * its bit in `current`, which every wake clears. So the count never wraps. */
byte current[2];

/* With slices that may end at any time nobody depends on any of this. */
#if SLICES == ANY
#define prep(side) skip
#define wake(side) skip
#define peek(side) skip
#define wake_peeked(side) skip
#define event_wait(side) skip
#else
inline prep(side) {
  atomic { seq[side] = 1; current[side] = current[side] | BIT(id) }
}

#if BUG == BUSY
#define event_wait(side) skip
#else
inline event_wait(side) {
  futex_wait(EVENTQ(side), current[side] & BIT(id))
}
#endif

/* One CAS: if it fails, another has woken all since, after what we did. */
inline bump(side) {
  if
  :: atomic {
      current[side] & BIT(id) ->
      seq[side] = 0;
      current[side] = 0
    };
    asleep[EVENTQ(side)] = 0
  :: !(current[side] & BIT(id))
  fi
}

inline wake(side) {
  if
  :: atomic { seq[side] == 1 -> current[side] = current[side] | BIT(id) };
    bump(side)
  :: seq[side] == 0
  fi
}

/* The same in two halves, for NO_FENCE. */
inline peek(side) {
  atomic {
    if
    :: seq[side] == 1 -> ok = true; current[side] = current[side] | BIT(id)
    :: else
    fi
  }
}

inline wake_peeked(side) {
  if
  :: atomic { ok -> ok = false };
    bump(side)
  :: !ok
  fi
}
#endif

/* ---- the lock ------------------------------------------------------------ */

/* CAS of the lock word; ok tells. */
inline acquire(side, old, new) {
  atomic {
    if
    :: word[side] == (old) -> word[side] = (new); entered(side); ok = true
    :: else
    fi
  }
}

/* Real code looks for the dead only after a slice in which the word stayed the
 * same; here after every sleep: it is the CAS that has to be right. */
inline take_over(side) {
  ok = (BUG == TAKEOVER_ALIVE || gen[SLOT(v)] != GEN(v));
  ok = (ok || held[SLOT(v)] == 0);
  atomic {
    if
    :: ok && (word[side] == v || BUG == TAKEOVER_STORE) ->
      word[side] = me | WAITERS;
      entered(side)
    :: else -> ok = false
    fi
  }
}

inline lock(side) {
  acquire(side, 0, me);
  do
  :: atomic { ok -> ok = false; v = 0; break }
  :: atomic { !ok -> v = word[side]; assert((v & ~WAITERS) != me) };
    if
    :: atomic { v == 0 -> acquire(side, 0, me | WAITERS) }
    :: atomic { /* CAS; then look again, whatever it said */
        v != 0 && !(v & WAITERS) ->
        if
        :: word[side] == v -> word[side] = v | WAITERS
        :: else
        fi
      }
    :: v & WAITERS ->
      futex_wait(LOCKQ(side), word[side] == v);
#if BUG != NO_TAKEOVER
      take_over(side)
#endif
    fi
  od
}

/* The CAS me -> 0 and the CAS me|W -> 0 in one step: between them only W can
 * change. LOST: only who was robbed of its byte may find its lock in other
 * hands, and touches nothing more, neither this lock nor the registry. */
inline unlock(side) {
  atomic {
    if
    :: word[side] == me -> word[side] = 0
    :: word[side] == (me | WAITERS) ->
      word[side] = 0;
      ok = (SLICES != ANY && BUG != SILENT_UNLOCK)
    :: else ->
      assert(robbed & BIT(id));
      if
      :: BUG == PLAIN_UNLOCK -> word[side] = 0
      :: else -> lost = true
      fi
    fi;
    inside[side] = inside[side] & ~BIT(id)
  };
#if SLICES != ANY
  if
  :: atomic { ok -> ok = false; wake_one(LOCKQ(side)) }
  :: !ok
  fi
#endif
}

/* ---- joining and leaving ------------------------------------------------- */

/* A tag of the slot's former owner goes out of a lock by CAS from exactly what
 * was read. */
inline sweep(side) {
  do
  :: atomic { (word[side] & ~WAITERS) != TAG(slot, gen[slot]) -> v = 0; break }
  :: atomic { (word[side] & ~WAITERS) == TAG(slot, gen[slot]) -> v = word[side] };
    if
    :: atomic { word[side] == v -> word[side] = 0 };
      wake_all(LOCKQ(side))
    :: word[side] != v
    fi
  od
}

inline try_slot(n) {
  atomic {
    if
    :: slot == NONE && FREE(n) -> held[n] = role; slot = n; progress()
    :: else
    fi
  }
}

/* slot stays NONE if the ring is gone. To wait for a slot is the model's way;
 * a caller gets EBUSY. */
inline join() {
  atomic {
    registry == 0 && (gone || ANY_FREE) ->
    registry = id + 1;
    alive = alive | BIT(id)
  };
  if
  :: !gone ->
    try_slot(0);
    try_slot(1);
    try_slot(2);
    try_slot(3);
    if
    :: slot != NONE ->
#if BUG != NO_SWEEP
      sweep(P);
      sweep(C);
#endif
      atomic {
        gen[slot] = (gen[slot] + 1) % GENS;
        me = TAG(slot, gen[slot]);
        v = 0;
        arrivals = arrivals + (role == WRITES)
      };
      wake(P);
      wake(C)
    :: else
    fi
  :: else
  fi;
  registry = 0
}

inline leave() {
  atomic { registry == 0 -> registry = id + 1 };
  atomic { held[slot] = 0; slot = NONE; progress() };
  if
  :: NONE_HELD -> gone = true
  :: else
  fi;
#if BUG != SILENT_LEAVE
  wake(P);
  wake(C);
#endif
  registry = 0
}

#if LEASE
#define RETURN(n) ticket[n] = (ticket[n] == id + 1 -> 0 : ticket[n])
#define RETURN_TICKETS RETURN(0); RETURN(1); RETURN(2); RETURN(3)
#else
#define RETURN_TICKETS skip
#endif

/* What the kernel does for the killed, some time after the kill. */
inline reap() {
  atomic {
    killed & BIT(id) ->
    if
    :: slot != NONE && !(robbed & BIT(id)) -> held[slot] = 0
    :: else
    fi;
    if
    :: registry == id + 1 -> registry = 0
    :: else
    fi;
    RETURN_TICKETS;
    inside[P] = inside[P] & ~BIT(id);
    inside[C] = inside[C] & ~BIT(id);
#if SLICES != ANY
    asleep[0] = asleep[0] & ~BIT(id);
    asleep[1] = asleep[1] & ~BIT(id);
    asleep[2] = asleep[2] & ~BIT(id);
    asleep[3] = asleep[3] & ~BIT(id);
#endif
    alive = alive & ~BIT(id);
    killed = killed & ~BIT(id);
    progress()
  }
}

/* ---- a writer ------------------------------------------------------------ */

/* One message; epipe if there is no room and no reader. */
inline send(message) {
  do
  :: lock(P);
    t = tail;
    atomic {
      h = head;
      assert(ROBBED || t - h <= CAP);
      if
      :: t - h < CAP || ROBBED -> break
      :: else -> h = 0; t = 0
      fi
    };
    unlock(P);
#if BUG != LATE_BIT
    prep(P);
#endif
    t = tail;
    atomic { h = head; ok = (t - h == CAP); h = 0; t = 0 };
#if BUG == LATE_BIT
    prep(P);
#endif
    if
    :: !ok
    :: atomic { ok && NONE_HOLDS(READS) -> ok = false; epipe = true; goto sent }
    :: atomic { ok && !NONE_HOLDS(READS) -> ok = false };
      event_wait(P)
    fi
  od;
#if BUG != EARLY_COMMIT
#if LEASE
  atomic { owner[t % CAP] = 0; finished[t % CAP] = false };
#endif
  begins[t % CAP] = message;
  ends[t % CAP] = message;
#endif
#if BUG == NO_FENCE
  peek(C);
#endif
  atomic { /* the only commit point */
    if
    :: !ROBBED -> assert(tail == t); order[t] = message
    :: else
    fi;
    tail = t + 1;
    progress()
  };
#if BUG == EARLY_COMMIT
  begins[t % CAP] = message;
  ends[t % CAP] = message;
#endif
  atomic { t = 0; h = 0 };
  unlock(P);
#if BUG == NO_FENCE
  wake_peeked(C);
#else
  if
  :: atomic { lost -> goto sent }
  :: atomic { !lost -> skip }
  fi;
  wake(C);
#endif
sent:
  skip
}

proctype writer(byte id; byte slot) {
  byte role = WRITES, me, v, t, h, n;
  bool ok, lost, epipe;
  {
    if
    :: slot == NONE -> join()
    :: else -> me = TAG(slot, gen[slot])
    fi;
    do
    :: slot != NONE && n < MESSAGES && !lost && !epipe ->
      send(1 + id * MESSAGES + n);
      n++
    :: else -> break
    od;
    if
    :: slot != NONE && !lost -> leave()
    :: else
    fi;
    atomic { alive = alive & ~BIT(id); progress() }
  } unless { reap() }
}

/* ---- a reader ------------------------------------------------------------ */

/* One message; closed if there is none and no writer. */
inline recv() {
  do
  :: lock(C);
    h = head;
    atomic {
      t = tail;
      if
      :: h != t -> t = 0; break
      :: else -> h = 0; t = 0
      fi
    };
    unlock(C);
#if BUG != LATE_BIT
    prep(C);
#endif
    h = head; /* head first: it never passes the tail that is read after it */
    atomic { t = tail; ok = (h == t); h = 0; t = 0 };
#if BUG == LATE_BIT
    prep(C);
#endif
    if
    :: !ok
    :: atomic { ok && !NONE_HOLDS(WRITES) -> ok = false };
      event_wait(C)
    :: atomic { ok && NONE_HOLDS(WRITES) -> ok = false; n = arrivals };
#if BUG != NO_LOOK
      h = head;
#endif
      atomic {
#if BUG != NO_LOOK
        t = tail;
#endif
        if
        :: h == t -> /* unread is only what a writer sent that came since */
          assert(head == tail || arrivals != n);
          closed = true;
          n = 0; h = 0; t = 0;
          goto received
        :: else -> n = 0; h = 0; t = 0
        fi
      }
    fi
  od;
#if BUG == EARLY_ACK
  head = h + 1;
#endif
  t = begins[h % CAP];
  atomic { /* copied out: the second half */
    n = ends[h % CAP];
    assert(t == n);        /* not torn */
    assert(t == order[h]); /* the next: none was lost */
    t = 0;
    n = 0
  };
  atomic { /* the acknowledgement */
    assert(BUG == EARLY_ACK || head == h); /* not delivered before */
    head = h + 1;
    h = 0;
    progress()
  };
  unlock(C);
  wake(P);
received:
  skip
}

proctype reader(byte id; byte slot) {
  byte role = READS, me, v, t, h, n;
  bool ok, lost, closed;
  {
    if
    :: slot == NONE -> join()
    :: else -> me = TAG(slot, gen[slot])
    fi;
    do
    :: slot == NONE || closed -> break
    :: slot != NONE && !closed -> recv()
    :: QUITS && head > 0 -> break
    od;
    if
    :: slot != NONE -> leave()
    :: else
    fi;
    atomic { alive = alive & ~BIT(id); progress() }
  } unless { reap() }
}

/* ---- a reader with leases ------------------------------------------------ */

#if LEASE
/* Whoever has the lock brings head up to the first message not acknowledged:
 * the one who acknowledged may have been killed before it did. */
inline settle() {
  do
  :: atomic { head < rd && finished[head % CAP] -> h = head };
    atomic { assert(acked & BIT(h)); head = h + 1; h = 0; progress() }
  :: atomic { head == rd -> break }
  :: atomic { head < rd && !finished[head % CAP] -> break }
  od
}

/* k: the first message in [head, rd) whose owner is none or dead, or rd. */
inline scan() {
  ret = false;
  k = head;
  do
  :: atomic { k == rd -> break }
  :: atomic { k < rd && finished[k % CAP] -> k++ }
  :: atomic { k < rd && !finished[k % CAP] -> v = owner[k % CAP] };
    if
    :: atomic { v == 0 && BUG != RD_BEFORE_TAG -> break }
    :: atomic { v == 0 && BUG == RD_BEFORE_TAG -> k++ }
    :: atomic { v != 0 -> ok = (gen[SLOT(v)] != GEN(v) || BUG == LEASE_ALIVE) };
      atomic {
        ok = ((ok || held[SLOT(v)] == 0) && BUG != LEASE_KEPT);
        v = 0;
        if
        :: ok -> ok = false; break
        :: else -> k++
        fi
      }
    fi
  od
}

inline own() {
  atomic {
    owner[k % CAP] = me;
    assert(!(acked & BIT(k))); /* not delivered before */
    assert(!ticket[k]);        /* nor to another who lives */
    ticket[k] = id + 1
  }
}

/* k: the message taken, or NONE and closed. */
inline take() {
  do
  :: lock(C);
    settle();
    scan();
    if
    :: atomic { k < rd -> ret = true }; /* there may be more of these */
      own();
      break
    :: atomic { k == rd && rd != tail -> skip };
#if BUG == RD_BEFORE_TAG
      rd = k + 1;
      own();
#else
      own();
      rd = k + 1;
#endif
      break
    :: atomic { k == rd && rd == tail -> k = NONE }
    fi;
    unlock(C);
    prep(C);
    t = rd;
    atomic { ok = (t == tail); t = 0 };
    ok = (ok && !ret);
    if
    :: atomic { ok && NONE_HOLDS(WRITES) -> ok = false; n = arrivals };
      h = head;
      if
      :: atomic { /* what others have taken may yet be offered again */
          h == tail ->
          assert(head == tail || arrivals != n);
          closed = true;
          h = 0; n = 0;
          goto taken
        }
      :: atomic { h != tail -> h = 0; n = 0 };
        event_wait(C)
      fi
    :: atomic { ok && !NONE_HOLDS(WRITES) -> ok = false };
      event_wait(C)
    :: !ok
    fi
  od;
  unlock(C);
taken:
  skip
}

/* The bytes of a message taken are read without the lock. */
inline use() {
  t = begins[k % CAP];
  atomic {
    n = ends[k % CAP];
    assert(t == n && t == order[k]);
    t = 0;
    n = 0
  }
}

inline ack() {
  lock(C);
  atomic {
    assert(owner[k % CAP] == me && ticket[k] == id + 1); /* by its owner only */
    finished[k % CAP] = true;
    ticket[k] = 0;
    acked = acked | BIT(k);
    k = NONE;
    progress()
  };
  settle();
  unlock(C);
  wake(P);
  wake(C) /* who waits to hear of the close */
}

inline nack() {
  lock(C);
  atomic { owner[k % CAP] = 0; ticket[k] = 0; k = NONE };
  ret = true;
  unlock(C);
  wake(C)
}

proctype taker(byte id; byte slot) {
  byte role = READS, me, v, t, h, n, k = NONE;
  bool ok, lost, closed;
  {
    if
    :: slot == NONE -> join()
    :: else -> me = TAG(slot, gen[slot])
    fi;
    do
    :: slot == NONE || closed -> break
    :: slot != NONE && !closed ->
      take();
      if
      :: !closed ->
        use();
        if
        :: ack()
        :: atomic { nacks < NACKS -> nacks++ };
          nack()
        fi
      :: else
      fi
    od;
    if
    :: slot != NONE -> leave()
    :: else
    fi;
    atomic { alive = alive & ~BIT(id); progress() }
  } unless { reap() }
}
#define reader taker
#endif

/* ---- the world ----------------------------------------------------------- */

#define VICTIM(id) ((alive & ~killed) & BIT(id)) -> killed = killed | BIT(id)

/* Under QUIET the killer must let go, or nothing were ever quiet. */
proctype killer() {
end:
  do
  :: atomic {
      armed && kills < CRASHES && (alive & ~killed) ->
      kills++;
      if
      :: VICTIM(0)
      :: VICTIM(1)
      :: VICTIM(2)
      :: VICTIM(3)
      :: VICTIM(4)
      :: VICTIM(5)
      fi;
      progress()
    }
  :: SLICES == QUIET && armed -> armed = false
  od
}

proctype robber() { /* of peer 0 */
end:
  atomic {
    robberies < ROBBED && held[0] != 0 && (alive & ~killed & 1) ->
    robberies++;
    robbed = robbed | 1;
    held[0] = 0
  }
}

proctype clock() {
end:
  do
  :: atomic {
      timeout && alive != 0 ->
      slices++;
      assert(slices <= PATIENCE); /* a hang */
      asleep[0] = 0;
      asleep[1] = 0;
      asleep[2] = 0;
      asleep[3] = 0;
      armed = true
    }
  od
}

init {
  byte i;
  atomic {
    do
    :: i < PEERS ->
      if
      :: i < WRITERS -> held[i] = WRITES; alive = alive | BIT(i); run writer(i, i)
      :: i >= WRITERS && i < SLOTS -> held[i] = READS; alive = alive | BIT(i); run reader(i, i)
      :: i >= SLOTS && i < SLOTS + LATE_WRITERS -> run writer(i, NONE)
      :: i >= SLOTS + LATE_WRITERS -> run reader(i, NONE)
      fi;
      i++
    :: else -> break
    od;
#if CRASHES
    run killer();
#endif
#if ROBBED
    run robber();
#endif
#if SLICES == QUIET
    run clock();
#endif
    i = 0
  }
}
