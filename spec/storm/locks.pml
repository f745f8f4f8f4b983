/* Locks for users as a model for Spin: a mutex whose holders die, and what a
 * condition's waiters leave behind; with SIGKILL possible before every step, and
 * slots that others take at once. spec/storm/model runs it; steps, atomic{} and
 * ghosts are as in ring.pml. KIND 1: never two inside, who must be told is told
 * and nobody else, nobody waits for ever. KIND 2: nobody's wait is lost. */

#ifndef KIND
#define KIND 1
#endif
#ifndef PEERS
#define PEERS 3 /* each joins, and locks or waits, ROUNDS times */
#endif
#ifndef SLOTS
#define SLOTS 2
#endif
#ifndef ROUNDS
#define ROUNDS 1
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#define GENS 4

/* The seeded bug, one of: */
#define NO_TAKEOVER 1 /* the lock of a dead one stays */
#define SILENT 2      /* it is taken without a word */
#define SWEEP_FREE 3  /* a slot's next owner frees its lock */
#define BROKEN_LATE 4 /* the next owner notes the death, then frees the lock */
#define NO_PIN 5      /* slots find owners while the dead are looked for */
#define TAKE_FIRST 6  /* what the dead were told is gone before it is told */
#ifndef BUG
#define BUG 0
#endif

#define NONE 255
#define ORPHAN 254
#define TAG(slot) (1 + slot + SLOTS * gen[slot])
#define SLOT(tag) ((tag - 1) % SLOTS)
#define GEN(tag) ((tag - 1) / SLOTS)
#define BIT(id) (1 << (id))

byte present[SLOTS]; /* 0 or who has the slot, + 1 */
byte gen[SLOTS];
byte registry;

/* The mutex. */
byte lock;
bool broken;

/* The condition: of each slot. */
byte waiting[SLOTS], told[SLOTS];

/* Ghosts. */
byte alive, killed, kills;
byte inside;    /* 0 or who has it, + 1 */
bool damaged;   /* one died inside, and nobody has repaired */

#define REGISTER atomic { registry == 0 -> registry = id + 1 }
#define DEREGISTER registry = 0

/* ---- told of another slot's: from waiting to told, one step each */
inline notify_one() {
  if
  :: atomic { waiting[0] > 0 -> waiting[0]--; told[0]++ }
#if SLOTS > 1
  :: atomic { waiting[1] > 0 -> waiting[1]--; told[1]++ }
#endif
#if SLOTS > 2
  :: atomic { waiting[2] > 0 -> waiting[2]--; told[2]++ }
#endif
  :: else
  fi
}

inline sweep() {
#if KIND == 1
  now = lock;
  if
  :: now != 0 && now != ORPHAN && SLOT(now) == slot ->
#if BUG == BROKEN_LATE
    broken = true;
#endif
    atomic {
      if
      :: lock == now -> lock = (BUG == SWEEP_FREE || BUG == BROKEN_LATE -> 0 : ORPHAN)
      :: else
      fi
    }
  :: else
  fi;
#endif
#if KIND == 2
  waiting[slot] = 0;
  do
  :: told[slot] > 0 -> notify_one(); told[slot]--
  :: else -> break
  od;
#endif
  skip
}

inline join() {
  REGISTER;
  if
  :: atomic { present[0] == 0 -> present[0] = id + 1; slot = 0 }
#if SLOTS > 1
  :: atomic { present[1] == 0 -> present[1] = id + 1; slot = 1 }
#endif
#if SLOTS > 2
  :: atomic { present[2] == 0 -> present[2] = id + 1; slot = 2 }
#endif
  fi;
  sweep();
  gen[slot] = (gen[slot] + 1) % GENS;
  DEREGISTER
}

inline leave() { atomic { present[slot] = 0; slot = NONE } }

/* ---- the mutex */

#define ENTER(tag) lock = tag; assert(inside == 0); inside = id + 1

inline take() {
  over = false;
  do
  :: atomic {
      lock == 0 -> ENTER(TAG(slot)); break
    }
  :: lock != 0 ->
    now = lock;
    if
    :: now == 0
    :: now == ORPHAN ->
      atomic {
        if
        :: lock == now -> ENTER(TAG(slot)); over = true; break
        :: else
        fi
      }
    :: now != 0 && now != ORPHAN ->
      if
      :: lock != now
#if BUG != NO_TAKEOVER
      :: gen[SLOT(now)] != GEN(now) || present[SLOT(now)] == 0 ->
        atomic {
          if
          :: lock == now -> ENTER(TAG(slot)); over = true; break
          :: else
          fi
        }
#endif
      fi
    fi
  od;
  if
  :: over && BUG != SILENT -> broken = true
  :: else
  fi
}

