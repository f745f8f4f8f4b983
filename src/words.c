/* Words of 4 and 8 bytes that processes change at the same time: each call
 * reads and changes one as a whole, and all processes see such changes in one
 * order. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <limits.h>
#include <lua.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "os.h"
#include "view.h"
#include "watch.h"

/***
 * @submodule ipc.bytes
 */

/* Whether the processor has words of 64 bits that need no lock. A stand-in lets
 * the rest compile where it has not. */
#if ATOMIC_LLONG_LOCK_FREE == 2
#define WORDS_WIDE 1
typedef _Atomic uint64_t Wide;
#else
#define WORDS_WIDE 0
typedef _Atomic uint32_t Wide;
#endif
typedef _Atomic uint32_t Narrow;

_Static_assert(sizeof(Narrow) == 4 && (!WORDS_WIDE || sizeof(Wide) == 8),
               "atomics are as large as what they hold");

typedef struct Word {
  View *v;
  size_t offset;
  char *at; /* once word_find said 0 */
  bool wide, is_signed;
} Word;

/* The type in slot `index`: "I8" when absent. */
static void word_type(lua_State *L, int index, Word *w) {
  w->wide = true;
  w->is_signed = false;
  if (!lua_isnoneornil(L, index)) {
    size_t length = 0;
    if (lua_type(L, index) != LUA_TSTRING)
      luaL_typeerror(L, index, "string");
    const char *type = lua_tolstring(L, index, &length);
    if (length != 2 || (type[0] != 'I' && type[0] != 'i') ||
        (type[1] != '4' && type[1] != '8'))
      luaL_argerror(L, index, "\"I4\", \"I8\", \"i4\" or \"i8\" expected");
    w->wide = type[1] == '8';
    w->is_signed = type[0] == 'i';
  }
  if (w->wide && !WORDS_WIDE)
    luaL_error(L,
               "%s: this processor changes words of 8 bytes in two steps: "
               "use \"I4\"",
               w->v->type);
}

/* The word of a call: its offset in slot 2, its type in slot `type`. */
static Word word_self(lua_State *L, View *v, int type) {
  Word w = {.v = v};
  word_type(L, type, &w);
  w.offset = ipc_bytes_offset(L, 2, v);
  ipc_bytes_fit(L, 2, v, w.offset, w.wide ? 8 : 4);
  return w;
}

/* Where it is: 0 or an errno. Raises if a processor would have to change it in
 * two steps there. No Lua may run until it was touched. */
static int word_find(lua_State *L, Word *w) {
  int err = ipc_bytes_check(w->v);
  if (err)
    return err;
  w->at = w->v->bytes + w->offset;
  size_t size = w->wide ? 8 : 4;
  if ((uintptr_t)w->at % size) {
    char text[64];
    snprintf(text, sizeof text, "offset %zu is not aligned to %zu bytes",
             w->offset, size);
    luaL_argerror(L, 2, text);
  }
  return 0;
}

static Wide *word_wide(const Word *w) { return (Wide *)(void *)w->at; }
static Narrow *word_narrow(const Word *w) { return (Narrow *)(void *)w->at; }

/* A value that is to be the word's: it must be one that it can have. */
static uint64_t word_value(lua_State *L, int index, const Word *w) {
  if (!lua_isinteger(L, index)) {
    luaL_checktype(L, index, LUA_TNUMBER);
    (void)luaL_checkinteger(L, index);
  }
  lua_Integer n = lua_tointeger(L, index);
  if (!w->wide && (w->is_signed ? n < INT32_MIN || n > INT32_MAX
                                : n < 0 || n > (lua_Integer)UINT32_MAX))
    luaL_argerror(L, index,
                  w->is_signed ? "it does not fit \"i4\""
                               : "it does not fit \"I4\"");
  return (uint64_t)n;
}

/* What is added to it or combined with its bits: the low ones count. */
static uint64_t word_operand(lua_State *L, int index) {
  if (lua_isinteger(L, index))
    return (uint64_t)lua_tointeger(L, index);
  luaL_checktype(L, index, LUA_TNUMBER);
  return (uint64_t)luaL_checkinteger(L, index);
}

static void word_push(lua_State *L, const Word *w, uint64_t value) {
  if (w->wide)
    lua_pushinteger(L, (lua_Integer)value);
  else if (w->is_signed)
    lua_pushinteger(L, (lua_Integer)((value ^ 0x80000000U) - 0x80000000U));
  else
    lua_pushinteger(L, (lua_Integer)value);
}

