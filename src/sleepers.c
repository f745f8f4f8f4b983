/* Those for whom a loop waits itself; see sleepers.h. A sleep that was told of
 * once (Sleeper.look) holds until the word changes: it is looked at again for
 * the price of a read. */
#include "prefix.h"

#include <stdlib.h>

#include "sleepers.h"

/* What is known of a descriptor. */
enum {
  FD_IN = 1,      /* the set has it */
  FD_SILENT = 2,  /* its sleeper's home is here: nothing makes it readable */
  FD_DETACHED = 4 /* a thread took its sleeper over */
};

Sleepers *ipc_sleepers_open(void) { return calloc(1, sizeof(Sleepers)); }

static void sleepers_free(Sleepers *l) {
  free(l->fds);
  free(l);
}

/* --------------------------------------------------------------- descriptors
 */

static bool fds_reserve(Sleepers *l, int fd) {
  size_t known = l->known ? l->known : 64;
  if ((size_t)fd < l->known)
    return true;
  while (known <= (size_t)fd)
    known *= 2;
  unsigned char *fds = realloc(l->fds, known);
  if (!fds)
    return false;
  for (size_t i = l->known; i < known; i++)
    fds[i] = 0;
  l->fds = fds;
  l->known = known;
  return true;
}

static unsigned fds_get(const Sleepers *l, int fd) {
  return fd >= 0 && (size_t)fd < l->known ? l->fds[fd] : 0;
}

/* Of one that is known. */
static void fds_set(Sleepers *l, int fd, unsigned flags) {
  if ((l->fds[fd] & (FD_IN | FD_SILENT)) == FD_IN)
    l->others--;
  if ((flags & (FD_IN | FD_SILENT)) == FD_IN)
    l->others++;
  l->fds[fd] = (unsigned char)flags;
}

void ipc_sleepers_change(Sleepers *l, int fd, bool in) {
  if (fd < 0 || (!in && (size_t)fd >= l->known))
    return;
  if (!fds_reserve(l, fd)) {
    l->blind = true;
    return;
  }
  if (in)
    fds_set(l, fd, l->fds[fd] | FD_IN);
  else
    fds_set(l, fd, l->fds[fd] & FD_SILENT);
}

bool ipc_sleepers_detached(const Sleepers *l, int fd) {
  return (fds_get(l, fd) & FD_DETACHED) != 0;
}

/* ------------------------------------------------------------------- members
 */

/* Nobody waits for it; the descriptor is as it was. */
static void sleeper_leave(Sleeper *s) {
  if (!s->link)
    return;
  *s->link = s->next;
  if (s->next)
    s->next->link = s->link;
  s->link = NULL;
  s->home->count--;
}

bool ipc_sleepers_enter(Sleepers *l, Sleeper *s) {
  if (s->home && s->home != l)
    ipc_sleepers_part(s);
  if (ipc_sleeper_asleep(s) || !fds_reserve(l, s->fd))
    return false;
  if (!s->link) {
    if (l->count >= SLEEPERS_MOST || ipc_os_words() == 0)
      return false;
    s->next = l->first;
    s->link = &l->first;
    if (s->next)
      s->next->link = &s->next;
    l->first = s;
    l->count++;
  }
  if (s->loud)
    ipc_os_event_clear(s->fd);
  if (!s->home) {
    s->home = l;
    l->homes++;
  }
  fds_set(l, s->fd, (l->fds[s->fd] & FD_IN) | FD_SILENT);
  s->loud = s->announced = s->woke = s->there = s->told = false;
  s->slice = OS_SLICE;
  s->due = 0;
  return true;
}

void ipc_sleepers_part(Sleeper *s) {
  Sleepers *l = s->home;
  if (!l)
    return;
  sleeper_leave(s);
  s->home = NULL;
  s->there = s->told = false;
  l->homes--;
  fds_set(l, s->fd, l->fds[s->fd] & FD_IN);
  if (l->gone && l->homes == 0)
    sleepers_free(l);
}

