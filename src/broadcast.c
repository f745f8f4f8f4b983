/* One message to every subscriber: a ring in shared memory that nobody drains.
 * Senders take a lock; subscribers none: each reads at its own place, and looks
 * after each copy whether it was overwritten meanwhile. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <string.h>

#include "os.h"
#include "rings.h"

/***
 * @submodule ipc
 */

enum {
  CAST_LAPS = 3,   /* times overtaken before the newest will do */
  CAST_TURNS = 20, /* and before the memory counts as not to be read now */
  CAST_WAITS = 10, /* of a millisecond, for the lock, of who joins */
  CAST_PAGE = 4096 /* bytes; pages have as many, or more */
};

/* ------------------------------------------------------------- subscribers */

/* Whether position a is behind b. */
static bool cast_beyond(uint64_t a, uint64_t b) { return (int64_t)(a - b) > 0; }

/* Where this one reads next, for senders that wait for the slowest, and for the
 * process it may move to. */
static void cast_publish(Ring *r) {
  if (!r->m.s.base) /* a finaliser closed it meanwhile */
    return;
  SegmentPart *p = SEGMENT_PART(&r->m.s, r->m.s.slot);
  atomic_store_explicit(&p->number, r->number, memory_order_relaxed);
  atomic_store_explicit(&p->at, r->at, memory_order_release);
  if (r->m.s.head.flags & SEGMENT_HOLD)
    ipc_ring_tell_writers(r, r->at);
}

/* Behind the record in hand, of `size` bytes. */
static void cast_pass(Ring *r, size_t size) {
  r->at = r->head + ipc_ring_need(size);
  r->number += r->lost + 1;
  r->losses += r->lost;
  r->lost = 0;
  r->leased = false;
  r->ahead.size = 0;
}

static void cast_hand(Ring *r, Message *m, uint64_t at, uint32_t number) {
  r->head = at;
  r->lost = number - r->number;
  m->tag = (lua_Integer)r->lost;
}

/* EMSGSIZE if it is over our limit, and it is gone then. */
static int cast_limit(Ring *r, size_t size) {
  if (size <= r->c.limit)
    return 0;
  cast_pass(r, size);
  cast_publish(r);
  return EMSGSIZE;
}

/* Whether what was read at a position was not overwritten meanwhile: a sender
 * says so first. */
static bool cast_intact(const Ring *r, uint64_t at) {
  atomic_thread_fence(memory_order_acquire);
  return !cast_beyond(
      atomic_load_explicit(&SEGMENT_READERS(&r->m.s)->at, memory_order_relaxed),
      at);
}

/* What a record says of itself: 0; ESTALE: it was overwritten; a fault. */
static int cast_head(Ring *r, uint64_t at, uint64_t tail, size_t *size,
                     uint32_t *number) {
  const RingRecord *record = ipc_ring_record(r, at);
  uint32_t n = atomic_load_explicit(&record->size, memory_order_relaxed);
  *number = atomic_load_explicit(&record->number, memory_order_relaxed);
  if (!cast_intact(r, at))
    return ESTALE;
  if (tail - at > r->ring)
    return ipc_ring_fault(r, SEGMENT_POSITIONS);
  if (n > r->m.s.head.maxsize || ipc_ring_need(n) > tail - at)
    return ipc_ring_fault(r, SEGMENT_LENGTH);
  *size = n;
  return 0;
}

/* From an intact record, or from `last` if that is later, to the newest. (A
 * sender that was killed leaves `last` behind.) */
static int cast_newest(Ring *r, uint64_t last, uint64_t tail, uint64_t *at) {
  if (last % SEGMENT_RECORD == 0 && cast_beyond(last, *at) &&
      cast_beyond(tail, last))
    *at = last;
  for (;;) {
    size_t size = 0;
    uint32_t number;
    int err = cast_head(r, *at, tail, &size, &number);
    if (err)
      return err;
    uint64_t next = *at + ipc_ring_need(size);
    if (next == tail)
      return 0;
    *at = next;
  }
}

/* A copy of the next message, or of the newest. EAGAIN: there is none that is
 * new; ESTALE: it was overwritten under our eyes. */
