/* Looking at every byte of a journal, and making one that is damaged readable
 * again: what is valid stays, byte for byte, what is not is put aside and never
 * removed. See log.h. */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "log.h"
#include "os.h"

#define REPAIR_NEW "repair.tmp"

enum { TURNS = 20 };

/* Records that follow one another without a fault. */
typedef struct Run {
  uint64_t from, to; /* bytes of the file */
  uint64_t base;     /* the first sequence */
  uint32_t before;
} Run;

typedef struct Check {
  int dir;
  bool repair;
  LogReport *report;
  char *words;
  bool gap;        /* what comes before the next file is lost, and settled */
  uint64_t next;   /* the sequence that the next file should begin with */
  uint32_t before; /* and the checksum; both of no account for the first */
  bool first, chained;
  uint64_t promised; /* was on the disk, of the journal `id` */
  uint8_t id[16], last_id[16];
} Check;

static int check_damage(Check *c, const LogName *n, uint64_t offset,
                        uint64_t sequence, const char *format, ...) {
  LogReport *p = c->report;
  va_list more;
  if (p->damages == p->room) {
    size_t room = p->room ? p->room * 2 : 8;
    LogDamage *all = realloc(p->damage, room * sizeof *all);
    if (!all)
      return ENOMEM;
    p->damage = all;
    p->room = room;
  }
  LogDamage *d = &p->damage[p->damages++];
  ipc_log_name(n, d->file);
  d->offset = offset;
  d->sequence = sequence;
  va_start(more, format);
  vsnprintf(d->reason, sizeof d->reason, format, more);
  va_end(more);
  return 0;
}

/* ------------------------------------------------------------------ repair */

/* NAME becomes NAME.aside, NAME.1.aside, ...; with `keep` it stays, too. */
static int repair_aside(Check *c, const char *name, bool keep) {
  char aside[LOG_NAME + 16];
  snprintf(aside, sizeof aside, "%s.aside", name);
  for (int i = 1; i < 1000; i++) {
    if (linkat(c->dir, name, c->dir, aside, 0) == 0)
      break;
    if (errno != EEXIST)
      return errno;
    snprintf(aside, sizeof aside, "%s.%d.aside", name, i);
  }
  c->report->repaired++;
  int err = ipc_os_sync_file(c->dir);
  if (!err && !keep && unlinkat(c->dir, name, 0))
    err = errno;
  return err ? err : ipc_os_sync_file(c->dir);
}

