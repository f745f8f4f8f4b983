/* See pollset.h. Each descriptor is told to the kernel once, with all that its
 * watches wait for. */
#include "prefix.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pollset.h"

enum { POLLSET_NAP = 1000 }; /* us, of what could not be told to the kernel */

#define MEMBER_OF(pointer, type, field)                                        \
  ((type *)(void *)((char *)(pointer)-offsetof(type, field)))

/* ------------------------------------------------------------------ lists */

static void knot_clear(Knot *k) { k->next = k->prev = k; }

static void knot_leave(Knot *k) {
  if (!k->next)
    return;
  k->next->prev = k->prev;
  k->prev->next = k->next;
  k->next = k->prev = NULL;
}

/* To the end, from wherever it is. */
static void knot_enter(Knot *list, Knot *k) {
  knot_leave(k);
  k->prev = list->prev;
  k->next = list;
  k->prev->next = k;
  list->prev = k;
}

static bool knot_empty(const Knot *list) { return list->next == list; }

/* ------------------------------------------------------------ descriptors */

static int slot_reserve(Pollset *p, int fd) {
  size_t count = p->slot_count ? p->slot_count : 64;
  if ((size_t)fd < p->slot_count)
    return 0;
  while (count <= (size_t)fd)
    count *= 2;
  Slot *slots = realloc(p->slots, count * sizeof *slots);
  if (!slots)
    return ENOMEM;
  memset(slots + p->slot_count, 0, (count - p->slot_count) * sizeof *slots);
  p->slots = slots;
  p->slot_count = count;
  return 0;
}

/* The kernel is told what the watches of a descriptor wait for; `again`: even
 * if it was told before. */
static int slot_tell(Pollset *p, int fd, bool again) {
  Slot *s = &p->slots[fd];
  short events = 0;
  for (const Watch *w = s->first; w; w = w->next)
    events = (short)(events | w->events);
  if (events == s->events && !again)
    return 0;
  int err = ipc_os_set_change(p->os, fd, events, !s->events);
  s->events = events;
  if (err)
    s->events = 0;
  return err;
}

static void watch_drop(Watch *w) {
  Pollset *p = w->of->set;
  int fd = w->fd;
  if (fd < 0)
    return;
  Watch **at = &p->slots[fd].first;
  while (*at != w)
    at = &(*at)->next;
  *at = w->next;
  w->fd = -1;
  (void)slot_tell(p, fd, false);
}

/* The kernel tells of w under this descriptor (-1: none) from now on. */
static int watch_set(Watch *w, int fd, short events, bool again) {
  Pollset *p = w->of->set;
  if (w->fd == fd && (fd < 0 || w->events == events) && !again)
    return 0;
  if (w->fd != fd)
    watch_drop(w);
  if (fd < 0)
    return 0;
  int err = slot_reserve(p, fd);
  if (err)
    return err;
  w->events = events;
  if (w->fd < 0) {
    w->next = p->slots[fd].first;
    p->slots[fd].first = w;
    w->fd = fd;
  }
  err = slot_tell(p, fd, again);
  if (err)
    watch_drop(w);
  return err;
}

/* ---------------------------------------------------------------- members */

static bool member_usable(const Member *m) {
  return !m->gone && (!m->handle || ipc_handle_usable(m->handle));
}

/* Whether the kernel alone does not tell when it is ready. */
static bool member_is_restless(const Member *m) {
  if (m->asleep || m->gone)
    return false;
  if (m->foreign || m->always)
    return true;
  for (int i = 0; m->handle && i < 2; i++) {
    const Watch *w = &m->watch[i];
    if (!w->want)
      continue;
    const Handle *part = ipc_handle_part(m->handle, w->want);
    if (w->fd < 0 || part->nap || part->ops->arm)
      return true;
  }
  return false;
}

static int watch_sync(Watch *w, bool again) {
  Member *m = w->of;
  int fd = -1;
  short events = (short)(w->want == IPC_WRITE ? POLLOUT : POLLIN);
  if (w->want && !m->asleep && member_usable(m)) {
    fd = m->fd;
    if (m->handle) {
      const Handle *part = ipc_handle_part(m->handle, w->want);
      bool has = part->open && !part->nap;
      fd = has ? part->ops->descriptor(part, w->want) : -1;
      events = ipc_handle_events(part, w->want);
    }
  }
  return watch_set(w, fd, events, again);
}

static int member_sync(Member *m, bool again) {
  int err = 0;
  m->always = false;
  for (int i = 0; i < 2; i++) {
    int failed = watch_sync(&m->watch[i], again);
    if (failed == EPERM)
      m->always = true;
    else if (failed)
      err = failed;
  }
  if (!member_is_restless(m))
    knot_leave(&m->restless);
  else if (!m->restless.next)
    knot_enter(&m->set->restless, &m->restless);
  return err;
}