static int cast_copy(Ring *r, Message *m, bool newest) {
  const SegmentSide *w = SEGMENT_WRITERS(&r->m.s);
  uint64_t last = atomic_load_explicit(&w->last, memory_order_acquire);
  uint64_t oldest =
      atomic_load_explicit(&SEGMENT_READERS(&r->m.s)->at, memory_order_acquire);
  uint64_t tail = atomic_load_explicit(&w->at, memory_order_acquire);
  uint64_t at = cast_beyond(oldest, r->at) ? oldest : r->at;
  uint32_t number;
  if (tail == r->at)
    return EAGAIN;
  if ((tail | oldest) % SEGMENT_RECORD || !cast_beyond(tail, at))
    return ipc_ring_fault(r, SEGMENT_POSITIONS);
  int err = newest ? cast_newest(r, last, tail, &at) : 0;
  if (!err)
    err = cast_head(r, at, tail, &m->size, &number);
  if (!err && m->size <= r->c.limit && m->size > r->ahead.room)
    err = ipc_buffer_reserve(&r->ahead, m->size);
  if (err)
    return err;
  cast_hand(r, m, at, number);
  err = cast_limit(r, m->size);
  if (err)
    return err;
  m->bytes = "";
  if (m->size > 0)
    m->bytes = memcpy(r->ahead.bytes,
                      (char *)ipc_ring_record(r, at) + SEGMENT_RECORD, m->size);
  if (!cast_intact(r, at))
    return ESTALE;
  err = ipc_ring_check(r);
  if (err)
    return err;
  r->ahead.size = m->size;
  r->leased = true;
  return 0;
}

/* The copy that was not taken yet: it stays the next. */
static int cast_again(Ring *r, Message *m) {
  m->size = r->ahead.size;
  m->bytes = m->size ? r->ahead.bytes : "";
  m->tag = (lua_Integer)r->lost;
  return 0;
}

/* The next message in place: no sender overwrites it before it is taken. */
static int cast_lend(Ring *r, Message *m) {
  uint64_t tail =
      atomic_load_explicit(&SEGMENT_WRITERS(&r->m.s)->at, memory_order_acquire);
  if (tail == r->at)
    return EAGAIN;
  if (tail - r->at > r->ring || tail % SEGMENT_RECORD)
    return ipc_ring_fault(r, SEGMENT_POSITIONS);
  int err = ipc_ring_size(r, r->at, tail - r->at, &m->size);
  if (err)
    return err;
  RingRecord *record = ipc_ring_record(r, r->at);
  cast_hand(r, m, r->at,
            atomic_load_explicit(&record->number, memory_order_relaxed));
  err = cast_limit(r, m->size);
  if (err)
    return err;
  m->bytes = (char *)record + SEGMENT_RECORD;
  /* A page that the file has lost is found here, not under Lua's copy. */
  for (size_t i = 0; i < m->size; i += CAST_PAGE)
    (void)*(const volatile char *)(m->bytes + i);
  ipc_ring_steady(r, m);
  return ipc_ring_check(r);
}

/* Nothing is there: EAGAIN, or EPIPE when no sender is left and a second look
 * finds nothing either. 0: it found something. */
static int cast_idle(Ring *r) {
  if (!ipc_ring_gone(r, IPC_READ, ipc_ring_suspects(r)))
    return EAGAIN;
  return atomic_load(&SEGMENT_WRITERS(&r->m.s)->at) == r->at ? EPIPE : 0;
}

static int cast_recv(Chan *c, Message *m) {
  Ring *r = (Ring *)c;
  int err = c->ended ? c->ended : ipc_ring_check(r);
  if (err)
    return err;
  if (r->leased)
    return cast_again(r, m);
  bool latest = r->m.s.head.flags & SEGMENT_LATEST;
  err = ESTALE;
  for (int turn = 0; err == ESTALE && turn < CAST_TURNS; turn++) {
    err = r->m.s.head.flags & SEGMENT_HOLD
              ? cast_lend(r, m)
              : cast_copy(r, m, latest || turn >= CAST_LAPS);
    if (err == EAGAIN && (err = cast_idle(r)) == 0)
      err = ESTALE;
  }
  if (err == EPIPE)
    c->ended = err;
  return err == ESTALE ? EAGAIN : err;
}

static void cast_took(Chan *c, size_t size) {
  Ring *r = (Ring *)c;
  cast_pass(r, size);
  if (!c->batch)
    cast_publish(r);
}

static void cast_settle(Chan *c) { cast_publish((Ring *)c); }

/* ----------------------------------------------------------------- sending */

/* Subscribers that were killed hold nobody back. */
static void cast_bury(Ring *r) {
  for (uint32_t i = 0; i < r->m.s.head.slots; i++) {
    SegmentPart *p = SEGMENT_PART(&r->m.s, i);
    if (atomic_load_explicit(&p->at, memory_order_relaxed) != UINT64_MAX &&
        ipc_segment_vacant(&r->m.s, i))
      atomic_store(&p->at, UINT64_MAX);
  }
}

