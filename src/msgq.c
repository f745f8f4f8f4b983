/* One System V message queue as a channel's medium; see msgq.h. No Lua. */
#include "prefix.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ipc.h"
#include "msgq.h"
#include "os.h"
#include "waiter.h"

enum {
  MSGQ_NAP = 50,         /* us until a sender looks again, at first */
  MSGQ_NAP_MOST = 2000,  /* and at the most */
  MSGQ_NAP_BLIND = 1000, /* a receiver without a thread */
  MSGQ_NAP_END = 50000,  /* a pair's selective receiver for the end */
  MSGQ_PLACES = 500      /* of a pair's ends in a census */
};

/* A message that the kernel gave and Lua has not got: laid out as msgrcv(2)
 * wants it from `type` on. */
struct Held {
  Held *next;
  size_t room, size;
  long type;
  char bytes[];
};

/* Who holds one of the two ends of a pair's queue, in memory that all of them
 * share. */
typedef struct Side {
  atomic_int count;
  atomic_bool full;            /* not all of them have a place */
  atomic_int pid[MSGQ_PLACES]; /* 0: free */
} Side;

typedef struct Census {
  Side readers, writers;
} Census;

/* A pair's queue has no name to find it by: the last that receives from it, or
 * sends to readers that were killed, removes it. */
struct Ends {
  unsigned refs; /* handles of this process */
  Census *census;
};

/* ---------------------------------------------------------------- in hand */

static bool want_takes(const Want *w, long type) {
  if (w->except)
    return type != w->type;
  if (w->type < 0)
    return type <= -w->type;
  return w->type == 0 || type == w->type;
}

static int want_flags(const Want *w) {
  return IPC_NOWAIT | (w->except ? ipc_os_msg_except : 0);
}

static Held *held_new(MsgQueue *q, size_t room) {
  Held *h = q->spare;
  q->spare = NULL;
  if (h && h->room < room) {
    free(h);
    h = NULL;
  }
  if (!h && room < PTRDIFF_MAX - sizeof *h) {
    h = malloc(sizeof *h + room);
    if (h)
      h->room = room;
  }
  return h;
}

static void held_free(MsgQueue *q, Held *h) {
  if (q->spare || h->room < q->c.limit || h->room > 2 * q->c.limit)
    free(h);
  else
    q->spare = h;
}

static void held_add(MsgQueue *q, Held *h, size_t size) {
  Held **at = &q->hand;
  while (*at)
    at = &(*at)->next;
  *at = h;
  h->next = NULL;
  h->size = size;
}

static void held_remove(MsgQueue *q, const Held *which) {
  for (Held **at = &q->hand; *at; at = &(*at)->next)
    if (*at == which) {
      Held *h = *at;
      *at = h->next;
      held_free(q, h);
      return;
    }
}

/* The one in hand that would be received: the first, of -n the lowest. */
static const Held *held_find(const MsgQueue *q, const Want *w) {
  const Held *found = NULL;
  for (const Held *h = q->hand; h; h = h->next)
    if (want_takes(w, h->type) &&
        (!found || (!w->except && w->type < 0 && h->type < found->type)))
      found = h;
  return found;
}

static void held_clear(MsgQueue *q) {
  while (q->hand) {
    Held *h = q->hand;
    q->hand = h->next;
    free(h);
  }
  free(q->spare);
  q->spare = NULL;
}

/* ----------------------------------------------------------------- census */

static int side_enter(Side *s) {
  atomic_fetch_add(&s->count, 1);
  for (int i = 0; i < MSGQ_PLACES; i++) {
    int nobody = 0;
    if (atomic_compare_exchange_strong(&s->pid[i], &nobody, (int)getpid()))
      return i;
  }
  atomic_store(&s->full, true);
  return -1;
}

/* How many stay. */
static int side_leave(Side *s, int place) {
  if (place >= 0)
    atomic_store(&s->pid[place], 0);
  return atomic_fetch_sub(&s->count, 1) - 1;
}

/* Whether one of them is a process that was not killed. */
static bool side_lives(Side *s) {
  if (atomic_load(&s->full))
    return true;
  for (int i = 0; i < MSGQ_PLACES; i++) {
    int pid = atomic_load(&s->pid[i]);
    if (pid && (kill(pid, 0) == 0 || errno != ESRCH))
      return true;
  }
  return false;
}

static Side *ends_side(const MsgQueue *q) {
  return q->c.reader ? &q->ends->census->readers : &q->ends->census->writers;
}

/* --------------------------------------------------------------- sleeping */

