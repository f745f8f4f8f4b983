/* What a journal keeps: the places of named readers, and the files that are
 * still wanted; see log.h. */
#include "prefix.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "log.h"
#include "os.h"

#define PLACE_MAGIC "ipc-read"
#define PLACE_ENDING ".reader"

enum { PLACE_SLOT = 512, PLACE_LOCK = 0 };

typedef struct Place {
  char magic[8];
  uint32_t order;
  uint32_t sum; /* of the record of this sequence; 0: not known */
  uint64_t count, sequence, durable;
  uint8_t id[16];
  uint32_t unused, crc;
} Place;

_Static_assert(sizeof(Place) == 64 && offsetof(Place, crc) == 60,
               "places are as documented");

/* ------------------------------------------------------------------ places */

/* The newer of the valid slots; false: there is none. */
static bool place_read(int fd, const uint8_t id[16], Place *newest) {
  bool some = false;
  for (uint64_t i = 0; i < 2; i++) {
    Place p;
    size_t got;
    if (ipc_log_read(fd, &p, sizeof p, i * PLACE_SLOT, &got) ||
        got != sizeof p || memcmp(p.magic, PLACE_MAGIC, sizeof p.magic) != 0 ||
        p.order != LOG_ORDER || memcmp(p.id, id, sizeof p.id) != 0 ||
        p.crc != ipc_crc32c(0, &p, offsetof(Place, crc)))
      continue;
    if (some && p.count < newest->count)
      continue;
    *newest = p;
    some = true;
  }
  return some;
}

/* Whether the record that was the last one done is there, and the same. A power
 * cut may have taken it, and another may have its sequence now. */
static bool place_holds(Log *l, const Place *p) {
  if (p->sequence <= p->durable)
    return true;
  if (p->sequence > ipc_log_committed(l))
    return false;
  LogReader r = LOG_READER;
  r.next = p->sequence;
  bool holds = ipc_log_next(l, &r) == 0 && r.record.crc == p->sum;
  ipc_log_reader_close(&r);
  return holds;
}

int ipc_log_place_open(Log *l, LogReader *r, const char *name, bool *known) {
  char file[128];
  Place p;
  snprintf(file, sizeof file, "%s" PLACE_ENDING, name);
  *known = false;
  int fd =
      openat(l->dir, file, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (fd < 0)
    return errno;
  (void)ipc_os_high(&fd);
  struct stat d;
  if (fstat(l->dir, &d) == 0)
    (void)fchmod(fd, d.st_mode & 0666);
  int err = ipc_os_byte_lock(fd, PLACE_LOCK);
  if (err == EAGAIN)
    err = EBUSY;
  if (!err && place_read(fd, l->c->id, &p)) {
    r->count = p.count;
    r->acked = p.sequence;
    if (!place_holds(l, &p))
      r->acked = p.durable < p.sequence ? p.durable : p.sequence;
    *known = true;
  }
  if (!err)
    err = ipc_os_sync_file(l->dir);
  if (!err)
    err = ipc_os_fork_close(fd);
  if (err) {
    close(fd);
    return err;
  }
  r->place = fd;
  return 0;
}

int ipc_log_place_save(Log *l, LogReader *r, uint64_t sequence, bool sync) {
  Place p = {.order = LOG_ORDER,
             .count = r->count + 1,
             .sequence = sequence,
             .durable = ipc_log_durable(l)};
  size_t put;
  memcpy(p.magic, PLACE_MAGIC, sizeof p.magic);
  memcpy(p.id, l->c->id, sizeof p.id);
  if (sequence == r->record.sequence)
    p.sum = r->record.crc;
  p.crc = ipc_crc32c(0, &p, offsetof(Place, crc));
  int err =
      ipc_log_write(r->place, &p, sizeof p, (p.count & 1) * PLACE_SLOT, &put);
  if (err)
    return err;
  r->count = p.count;
  r->acked = sequence;
  return sync ? ipc_os_sync_file(r->place) : 0;
}

static bool place_is(int dir, const char *name) {
  size_t n = strlen(name), ending = sizeof PLACE_ENDING - 1, got = 0;
  char magic[sizeof PLACE_MAGIC - 1];
  if (n <= ending || strcmp(name + n - ending, PLACE_ENDING) != 0)
    return false;
  int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0)
    return false;
  bool is = false;
  for (uint64_t i = 0; !is && i < 2; i++)
    is = ipc_log_read(fd, magic, sizeof magic, i * PLACE_SLOT, &got) == 0 &&
         ((i == 0 && got == 0) ||
          (got == sizeof magic && memcmp(magic, PLACE_MAGIC, got) == 0));
  close(fd);
  return is;
}

