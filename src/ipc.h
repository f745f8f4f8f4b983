/* The contract: what a handle is, what a channel adds, and the few functions
 * that every room stands on. A room is one .c file that fills in these tables;
 * nothing else in the library knows it by name (rooms.h lists them).
 *
 * Below the ops tables there is no Lua: ops never see a lua_State, never
 * block, never raise; they answer 0 or an errno. EAGAIN means "would have to
 * wait", EPIPE means "closed". */
#ifndef IPC_H
#define IPC_H

#include <lauxlib.h>
#include <lua.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "buffer.h"

/* ------------------------------------------------------------------ time */

typedef int64_t Nanos; /* of the monotonic clock */

#define IPC_SECOND INT64_C(1000000000)
#define IPC_FOREVER INT64_MAX
#define IPC_SPIN 70000 /* ns: twice what waking a sleeper costs */

Nanos ipc_now(void);

/* Seconds to nanoseconds: negative is 0, infinite and huge are for ever. */
Nanos ipc_seconds(lua_Number seconds);

/* --------------------------------------------------------------- handles */

typedef struct State State;
typedef struct Handle Handle;
typedef struct Waiter Waiter;
typedef struct Observer Observer;
typedef struct Sleepers Sleepers; /* see sleepers.h */

/* What a wait is for. */
enum { IPC_READ = 1, IPC_WRITE = 2, IPC_ENDED = 4 };
#define IPC_NEVER (-1) /* an interest: nothing that a poll could wait for */

typedef enum How {
  IPC_CLOSE, /* by the user: what the room owes (names, peers) is settled */
  IPC_DROP,  /* by the collector, a fork or a move: release, say nothing */
  IPC_EXIT   /* the program ends: as IPC_CLOSE, but without waiting */
} How;

/* A handle on its way: see HandleOps.give, Room.take. */
typedef struct Given {
  const char *kind; /* the room that takes it */
  int fd[2];        /* a duplex pipe: what it reads, what it writes */
  unsigned count;
  bool stream;
  unsigned lead;    /* bytes of padding in front of each packet */
  size_t limit;     /* maxsize; the receiver's own bounds it */
  unsigned handles; /* that a message through it may bring */
  unsigned place;   /* of a participant in shared memory: slot << 2 | roles */
} Given;

typedef struct HandleOps {
  const char *type; /* "ipc.pipe": __name, and the prefix of messages */

  /* The descriptor that becomes ready when `want` may have changed; -1 if
   * the handle has none for it. */
  int (*descriptor)(const Handle *h, int want);

  /* Before somebody sleeps on the descriptor: starts what makes it ready (a
   * thread, for what the kernel cannot poll); `by`: that may be the loop, which
   * alone polls it then (NULL: it must not). An errno: the wait looks again
   * from time to time instead. NULL: there is nothing to start. */
  int (*arm)(Handle *h, int want, Sleepers *by);

  /* The one op that blocks: until `deadline` (of ipc_now; one that has passed:
   * only looks, which may cost a system call). 0: look again. ETIMEDOUT. EINTR:
   * a signal came. EAGAIN: not this time (poll instead). NULL: never. */
  int (*wait)(Handle *h, int want, Nanos deadline);

  /* 0: the next call that waits for `want` will not have to. EAGAIN: it
   * would. With `ask_kernel` it may read ahead; without, it must not cross
   * into the kernel. */
  int (*ready)(Handle *h, int want, bool ask_kernel);

  /* Releases all that the handle holds. Called once, with h->open false. */
  void (*close)(Handle *h, How how);

  /* A fork is about to take it along: threads of its own end, and what they
   * found is in hand. An errno: there is no place for it in the child, and so
   * there is no child. NULL: there are none. */
  int (*forking)(Handle *h);

  /* The fork that took it along is over, or has failed; or it was sent, or was
   * not (child is false then). In the child: if it
   * shares, what is in hand is the parent's, and so are threads. NULL: that
   * changes nothing. */
  void (*forked)(Handle *h, bool child);

  /* What it is made of, for another process: 0, EBUSY while bytes are on their
   * way. The descriptors stay the handle's. NULL: it cannot be passed. */
  int (*give)(Handle *h, Given *g);

  int interest; /* of what is no channel: what a bare one is polled for */
  int values;   /* of a channel: user values beside those of all */
  bool events;  /* its descriptors become readable, whatever `want` is */
} HandleOps;

