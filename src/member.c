/* Participants of segments as handles have them: without names, through forks,
 * on their way to other processes. No Lua; see member.h. */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "member.h"
#include "os.h"

/* ---------------------------------------------------------------- nameless */

/* Where memory has no nameless files: by a name that nobody guesses, until the
 * last one is out, or for a moment where what is open can be opened again. */
static int member_hidden(Member *m, SegmentAsk *ask) {
  char path[MEMBER_PATH];
  uint8_t bits[8]; /* as the names that are swept have them */
  int again;
  const char *folder = ask->kept ? getenv("TMPDIR") : ipc_os_memory_directory();
  folder = folder && *folder ? folder : "/tmp";
  int n = snprintf(path, sizeof path, "%s/ipc", folder);
  if (n < 0 || (size_t)n + 2 * sizeof bits + 3 >= sizeof path)
    return ENAMETOOLONG;
  ipc_segment_sweep(path);
  n = snprintf(path, sizeof path, "%s/.ipc.", folder);
  ipc_os_random(bits, sizeof bits);
  for (size_t i = 0; i < sizeof bits; i++)
    n += snprintf(path + n, 3, "%02x", bits[i]);
  ask->path = path;
  ask->create = IPC_CREATE_NEW;
  int err = ipc_segment_attach(&m->s, ask);
  ask->path = NULL;
  if (err)
    return err;
  m->path = strdup(path);
  m->hidden = true;
  if (!m->path) {
    ipc_segment_leave(&m->s, path, SEGMENT_REMOVE);
    return ENOMEM;
  }
  if (ipc_os_reopen(m->s.fd, O_RDWR | O_CLOEXEC, &again) == 0) {
    close(again);
    while (ipc_segment_remove(&m->s, path) == EAGAIN)
      continue;
    free(m->path);
    m->path = NULL;
    m->hidden = false;
  }
  return 0;
}

/* Whether what has no name cannot be opened again: nobody could join it. */
static bool member_lonely(const Segment *s) {
  int again, err = ipc_os_reopen(s->fd, O_RDWR | O_CLOEXEC, &again);
  if (!err)
    close(again);
  return err == ENOTSUP;
}

int ipc_member_nameless(Member *m, SegmentAsk *ask) {
  int err = ENOTSUP;
  ask->create = IPC_CREATE;
  if (!ask->kept)
    err = ipc_segment_attach(&m->s, ask);
  if (!err && member_lonely(&m->s))
    err = ENOTSUP;
  if ((err == ENOSYS || err == ENOTSUP) && ipc_segment_possible()) {
    ipc_segment_abandon(&m->s);
    err = member_hidden(m, ask);
  }
  m->begun = !err;
  return err;
}

/* ------------------------------------------------------------- close, fork */

void ipc_member_spare_end(Member *m) {
  if (m->spare)
    ipc_segment_abandon(m->spare);
  free(m->spare);
  m->spare = NULL;
}

void ipc_member_close(Member *m, const Handle *h, How how) {
  bool foreign = h->foreign || h->generation != ipc_generation;
  if (foreign) /* closed when the process forked */
    m->s.fd = -1;
  if (foreign && m->spare)
    m->spare->fd = -1;
  ipc_member_spare_end(m);
  if (foreign || h->moved || !m->begun)
    ipc_segment_abandon(&m->s);
  else
    ipc_segment_leave(&m->s, m->path,
                      how == IPC_DROP             ? SEGMENT_LEAVE
                      : m->temporary && m->s.made ? SEGMENT_REMOVE
                                                  : SEGMENT_SETTLE);
  m->begun = false;
  free(m->path);
  m->path = NULL;
}

int ipc_member_spare(Member *m, Nanos patience) {
  if (m->spare)
    return 0;
  m->spare = calloc(1, sizeof *m->spare);
  if (!m->spare)
    return ENOMEM;
  int err = ipc_segment_second(m->spare, &m->s, m->path, m->s.roles, patience);
  if (err) {
    free(m->spare);
    m->spare = NULL;
  }
  return err;
}

int ipc_member_forking(Member *m, bool moves) {
  int err = moves ? 0 : ipc_member_spare(m, MEMBER_FORK_PATIENCE);
  if (!err)
    ipc_os_fork_keep(moves ? m->s.fd : m->spare->fd, true);
  /* Without a place the child has none, as it is told when it wants one. */
  return err == ENOTSUP || err == EBUSY || err == EUSERS ? 0 : err;
}

void ipc_member_forked(Member *m, bool moves, bool child) {
  if (moves) {
    ipc_os_fork_keep(m->s.fd, false);
    return;
  }
  if (m->spare)
    ipc_os_fork_keep(m->spare->fd, false);
  if (child) {
    m->s.fd = -1; /* closed when the process forked */
    ipc_segment_abandon(&m->s);
    if (m->spare)
      m->s = *m->spare;
    else
      m->begun = false;
    free(m->spare);
    m->spare = NULL;
  } else {
    ipc_member_spare_end(m); /* the child has it, or there is no child */
  }
}

/* ----------------------------------------------------------------- passing */

int ipc_member_give(Member *m, const char *kind, bool moves, Given *g) {
  const Segment *s = &m->s;
  if (!moves) { /* an object: a participant of its own goes */
    int err = ipc_member_spare(m, MEMBER_GIVE_PATIENCE);
    if (err)
      return err == EBUSY ? EUSERS : err;
    s = m->spare;
  }
  *g = (Given){.kind = kind,
               .fd = {s->fd, -1},
               .count = 1,
               .place = s->slot << 2 | s->roles};
  return 0;
}

/* From whoever it may be: what has no name must be sealed, or they could cut
 * it under our hands. */
static int member_trust(int fd, bool file) {
  struct stat is;
  if (fstat(fd, &is))
    return errno;
  if (ipc_os_memory_sealed(fd))
    return 0;
  if (is.st_uid != geteuid())
    return EPERM;
  if (is.st_nlink > 0 || file)
    return 0;
  size_t page;
  int sealable, err = ipc_os_memory_sealable(false, &sealable, &page);
  if (!err)
    close(sealable);
  return err == ENOSYS || err == ENOTSUP ? 0 /* nobody can seal here */ : EPERM;
}

/* The name that it came without, so that the last one out removes it. */
static void member_named(Member *m) {
  char path[MEMBER_PATH];
  if (ipc_os_path(m->s.fd, path, sizeof path) ||
      !ipc_segment_named(&m->s, path))
    return;
  const char *slash = strrchr(path, '/');
  m->path = strdup(path);
  m->hidden = slash && strncmp(slash, "/.ipc.", 6) == 0;
}

int ipc_member_take(Member *m, const MemberRoom *room, const Given *g) {
  unsigned roles = g->place & 3;
  if (!roles)
    return EINVAL;
  int err = member_trust(g->fd[0], room->file);
  if (!err)
    err = ipc_segment_adopt(&m->s, g->fd[0], room->kind, g->place >> 2, roles);
  m->begun = !err;
  if (!err)
    member_named(m);
  return err;
}

void ipc_member_taken(Given *g) {
  close(g->fd[0]); /* the segment has one of its own */
  g->count = 1;
}