static uint64_t word_load(const Word *w) {
  return w->wide ? atomic_load(word_wide(w)) : atomic_load(word_narrow(w));
}

/* The end of a call that touched it: pushes what it was. */
static int word_done(lua_State *L, const Word *w, const char *call,
                     uint64_t value, int err) {
  if (!err)
    err = ipc_bytes_check(w->v);
  if (err)
    return ipc_view_fail(L, w->v->type, call, err);
  word_push(L, w, value);
  return 1;
}

/***
The number in a word. The word must be aligned: its offset in the memory (or
message) a multiple of its size; it has this machine's byte order.
@function bytes:load
@tparam integer offset
@tparam[opt="I8"] ?string type "I8", "i8", "I4" or "i4": 8 or 4 bytes, "i" for
a sign. What "I8" has beyond `math.maxinteger` is negative, as in
`string.unpack`
@treturn integer number; or nil, message, errno
*/
int ipc_bytes_load(lua_State *L) {
  Word w = word_self(L, ipc_bytes_alive(L), 3);
  int err = word_find(L, &w);
  return word_done(L, &w, "load", err ? 0 : word_load(&w), err);
}

/***
Sets a word.
@function bytes:store
@tparam integer offset
@tparam integer number one that the type can hold
@tparam[opt="I8"] ?string type
@treturn boolean true; or nil, message, errno
*/
int ipc_bytes_store(lua_State *L) {
  Word w = word_self(L, ipc_bytes_writable(L), 4);
  uint64_t value = word_value(L, 3, &w);
  int err = word_find(L, &w);
  if (!err && w.wide)
    atomic_store(word_wide(&w), value);
  else if (!err)
    atomic_store(word_narrow(&w), (uint32_t)value);
  if (!err)
    err = ipc_bytes_check(w.v);
  if (err)
    return ipc_view_fail(L, w.v->type, "store", err);
  lua_pushboolean(L, 1);
  return 1;
}

/* One function for each operation that takes a number and answers what was
 * there before. */
#define WORD_CHANGE(NAME, OPERAND, OPERATION)                                  \
  int ipc_bytes_##NAME(lua_State *L) {                                         \
    Word w = word_self(L, ipc_bytes_writable(L), 4);                           \
    uint64_t n = (OPERAND), before = 0;                                        \
    int err = word_find(L, &w);                                                \
    if (!err && w.wide)                                                        \
      before = OPERATION(word_wide(&w), n);                                    \
    else if (!err)                                                             \
      before = OPERATION(word_narrow(&w), (uint32_t)n);                        \
    return word_done(L, &w, #NAME, before, err);                               \
  }

/***
Adds to a word; beyond its end it goes on at the beginning.
@function bytes:add
@tparam integer offset
@tparam integer number may be negative
@tparam[opt="I8"] ?string type
@treturn integer what it was before; or nil, message, errno
@usage local number = counters:add(0, 1)
*/
WORD_CHANGE(add, word_operand(L, 3), atomic_fetch_add)

/***
Subtracts from a word; else as `add`.
@function bytes:sub
@tparam integer offset
@tparam integer number
@tparam[opt="I8"] ?string type
@treturn integer what it was before; or nil, message, errno
*/
WORD_CHANGE(sub, word_operand(L, 3), atomic_fetch_sub)

/***
Clears the bits of a word that `mask` has not.
@function bytes:band
@tparam integer offset
@tparam integer mask of a word of 4 bytes the low 32 bits count
@tparam[opt="I8"] ?string type
@treturn integer what it was before; or nil, message, errno
*/
WORD_CHANGE(band, word_operand(L, 3), atomic_fetch_and)

/***
Sets the bits of a word that `mask` has.
@function bytes:bor
@tparam integer offset
@tparam integer mask
@tparam[opt="I8"] ?string type
@treturn integer what it was before; or nil, message, errno
*/
WORD_CHANGE(bor, word_operand(L, 3), atomic_fetch_or)

/***
Sets a word, and tells what it was.
@function bytes:xchg
@tparam integer offset
@tparam integer number one that the type can hold
@tparam[opt="I8"] ?string type
@treturn integer what it was before; or nil, message, errno
*/
WORD_CHANGE(xchg, word_value(L, 3, &w), atomic_exchange)