/* What m->want means for each watch; the parts of a duplex are observed. */
static void member_want(Member *m) {
  for (int i = 0; i < 2; i++) {
    Watch *w = &m->watch[i];
    int want = m->want & (i == 0 ? IPC_READ | IPC_ENDED : IPC_WRITE);
    ipc_observer_leave(&w->part);
    w->want = want;
    Handle *part =
        want && m->handle ? ipc_handle_part(m->handle, want) : m->handle;
    if (part != m->handle && part->open)
      ipc_handle_observe(part, &w->part);
  }
}

static void member_heat(Member *m) {
  if (!m->asleep && !m->hot.next)
    knot_enter(&m->set->hot, &m->hot);
}

/* In a forked child the set is the parent's: it hears nothing of ours. */
static void member_told(Member *m, Observer *o, bool going) {
  if (m->set->by->generation != ipc_generation)
    return;
  for (int i = 0; going && i < 2; i++)
    if (o == &m->self || o == &m->watch[i].part)
      watch_drop(&m->watch[i]);
  m->gone = m->gone || !ipc_handle_usable(m->handle);
  if (m->gone)
    m->asleep = false; /* its end is told in any case */
  member_heat(m);
}

static void self_told(Observer *o, bool going) {
  member_told(MEMBER_OF(o, Member, self), o, going);
}

static void part_told(Observer *o, bool going) {
  member_told(MEMBER_OF(o, Watch, part)->of, o, going);
}

int ipc_pollset_add(Pollset *p, Member *m) {
  m->set = p;
  m->self.tell = self_told;
  m->self.by = p->by;
  for (int i = 0; i < 2; i++) {
    m->watch[i].of = m;
    m->watch[i].fd = -1;
    m->watch[i].part.tell = part_told;
    m->watch[i].part.by = p->by;
  }
  m->gone = !member_usable(m);
  p->count++;
  if (!m->gone && m->handle)
    ipc_handle_observe(m->handle, &m->self);
  if (!m->gone)
    member_want(m);
  int err = member_sync(m, false);
  if (m->handle)
    member_heat(m);
  return err;
}

void ipc_pollset_remove(Member *m) {
  ipc_observer_leave(&m->self);
  for (int i = 0; i < 2; i++) {
    ipc_observer_leave(&m->watch[i].part);
    watch_drop(&m->watch[i]);
  }
  if (m->found.next)
    m->set->found_count--;
  knot_leave(&m->found);
  knot_leave(&m->hot);
  knot_leave(&m->restless);
  m->set->count--;
}

int ipc_pollset_modify(Member *m) {
  if (m->gone)
    return 0;
  m->asleep = false;
  member_want(m);
  int err = member_sync(m, true);
  if (m->handle)
    member_heat(m);
  return err;
}

void ipc_pollset_sync(Member *m) {
  member_want(m);
  (void)member_sync(m, true); /* another file, perhaps, under the same number */
}

/* ---------------------------------------------------------------- the set */

int ipc_pollset_open(Pollset *p, Handle *by) {
  memset(p, 0, sizeof *p);
  p->by = by;
  knot_clear(&p->hot);
  knot_clear(&p->restless);
  knot_clear(&p->found);
  return ipc_os_set_open(&p->os);
}

void ipc_pollset_abandon(Member *m) {
  ipc_observer_leave(&m->self);
  for (int i = 0; i < 2; i++)
    ipc_observer_leave(&m->watch[i].part);
}

void ipc_pollset_close(Pollset *p) {
  if (p->os)
    ipc_os_set_close(p->os);
  p->os = NULL;
  free(p->slots);
  free(p->ready);
  p->slots = NULL;
  p->ready = NULL;
  p->slot_count = p->room = p->count = p->found_count = 0;
  knot_clear(&p->hot);
  knot_clear(&p->restless);
  knot_clear(&p->found);
}

void ipc_pollset_find(Member *m, int hits) {
  m->hits |= hits;
  if (m->found.next)
    return;
  knot_enter(&m->set->found, &m->found);
  m->set->found_count++;
}

/* Whether m is ready, for what. */
static int member_hits(Member *m, bool ask_kernel) {
  m->gone = !member_usable(m);
  if (m->gone || !m->handle)
    return m->gone || m->always ? m->want : 0;
  return ipc_handle_hits(m->handle, m->want, ask_kernel);
}