struct Handle {
  const HandleOps *ops;
  State *state;
  Handle *next;        /* among the state's open handles */
  Handle **link;       /* what points here; NULL while closed */
  Waiter *queue;       /* tasks waiting on it, first come first served */
  Observer *observers; /* pollers that it is in */
  unsigned generation; /* of the process that may use it: ipc_generation */
  int moved;           /* the process it moved to, or 0 */
  uint32_t nap;        /* us after which a wait looks again, because nothing
                        * tells it to; 0: something does */
  bool open;
  bool closing; /* waits for its last bytes to leave; of no other use */
  bool waited;  /* a scheduler has polled its descriptors */
  bool leaving; /* closed; released when the last waiter has left */
  bool moves;   /* an end: crossing to another process closes it here */
  bool shares;  /* an object: it stays usable here */
  bool channel; /* a Chan */
  bool kept;    /* a fork under way takes it along */
  bool owes;    /* a name: see ipc_handle_owe */
  bool foreign; /* closed because it is another process's */
  bool exposed; /* pollfd told its descriptor to who does not arm it */
};

/* Hears of a handle what its descriptors do not tell. */
struct Observer {
  Observer *next;
  Observer **link; /* NULL: it observes nothing */

  /* A call has changed what the handle is ready for, perhaps; or it is `going`,
   * its descriptors still open: then the observer has left already. */
  void (*tell)(Observer *o, bool going);

  Handle *by;   /* what may be ready by that, in turn */
  bool stirred; /* the tasks that wait on that are still to be told */
};

/* Counts the forks between the first process and this one. */
extern unsigned ipc_generation;

/* Pushes a handle of `size` bytes, zeroed, closed, with its metatable set and
 * `values` user values. Raises on lack of memory only. */
void *ipc_handle_new(lua_State *L, size_t size, const HandleOps *ops,
                     int values);

void ipc_handle_observe(Handle *h, Observer *o);
void ipc_observer_leave(Observer *o);

/* h was asked what it is ready for, and has read ahead perhaps: tells its
 * observers, without Lua. */
void ipc_handle_asked(Handle *h);

/* After a call on h: tells its observers, then the tasks that wait on them. May
 * run Lua. Only where h->observers. */
void ipc_handle_changed(lua_State *L, Handle *h);

/* Commits a handle that has acquired what it stands for. */
void ipc_handle_open(Handle *h);

/* The open handle at `index` owes something to the system that the end of the
 * program settles (a name to remove): lua_close closes it with IPC_EXIT, where
 * the collector only drops it. */
void ipc_handle_owe(lua_State *L, int index);

/* Closes without waiting and without Lua; again is harmless. */
void ipc_handle_release(Handle *h, How how);

/* The user closes it: calls on it answer closed from now on, and tasks that
 * wait look again. False: there is nothing left to do. */
bool ipc_handle_begin_close(lua_State *L, Handle *h);

/* The same by the user's wish: tasks that wait on it are told first, and it is
 * released when they have left. */
void ipc_handle_close(lua_State *L, Handle *h);

/* The handle that a method was called on (its metatable is upvalue 1). Raises
 * on a foreign self and on one that moved away. */
Handle *ipc_handle_self(lua_State *L);

/* The same for close, which may find that it moved. */
Handle *ipc_handle_closable(lua_State *L);

/* The handle at `index`, or NULL if that is no handle of ours. */
Handle *ipc_handle_at(lua_State *L, int index);

/* Pushes the userdata of an open handle; false (and nothing) if it is being
 * collected. */
bool ipc_handle_push(lua_State *L, const Handle *h);