/***
Sets a word if it is what is expected.
@function bytes:cas
@tparam integer offset
@tparam integer expected
@tparam integer new
@tparam[opt="I8"] ?string type
@treturn boolean whether it was; or nil, message, errno
@treturn ?integer if not, what it is
@usage while not m:cas(0, 0, 1) do ipc.sleep(0.01) end
*/
int ipc_bytes_cas(lua_State *L) {
  Word w = word_self(L, ipc_bytes_writable(L), 5);
  uint64_t expected = word_value(L, 3, &w), value = word_value(L, 4, &w);
  uint32_t narrow = (uint32_t)expected;
  bool done = false;
  int err = word_find(L, &w);
  if (!err && w.wide) {
#if WORDS_WIDE
    done = atomic_compare_exchange_strong(word_wide(&w), &expected, value);
#endif
  } else if (!err) {
    done = atomic_compare_exchange_strong(word_narrow(&w), &narrow,
                                          (uint32_t)value);
    expected = narrow;
  }
  if (!err)
    err = ipc_bytes_check(w.v);
  if (err)
    return ipc_view_fail(L, w.v->type, "cas", err);
  lua_pushboolean(L, done);
  if (done)
    return 1;
  word_push(L, &w, expected);
  return 2;
}

/* ----------------------------------------------------------------- waiting */

/* What the kernel sleeps at: of 8 bytes the low half. */
static Narrow *word_half(const Word *w) {
  const uint16_t one = 1;
  char first;
  memcpy(&first, &one, 1);
  return (Narrow *)(void *)(w->at + (w->wide && first == 0 ? 4 : 0));
}

/* Of a call that waits: a handle, so that it can sleep and yield like any. */
typedef struct WordWait {
  Handle h;
  ViewWait listed;
  Word word;
  uint64_t expected;
  _Atomic(char *) at; /* for the thread: where the word is */
  Watch watch;
  Nanos slice;
} WordWait;

enum { WAIT_SELF = 1, WAIT_DEADLINE, WAIT_TOP = WAIT_DEADLINE };

/* The half that is slept at does not tell all of a word. */
static bool wait_doubts(void *of) {
  const WordWait *w = of;
  Word word = w->word;
  word.at = atomic_load(&((WordWait *)of)->at);
  return word_load(&word) != w->expected;
}

/* Finds the word anew: 0 or an errno. */
static int wait_find(WordWait *w) {
  int err = ipc_bytes_check(w->word.v);
  if (!err)
    w->word.at = w->word.v->bytes + w->word.offset;
  return err;
}

static int wait_descriptor(const Handle *h, int want) {
  (void)want;
  return ipc_watch_descriptor(&((const WordWait *)h)->watch);
}

static int wait_arm(Handle *h, int want, Sleepers *by) {
  WordWait *w = (WordWait *)h;
  (void)want;
  if (wait_find(w))
    return EAGAIN;
  atomic_store(&w->at, w->word.at);
  return ipc_watch_arm(&w->watch, word_half(&w->word), (uint32_t)w->expected,
                       by);
}

static int wait_sleep(Handle *h, int want, Nanos deadline) {
  WordWait *w = (WordWait *)h;
  bool lapsed;
  (void)want;
  if (wait_find(w))
    return 0;
  return ipc_watch_wait(word_half(&w->word), (uint32_t)w->expected, deadline,
                        &w->slice, &lapsed);
}

static int wait_ready(Handle *h, int want, bool ask_kernel) {
  WordWait *w = (WordWait *)h;
  (void)want, (void)ask_kernel;
  return wait_find(w) || word_load(&w->word) != w->expected ? 0 : EAGAIN;
}

static void wait_stop(ViewWait *listed) {
  WordWait *w =
      (WordWait *)(void *)((char *)listed - offsetof(WordWait, listed));
  if (w->h.generation == ipc_generation) /* else the thread is another's */
    ipc_watch_stop(&w->watch);
}

static void wait_close(Handle *h, How how) {
  WordWait *w = (WordWait *)h;
  ViewWait *l = &w->listed;
  (void)how;
  if (l->link) {
    *l->link = l->next;
    if (l->next)
      l->next->link = l->link;
    l->link = NULL;
  }
  ipc_watch_close(&w->watch, h->foreign || h->generation != ipc_generation);
}

static const HandleOps wait_handle = {.type = "ipc.memory",
                                      .descriptor = wait_descriptor,
                                      .arm = wait_arm,
                                      .wait = wait_sleep,
                                      .ready = wait_ready,
                                      .close = wait_close,
                                      .events = true};

/* The call is over: a scheduler that polled for it is told, and it is released
 * when the task has left. */
static int wait_end(lua_State *L, Handle *h, int n) {
  ipc_handle_close(L, h);
  return n;
}