/* The thread: until there is a message. One of no bytes does not fit none at
 * all and stays where it is (E2BIG); an empty one is taken, and says so by its
 * type even if the call is cancelled then. */
static void msgq_sleep(void *argument) {
  Job *j = argument;
  int flags = want_flags(&j->want) & ~IPC_NOWAIT;
  while (msgrcv(j->id, &j->found, 0, j->want.type, flags) < 0 && errno == EINTR)
    continue;
}

/* What the thread took comes in hand. It must not be asleep. */
static int msgq_collect(MsgQueue *q) {
  if (ipc_sleeper_asleep(&q->sleeper) || !q->job.found)
    return 0;
  Held *h = held_new(q, 0);
  if (!h)
    return ENOMEM;
  h->type = q->job.found;
  q->job.found = 0;
  held_add(q, h, 0);
  return 0;
}

/* Before the queue is looked at: nobody takes messages out of turn. */
static int msgq_settle(MsgQueue *q) {
  if (ipc_sleeper_asleep(&q->sleeper))
    ipc_sleeper_stop(&q->sleeper);
  return q->job.found ? msgq_collect(q) : 0;
}

int ipc_msgq_descriptor(const Handle *h, int want) {
  const MsgQueue *q = (const MsgQueue *)h;
  return want == IPC_READ ? ipc_sleeper_descriptor(&q->sleeper) : -1;
}

static int msgq_begin(MsgQueue *q) {
  if (ipc_sleeper_asleep(&q->sleeper)) {
    if (q->job.want.type == q->want.type &&
        q->job.want.except == q->want.except)
      return 0;
    ipc_sleeper_stop(&q->sleeper);
  }
  int err = msgq_collect(q);
  if (err)
    return err;
  if (q->c.ended || held_find(q, &q->want))
    return ipc_sleeper_wake(&q->sleeper, NULL);
  q->job = (Job){q->id, q->want, 0};
  q->sleeper.sleep = msgq_sleep;
  q->sleeper.job = &q->job;
  return ipc_sleeper_start(&q->sleeper, NULL);
}

int ipc_msgq_arm(Handle *h, int want, Sleepers *by) {
  MsgQueue *q = (MsgQueue *)h;
  (void)by;
  if (want != IPC_READ || q->id < 0)
    return 0;
  int err = msgq_begin(q);
  q->blind = err != 0;
  return err;
}

/* As the thread waits, without one: two hops between threads less. msgrcv(2)
 * knows no deadline. */
int ipc_msgq_wait(Handle *h, int want, Nanos deadline) {
  MsgQueue *q = (MsgQueue *)h;
  if (want != IPC_READ || q->id < 0 || deadline != IPC_FOREVER)
    return EAGAIN;
  int err = msgq_settle(q);
  if (err || q->c.ended || held_find(q, &q->want))
    return err;
  long type = 0;
  if (msgrcv(q->id, &type, 0, q->want.type,
             want_flags(&q->want) & ~IPC_NOWAIT) < 0)
    return errno == EINTR ? EINTR : 0; /* the next look tells what it is */
  q->job.found = type;
  return msgq_collect(q);
}

int ipc_msgq_forking(Handle *h) {
  MsgQueue *q = (MsgQueue *)h;
  ipc_sleeper_stop(&q->sleeper);
  (void)msgq_collect(q);
  return 0;
}

/* The queue says from now on that it is received from here, see `heir`. */
static void msgq_sign(const MsgQueue *q) {
  struct {
    long type;
    char bytes[1];
  } m = {IPC_MSGQ_END, {0}};
  if (msgsnd(q->id, &m, 0, IPC_NOWAIT) == 0)
    (void)msgrcv(q->id, &m, 0, IPC_MSGQ_END, IPC_NOWAIT | MSG_NOERROR);
}

/* In the child. An end came with all that it has. Of a named queue the parent's
 * messages in hand, its descriptor and its duty to remove are not ours. */
void ipc_msgq_forked(Handle *h, bool child) {
  if (!child)
    return;
  MsgQueue *q = (MsgQueue *)h;
  if (h->moves) {
    if (q->ends && !q->left && q->place >= 0)
      atomic_store(&ends_side(q)->pid[q->place], (int)getpid());
    else if (q->owner)
      msgq_sign(q);
    return;
  }
  held_clear(q);
  q->viewed = NULL;
  q->job.found = 0;
  q->owner = false;
  ipc_sleeper_close(&q->sleeper, true);
}

/* -------------------------------------------------------------- receiving */

/* The queue was removed, whichever way the system says so. */
int ipc_msgq_gone(MsgQueue *q) {
  q->gone = true;
  q->c.ended = q->c.failed = EPIPE;
  return EPIPE;
}