/* Whether calls may go on: open, and of this process. */
#define ipc_handle_usable(h)                                                   \
  ((h)->open && !(h)->closing && (h)->generation == ipc_generation)

/* The open handle at `index` is in process `pid` now (-1: unknown): closes it
 * here. What is on top says where from, nil or a string, and is popped. */
void ipc_handle_moved(lua_State *L, int index, int pid);

/* What to poll for `want`, started: see HandleOps.arm. -1 and h->nap set where
 * there is nothing to poll. */
int ipc_handle_watch(Handle *h, int want, Sleepers *by);

/* Which of the `wants` need not be waited for, all if h is closed; asking the
 * kernel tells its observers, without Lua. */
int ipc_handle_hits(Handle *h, int wants, bool ask_kernel);

/* What poll(2) is asked of h's descriptor for `want`: POLLIN or POLLOUT. */
short ipc_handle_events(const Handle *h, int want);

/* The earlier of `deadline` and the end of h's nap. */
Nanos ipc_handle_nap(const Handle *h, Nanos deadline);

/* Pushes nil, message, errno for a handle that is not usable. */
int ipc_handle_refuse(lua_State *L, const Handle *h, const char *call);

/* What waits for `want` on h polls and queues at: a duplex's part, or h. */
Handle *ipc_handle_part(Handle *h, int want);

/* What a bare handle is polled for: receiving where it can. */
int ipc_handle_interest(const Handle *h);

/* Makes the metatable of `ops`: the methods every handle has, then `methods`
 * (their upvalue 1 is the metatable). Leaves it on the stack. */
void ipc_handle_type(lua_State *L, const HandleOps *ops,
                     const luaL_Reg *methods);

/* Adds methods to the metatable on top: names that begin with two underscores
 * to itself, the others to its __index. */
void ipc_handle_methods(lua_State *L, const luaL_Reg *methods);

/* ----------------------------------------------------------- one per Lua */

/* How long a wait retries before it sleeps; learned per channel. */
typedef struct Spin {
  uint16_t skip;    /* waits that go to sleep at once */
  uint16_t penalty; /* what the last failure set skip to; 0: it paid */
  uint32_t budget;  /* ns; 0: never */
  uint32_t starts;  /* retries begun */
  long switches;    /* ipc_os_switches, when this one was; -1: not asked */
} Spin;

struct Chan;

/* Something that is gathered, or that its channel has no room for: it goes out
 * before anything waits, or as soon as it can while something does. */
typedef struct Owed {
  struct Owed *next, **link; /* link: NULL while nothing is owed */
  const struct Chan *to;
  /* Sends what it can. It is owed no more, unless this says so again. Raises
   * nothing. */
  void (*pay)(lua_State *L, struct Owed *o);
} Owed;

struct State {
  lua_State *main;
  Handle *handles;    /* the open ones */
  struct Chan *rests; /* channels with an accepted message not all out */
  Owed *owed;         /* what is gathered, to go before a wait */
  Buffer scratch;     /* for encoding; valid until Lua runs again */
  Buffer polls;       /* struct pollfd[]; the same */
  Spin spin;          /* of ipc.poll */
  Handle *reactor;    /* what the loop in Lua waited with last; NULL */
  Nanos looked;       /* when it did so last */
  State *next;        /* among the process's states, for its end */
  pthread_t thread;   /* that opened it */
  bool scheduled;     /* a scheduler is registered */
  bool looped;        /* and it is the loop in Lua, without another's */
  uint64_t typed;     /* rooms whose types are there, a bit each */
  unsigned typing; /* the one, from 1, whose are being made; or that failed */
  unsigned registers; /* how often one was, or was taken away */
  lua_Hook hook;      /* what the main coroutine had when it last ran a call */
};

State *ipc_state(lua_State *L);
/* Pushes the state's userdata; its user values are the scheduler's. */
void ipc_state_push(lua_State *L);
void ipc_state_open(lua_State *L);

/* Closes every open handle of S except those `kept`. */
void ipc_state_release(State *S, How how);

/* In a child: drops the handles of the process's other states. */
void ipc_states_drop(const State *but);

