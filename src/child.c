/* A child process as its parent knows it: its end and its signals. It may lead
 * a group: all that it started and that did not leave. No Lua. */
#include "prefix.h"

#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include "child.h"
#include "os.h"

static void child_close(int *fd) {
  if (*fd >= 0)
    close(*fd);
  *fd = -1;
}

static void child_let_go(Child *c) {
  if (c->life >= 0)
    ipc_os_fork_forget(c->life);
  child_close(&c->life);
}

static int child_pidfd(const Child *c) { return c->pidfd ? c->ended : -1; }

/* As long as it has not been reaped its number is the group's, too. */
static void child_purge(Child *c, bool reaped) {
  if (c->leads)
    (void)ipc_os_kill_group(c->pid, child_pidfd(c), SIGKILL, reaped);
}

int ipc_child_reap(Child *c) {
  if (c->reaped)
    return 0;
  if (c->stopped) {
    int err = ipc_os_ended(c->pid);
    if (err == EAGAIN)
      return err;
    child_purge(c, err != 0);
  }
  int err = ipc_os_reap(c->pid, &c->status, &c->usage);
  if (err == EAGAIN)
    return err;
  c->known = c->used = err == 0;
  if (err && c->pidfd) { /* SIGCHLD is ignored, or another wait took it */
    err = ipc_os_past(c->ended, &c->status);
    if (err == EAGAIN)
      return err;
    c->known = err == 0;
  }
  c->reaped = true;
  child_let_go(c);
  return 0;
}

void ipc_child_stop(Child *c) {
  c->stopped = true;
  if (c->reaped)
    child_purge(c, true);
}

int ipc_child_kill(Child *c, int signal, bool group) {
  if (group && c->leads) {
    /* Others of the group may live on after it. */
    bool gone = c->reaped;
    int err = gone ? 0 : ipc_os_ended(c->pid);
    gone = gone || (err && err != EAGAIN);
    err = ipc_os_kill_group(c->pid, child_pidfd(c), signal, gone);
    return err == ENOTSUP ? ESRCH : err;
  }
  if (ipc_child_reap(c) == 0)
    return ESRCH;
  return ipc_os_kill(c->pid, child_pidfd(c), signal);
}

void ipc_child_drop(Child *c, bool ours) {
  if (--c->handles > 0)
    return;
  child_close(&c->ended);
  child_close(&c->report);
  if (ours && !c->reaped)
    ipc_os_orphan(c->pid, c->life);
  else if (!ours)
    c->life = -1; /* closed with the fork */
  else
    child_let_go(c);
}