bool ipc_msgq_removed(int err) { return err == EIDRM || err == EINVAL; }

int ipc_msgq_status(const MsgQueue *q, struct msqid_ds *status) {
  return msgctl(q->id, IPC_STAT, status) ? errno : 0;
}

static int msgq_waits(MsgQueue *q) {
  bool selects = q->want.type || q->want.except;
  q->c.h.nap = q->blind             ? MSGQ_NAP_BLIND
               : q->ends && selects ? MSGQ_NAP_END
                                    : 0;
  return EAGAIN;
}

/* The last writer of a pair has left, and nothing that is wanted is there. */
static int msgq_drained(MsgQueue *q) {
  if (q->want.type == 0 && !q->want.except) {
    (void)msgctl(q->id, IPC_RMID, NULL); /* tells the other readers */
    return ipc_msgq_gone(q);
  }
  return EPIPE;
}

/* Takes a message that is longer than the limit, or was a moment ago. */
static int msgq_take_large(MsgQueue *q, const Want *want, size_t *size) {
  struct msqid_ds status;
  int err = ipc_msgq_status(q, &status);
  if (err)
    return ipc_msgq_removed(err) ? ipc_msgq_gone(q) : err;
  /* No message has more bytes than the whole queue. */
  Held *h = held_new(q, ipc_os_msg_bytes(&status));
  if (!h)
    return ENOMEM;
  ssize_t n = msgrcv(q->id, &h->type, h->room, want->type,
                     want_flags(want) | MSG_NOERROR);
  if (n < 0) {
    err = errno;
    held_free(q, h);
    return err == ENOMSG || err == EINTR ? EAGAIN : err;
  }
  *size = (size_t)n;
  if (*size <= q->c.limit) {
    held_add(q, h, *size);
    return 0;
  }
  held_free(q, h);
  return EMSGSIZE;
}

/* Takes the next wanted message in hand. EMSGSIZE: it had *size bytes and is
 * gone. */
static int msgq_take(MsgQueue *q, const Want *want, size_t *size) {
  Held *h = held_new(q, q->c.limit);
  if (!h)
    return ENOMEM;
  ssize_t n = msgrcv(q->id, &h->type, h->room, want->type, want_flags(want));
  int err = n < 0 ? errno : 0;
  if (!err && (size_t)n <= q->c.limit) {
    held_add(q, h, (size_t)n);
    return 0;
  }
  held_free(q, h);
  if (!err) {
    *size = (size_t)n;
    return EMSGSIZE;
  }
  if (err == E2BIG)
    return msgq_take_large(q, want, size);
  if (ipc_msgq_removed(err))
    return ipc_msgq_gone(q);
  return err == ENOMSG || err == EINTR ? EAGAIN : err;
}

/* Before the kernel is asked: a message sent before the last writer left is
 * found then. */
static bool msgq_ends(const MsgQueue *q) {
  return q->ends && atomic_load(&q->ends->census->writers.count) == 0;
}

/* The next wanted message is in hand then. */
static int msgq_next(MsgQueue *q, const Held **found, size_t *size) {
  int err = msgq_settle(q);
  if (err)
    return err;
  *found = held_find(q, &q->want);
  if (*found && !q->want.except && q->want.type < 0 && (*found)->type > 1) {
    /* A lower one in the queue comes first. */
    Want lower = {1 - (*found)->type, false};
    if (!q->c.ended && msgq_take(q, &lower, size) == EMSGSIZE)
      return EMSGSIZE;
    *found = held_find(q, &q->want);
  }
  if (*found)
    return 0;
  if (q->c.ended)
    return q->c.ended;
  bool ends = msgq_ends(q);
  err = msgq_take(q, &q->want, size);
  if (err == EAGAIN)
    return ends ? msgq_drained(q) : msgq_waits(q);
  if (err)
    return err;
  *found = held_find(q, &q->want);
  if (q->ends && (*found)->type == IPC_MSGQ_END) {
    held_remove(q, *found);
    return msgq_drained(q);
  }
  return 0;
}

int ipc_msgq_recv(Chan *c, Message *m) {
  MsgQueue *q = (MsgQueue *)c;
  const Held *h = NULL;
  if (m->except && !ipc_os_msg_except)
    return ENOTSUP;
  q->want = (Want){(long)m->tag, m->except};
  int err = msgq_next(q, &h, &m->size);
  if (err)
    return err;
  q->viewed = h;
  m->bytes = h->bytes;
  m->size = h->size;
  m->tag = h->type;
  return 0;
}