static int wait_attempt(lua_State *L, Handle *h) {
  WordWait *w = (WordWait *)h;
  View *v = w->word.v;
  int err = ipc_view_open_all(v) ? wait_find(w) : EPIPE;
  uint64_t value = err ? 0 : word_load(&w->word);
  if (!err)
    err = ipc_bytes_check(v);
  if (err)
    return wait_end(L, h, ipc_view_fail(L, v->type, "wait", err));
  if (value == w->expected)
    return -IPC_READ;
  lua_pushboolean(L, 1);
  return wait_end(L, h, 1);
}

static int wait_failed(lua_State *L, Handle *h, int err) {
  return wait_end(L, h, ipc_fail(L, "ipc.memory", "wait", err, NULL));
}

static const Op wait_op = {.name = "wait",
                           .attempt = wait_attempt,
                           .failed = wait_failed,
                           .want = IPC_READ,
                           .deadline = WAIT_DEADLINE,
                           .top = WAIT_TOP};

/* Leaves on the stack: who waits, and until when. */
static void wait_new(lua_State *L, const Word *word, uint64_t expected) {
  View *root = word->v;
  while (root->parent)
    root = root->parent;
  WordWait *w = ipc_handle_new(L, sizeof *w, &wait_handle, 1);
  w->word = *word;
  w->expected = expected;
  w->watch.doubts = word->wide ? wait_doubts : NULL;
  w->watch.of = w;
  w->listed.stop = wait_stop;
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, 1);
  lua_replace(L, WAIT_SELF);
  lua_pushvalue(L, 4);
  lua_replace(L, WAIT_DEADLINE);
  lua_settop(L, WAIT_TOP);
  w->listed.next = root->waits;
  w->listed.link = &root->waits;
  if (root->waits)
    root->waits->link = &w->listed.next;
  root->waits = &w->listed;
  ipc_handle_open(&w->h);
}

/***
Waits until a word is not what is expected, as a rule because another process
changed it and called `wake`. In a task the others go on meanwhile.
@function bytes:wait
@tparam integer offset
@tparam integer expected
@tparam[opt=the memory's] ?number timeout seconds; 0 never waits
@tparam[opt="I8"] ?string type
@treturn boolean true: it is something else; or nil, message, errno: `"timeout"`
(ETIMEDOUT), `"closed"` (EPIPE). Only of memories and their ranges
@usage while m:load(0) == 0 do assert(m:wait(0, 0, 10)) end
*/
int ipc_bytes_wait(lua_State *L) {
  View *v = ipc_bytes_alive(L);
  const View *root = v;
  while (root->parent)
    root = root->parent;
  if (!root->shared)
    luaL_error(L, "%s: nobody else changes these bytes: wait() is for memories",
               v->type);
  ipc_check_timeout(L, 4);
  Word w = word_self(L, v, 5);
  uint64_t expected = word_value(L, 3, &w);
  if (!w.wide)
    expected &= UINT32_MAX;
  int err = word_find(L, &w);
  bool changed = !err && word_load(&w) != expected;
  if (changed) {
    err = ipc_bytes_check(v);
    changed = !err;
  }
  if (err)
    return ipc_view_fail(L, v->type, "wait", err);
  lua_settop(L, 4);
  if (changed)
    return lua_pushboolean(L, 1), 1;
  if (lua_isnil(L, 4) && root->timeout && *root->timeout != IPC_FOREVER) {
    lua_pushnumber(L, (lua_Number)*root->timeout / 1e9);
    lua_replace(L, 4);
  }
  wait_new(L, &w, expected);
  return ipc_run(L, &wait_op);
}

/***
Wakes those who wait for a word, in every process: after it was changed.
@function bytes:wake
@tparam integer offset
@tparam[opt=all] ?integer count at most so many
@tparam[opt="I8"] ?string type
@treturn integer how many were asleep, as far as the system tells: who just
looks for itself is not counted; or nil, message, errno
@usage m:store(0, 1)
m:wake(0)
*/
int ipc_bytes_wake(lua_State *L) {
  View *v = ipc_bytes_alive(L);
  Word w = word_self(L, v, 4);
  int most = INT_MAX, woken = 0;
  if (!lua_isnoneornil(L, 3))
    most = (int)ipc_bytes_number(L, 3, "count", INT_MAX);
  int err = word_find(L, &w);
  if (!err && most > 0)
    woken = ipc_os_word_wake_some(word_half(&w), most);
  if (err)
    return ipc_view_fail(L, v->type, "wake", err);
  lua_pushinteger(L, woken);
  return 1;
}

void ipc_words_open(lua_State *L) {
  ipc_handle_type(L, &wait_handle, NULL);
  lua_pop(L, 1);
}