/* ---------------------------------------------------------------- errors */

/* Pushes nil, message, errno; returns 3. The message is the fixed word of the
 * errno ("timeout", "closed", ...) or "type.call: [detail: ]reason". */
int ipc_fail(lua_State *L, const char *type, const char *call, int err,
             const char *detail);

/* The same for a limit of the system that was hit: its name, its value and
 * where to raise it are told. `what` is what was asked for, or NULL. */
int ipc_fail_limit(lua_State *L, const char *type, const char *call, int err,
                   const char *what, const char *limit);

/* Pushes how to raise the limit of this name. */
void ipc_limit_raise(lua_State *L, const char *name);

/* Pushes an error object of the message and errno at these indices. */
void ipc_error_push(lua_State *L, int message, int number);

/* Turns the nil, message, errno on top into an error object and raises it. */
int ipc_raise(lua_State *L);

/* Adds errno (names to numbers and back) to the table on top. */
void ipc_errno_open(lua_State *L);

/* --------------------------------------------------------------- options */

/* Checks that `index` is nil or a table whose every key is one that all rooms
 * take or one of `names` (NULL at the end); raises naming the stranger. */
void ipc_options(lua_State *L, int index, const char *const names[]);

/* Those of named things. `create`: whether a missing one is made, whether an
 * existing one will do. */
enum { IPC_ATTACH, IPC_CREATE, IPC_CREATE_NEW };
int ipc_option_create(lua_State *L, int index);
/* permissions: octal digits, "0600" when absent. */
unsigned ipc_option_permissions(lua_State *L, int index);
/* retry: how long to wait for the other side; 0: not. */
Nanos ipc_option_retry(lua_State *L, int index);
/* A mode argument: IPC_READ and IPC_WRITE bits; `otherwise` when absent, or it
 * raises if that is 0. */
int ipc_check_mode(lua_State *L, int index, int otherwise);

bool ipc_option_flag(lua_State *L, int index, const char *name, bool otherwise);
size_t ipc_option_size(lua_State *L, int index, const char *name, size_t least,
                       size_t most, size_t otherwise);
Nanos ipc_option_time(lua_State *L, int index, const char *name,
                      Nanos otherwise);
/* The position in `choices` (NULL at the end), the first when absent. */
int ipc_option_choice(lua_State *L, int index, const char *name,
                      const char *const choices[]);

/* A signal's name without SIG, or its number; `otherwise` when absent. */
int ipc_check_signal(lua_State *L, int index, int otherwise);
/* What the value at `index` names, or -1. */
int ipc_signal_number(lua_State *L, int index);
/* The name without SIG, or NULL. */
const char *ipc_signal_name(int number);

/* --------------------------------------------------------------- waiting */

/* A call that may wait. `attempt` does what can be done now and returns the
 * number of results it pushed, or the negative of what must be waited for
 * (-IPC_READ ...). All of its state is in the handle and in the stack slots
 * 1 .. top, so it can be run again after Lua ran in between. */
typedef struct Op {
  const char *name;
  int (*attempt)(lua_State *L, Handle *h);
  /* At the deadline (and on EINTR); NULL: answers nil, message, errno. */
  int (*failed)(lua_State *L, Handle *h, int err);
  /* After an attempt that answered 0: what the call answers, or IPC_AGAIN,
   * IPC_TURN. The slots are as before the first attempt. May run Lua; what
   * yields goes on in a continuation of its own. NULL: nothing is to be done.
   */
  int (*finish)(lua_State *L, Handle *h);
  int want;     /* whose queue it stands in */
  int deadline; /* the slot: nil, a float (seconds) or an integer (ns) */
  int top;      /* the slots in use */
  bool closing; /* goes on although the handle is closed */
  bool quiet;   /* an iterator: nil at the end, other failures raise */
  bool alone;   /* in a task, too, it retries before it suspends, as long as
                 * the loop would not wake others */
} Op;

/* From Op.finish: what comes next is to be waited for; but first others have a
 * turn, this being a task that was alone for long. */