void ipc_sleepers_close(Sleepers *l) {
  while (l->first)
    sleeper_leave(l->first);
  l->gone = true;
  if (l->homes == 0)
    sleepers_free(l);
}

bool ipc_sleepers_detach(Sleepers *l) {
  bool all = true;
  Sleeper *next;
  for (Sleeper *s = l->first; s; s = next) {
    int fd = s->fd;
    int64_t slice = s->slice, due = s->due;
    next = s->next;
    if (ipc_sleeper_detach(s) == 0) {
      fds_set(l, fd, l->fds[fd] | FD_DETACHED);
    } else {
      (void)ipc_sleepers_enter(l, s);
      s->slice = slice; /* its slices go on, or none would find the dead */
      s->due = due;
      all = false;
    }
  }
  return all;
}

/* ------------------------------------------------------------------- the look
 */

void ipc_sleepers_settle(Sleepers *l) {
  Sleeper *next;
  for (Sleeper *s = l->first; s; s = next) {
    next = s->next;
    if (s->told)
      sleeper_leave(s);
  }
}

/* Whether it need not wait, for the price of a read where it can be told. */
static bool sleeper_there(Sleeper *s) {
  if (!s->announced)
    return s->look(s->job, NULL);
  if (!s->woke && atomic_load(s->at.word) == s->at.value)
    return false;
  s->announced = s->woke = false;
  return s->woken(s->job, 0) || s->look(s->job, NULL);
}

/* Whether a slice is over, or nearly so, and the dead changed something. */
static bool sleeper_lapsed(Sleeper *s, int64_t now, bool slice) {
  if (s->due == 0)
    s->due = now + s->slice;
  if (s->due - (slice ? s->slice / 4 : 0) > now)
    return false;
  bool there = s->woken(s->job, s->slice);
  s->announced = false;
  if (s->slice < OS_SLICE_MOST)
    s->slice *= 2;
  s->due = now + s->slice;
  return there;
}

size_t ipc_sleepers_look(Sleepers *l, OsReady *ready, size_t room, int64_t now,
                         bool slice) {
  size_t count = 0;
  Sleeper *next;
  for (Sleeper *s = l->first; s && count < room; s = next) {
    next = s->next;
    if (!s->there)
      s->there = sleeper_there(s) || sleeper_lapsed(s, now, slice);
    if (!s->there)
      continue;
    if (!(l->fds[s->fd] & FD_IN)) {
      sleeper_leave(s); /* nobody asks */
      continue;
    }
    s->told = true;
    ready[count++] = (OsReady){s->fd, POLLIN};
  }
  return count;
}

bool ipc_sleepers_some(const Sleepers *l) {
  for (const Sleeper *s = l->first; s; s = s->next)
    if (!s->told &&
        (s->there || (s->announced ? atomic_load(s->at.word) != s->at.value
                                   : s->look(s->job, NULL))))
      return true;
  return false;
}

/* Tells of a sleep where that is not known, and gathers the words; false: some
 * need not wait. */
static bool sleepers_announce(Sleepers *l, OsWord *words) {
  for (Sleeper *s = l->first; s; s = s->next) {
    if (s->there)
      return false;
    if (!s->announced && s->look(s->job, &s->at)) {
      s->there = true;
      return false;
    }
    s->announced = true;
    *words++ = s->at;
  }
  return true;
}

int ipc_sleepers_wait(Sleepers *l, _Atomic uint32_t *bell, int64_t now,
                      int64_t ns) {
  OsWord words[SLEEPERS_MOST + 1];
  size_t count = l->count, which;
  if (!sleepers_announce(l, words))
    return 0;
  for (const Sleeper *s = l->first; s; s = s->next)
    if (s->due - now < ns)
      ns = s->due > now ? s->due - now : 0;
  if (bell)
    words[count++] = (OsWord){bell, 0};
  int err = ipc_os_words_wait(words, count, ns, &which);
  Sleeper *s = l->first;
  for (size_t i = 0; err == 0 && i < which && s; i++)
    s = s->next;
  if (err == 0 && s && which < l->count)
    s->woke = true;
  return err;
}