/* Behind as many of the oldest as room for `need` bytes takes; the newest is
 * never among them. */
static int cast_drop(Ring *r, uint64_t tail, uint64_t need, uint64_t *oldest) {
  while (tail + need - *oldest > r->ring) {
    size_t size;
    if (*oldest == tail)
      return ipc_ring_fault(r, SEGMENT_POSITIONS);
    int err = ipc_ring_size(r, *oldest, tail - *oldest, &size);
    if (err)
      return err;
    *oldest += ipc_ring_need(size);
  }
  return 0;
}

/* Makes room behind the tail. Under the writers' lock. */
static int cast_room(Ring *r, uint64_t tail, uint64_t need, bool ask) {
  SegmentWide *at = &SEGMENT_READERS(&r->m.s)->at;
  uint64_t was = atomic_load_explicit(at, memory_order_relaxed), oldest = was;
  if (tail - oldest > r->ring || (tail | oldest) % SEGMENT_RECORD)
    return ipc_ring_fault(r, SEGMENT_POSITIONS);
  if (tail + need - oldest <= r->ring)
    return 0;
  if (need > r->ring)
    return EMSGSIZE;
  if (r->m.s.head.flags & SEGMENT_HOLD) {
    if (ask)
      cast_bury(r);
    oldest = ipc_ring_slowest(r, tail);
    r->need = need;
    if (oldest - was > tail - was || oldest % SEGMENT_RECORD)
      return ipc_ring_fault(r, SEGMENT_POSITIONS);
  } else {
    int err = cast_drop(r, tail, need, &oldest);
    if (err)
      return err;
  }
  /* Subscribers know before the first byte is overwritten. */
  atomic_store_explicit(at, oldest, memory_order_release);
  atomic_thread_fence(memory_order_release);
  return tail + need - oldest <= r->ring ? 0 : EAGAIN;
}

static int cast_fill(Ring *r, const Message *m, size_t count, size_t *sent,
                     bool ask) {
  SegmentSide *w = SEGMENT_WRITERS(&r->m.s);
  uint64_t tail = atomic_load_explicit(&w->at, memory_order_relaxed);
  int err = 0;
  if (tail % SEGMENT_RECORD)
    return ipc_ring_fault(r, SEGMENT_POSITIONS);
  uint32_t number = ipc_ring_number(r, tail);
  while (!err && *sent < count) {
    uint64_t need = ipc_ring_need(m[*sent].size);
    err = cast_room(r, tail, need, ask);
    if (err)
      break;
    ipc_ring_write(r, tail, number++, &m[*sent]);
    ipc_ring_commit_tail(r, tail + need, number);
    atomic_store_explicit(&w->last, tail, memory_order_release);
    tail += need;
    ++*sent;
  }
  return err;
}

static int cast_sendmany(Chan *c, const Message *m, size_t count,
                         size_t *sent) {
  Ring *r = (Ring *)c;
  _Atomic uint32_t *lock = &SEGMENT_WRITERS(&r->m.s)->lock;
  bool ask = ipc_ring_suspects(r);
  *sent = 0;
  int err = ipc_ring_check(r);
  if (!err)
    err = ipc_ring_lock(r, lock, ask);
  if (err)
    return err;
  err = cast_fill(r, m, count, sent, ask);
  int lost = ipc_ring_unlock(r, lock);
  if (*sent > 0)
    ipc_segment_tell(&r->m.s, SEGMENT_READ(&r->m.s));
  return lost ? lost : err;
}

static int cast_send(Chan *c, const Message *m) {
  size_t sent;
  return cast_sendmany(c, m, 1, &sent);
}

static int cast_flush(Chan *c) {
  (void)c; /* a message is in the ring or not */
  return 0;
}

/* Of a subscriber, what it has not received yet. */
static bool cast_figure(Chan *c, unsigned i, Figure *f) {
  const Ring *r = (const Ring *)c;
  bool some = ipc_ring_figure(c, i, f);
  if (!some || !c->reader || i > 1)
    return some;
  const SegmentSide *w = SEGMENT_WRITERS(&r->m.s);
  uint64_t tail = atomic_load(&w->at), used = tail - r->at;
  used = used <= r->ring ? used : r->ring;
  uint32_t depth = ipc_ring_number(r, tail) - r->number;
  uint64_t most = used / SEGMENT_RECORD;
  f->value = i == 1 ? used : depth < most ? depth : most;
  return true;
}

/* ------------------------------------------------- joining and passing on */

/* A subscriber's first place. Under the writers' lock, so that no sender is
 * about to write there. */