/* What was read ahead in asking is found without the kernel next time. */
void ipc_pollset_look(Pollset *p, size_t most) {
  Knot *end = p->hot.prev, *next, *k;
  bool last = knot_empty(&p->hot);
  for (k = p->hot.next; !last && p->found_count < most; k = next) {
    Member *m = MEMBER_OF(k, Member, hot);
    next = k->next;
    last = k == end;
    int hits = member_hits(m, false);
    knot_leave(k);
    if (hits) {
      ipc_pollset_find(m, hits);
      knot_enter(&p->hot, k);
    } else {
      (void)member_sync(m, false);
    }
  }
  end = p->restless.prev;
  last = knot_empty(&p->restless);
  for (k = p->restless.next; !last && p->found_count < most; k = next) {
    Member *m = MEMBER_OF(k, Member, restless);
    next = k->next;
    last = k == end;
    int hits = member_hits(m, true);
    if (hits) {
      ipc_pollset_find(m, hits);
      knot_enter(&p->restless, k);
    }
    (void)member_sync(m, false);
  }
}

/* The kernel calls a descriptor ready. */
static void slot_ready(Pollset *p, const OsReady *r) {
  if ((size_t)r->fd >= p->slot_count)
    return;
  Watch *next;
  for (Watch *w = p->slots[r->fd].first; w; w = next) {
    Member *m = w->of;
    next = w->next;
    if (!(r->events & (w->events | POLLERR | POLLHUP | POLLNVAL)))
      continue;
    if (m->handle && !ipc_handle_hits(m->handle, w->want, true)) {
      if (ipc_handle_part(m->handle, w->want)->nap) { /* it will not help */
        next = NULL; /* the others are told of next time */
        (void)member_sync(m, false);
      }
      continue;
    }
    ipc_pollset_find(m, member_usable(m) ? w->want : m->want);
    if (m->handle)
      member_heat(m);
  }
}

int ipc_pollset_kernel(Pollset *p, size_t most, Nanos timeout) {
  size_t room = p->count < most ? p->count : most, count = 0;
  room = room ? room : 1;
  if (room > p->room) {
    OsReady *ready = realloc(p->ready, room * sizeof *ready);
    if (!ready)
      return ENOMEM;
    p->ready = ready;
    p->room = room;
  }
  int err = ipc_os_set_wait(p->os, p->ready, room, timeout, &count);
  for (size_t i = 0; i < count; i++)
    slot_ready(p, &p->ready[i]);
  return err;
}

Nanos ipc_pollset_arm(Pollset *p, Nanos deadline) {
  Knot *next;
  for (Knot *k = p->restless.next; k != &p->restless; k = next) {
    Member *m = MEMBER_OF(k, Member, restless);
    bool tells = !m->always;
    next = k->next;
    if (m->due < deadline)
      deadline = m->due;
    for (int i = 0; m->handle && i < 2; i++) {
      Watch *w = &m->watch[i];
      if (!w->want)
        continue;
      Handle *part = ipc_handle_part(m->handle, w->want);
      int fd = part->open ? ipc_handle_watch(part, w->want, NULL) : -1;
      short events = ipc_handle_events(part, w->want);
      if (watch_set(w, fd, events, false) && fd >= 0)
        tells = false;
      deadline = ipc_handle_nap(part, deadline);
    }
    if (m->handle && !tells && deadline > ipc_now() + POLLSET_NAP * 1000)
      deadline = ipc_now() + POLLSET_NAP * 1000;
  }
  return deadline;
}

bool ipc_pollset_ready(Pollset *p, bool ask_kernel) {
  bool some = false;
  if (p->asked) /* pollers in a circle */
    return false;
  p->asked = true;
  for (Knot *k = p->hot.next; k != &p->hot && !some; k = k->next)
    some = member_hits(MEMBER_OF(k, Member, hot), false) != 0;
  for (Knot *k = p->restless.next; k != &p->restless && !some; k = k->next)
    some = member_hits(MEMBER_OF(k, Member, restless), ask_kernel) != 0;
  if (!some && ask_kernel) {
    (void)ipc_pollset_kernel(p, p->count, 0);
    some = !knot_empty(&p->found);
    ipc_pollset_forget(p);
  }
  p->asked = false;
  return some;
}

Member *ipc_pollset_next(Pollset *p, int *hits) {
  if (knot_empty(&p->found))
    return NULL;
  Member *m = MEMBER_OF(p->found.next, Member, found);
  knot_leave(&m->found);
  p->found_count--;
  *hits = m->hits;
  m->hits = 0;
  if (m->foreign)
    m->due = IPC_FOREVER;
  if (m->once && !m->gone) {
    m->asleep = true;
    knot_leave(&m->hot);
    (void)member_sync(m, false);
  }
  return m;
}

void ipc_pollset_forget(Pollset *p) {
  while (!knot_empty(&p->found)) {
    Member *m = MEMBER_OF(p->found.next, Member, found);
    knot_leave(&m->found);
    m->hits = 0;
  }
  p->found_count = 0;
}