enum { IPC_AGAIN = -16, IPC_TURN };

/* Whether that is so, of a task that asks before each of many messages. */
bool ipc_run_tires(lua_State *L, State *S);

/* Runs the op on the handle in slot 1: until it is done, waits in the kernel,
 * or yields when the running coroutine is a task of the scheduler. */
int ipc_run(lua_State *L, const Op *op);

/* The same after an attempt that found nothing to do, on a handle whose
 * descriptor tells all: it begins by waiting. */
int ipc_run_tried(lua_State *L, const Op *op);

/* Checks a timeout argument: nil, or a number that becomes a float. */
void ipc_check_timeout(lua_State *L, int index);

/* The deadline in a slot, written back as an integer when first asked for.
 * `otherwise` is the duration that nil stands for. 0 or ETIMEDOUT (already). */
int ipc_deadline(lua_State *L, int index, Nanos otherwise, Nanos *deadline);

/* Sleeps until one of the first `count` entries of S->polls, or a channel with
 * a rest, is ready, or a signal came. 0, ETIMEDOUT, ENOMEM or EINTR. */
int ipc_sleep(State *S, size_t count, Nanos deadline);

/* Writes what can be written of what is owed, and of accepted messages, of all
 * channels. */
void ipc_flush_rests(lua_State *L, State *S);

/* Whether there is anything that it would write. */
static inline bool ipc_has_rests(const State *S) { return S->rests || S->owed; }

/* Whether something is owed to a channel that holds no part of a message:
 * nothing tells when it has room. */
bool ipc_owed_blindly(const State *S);

/* When a sleep until `deadline` looks again for that. */
Nanos ipc_owed_nap(const State *S, Nanos deadline);

/* Something is owed from now on, or no more; again changes nothing. */
void ipc_owe(State *S, Owed *o);
void ipc_owe_no_more(Owed *o);

/* Lets a debug hook run that a signal handler has set (Ctrl-C), on this
 * coroutine; EINTR when the main one has another hook than it `was`, else 0.
 * May raise; may yield, then goes on in `again`. */
int ipc_run_hooks(lua_State *L, State *S, lua_Hook was, lua_KContext context,
                  lua_KFunction again);

/* Whether the running coroutine is a task that may yield. */
bool ipc_in_task(lua_State *L, State *S);

/* Pushes an object the scheduler can poll (pollfd, events, timeout), a
 * to-be-closed value; with a handle it stands in its queue. */
Waiter *ipc_waiter_open(lua_State *L, Handle *h, int want, bool closing);

/* Pushes another that belongs to the one in `slot`: it watches h, without a
 * place in the queue. */
void ipc_waiter_add(lua_State *L, int slot, Handle *h, int want);

/* After a suspension: the added ones leave. May run Lua. */
void ipc_waiter_settle(lua_State *L, int slot);

/* Whether it is its turn to try. */
bool ipc_waiter_turn(Waiter *w);

/* Whether it stands in a queue. */
bool ipc_waiter_has(const Waiter *w);

/* The first task that stands in the queue for `want`, or NULL; whether any
 * task waits or watches for it. */
Waiter *ipc_waiter_first(const Handle *h, int want);
bool ipc_waiter_any(const Handle *h, int want);

/* Makes the tasks that wait on h look again: its descriptor is about to go, or
 * what they wait for has been read ahead. May raise. */
void ipc_wake(lua_State *L, Handle *h);

/* The same, if one waits for `want` and it is there: what was read ahead does
 * not make the descriptor ready again. */
void ipc_wake_next(lua_State *L, Handle *h, int want);

/* The handle is going: nobody waits on it any more. */
void ipc_waiters_forget(Handle *h);

/* Calls the scheduler's wait with the `count` objects on top, the waiter in
 * `slot` and those of pending rests, for `results` of the ready ones, going on
 * in `again`. */
void ipc_suspend(lua_State *L, int slot, int count, Nanos deadline, int results,
                 lua_KContext context, lua_KFunction again);