static int cast_place(Ring *r) {
  const SegmentSide *w = SEGMENT_WRITERS(&r->m.s);
  uint64_t tail = atomic_load(&w->at);
  uint64_t oldest = atomic_load(&SEGMENT_READERS(&r->m.s)->at);
  if (tail - oldest > r->ring || (tail | oldest) % SEGMENT_RECORD)
    return ipc_ring_fault(r, SEGMENT_POSITIONS);
  int err = 0;
  r->number = ipc_ring_number(r, tail);
  r->at = tail;
  if (!err && r->m.s.head.flags & SEGMENT_LATEST && oldest != tail) {
    r->at = oldest;
    err = cast_newest(r, atomic_load(&w->last), tail, &r->at);
    r->number--; /* it is not seen yet */
  }
  if (!err)
    cast_publish(r);
  return err;
}

static int cast_begin(Ring *r) {
  _Atomic uint32_t *lock = &SEGMENT_WRITERS(&r->m.s)->lock;
  const SegmentPart *p = SEGMENT_PART(&r->m.s, r->m.s.slot);
  r->bytes = r->m.s.base + r->m.s.head.head;
  r->ring = r->m.s.head.ring;
  r->seen[0] = r->seen[1] = r->m.s.changes - 1;
  if (r->c.writer)
    return 0;
  r->at = atomic_load(&p->at);
  r->number = atomic_load(&p->number);
  if (r->at != UINT64_MAX) /* it moved here, and goes on */
    return r->at % SEGMENT_RECORD ? ipc_ring_fault(r, SEGMENT_POSITIONS) : 0;
  int err = ipc_ring_lock(r, lock, true);
  for (int i = 0; err == EAGAIN && i < CAST_WAITS; i++) {
    (void)ipc_segment_await(&r->m.s, lock, IPC_SECOND / 1000);
    err = ipc_ring_lock(r, lock, true);
  }
  if (err)
    return err;
  err = cast_place(r);
  int lost = ipc_ring_unlock(r, lock);
  return lost ? lost : err;
}

/* The copy of a subscriber goes on where this one is. */
static int cast_forking(Handle *h) {
  Ring *r = (Ring *)h;
  int err = ipc_ring_forking(h);
  if (err || h->moves || !r->m.spare || !r->c.reader)
    return err;
  SegmentPart *p = SEGMENT_PART(r->m.spare, r->m.spare->slot);
  atomic_store(&p->number, r->number);
  atomic_store(&p->at, r->at);
  return 0;
}

static const HandleOps cast_handle = {.type = "ipc.broadcast",
                                      .descriptor = ipc_ring_descriptor,
                                      .arm = ipc_ring_arm,
                                      .wait = ipc_ring_wait,
                                      .ready = ipc_ring_ready,
                                      .close = ipc_ring_close,
                                      .forking = cast_forking,
                                      .forked = ipc_ring_forked,
                                      .give = ipc_rings_give,
                                      .events = true};

/* What was received forwards: b:send(a:recv()). */
static const Tags cast_tags = {
    .kind = IPC_TAG_INTEGER, .least = 0, .most = UINT32_MAX};

static const ChanOps cast_chan = {.recv = cast_recv,
                                  .took = cast_took,
                                  .send = cast_send,
                                  .sendmany = cast_sendmany,
                                  .flush = cast_flush,
                                  .shutdown = ipc_ring_shutdown,
                                  .settle = cast_settle,
                                  .figure = cast_figure,
                                  .tags = &cast_tags,
                                  .dup = ipc_rings_dup};

/* --------------------------------------------------------------------- Lua */

static void cast_read(lua_State *L, int index, SegmentAsk *ask) {
  static const char *const slow[] = {"lose", "hold", NULL};
  if (!lua_isnoneornil(L, index)) {
    if (lua_getfield(L, index, "slow") != LUA_TNIL)
      ask->insists |= SEGMENT_HOLD;
    lua_pop(L, 1);
  }
  if (ipc_option_choice(L, index, "slow", slow) == 1)
    ask->flags |= SEGMENT_HOLD;
  ipc_member_flag(L, index, "latest", SEGMENT_LATEST, ask);
  if (ask->flags & SEGMENT_LATEST && ask->flags & SEGMENT_HOLD)
    luaL_argerror(L, index,
                  "options 'latest' and slow = \"hold\": who sees only the "
                  "newest holds nobody back");
  /* One of `count = 1` has room for the newest and the next, too. */
  if (ask->maxsize && !(ask->flags & SEGMENT_HOLD) &&
      ask->ring < 2 * ipc_ring_need(ask->maxsize))
    ask->ring *= 2;
}