/* Whether a name is one of a journal's: nothing else is removed. */
static bool erase_is(int dir, const char *name) {
  static const char aside[] = ".aside";
  LogName n;
  char text[LOG_NAME];
  size_t size = strlen(name), all = strlen("0123456789abcdef-01234567.log");
  if (ipc_log_named(name, &n) || strcmp(name, "new.tmp") == 0 ||
      strcmp(name, "repair.tmp") == 0 || place_is(dir, name))
    return true;
  if (size < all + sizeof aside - 1 ||
      strcmp(name + size - (sizeof aside - 1), aside) != 0)
    return false;
  snprintf(text, sizeof text, "%.*s", (int)all, name);
  return ipc_log_named(text, &n) &&
         strspn(name + all, ".0123456789") >= size - all - (sizeof aside - 1);
}

int ipc_log_erase(int dir) {
  DIR *d;
  const struct dirent *e;
  int err = ipc_log_names(dir, &d);
  if (err)
    return err;
  // cppcheck-suppress readdirCalled ; the stream is ours alone
  while (!err && (e = readdir(d)) != NULL)
    if (erase_is(dir, e->d_name) && unlinkat(dir, e->d_name, 0) &&
        errno != ENOENT)
      err = errno;
  closedir(d);
  return err;
}

/* The last sequence that all named readers have done, on the disk. */
static int keep_slowest(Log *l, uint64_t *done) {
  DIR *d;
  const struct dirent *e;
  int err = ipc_log_names(l->dir, &d);
  if (err)
    return err;
  // cppcheck-suppress readdirCalled ; the stream is ours alone
  while (!err && (e = readdir(d)) != NULL) {
    if (!place_is(l->dir, e->d_name))
      continue;
    Place p = {.sequence = 0};
    int place = openat(l->dir, e->d_name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (place < 0) {
      err = errno == ENOENT ? 0 : errno;
      continue;
    }
    if (!place_read(place, l->c->id, &p))
      p.sequence = 0; /* it has done nothing yet */
    if (p.sequence < *done)
      *done = p.sequence;
    err = ipc_os_sync_file(place); /* or it would come back for more */
    close(place);
  }
  closedir(d);
  return err;
}

/* --------------------------------------------------------------- retention */

/* What is known of a file without walking over it. */
static bool keep_look(const Log *l, const LogName *n, uint64_t *size,
                      uint64_t *created) {
  LogHead h;
  const char *why;
  int fd;
  if (ipc_log_open(l->dir, n, O_RDONLY, &fd, &h, &why, NULL))
    return false;
  close(fd);
  *size = h.size;
  *created = h.created;
  return true;
}

/* A failure here fails nothing: the next new file tries again. */
void ipc_log_keep(Log *l) {
  LogName *list;
  size_t count;
  uint64_t total = 0, done = UINT64_MAX, size, created;
  struct timespec now;
  if (!l->retain_bytes && !l->retain_ns && !l->slowest)
    return;
  if (ipc_log_list(l->dir, &list, &count))
    return;
  clock_gettime(CLOCK_REALTIME, &now);
  uint64_t clock = (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
  int err = l->slowest ? keep_slowest(l, &done) : 0;
  for (size_t i = 0; i < count; i++)
    if (keep_look(l, &list[i], &size, &created))
      total += size;
  for (size_t i = 0; !err && i + 1 < count; i++) {
    char name[LOG_NAME];
    uint64_t ended = 0;
    if (!keep_look(l, &list[i], &size, &created) ||
        !keep_look(l, &list[i + 1], &(uint64_t){0}, &ended))
      break; /* damaged: nothing is decided over it */
    bool wanted = l->slowest && list[i + 1].base - 1 > done;
    bool large = l->retain_bytes && total > l->retain_bytes;
    bool old = l->retain_ns && ended < clock && clock - ended > l->retain_ns;
    bool free_to_go = !l->retain_bytes && !l->retain_ns; /* slowest alone */
    if (wanted || !(large || old || free_to_go))
      break;
    ipc_log_name(&list[i], name);
    if (unlinkat(l->dir, name, 0) && errno != ENOENT)
      break;
    err = ipc_os_sync_file(l->dir); /* in order, or a gap would look lost */
    total -= size;
    l->removed++;
  }
  free(list);
}
