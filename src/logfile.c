/* The files of a journal: their names, heads and records, walking over them;
 * see log.h. */
#include "prefix.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log.h"
#include "os.h"

enum { WINDOW = 128 << 10 }; /* bytes read at once */

#define LOG_NEW "new.tmp"

/* ------------------------------------------------------------------ names */

void ipc_log_name(const LogName *n, char text[LOG_NAME]) {
  snprintf(text, LOG_NAME, "%016llx-%08llx.log", (unsigned long long)n->base,
           (unsigned long long)n->number);
}

bool ipc_log_named(const char *text, LogName *n) {
  static const char digits[] = "0123456789abcdef";
  char again[LOG_NAME];
  if (strspn(text, digits) != 16 || text[16] != '-')
    return false;
  *n = (LogName){strtoull(text, NULL, 16), strtoull(text + 17, NULL, 16)};
  ipc_log_name(n, again);
  return strcmp(text, again) == 0;
}

static int log_order(const void *a, const void *b) {
  const LogName *x = a, *y = b;
  if (x->base != y->base)
    return x->base < y->base ? -1 : 1;
  return x->number < y->number ? -1 : x->number > y->number;
}

int ipc_log_names(int dir, DIR **names) {
  int fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  *names = fd < 0 ? NULL : fdopendir(fd);
  if (*names)
    return 0;
  int err = errno;
  if (fd >= 0)
    close(fd);
  return err ? err : ENOMEM;
}

int ipc_log_list(int dir, LogName **list, size_t *count) {
  DIR *d;
  const struct dirent *e;
  Buffer names = {NULL, 0, 0};
  int err = ipc_log_names(dir, &d);
  *list = NULL;
  *count = 0;
  if (err)
    return err;
  errno = 0;
  // cppcheck-suppress readdirCalled ; the stream is ours alone
  while (!err && (e = readdir(d)) != NULL) {
    LogName n;
    if (!ipc_log_named(e->d_name, &n))
      continue;
    err = ipc_buffer_reserve(&names, sizeof n);
    if (err)
      break;
    memcpy(names.bytes + names.size, &n, sizeof n);
    names.size += sizeof n;
    errno = 0;
  }
  if (!err && errno)
    err = errno;
  closedir(d);
  if (err)
    ipc_buffer_free(&names);
  *list = (LogName *)(void *)names.bytes;
  *count = names.size / sizeof **list;
  if (*count > 1)
    qsort(*list, *count, sizeof **list, log_order);
  return err;
}

/* ---------------------------------------------------------------- bytes */

int ipc_log_read(int fd, void *bytes, size_t size, uint64_t at, size_t *got) {
  *got = 0;
  while (*got < size) {
    ssize_t n =
        pread(fd, (char *)bytes + *got, size - *got, (off_t)(at + *got));
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      return errno;
    if (n == 0)
      break;
    *got += (size_t)n;
  }
  return 0;
}

int ipc_log_write(int fd, const void *bytes, size_t size, uint64_t at,
                  size_t *put) {
  *put = 0;
  while (*put < size) {
    ssize_t n =
        pwrite(fd, (const char *)bytes + *put, size - *put, (off_t)(at + *put));
    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      return n < 0 ? errno : EIO;
    *put += (size_t)n;
  }
  return 0;
}

/* ------------------------------------------------------------------ heads */

static bool log_sound(const LogHead *h) {
  return h->crc == ipc_crc32c(0, h, offsetof(LogHead, crc));
}

static int log_check(const LogHead *h, const LogName *n, const char **why) {
  *why = "it is not a file of a journal";
  if (memcmp(h->magic, LOG_MAGIC, sizeof h->magic) != 0)
    return EBADMSG;
  *why = "it is of another version or byte order";
  if (h->version != LOG_VERSION || h->order != LOG_ORDER)
    return ENOTSUP;
  *why = "its head is damaged";
  if (!log_sound(h))
    return EBADMSG;
  *why = "it has another file's name";
  if (h->number != n->number || h->base != n->base || h->base == 0)
    return EBADMSG;
  *why = NULL;
  return 0;
}