inline hold() {
  take();
  atomic { assert(broken == damaged) };
  if
  :: broken -> atomic { broken = false; damaged = false } /* consistent */
  :: broken -> skip                                         /* not yet */
  :: else
  fi;
  atomic { assert(lock == TAG(slot) && inside == id + 1); lock = 0; inside = 0 }
}

/* ---- the condition */

inline reclaim() {
#if BUG != NO_PIN
  REGISTER;
#endif
  if
  :: present[other] == 0 ->
    atomic { w = waiting[other]; t = told[other] };
#if BUG == TAKE_FIRST
    atomic {
      if
      :: waiting[other] == w && told[other] == t -> waiting[other] = 0; told[other] = 0
      :: else -> t = 0
      fi
    };
    do
    :: t > 0 -> notify_one(); t--
    :: else -> break
    od;
#else
    atomic {
      if
      :: waiting[other] == w && told[other] == t -> waiting[other] = 0
      :: else -> t = 0; w = NONE
      fi
    };
    if
    :: w != NONE ->
      w = t;
      do
      :: t > 0 -> notify_one(); t--
      :: else -> break
      od;
      atomic {
        if
        :: waiting[other] == 0 && told[other] == w -> told[other] = 0
        :: else
        fi
      }
    :: else
    fi;
#endif
    skip
  :: else
  fi;
#if BUG != NO_PIN
  DEREGISTER;
#endif
  w = 0; t = 0
}

#define LEFT(k) (k != slot && present[k] == 0 && waiting[k] + told[k] > 0)

inline wait() {
  waiting[slot]++;
  do
  :: told[slot] > 0 -> told[slot]--; break /* and acts */
  :: told[slot] == 0 && LEFT(0) -> other = 0; reclaim()
#if SLOTS > 1
  :: told[slot] == 0 && LEFT(1) -> other = 1; reclaim()
#endif
#if SLOTS > 2
  :: told[slot] == 0 && LEFT(2) -> other = 2; reclaim()
#endif
  od
}

proctype peer(byte id) {
  byte slot = NONE, now, n, other, w, t;
  bool over;
  {
    do
    :: n < ROUNDS ->
      join();
#if KIND == 1
      hold();
#else
      wait();
#endif
      leave();
      atomic { now = 0; over = false; other = 0; n++ }
    :: n == ROUNDS -> break
    od;
    alive = alive & ~BIT(id)
  } unless {
    atomic {
      killed & BIT(id) ->
      if
      :: inside == id + 1 -> inside = 0; damaged = true
      :: else
      fi;
      if
      :: slot != NONE && present[slot] == id + 1 -> present[slot] = 0
      :: else
      fi;
      if
      :: registry == id + 1 -> registry = 0
      :: else
      fi;
      alive = alive & ~BIT(id)
    }
  }
}

/* Tells one at a time, as often as somebody waits. What a killed one was told
 * counts: the others must hear of as many as there were. */
#if KIND == 2
#ifndef NOTIFIES
#define NOTIFIES PEERS
#endif
proctype notifier() {
  byte n;
end:
  do
  :: atomic { n < NOTIFIES && waiting[0] > 0 -> waiting[0]--; told[0]++; n++ }
#if SLOTS > 1
  :: atomic { n < NOTIFIES && waiting[1] > 0 -> waiting[1]--; told[1]++; n++ }
#endif
#if SLOTS > 2
  :: atomic { n < NOTIFIES && waiting[2] > 0 -> waiting[2]--; told[2]++; n++ }
#endif
  od
}
#endif

#define VICTIM(id) (alive & ~killed & BIT(id)) -> killed = killed | BIT(id)

proctype killer() {
end:
  do
  :: atomic {
      kills < CRASHES && (alive & ~killed) ->
      kills++;
      if
      :: VICTIM(0)
      :: VICTIM(1)
      :: VICTIM(2)
      :: VICTIM(3)
      fi
    }
  od
}

init {
  byte i;
  atomic {
    alive = (1 << PEERS) - 1;
    do
    :: i < PEERS -> run peer(i); i++
    :: i == PEERS -> break
    od;
#if KIND == 2
    run notifier();
#endif
    run killer();
    i = 0
  }
}
