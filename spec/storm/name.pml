/* The life of a segment's name as a model for Spin: open or create, join under
 * the registry lock, leave, and the last one unlinks; with SIGKILL possible
 * before every step. What must never be is a split brain: two who opened one
 * name and are in different segments. spec/storm/model runs it; steps, atomic{}
 * and ghosts are as in ring.pml. */

#ifndef PEERS
#define PEERS 3 /* each opens the name, joins and leaves, ROUNDS times */
#endif
#ifndef ROUNDS
#define ROUNDS 1
#endif
#ifndef CRASHES
#define CRASHES 1
#endif

/* The seeded bug, one of: */
#define NO_REGISTRY 1 /* leave without the registry lock */
#define NO_RECHECK 2  /* join whatever was opened, linked and live or not */
#define NO_LOCK 3     /* join without the registry lock */
#define DEAD_FIRST 4  /* state dead before the name is gone: a crash between */
                      /* the two leaves a name that nobody can open again */
#ifndef BUG
#define BUG 0
#endif

#define INODES (PEERS * ROUNDS)

/* Segments are numbered in the order of their linkat; 0 is none. */
byte path;               /* what the name leads to */
byte inodes;
bool dead[INODES + 1];   /* LIFE: state; the link count is path == inode */
byte holds[INODES + 1];  /* REG: 0 or who holds it, + 1 */
byte bytes[INODES + 1];  /* the peers whose role byte is locked, a set */

/* Ghosts. */
byte alive, killed, kills;
byte joined[INODES + 1]; /* the living between join and leave, a set */

#define BIT(id) (1 << (id))

#define REGISTER atomic { holds[i] == 0 -> holds[i] = id + 1 }
#define DEREGISTER holds[i] = 0

/* Filled before it has a name, so that whoever opens it finds it whole. */
inline open() {
  if
  :: atomic { path != 0 -> i = path } /* open */
  :: path == 0 ->                     /* ENOENT: O_TMPFILE, fill, linkat */
    atomic {
      if
      :: path == 0 -> inodes++; path = inodes; i = path
      :: else -> i = 0 /* EEXIST */
      fi
    }
  fi
}

inline join() {
  do
  :: open();
    if
    :: i != 0 ->
#if BUG != NO_LOCK
      REGISTER;
#endif
      if
      :: (path == i && !dead[i]) || BUG == NO_RECHECK ->
        bytes[i] = bytes[i] | BIT(id);
        atomic { assert(path == i); joined[i] = joined[i] | BIT(id) };
#if BUG != NO_LOCK
        DEREGISTER;
#endif
        break
      :: atomic {
          (path != i || dead[i]) && BUG != NO_RECHECK ->
          tries++;
          assert(tries <= INODES) /* or it tries for ever */
        };
#if BUG != NO_LOCK
        DEREGISTER
#endif
      fi
    :: else
    fi
  od
}

/* The name goes before the state: killed between the two, the segment has no
 * link, which is enough for whoever still comes to it. */
inline leave() {
#if BUG != NO_REGISTRY
  REGISTER;
#endif
  atomic { bytes[i] = bytes[i] & ~BIT(id); joined[i] = joined[i] & ~BIT(id) };
  if
  :: bytes[i] == 0 ->
#if BUG == DEAD_FIRST
    dead[i] = true;
#endif
    if
    :: path == i -> /* stat */
      atomic { /* unlink takes what the name leads to now */
        assert(path == i);
        assert(joined[i] == 0);
        path = 0
      }
    :: path != i
    fi;
    dead[i] = true
  :: bytes[i] != 0
  fi;
#if BUG != NO_REGISTRY
  DEREGISTER
#endif
}

proctype peer(byte id) {
  byte i, n, tries;
  {
    do
    :: n < ROUNDS ->
      join();
      leave();
      atomic { i = 0; tries = 0; n++ }
    :: n == ROUNDS -> break
    od;
    alive = alive & ~BIT(id)
  } unless {
    atomic {
      killed & BIT(id) ->
      joined[i] = joined[i] & ~BIT(id);
      bytes[i] = bytes[i] & ~BIT(id);
      if
      :: holds[i] == id + 1 -> holds[i] = 0
      :: else
      fi;
      alive = alive & ~BIT(id)
    }
  }
}

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
  byte n;
  atomic {
    do
    :: n < PEERS -> alive = alive | BIT(n); run peer(n); n++
    :: else -> break
    od;
    n = 0;
    run killer()
  }
}