int ipc_log_open(int dir, const LogName *n, int flags, int *fd, LogHead *h,
                 const char **why, bool *worn) {
  char name[LOG_NAME];
  int err = 0, bad[2] = {0, 0};
  const char *words[2] = {NULL, NULL};
  ipc_log_name(n, name);
  *why = NULL;
  *fd = openat(dir, name, flags | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
  if (*fd < 0)
    return errno;
  /* The first copy, or the second. */
  for (int i = 1; !err && i >= 0; i--) {
    LogHead copy = {.version = 0};
    size_t got;
    err = ipc_log_read(*fd, &copy, sizeof copy, i ? LOG_AGAIN : 0, &got);
    bad[i] = err ? err : log_check(&copy, n, &words[i]);
    if (!bad[i])
      *h = copy;
  }
  if (worn)
    *worn = bad[0] || bad[1];
  if (!err && bad[0] && bad[1]) {
    err = bad[0];
    *why = words[0];
  }
  if (err) {
    close(*fd);
    *fd = -1;
  }
  return err;
}

int ipc_log_put_head(int fd, LogHead *h) {
  size_t put;
  h->crc = ipc_crc32c(0, h, offsetof(LogHead, crc));
  /* The second is right before the first is touched. */
  int err = ipc_log_write(fd, h, sizeof *h, LOG_AGAIN, &put);
  if (!err)
    err = ipc_os_sync_file(fd);
  if (!err)
    err = ipc_log_write(fd, h, sizeof *h, 0, &put);
  return err ? err : ipc_os_sync_file(fd);
}

int ipc_log_make(int dir, LogHead *h, int *fd) {
  char name[LOG_NAME];
  const LogName n = {h->base, h->number};
  ipc_log_name(&n, name);
  memcpy(h->magic, LOG_MAGIC, sizeof h->magic);
  h->version = LOG_VERSION;
  h->order = LOG_ORDER;
  ipc_os_random(&h->salt, sizeof h->salt);
  (void)unlinkat(dir, LOG_NEW, 0); /* of one who was killed here */
  *fd = openat(dir, LOG_NEW, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
               0600);
  if (*fd < 0)
    return errno;
  struct stat d;
  int err = ipc_os_allocate(*fd, h->size);
  if (!err && fstat(dir, &d) == 0) /* who may list it may read it */
    (void)fchmod(*fd, d.st_mode & 0666);
  if (!err)
    err = ipc_log_put_head(*fd, h);
  if (!err && renameat(dir, LOG_NEW, dir, name))
    err = errno;
  if (err) {
    (void)unlinkat(dir, LOG_NEW, 0);
    close(*fd);
    *fd = -1;
    return err;
  }
  return ipc_os_sync_file(dir); /* else the file may go, and all in it */
}

/* ---------------------------------------------------------------- records */

static uint32_t log_sum(const LogRecord *r, uint32_t salt,
                        const void *message) {
  uint32_t crc = ipc_crc32c(salt, &r->size, sizeof r->size);
  crc =
      ipc_crc32c(crc, &r->sequence, sizeof *r - offsetof(LogRecord, sequence));
  return ipc_crc32c(crc, message, r->size);
}

void ipc_log_seal(LogRecord *r, uint32_t salt, const void *message) {
  r->crc = log_sum(r, salt, message);
}

int ipc_log_parse(const LogHead *h, const char *at, size_t room, LogRecord *r,
                  uint64_t *need) {
  *need = sizeof *r;
  if (room < sizeof *r)
    return ENOBUFS;
  memcpy(r, at, sizeof *r);
  if (r->sequence < h->base - 1 || r->sequence == 0 ||
      r->sequence - (h->base - 1) > h->size / sizeof *r || r->size > h->size ||
      (r->behind == 0 && r->size > 0))
    return EBADMSG;
  *need = ipc_log_need(r->size);
  if (room < *need)
    return ENOBUFS;
  return r->crc == log_sum(r, h->salt, at + sizeof *r) ? 0 : EBADMSG;
}

/* ------------------------------------------------------------------- walks */

void ipc_log_scan_start(LogScan *s, int fd, const LogHead *h) {
  ipc_buffer_free(&s->window);
  *s = (LogScan){.fd = fd,
                 .head = h,
                 .at = LOG_START,
                 .sequence = h->base,
                 .durable = h->base - 1,
                 .before = h->before};
}

void ipc_log_scan_end(LogScan *s) {
  if (s->fd >= 0)
    close(s->fd);
  s->fd = -1;
  ipc_buffer_free(&s->window);
}

/* Reads `need` bytes from `at` on, if there are so many, and some more. */
static int scan_fill(LogScan *s, uint64_t at, uint64_t need) {
  size_t got, size = WINDOW;
  if (s->limit > at && s->limit - at < size)
    size = (size_t)(s->limit - at);
  if (need > size)
    size = (size_t)need;
  s->window.size = 0;
  int err = ipc_buffer_reserve(&s->window, size);
  if (!err)
    err = ipc_log_read(s->fd, s->window.bytes, size, at, &got);
  s->window_at = at;
  s->window.size = err ? 0 : got;
  return err;
}

/* What of `at` is in the window; *room bytes. */
static const char *scan_at(const LogScan *s, uint64_t at, size_t *room) {
  *room = 0;
  if (at < s->window_at || at >= s->window_at + s->window.size)
    return NULL;
  *room = (size_t)(s->window_at + s->window.size - at);
  return s->window.bytes + (at - s->window_at);
}

int ipc_log_scan_next(LogScan *s, LogRecord *r, const char **message) {
  /* What was read before others appended is no answer. */
  for (uint64_t asked = 0;;) {
    uint64_t need;
    size_t room;
    const char *at = scan_at(s, s->at, &room);
    int err = ipc_log_parse(s->head, at, room, r, &need);
    if (!err && !ipc_log_follows(r, s->sequence, s->before))
      err = EBADMSG;
    if (!err) {
      *message = at + sizeof *r;
      s->at += need;
      s->sequence = r->sequence + 1;
      s->before = r->crc;
      s->time = r->time;
      s->marked = r->behind == 0;
      s->records += !s->marked;
      if (ipc_log_proves(r) > s->durable)
        s->durable = ipc_log_proves(r);
      return 0;
    }
    if (asked >= need)
      return EBADMSG;
    err = scan_fill(s, s->at, need);
    if (err)
      return err;
    asked = need;
  }
}

/* Whether the record at `at`, 8-aligned, is one by itself. */
static bool scan_stray(LogScan *s, uint64_t at, bool proof, LogRecord *r) {
  for (uint64_t asked = 0;;) {
    uint64_t need;
    size_t room;
    const char *bytes = scan_at(s, at, &room);
    if (room >= sizeof *r) { /* most are nothing like one */
      memcpy(r, bytes, sizeof *r);
      if (r->sequence < s->sequence - (r->behind == 0) ||
          (proof && ipc_log_proves(r) < s->sequence))
        return false;
    }
    int err = ipc_log_parse(s->head, bytes, room, r, &need);
    if (err != ENOBUFS || asked >= need || at + need > s->head->size)
      return err == 0;
    if (scan_fill(s, at, need))
      return false;
    asked = need;
  }
}

int ipc_log_scan_rest(LogScan *s, bool proof, bool *dirty, uint64_t *found,
                      LogRecord *r) {
  static const char zeros[sizeof(LogRecord)];
  *dirty = false;
  *found = 0;
  s->limit = 0;
  for (uint64_t at = s->at;; at += 8) {
    size_t room;
    const char *bytes = scan_at(s, at, &room);
    if (room < 8) {
      int err = scan_fill(s, at, 8);
      if (err)
        return err;
      bytes = scan_at(s, at, &room);
      if (room == 0)
        return 0;
    }
    size_t some = room < sizeof zeros ? room : 8;
    if (room >= sizeof zeros && memcmp(bytes, zeros, sizeof zeros) == 0)
      continue;
    *dirty = *dirty || memcmp(bytes, zeros, some) != 0;
    if (scan_stray(s, at, proof, r)) {
      *found = at;
      return 0;
    }
  }
}