static const char *const cast_options[] = {RINGS_OPTIONS, "slow", "latest",
                                           NULL};

static const RingRoom cast_rings = {
    .m = RINGS_MEMBER("broadcast", SEGMENT_BROADCAST, false),
    .handle = &cast_handle,
    .ops = &cast_chan,
    .options = cast_options,
    .read = cast_read,
    .begin = cast_begin};

static int cast_open_name(lua_State *L) {
  luaL_argcheck(L, ipc_check_mode(L, 2, 0) != (IPC_READ | IPC_WRITE), 2,
                "\"r\" subscribes, \"w\" sends: a handle does one of them");
  return ipc_rings_open(L, &cast_rings);
}

/***
Opens a broadcast in shared memory by its name: every message that somebody
sends reaches every subscriber, each from its opening on. No death of any of
them harms the others.

A subscriber that falls behind by more than the ring holds loses the oldest
messages, and `recv` tells how many as its second result, the tag; `send` never
waits. With `slow = "hold"` none is lost: `send` waits for the slowest (a killed
one holds nobody back; a stopped one does). With `latest = true` only the newest
counts: `recv` answers the newest that this subscriber has not seen, whole, the
first at once when there is one; the tag says how many it passed over.

Who sends is never told that nobody listens. Subscribers get `"closed"` when
those who sent are gone, after what they have not received. Without a name it
gives two ends, for a subscriber and a sender; `dup`, `ipc.fork` and `put`
through a unix socket hand them on. A dup of a subscriber begins with what is
sent next; one that moves, and a copy that `ipc.fork` makes of a named one, go
on where it was.
@function broadcast
@tparam ?string|table name `"/prices"`, as of `ipc.shm`; nil, or the options:
none
@tparam ?string mode "r" subscribes, "w" sends; nil without a name
@tparam[opt] table options every room's, and of `ipc.shm` `capacity`, `size` and
`count`, `keepalive`, `persist`, `participants`, `huge`, `prefault`; `writers`:
1 or "many" (the default); `slow`: "lose" (the default) or "hold"; `latest`,
which excludes "hold". Unless slow ones hold the sender, a message has at most
half of the ring: the newest is whole while the next is written
@treturn channel with `remove`; stats adds what `ipc.shm` adds (`depth` and
`used`: of a subscriber, what it has not received) and `lost`: messages, in all.
A tag given to `send` is not sent. Without a name: who receives
@treturn channel without a name: who sends; or nil, message, errno as `ipc.shm`
@usage local prices = assert(ipc.broadcast("/prices", "w", { capacity = 1 << 20
})) prices:put { gold = 2411.5 }
*/
static int cast_open(lua_State *L) {
  if (!lua_isnoneornil(L, 1) && !lua_istable(L, 1))
    return cast_open_name(L);
  int options = lua_istable(L, 1) ? 1 : 3;
  luaL_argcheck(L, lua_isnoneornil(L, 2), 2,
                "without a name it has both ends, and no mode");
  lua_settop(L, options);
  return ipc_rings_ends(L, options, &cast_rings);
}

static int cast_pair(lua_State *L) { return ipc_rings_pair(L, &cast_rings); }

static int cast_take(lua_State *L, Given *g) {
  if ((g->place & 3) == (IPC_READ | IPC_WRITE))
    return EINVAL;
  return ipc_rings_take(L, g, &cast_rings);
}

static void cast_setup(lua_State *L) {
  ipc_chan_type(L, &cast_handle, ipc_rings_named);
}

static const luaL_Reg cast_functions[] = {{"broadcast", cast_open},
                                          {NULL, NULL}};

static const char *const cast_schemes[] = {"broadcast", NULL};

/* Each reader gets all, so that they are not many who share the messages. */
static const Kind cast_kinds[] = {
    {"broadcast", "broadcast?slow=hold", "one way", "message", "this system",
     IPC_LIVENESS | IPC_TAG_INTEGER | IPC_MANY_WRITERS | IPC_EMPTY |
         IPC_DESCRIPTOR},
    {NULL, NULL, NULL, NULL, NULL, 0}};

static bool cast_has(const Kind *k) {
  (void)k;
  return ipc_segment_possible();
}

const Room ipc_room_broadcast = {.name = "broadcast",
                                 .schemes = cast_schemes,
                                 .functions = cast_functions,
                                 .kinds = cast_kinds,
                                 .has = cast_has,
                                 .pair = cast_pair,
                                 .open = cast_open_name,
                                 .take = cast_take,
                                 .types = cast_setup};
