/* Reading a journal: from any record on, from file to file, past what was
 * removed; see log.h. A reader believes the control only about how far it may
 * read, and the files about everything else. */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "log.h"
#include "os.h"

enum { TURNS = 100 }; /* files that go under our hands */

static int reader_damaged(Log *l, LogReader *r, const LogName *n, uint64_t at) {
  char words[96];
  snprintf(words, sizeof words, "record %llu is damaged (see ipc.verify)",
           (unsigned long long)r->scan.sequence);
  r->damaged = true;
  return ipc_log_say(l, n, at, words, EBADMSG);
}

/* Those from `from` on up to where reading can go on are not there. */
static int reader_lost(Log *l, LogReader *r, uint64_t first, const char *how) {
  snprintf(l->why, sizeof l->why,
           "records %llu to %llu %s; the first that is there is %llu",
           (unsigned long long)r->next, (unsigned long long)first - 1, how,
           (unsigned long long)first);
  r->lost += first - r->next;
  r->next = first;
  return ESTALE;
}

static int reader_open(Log *l, LogReader *r, const LogName *n) {
  const char *why;
  int fd;
  LogHead h;
  int err = ipc_log_open(l->dir, n, O_RDONLY, &fd, &h, &why, NULL);
  if (err == ENOENT)
    return EAGAIN; /* it has just been removed */
  if (err) {
    r->damaged = err == EBADMSG || err == ENOTSUP;
    return ipc_log_say(l, n, 0, why, err);
  }
  Buffer window = r->scan.window;
  if (r->scan.fd >= 0)
    close(r->scan.fd);
  r->scan.fd = -1;
  r->scan.window = (Buffer){NULL, 0, 0};
  r->head = h;
  r->name = *n;
  ipc_log_scan_start(&r->scan, fd, &r->head);
  r->scan.window = window;
  r->scan.window.size = 0;
  return 0;
}

/* Opens the file in which r->next is, or was. */
static int reader_seek(Log *l, LogReader *r) {
  LogName *list;
  size_t count, i;
  int err = ipc_log_list(l->dir, &list, &count);
  if (err)
    return err;
  for (i = count; i > 0 && list[i - 1].base > r->next; i--)
    continue;
  if (count == 0)
    err = EAGAIN;
  else if (i == 0)
    err = reader_lost(l, r, list[0].base, "were removed");
  else
    err = reader_open(l, r, &list[i - 1]);
  free(list);
  return err;
}

/* The file's records end before r->scan.sequence, which is in a later one. */
static int reader_follow(Log *l, LogReader *r) {
  LogName *list;
  size_t count, i = 0;
  int err = ipc_log_list(l->dir, &list, &count);
  if (err)
    return err;
  while (i < count &&
         (list[i].base < r->name.base ||
          (list[i].base == r->name.base && list[i].number <= r->name.number)))
    i++;
  uint64_t sequence = r->scan.sequence, at = r->scan.at;
  if (i == count) {
    err = reader_damaged(l, r, &r->name, at);
  } else if (list[i].base > sequence && i == 0 && r->next >= sequence) {
    err = reader_lost(l, r, list[0].base, "were removed");
    ipc_log_scan_end(&r->scan);
  } else {
    LogName before = r->name;
    uint32_t chain = r->scan.before;
    err = reader_open(l, r, &list[i]);
    if (!err && list[i].base > sequence) {
      if (r->head.flags & LOG_GAP) {
        if (r->next < list[i].base)
          err = reader_lost(l, r, list[i].base, "were damaged");
      } else {
        r->scan.sequence = sequence;
        err = reader_damaged(l, r, &before, at);
      }
    } else if (!err && (list[i].base < sequence ||
                        (r->head.before != chain && sequence > 1 &&
                         !(r->head.flags & LOG_GAP)))) {
      err = reader_damaged(l, r, &list[i], 0);
    }
  }
  free(list);
  return err;
}

/* One record further: 0: it is r->next. EINPROGRESS: it is not. */
static int reader_step(Log *l, LogReader *r) {
  LogAt t = ipc_log_tail(l);
  r->scan.limit = t.number == r->name.number ? t.at : 0;
  const char *message;
  LogRecord record;
  int err = ipc_log_scan_next(&r->scan, &record, &message);
  if (err == EBADMSG) {
    err = reader_follow(l, r);
    return err ? err : EINPROGRESS;
  }
  if (err || record.behind == 0 || record.sequence < r->next)
    return err ? err : EINPROGRESS;
  if (record.sequence > r->next)
    return reader_damaged(l, r, &r->name, r->scan.at);
  if (record.time < r->since) {
    r->next++;
    return EINPROGRESS;
  }
  r->since = 0;
  r->record = record;
  r->message = message;
  r->have = true;
  return 0;
}

int ipc_log_next(Log *l, LogReader *r) {
  if (r->have)
    return 0;
  if (r->damaged)
    return EBADMSG;
  for (int turns = 0; turns < TURNS;) {
    int err = 0;
    if (r->next > ipc_log_committed(l)) {
      if (atomic_load(&l->c->failed))
        return ipc_log_failed(l, EIO);
      if (!l->hurt || atomic_load(&l->c->ready))
        return EAGAIN;
      err = r->scan.fd < 0 ? reader_seek(l, r) : 0;
      return err ? err : reader_damaged(l, r, &r->name, r->scan.at);
    }
    if (r->scan.fd < 0 || r->next < r->scan.sequence) {
      err = reader_seek(l, r);
      if (err == EAGAIN)
        turns++;
    }
    if (!err)
      err = reader_step(l, r);
    if (err != EAGAIN && err != EINPROGRESS)
      return err;
    if (err == EAGAIN)
      ipc_log_scan_end(&r->scan);
  }
  return ENOENT;
}

void ipc_log_took(LogReader *r) {
  if (!r->have)
    return;
  r->have = false;
  r->next = r->record.sequence + 1;
}

int ipc_log_first(Log *l, uint64_t *sequence) {
  LogName *list;
  size_t count;
  int err = ipc_log_list(l->dir, &list, &count);
  if (err)
    return err;
  *sequence = count ? list[0].base : 1;
  free(list);
  return 0;
}

/* The last file that was begun before then has the first record, or the next
 * one has. */
int ipc_log_since(Log *l, LogReader *r, uint64_t time) {
  LogName *list;
  size_t count;
  int err = ipc_log_list(l->dir, &list, &count);
  if (err)
    return err;
  r->next = count ? list[0].base : 1;
  for (size_t i = 0; i < count; i++) {
    LogHead h;
    const char *why;
    int fd;
    err = ipc_log_open(l->dir, &list[i], O_RDONLY, &fd, &h, &why, NULL);
    if (err == ENOENT || err == EBADMSG)
      continue;
    if (err)
      break;
    close(fd);
    if (i > 0 && h.created > time)
      break;
    r->next = list[i].base;
  }
  if (err == ENOENT || err == EBADMSG)
    err = 0;
  free(list);
  r->since = time;
  return err;
}

void ipc_log_reader_close(LogReader *r) {
  ipc_log_scan_end(&r->scan);
  if (r->place >= 0) {
    ipc_os_fork_forget(r->place);
    close(r->place);
  }
  r->place = -1;
  r->have = false;
}