void ipc_msgq_took(Chan *c, size_t size) {
  MsgQueue *q = (MsgQueue *)c;
  (void)size;
  held_remove(q, q->viewed);
  q->viewed = NULL;
}

/* Whether a message is there, which stays there unless it is empty. */
static int msgq_probe(MsgQueue *q) {
  long type = 0;
  bool ends = msgq_ends(q);
  if (msgrcv(q->id, &type, 0, q->want.type, want_flags(&q->want)) < 0) {
    if (errno == E2BIG)
      return 0;
    if (ipc_msgq_removed(errno))
      return ipc_msgq_gone(q);
    if (errno != ENOMSG && errno != EINTR)
      return errno;
    return ends ? msgq_drained(q) : msgq_waits(q);
  }
  q->job.found = type;
  return msgq_collect(q);
}

static int msgq_ready_read(MsgQueue *q, bool ask_kernel) {
  if (q->c.held)
    return q->c.held;
  (void)msgq_collect(q);
  if (held_find(q, &q->want))
    return 0;
  if (q->c.ended)
    return q->c.ended;
  if (!ask_kernel || q->id < 0)
    return msgq_waits(q);
  if (ipc_sleeper_asleep(&q->sleeper)) {
    /* It is asking already. To look at once means to end it, so that is done
     * only where there is something to be seen. */
    struct msqid_ds status;
    if (q->want.type || q->want.except ||
        (ipc_msgq_status(q, &status) == 0 && status.msg_qnum == 0))
      return msgq_waits(q);
  }
  int err = msgq_settle(q);
  if (err || held_find(q, &q->want))
    return err;
  return msgq_probe(q);
}

/* ---------------------------------------------------------------- sending */

static int msgq_full(MsgQueue *q) {
  q->c.h.nap = q->nap;
  return EAGAIN;
}

static int msgq_refused(MsgQueue *q, size_t size) {
  q->refused = size;
  q->nap = q->nap ? q->nap * 2 : MSGQ_NAP;
  if (q->nap > MSGQ_NAP_MOST)
    q->nap = MSGQ_NAP_MOST;
  return msgq_full(q);
}

static int msgq_put(const MsgQueue *q, const Held *h) {
  return msgsnd(q->id, &h->type, h->size, IPC_NOWAIT) ? errno : 0;
}

/* EINVAL says that the queue was removed, or that the message is longer than
 * the system allows now. */
static int msgq_invalid(MsgQueue *q) {
  struct msqid_ds status;
  long long most = 0;
  int err = ipc_msgq_status(q, &status);
  if (ipc_msgq_removed(err))
    return ipc_msgq_gone(q);
  if (ipc_os_limit("kernel.msgmax", &most) == 0 && most >= 0 &&
      (size_t)most < q->c.limit)
    q->c.limit = (size_t)most;
  return EMSGSIZE;
}

int ipc_msgq_send(Chan *c, const Message *m) {
  MsgQueue *q = (MsgQueue *)c;
  long type = (long)m->tag;
  q->out.size = 0;
  int err = ipc_buffer_reserve(&q->out, sizeof type + m->size);
  if (err)
    return err;
  memcpy(q->out.bytes, &type, sizeof type);
  if (m->size)
    memcpy(q->out.bytes + sizeof type, m->bytes, m->size);
  /* The size is that of the bytes behind the type: msgsnd(2). */
  if (msgsnd(q->id, q->out.bytes, m->size, IPC_NOWAIT) == 0) {
    q->refused = 1;
    q->nap = 0;
    return 0;
  }
  switch (errno) {
  case EAGAIN:
  case EINTR:
    return msgq_refused(q, m->size);
  case EIDRM:
    return ipc_msgq_gone(q);
  case EINVAL:
    return msgq_invalid(q);
  default:
    return errno;
  }
}

int ipc_msgq_flush(Chan *c) {
  (void)c; /* a message is out or not */
  return 0;
}

/* The writers of a pair's queue without this one. The last leaves word for
 * readers that sleep; where the queue is full nobody does. */
static void msgq_leave(MsgQueue *q) {
  if (q->left)
    return;
  q->left = true;
  if (side_leave(&q->ends->census->writers, q->place) > 0 || q->gone)
    return;
  const struct {
    long type;
    char one;
  } end = {IPC_MSGQ_END, 0};
  (void)msgsnd(q->id, &end, 1, IPC_NOWAIT);
}

int ipc_msgq_shutdown(Chan *c) {
  MsgQueue *q = (MsgQueue *)c;
  if (q->ends)
    msgq_leave(q);
  return 0; /* others may send to a named one: its receivers hear nothing */
}