/* A file of one run; fd -1: an empty one. */
static int repair_write(Check *c, int fd, const Run *run, LogHead h) {
  char bytes[16 << 10], name[LOG_NAME];
  h.base = run->base;
  h.before = run->before;
  h.size = LOG_START + (run->to - run->from);
  ipc_log_name(&(LogName){h.base, h.number}, name);
  (void)unlinkat(c->dir, REPAIR_NEW, 0);
  int out = openat(c->dir, REPAIR_NEW,
                   O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (out < 0)
    return errno;
  int err = ipc_os_allocate(out, h.size);
  for (uint64_t at = run->from; !err && at < run->to;) {
    size_t some =
        run->to - at < sizeof bytes ? (size_t)(run->to - at) : sizeof bytes;
    size_t got = 0;
    err = ipc_log_read(fd, bytes, some, at, &got);
    if (!err && got < some)
      err = EIO;
    if (!err)
      err = ipc_log_write(out, bytes, some, LOG_START + (at - run->from), &got);
    at += some;
  }
  if (!err)
    err = ipc_log_put_head(out, &h);
  close(out);
  if (!err && renameat(c->dir, REPAIR_NEW, c->dir, name))
    err = errno;
  return err ? err : ipc_os_sync_file(c->dir);
}

/* The file as its runs: those behind the first first, so that nothing is
 * missing at any time. */
static int repair_split(Check *c, int fd, const LogHead *h, const Run *runs,
                        size_t count) {
  char name[LOG_NAME];
  LogHead head = *h;
  int err = 0;
  ipc_log_name(&(LogName){h->base, h->number}, name);
  head.flags |= LOG_GAP;
  for (size_t i = count; !err && i-- > 1;)
    err = repair_write(c, fd, &runs[i], head);
  if (!err)
    err = repair_aside(c, name, true);
  return err ? err : repair_write(c, fd, &runs[0], *h);
}

/* Its head says that what is missing in front of it is. */
static int repair_gap(const Check *c, const LogName *n, LogHead *h) {
  char name[LOG_NAME];
  ipc_log_name(n, name);
  int fd = openat(c->dir, name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0)
    return errno;
  h->flags |= LOG_GAP;
  int err = ipc_log_put_head(fd, h);
  close(fd);
  return err;
}

/* ------------------------------------------------------------------- looks */

/* Walks on from one run to the next: *more. No record beyond `limit` is one of
 * this file. */
static int check_run(LogScan *s, uint64_t limit, Run *run, bool *more) {
  LogRecord r;
  const char *message;
  uint64_t found;
  bool dirty;
  int err = ipc_log_scan_rest(s, false, &dirty, &found, &r);
  *more = !err && found && r.sequence <= limit;
  if (!*more)
    return err;
  s->at = found;
  s->sequence = r.behind ? r.sequence : r.sequence + 1;
  s->before = r.before;
  *run = (Run){found, found, s->sequence, s->before};
  while ((err = ipc_log_scan_next(s, &r, &message)) == 0)
    continue;
  run->to = s->at;
  return err == EBADMSG ? 0 : err;
}

/* The first run; whether it ends where the file must not: *bad, or in what was
 * not on the disk: *torn. */
static int check_first(LogScan *s, uint64_t proven, bool *bad, bool *torn) {
  LogRecord r;
  const char *message;
  uint64_t found = 0, at;
  int err;
  do { /* others append meanwhile: only what stays so is an end */
    at = s->at;
    while ((err = ipc_log_scan_next(s, &r, &message)) == 0)
      continue;
    if (err == EBADMSG)
      err = ipc_log_scan_rest(s, true, torn, &found, &r);
    *bad = found || s->sequence <= proven;
  } while (!err && *bad && s->at != at);
  *torn = *torn && !*bad;
  return err;
}

static int check_hole(Check *c, const LogName *n, uint64_t at, uint64_t from,
                      uint64_t to) {
  if (to <= from + 1)
    return check_damage(c, n, at, from, "the record is damaged");
  return check_damage(c, n, at, from,
                      "records %llu to %llu are damaged or missing",
                      (unsigned long long)from, (unsigned long long)to - 1);
}

/* Walks over one file; `next`: what the file behind it begins with; `proven`:
 * what is known to have been on the disk. */
static int check_records(Check *c, const LogName *n, int fd, LogHead *h,
                         uint64_t next, uint64_t proven) {
  Run run = {LOG_START, LOG_START, h->base, h->before};
  Buffer runs = {NULL, 0, 0};
  LogScan s = {.fd = -1};
  bool bad = false, torn = false, more = true;
  ipc_log_scan_start(&s, fd, h);
  int err = check_first(&s, proven, &bad, &torn);
  run.to = s.at;
  c->next = s.sequence;
  c->before = s.before;
  c->report->torn += torn;
  while (!err && more) {
    err = ipc_buffer_reserve(&runs, sizeof run);
    if (err)
      break;
    memcpy(runs.bytes + runs.size, &run, sizeof run);
    runs.size += sizeof run;
    c->report->bytes += run.to - run.from;
    uint64_t at = s.at, sequence = s.sequence;
    more = false;
    if (bad)
      err = check_run(&s, next - 1, &run, &more);
    if (!err && bad && (more || sequence <= proven))
      err = check_hole(c, n, at, sequence, more ? run.base : proven + 1);
    if (more) {
      c->next = s.sequence;
      c->before = s.before;
    }
  }
  c->report->records += s.records;
  c->chained = c->next > proven;
  c->gap = bad && !c->chained;
  if (c->gap)
    c->next = proven + 1;
  size_t count = runs.size / sizeof run;
  if (!err && c->repair && count > 1)
    err = repair_split(c, fd, h, (const Run *)(const void *)runs.bytes, count);
  ipc_buffer_free(&runs);
  s.fd = -1;
  ipc_log_scan_end(&s);
  return err;
}

/* Whether a file begins where the one before it ends. */
static int check_order(Check *c, const LogName *n, LogHead *h) {
  int err = 0;
  bool settled = h->flags & LOG_GAP || c->first;
  if (!settled && h->base > c->next && !c->gap)
    err = check_damage(c, n, 0, c->next, "records %llu to %llu are missing",
                       (unsigned long long)c->next,
                       (unsigned long long)h->base - 1);
  else if (!c->first && h->base < c->next)
    err =
        check_damage(c, n, 0, h->base, "it begins before the one before ends");
  else if (!settled && c->chained && h->base == c->next &&
           h->before != c->before)
    err = check_damage(c, n, 0, h->base, "it does not follow the one before");
  else if (settled || !c->gap)
    return 0;
  if (!err && c->repair)
    err = repair_gap(c, n, h);
  return err;
}

/* Whether its head says that what is missing in front of it is. */
static bool check_settled(const Check *c, const LogName *n) {
  LogHead h;
  const char *why;
  int fd;
  if (ipc_log_open(c->dir, n, O_RDONLY, &fd, &h, &why, NULL))
    return false;
  close(fd);
  return h.flags & LOG_GAP;
}

static int check_file(Check *c, const LogName *n, const LogName *next) {
  LogHead h;
  const char *why;
  bool worn;
  int fd;
  uint64_t proven = next && !check_settled(c, next) ? next->base - 1 : 0;
  int err = ipc_log_open(c->dir, n, c->repair ? O_RDWR : O_RDONLY, &fd, &h,
                         &why, &worn);
  if (err == EBADMSG) {
    char name[LOG_NAME];
    ipc_log_name(n, name);
    err = check_damage(c, n, 0, n->base, "%s", why);
    c->chained = false;
    if (!err && c->repair) {
      err = repair_aside(c, name, false);
      c->gap = true;
    }
    /* Behind the last: a sequence that none of its records can have had. */
    c->next = next ? next->base : n->base + (UINT64_C(1) << 32);
    return err;
  }
  if (err) {
    ipc_log_name(n, c->words);
    if (why)
      snprintf(c->words + strlen(c->words), LOG_WORDS - LOG_NAME, ": %s", why);
    return err;
  }
  c->report->files++;
  if (worn) {
    err = check_damage(c, n, 0, n->base, "a copy of its head is damaged");
    if (!err && c->repair)
      err = ipc_log_put_head(fd, &h);
  }
  if (!err)
    err = check_order(c, n, &h);
  if (!c->report->first)
    c->report->first = h.base;
  if (!next && memcmp(c->id, h.id, sizeof h.id) == 0)
    proven = c->promised;
  memcpy(c->last_id, h.id, sizeof h.id);
  if (!err)
    err = check_records(c, n, fd, &h, next ? next->base : UINT64_MAX, proven);
  c->first = false;
  close(fd);
  return err;
}

/* Behind a last file that lost its end: a new one. */
static int check_end(const Check *c, const LogName *last) {
  LogHead h = {.number = last->number + 1,
               .base = c->next,
               .size = LOG_START,
               .flags = LOG_GAP};
  int fd;
  memcpy(h.id, c->last_id, sizeof h.id);
  int err = ipc_log_make(c->dir, &h, &fd);
  if (fd >= 0)
    close(fd);
  return err;
}

static int verify_once(int dir, bool repair, LogReport *report,
                       char words[LOG_WORDS]) {
  Check c = {.dir = dir,
             .repair = repair,
             .report = report,
             .words = words,
             .first = true,
             .next = 1};
  LogName *list;
  size_t count;
  words[0] = '\0';
  c.promised = report->promised;
  memcpy(c.id, report->id, sizeof c.id);
  ipc_os_random(c.last_id, sizeof c.last_id);
  int err = ipc_log_list(dir, &list, &count);
  if (err)
    return err;
  for (size_t i = 0; !err && list && i < count; i++)
    err = check_file(&c, &list[i], i + 1 < count ? &list[i + 1] : NULL);
  if (!err && c.gap && repair && list && count > 0)
    err = check_end(&c, &list[count - 1]);
  report->last = report->files ? c.next - 1 : 0;
  free(list);
  return err;
}

/* Others may go on meanwhile, begin files and remove some: damage is what is
 * found again. */
int ipc_log_verify(int dir, bool repair, LogReport *report,
                   char words[LOG_WORDS]) {
  int err = 0;
  for (int turn = 0; turn < TURNS; turn++) {
    free(report->damage);
    LogReport fresh = {.promised = report->promised};
    memcpy(fresh.id, report->id, sizeof fresh.id);
    *report = fresh;
    err = verify_once(dir, repair, report, words);
    if (repair || (err != ENOENT && (err || !report->damages || turn > 1)))
      break;
  }
  return err;
}