/* Whether it is worth retrying instead of sleeping, until *until. */
bool ipc_spin_start(Spin *spin, Nanos now, Nanos deadline, Nanos *until);
void ipc_spin_failed(Spin *spin);

/* It was there before the time was over: worth it, unless others had the core
 * meanwhile. */
void ipc_spin_paid(Spin *spin);

void ipc_wait_open(lua_State *L);
void ipc_task_open(lua_State *L);

/* Pushes a new set of descriptors for the loop in Lua; or nil, message, errno.
 */
int ipc_reactor_new(lua_State *L);

/* Spin.penalty of the loop; 0: there is none. */
uint16_t ipc_reactor_penalty(const State *S);

/* Whether the loop would wake somebody now. */
bool ipc_reactor_calls(const State *S);

/* What a task that suspends itself now is woken by, for HandleOps.arm: the loop
 * in Lua, or NULL where others may poll instead of it. */
Sleepers *ipc_reactor_sleepers(const State *S);

/* Pushes the table of what the loop in Lua stands on. */
void ipc_task_push(lua_State *L);

/* -------------------------------------------------------------- channels */

/* A message, or what recv selects by (tag, except). The descriptors belong to
 * the channel; what is taken of them is set to -1. */
typedef struct Message {
  const char *bytes;
  size_t size;
  lua_Integer tag;  /* integer tags */
  const char *peer; /* address tags: whom to, or from; NULL: not told */
  size_t peer_size;
  int *fds; /* descriptors beside the bytes */
  unsigned fd_count;
  bool except; /* recv: any but `tag` */
} Message;

/* What tags a room has. */
typedef struct Tags {
  int kind; /* IPC_TAG_INTEGER or IPC_TAG_ADDRESS */
  lua_Integer least, most, otherwise;
  bool selects; /* recv takes one: n, -n or { except = n } */
} Tags;

typedef struct Chan Chan;

typedef struct Figure {
  const char *name;
  uint64_t value;
} Figure;

/* How far a message must have come. */
typedef enum Stage { IPC_SENT, IPC_FLUSHED, IPC_CLOSED } Stage;

typedef struct ChanOps {
  /* The next message, a view that stays valid until the next op on the
   * channel. It is there until `took` (of a stream, so many bytes). 0, EAGAIN,
   * EPIPE; EMSGSIZE: one of m->size bytes was over the limit and is gone;
   * EBADMSG: not a frame. */
  int (*recv)(Chan *c, Message *m);
  void (*took)(Chan *c, size_t size);

  /* 0: all out. EAGAIN: untouched. EINPROGRESS: accepted; c->rest points into
   * m->bytes, which the caller must now keep alive. */
  int (*send)(Chan *c, const Message *m);

  /* Many with one crossing; *sent is how many were accepted. As send. NULL:
   * the channel layer sends one after the other. */
  int (*sendmany)(Chan *c, const Message *m, size_t count, size_t *sent);

  /* Goes on with c->rest. 0: nothing is left. EAGAIN. Else it was dropped. */
  int (*flush)(Chan *c);

  /* Ends sending; called once, with no rest. */
  int (*shutdown)(Chan *c);

  /* Streams only: `size` bytes exactly (SIZE_MAX: all until the end), or a
   * line. As recv; EMSGSIZE takes nothing, and m->size is the limit. */
  int (*read)(Chan *c, size_t size, bool line, Message *m);

  const Tags *tags;  /* NULL: there are none */
  const char *bound; /* the system's limit of a message, by name; or NULL */

  /* Pushes a second handle on the same thing; the only op that sees Lua, as
   * constructors do. Else an errno: EBUSY while bytes are read ahead. */
  int (*dup)(lua_State *L, Chan *c);

  /* After recvmany took several: tells the sender of them at once. `took` did
   * not, because of c->batch. NULL: nothing to do. */
  void (*settle)(Chan *c);

  /* Messages are numbered: the number of the last one sent, which send and put
   * answer behind true. NULL: they are not. */
  uint64_t (*number)(const Chan *c);

  /* Goes with it. Whether those up to `number` are where they must be before
   * send answers, flush does, close does: 0; EAGAIN: wait for IPC_ENDED. */
  int (*settled)(Chan *c, uint64_t number, Stage stage);

  /* The i-th of its own figures for stats; false: there is none. */
  bool (*figure)(Chan *c, unsigned i, Figure *f);

  /* With c->quiet sendmany wakes nobody who sleeps, the next without it does,
   * whatever it can send: who is awake sees the messages. */
  bool quiet;
} ChanOps;