static int msgq_ready_write(MsgQueue *q, bool ask_kernel) {
  struct msqid_ds status;
  if (q->c.failed || q->c.shut)
    return EPIPE;
  if (!ask_kernel) {
    if (!q->nap)
      q->nap = MSGQ_NAP;
    return msgq_full(q);
  }
  int err = ipc_msgq_status(q, &status);
  if (ipc_msgq_removed(err))
    return ipc_msgq_gone(q);
  if (err) /* we may send, but not look */
    return 0;
  size_t bytes = ipc_os_msg_bytes(&status);
  if (status.msg_qnum < status.msg_qbytes && bytes <= status.msg_qbytes &&
      q->refused <= status.msg_qbytes - bytes)
    return 0;
  return msgq_refused(q, q->refused);
}

int ipc_msgq_ready(Handle *h, int want, bool ask_kernel) {
  MsgQueue *q = (MsgQueue *)h;
  return want == IPC_WRITE ? msgq_ready_write(q, ask_kernel)
                           : msgq_ready_read(q, ask_kernel);
}

/* -------------------------------------------------------------- ownership */

static Ends *ends_new(void) {
  Ends *e = malloc(sizeof *e);
  if (!e)
    return NULL;
  void *shared = mmap(NULL, sizeof *e->census, PROT_READ | PROT_WRITE,
                      // cppcheck-suppress invalidFunctionArg ; there is no file
                      MAP_SHARED | MAP_ANON, -1, 0);
  if (shared == MAP_FAILED) {
    free(e);
    return NULL;
  }
  e->census = shared; /* zeroed */
  e->refs = 0;
  return e;
}

static void ends_free(Ends *e) {
  (void)munmap(e->census, sizeof *e->census);
  free(e);
}

static void ends_enter(MsgQueue *q, Ends *e) {
  q->ends = e;
  e->refs++;
  if (!q->left)
    q->place = side_enter(ends_side(q));
}

int ipc_msgq_pair(MsgQueue *reader, MsgQueue *writer) {
  Ends *e = ends_new();
  if (!e)
    return ENOMEM;
  ends_enter(reader, e);
  ends_enter(writer, e);
  return 0;
}

void ipc_msgq_copy(MsgQueue *copy, const MsgQueue *q) {
  copy->id = q->id;
  copy->most = q->most;
  copy->gone = q->gone;
  copy->left = q->left;
  if (q->ends)
    ends_enter(copy, q->ends);
}

/* This end leaves the pair's queue. */
static void ends_leave(MsgQueue *q) {
  Side *readers = &q->ends->census->readers;
  bool sends = q->c.writer != NULL, last = false;
  if (sends)
    msgq_leave(q);
  else
    last = side_leave(readers, q->place) == 0;
  /* A peer that was killed did not leave. */
  if (!q->gone && (last || !side_lives(readers)))
    (void)msgctl(q->id, IPC_RMID, NULL);
}

/* Whether the process that has received last is no more; one that nobody waited
 * for is seen only by its parent. Of a queue that nobody has received from:
 * no. */
static bool msgq_orphaned(const MsgQueue *q) {
  struct msqid_ds status;
  siginfo_t ended = {0};
  pid_t pid = ipc_msgq_status(q, &status) ? 0 : status.msg_lrpid;
  if (pid <= 0)
    return false;
  if (waitid(P_PID, (id_t)pid, &ended, WEXITED | WNOHANG | WNOWAIT) == 0)
    return ended.si_pid == pid;
  return kill(pid, 0) != 0 && errno == ESRCH;
}

/* A pair's queue has nothing but its ends, so these remove it however they
 * end; what moved, or is another process's, is not ended here. */
void ipc_msgq_close(Handle *h, How how) {
  MsgQueue *q = (MsgQueue *)h;
  bool mine = !h->foreign && !h->moved;
  ipc_sleeper_close(&q->sleeper, h->foreign);
  (void)msgq_collect(q);
  if (mine && q->id >= 0) {
    for (const Held *back = q->hand; back && !q->gone; back = back->next)
      (void)msgq_put(q, back); /* behind the others, if there is room */
    if (q->ends)
      ends_leave(q);
    else if (how != IPC_DROP && !q->gone &&
             (q->owner || (q->heir && msgq_orphaned(q))))
      (void)msgctl(q->id, IPC_RMID, NULL);
  }
  if (q->ends && --q->ends->refs == 0)
    ends_free(q->ends);
  q->ends = NULL;
  held_clear(q);
  ipc_buffer_free(&q->out);
}