#define IPC_LIMIT ((size_t)64 << 20) /* bytes of a message, by default */

/* What is left of an accepted message. */
typedef struct Rest {
  const char *bytes;
  size_t size;
  char head[8]; /* unsent end of the frame's header */
  uint8_t headed;
  bool anchored;   /* a user value keeps the bytes alive */
  uint32_t serial; /* counts rests: a send knows whether it is its own */
  char *owned;     /* or they are ours to free */
  Chan *next;
  Chan **link;
} Rest;

struct Chan {
  Handle h;
  const ChanOps *ops;
  Chan *reader; /* itself; of a duplex, a part; NULL: cannot receive */
  Chan *writer;
  Nanos timeout; /* the default of every call */
  Nanos linger;
  size_t limit; /* bytes a message may have */
  Spin spin[2];
  int ended;       /* errno that receiving ends with, once found; 0 */
  int failed;      /* the same for sending */
  size_t batch;    /* messages that recvmany would take; else 0 */
  int peer;        /* the process at the other end, if it is our child; 0 */
  const char *why; /* of an error that the system has no words for; or NULL */
  int held;        /* an error that recvmany found after its last message; 0 */
  size_t held_size;
  bool stream;
  bool ahead;      /* reads ahead: ready(READ, false) tells what is buffered */
  bool quiet;      /* see ChanOps */
  bool shut;       /* shutdown was called */
  bool shutting;   /* and waits for the rest */
  bool passes;     /* handles can go beside messages */
  uint32_t serial; /* counts messages taken: has one gone while Lua ran? */
  uint32_t failed_serial; /* the rest that `failed` ended */
  uint32_t strangers;     /* descriptors that nobody asked for, closed */
  size_t lost;            /* accepted bytes that had to be dropped */
  uint32_t sleeps;
  uint64_t sent, received, bytes_out, bytes_in;
  Rest rest;
};

/* User values of every channel. */
enum { IPC_UV_REST = 1, IPC_UV_READER, IPC_UV_WRITER };
#define IPC_UV_MOVED IPC_UV_REST     /* where it was moved */
#define IPC_UV_DECODER IPC_UV_READER /* of a stream; a duplex has none */
#define IPC_UV_ROOM IPC_UV_WRITER    /* the room's own; likewise */

/* Sets what the options that every room takes mean for a channel; `most` is
 * the largest maxsize there can be. */
void ipc_chan_options(lua_State *L, int index, Chan *c, size_t most);

/* A new channel: reader, writer and limits preset for `mode` bits. */
void *ipc_chan_new(lua_State *L, size_t size, const HandleOps *h,
                   const ChanOps *ops, int mode);

void ipc_chan_type(lua_State *L, const HandleOps *ops, const luaL_Reg *methods);

/* Goes on with the rest of an accepted message, then with a shutdown that
 * waited for it; 0 when there is none. May run Lua. */
int ipc_chan_flush(lua_State *L, Chan *c);
/* Notes what of a message is not out yet. */
void ipc_chan_set_rest(Chan *c, const char *head, size_t headed,
                       const char *bytes, size_t size);
/* Forgets it; `err`: it was lost by that. */
void ipc_chan_end_rest(Chan *c, int err);

/* Ends the handle in slot 1: its rest is dropped if `err`. Pushes true, or
 * nil, "N bytes unsent", errno. */
int ipc_chan_closed(lua_State *L, Chan *self, int err);

void ipc_chan_open(lua_State *L);

/* Pushes one channel made of two, which are on top: receives on the first,
 * sends on the second, closes both. */
Chan *ipc_duplex_push(lua_State *L, Chan *reader, Chan *writer);

/* ------------------------------------------------------------- listeners */

typedef struct Listener Listener;

typedef struct ListenerOps {
  /* 0: pushed a channel to the next client. EAGAIN: there is none (l->h.nap may
   * say when to look again). Else what went wrong; the listener stays. */
  int (*accept)(lua_State *L, Listener *l);

  /* Pushes the address that clients connect to. */
  void (*address)(lua_State *L, Listener *l);
} ListenerOps;

struct Listener {
  Handle h;
  const ListenerOps *ops;
  Nanos timeout; /* the default of accept */
  uint64_t accepted, refused;
};

/* A new listener on the stack, closed, with `values` user values. Its HandleOps
 * have IPC_READ as their interest. */
void *ipc_listener_new(lua_State *L, size_t size, const HandleOps *h,
                       const ListenerOps *ops, int values);

/* Makes its type, with accept, close, address, settimeout and stats. */
void ipc_listener_type(lua_State *L, const HandleOps *h);

/* ----------------------------------------------------------------- rooms */

/* What a mechanism can do beyond what all can (the contract's listed set). */
enum {
  IPC_LIVENESS = 1,      /* `closed` when the other side dies */
  IPC_TAG_INTEGER = 2,   /* messages carry a number */
  IPC_TAG_ADDRESS = 4,   /* messages carry where they came from */
  IPC_HANDLES = 8,       /* handles can be sent through it */
  IPC_MANY_READERS = 16, /* several processes may receive */
  IPC_MANY_WRITERS = 32, /* several processes may send messages of any size */
  IPC_EMPTY = 64,        /* empty messages arrive */
  IPC_DESCRIPTOR = 128   /* pollfd() is a descriptor */
};

/* One way to use a room, as `ipc.pair(address)` opens it. */
typedef struct Kind {
  const char *name;      /* "pipe" */
  const char *address;   /* "pipe?packet=true" */
  const char *direction; /* "one way", "both ways" */
  const char *unit;      /* "message", "stream" */
  const char *reach;     /* "related", "this system", ... */
  unsigned capabilities;
} Kind;

/* A limit of the system that bounds a mechanism: a sysctl ("kernel.msgmax") or
 * a resource ("RLIMIT_NOFILE"). */
typedef struct Limit {
  const char *name;
  const char *what; /* it bounds */
  const char *unit;
} Limit;

typedef struct Room {
  const char *name;           /* its file, spec and example */
  const char *const *schemes; /* of addresses; NULL at the end; may be NULL */
  const luaL_Reg *functions;  /* flat names: ipc.pipe */
  const luaL_Reg *inner;      /* for our own Lua: core.pipe.NAME; may be NULL */
  void (*more)(lua_State *L); /* beside these, into the table on top */
  const Kind *kinds;          /* a nameless one at the end; may be NULL */
  bool (*has)(const Kind *k); /* whether this system has it; NULL: it does */
  const Limit *limits;        /* a nameless one at the end; may be NULL */
  lua_CFunction pair;         /* (address, options) -> two connected ends */
  lua_CFunction open;         /* (rest, mode, options, scheme) -> a channel */
  lua_CFunction listen;       /* (rest, options, scheme) -> a listener */
  lua_CFunction connect;      /* (rest, options, scheme) -> a channel */
  lua_CFunction place;        /* (rest, options) -> the file behind a name */
  /* (descriptor) -> a channel that owns it; on failure it is still the
   * caller's. */
  lua_CFunction adopt;
  /* Pushes a handle that owns the descriptors from then on, after a look at
   * what they really are; g->count becomes how many it took. Else an errno. */
  int (*take)(lua_State *L, Given *g);
  void (*setup)(lua_State *L); /* metatables */
  void (*types)(lua_State *L); /* those of handles, made before the first */
} Room;

/* Makes the metatable of such handles, and whatever else their room has. */
void ipc_room_types(lua_State *L, const HandleOps *ops);

/* The room of a name; there must be one. */
const Room *ipc_room(const char *name);

#endif
