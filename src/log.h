/* A journal on disk: files of numbered records in a directory, what its users
 * agree on in a segment, those who append and those who read. No Lua.
 *
 * Everything that is not synced may be lost by a power cut, sector by sector
 * and name by name; what remains must be a beginning of what was written. */
#ifndef IPC_LOG_H
#define IPC_LOG_H

/***
The files of `ipc.journal`, for programs in other languages that read them.

A journal is a directory. Its records are in files named by two hexadecimal
numbers, `BASE-NUMBER.log`: the sequence of the first record, 16 digits, and
the number of the file, 8 digits. In the order of their names they are the
journal. Numbers are in the byte order of the machine that made the file.

    at 0, and once more at 2048      size
      0 "ipc-log\n"                    8
      8 version, 1                     4
     12 0x01020304                     4  tells the byte order
     16 a random number               16  the same in all files of a journal
     32 number of the file             8
     40 base                           8
     48 size of the file               8
     56 made, ns since 1970            8
     64 salt                           4
     68 checksum of the last record    4  before this file; or 0
     72 flags                          4  1: what is missing in front was
                                          lost, and that was settled
    124 CRC-32C of the 124 bytes       4

Records begin at 4096, each at a multiple of 8:

      0 size of the message            4
      4 checksum                       4  CRC-32C, begun with the salt, of all
                                          of the record but these 4 bytes
      8 sequence                       8
     16 time, ns since 1970            8
     24 checksum of the record before  4  of the first: as in the head
     28 behind                         4  sequence - behind was on the disk
     32 the message                       when this was written

With `behind` 0 it is a mark without a message: all up to its sequence is on
the disk. A file ends with the first record that is none of these, its checksum
or that of the one before it being another; it was the last to be written when
the system stopped, and the next file begins with its sequence. When a record
behind it, of this file or of another, tells that it was on the disk, it is
damaged.

`NAME.reader` is the place of a named reader: two slots, at 0 and 512; the valid
one with the larger count is the place.

      0 "ipc-read"                     8
      8 0x01020304                     4
     12 checksum of the record         4
     16 count                          8
     24 sequence, of the last done     8
     32 sequence that was on the disk  8
     40 the journal's random number   16
     56 0                              4
     60 CRC-32C of the 60 bytes        4

`control` is shared memory as of `ipc.shm`, while somebody has the journal open;
it may be removed when nobody has.
@module ipc.journal_files
*/

#include <dirent.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "buffer.h"
#include "ipc.h"
#include "segment.h"

#define LOG_MAGIC "ipc-log\n"
#define LOG_ORDER UINT32_C(0x01020304)

enum {
  LOG_VERSION = 1,
  LOG_AGAIN = 2048, /* the head's second copy */
  LOG_START = 4096, /* the first record */
  LOG_GAP = 1,      /* flag: records in front of it are lost, and that is so */
  LOG_NAME = 40,    /* bytes of a file's name */
  LOG_WORDS = 400   /* bytes of what an error says */
};

#define LOG_CONTROL "control"

typedef struct LogHead {
  char magic[8];
  uint32_t version, order;
  uint8_t id[16];
  uint64_t number, base, size, created;
  uint32_t salt, before, flags;
  uint8_t unused[48];
  uint32_t crc;
} LogHead;

typedef struct LogRecord {
  uint32_t size, crc;
  uint64_t sequence, time;
  uint32_t before, behind;
} LogRecord;

_Static_assert(sizeof(LogHead) == 128 && offsetof(LogHead, salt) == 64 &&
                   offsetof(LogHead, crc) == 124 && sizeof(LogRecord) == 32,
               "the files are as documented");

/* ------------------------------------------------------------------ files */

/* CRC-32C of more bytes behind those that gave `crc` (0: none). */
uint32_t ipc_crc32c(uint32_t crc, const void *bytes, size_t size);

typedef struct LogName {
  uint64_t base, number;
} LogName;

void ipc_log_name(const LogName *n, char text[LOG_NAME]);
bool ipc_log_named(const char *text, LogName *n);

/* A stream of the names in it. */
int ipc_log_names(int dir, DIR **names);

/* Those in a directory, in order; the list is the caller's to free. */
int ipc_log_list(int dir, LogName **list, size_t *count);

/* Opens one and reads its head. EBADMSG, ENOTSUP: *why tells. With `worn` a
 * head of which one copy is bad will do, and is noted. */
int ipc_log_open(int dir, const LogName *n, int flags, int *fd, LogHead *h,
                 const char **why, bool *worn);

/* Makes one, on the disk and of zeros, under its name. */
int ipc_log_make(int dir, LogHead *h, int *fd);

/* Writes both copies of a head. */
int ipc_log_put_head(int fd, LogHead *h);

/* Bytes of a record in the file. */
static inline uint64_t ipc_log_need(uint64_t size) {
  return sizeof(LogRecord) + (size + 7) / 8 * 8;
}

/* What is to be appended: the head of a record, whole but for the message. */
void ipc_log_seal(LogRecord *r, uint32_t salt, const void *message);

/* Whether the bytes at `at` are a record of the file: 0; ENOBUFS: more bytes
 * are needed, *need in all; EBADMSG: none. Its place in the order is not looked
 * at. */
int ipc_log_parse(const LogHead *h, const char *at, size_t room, LogRecord *r,
                  uint64_t *need);

/* Whether it is the one that belongs there. */
static inline bool ipc_log_follows(const LogRecord *r, uint64_t sequence,
                                   uint32_t before) {
  return r->before == before &&
         r->sequence == (r->behind ? sequence : sequence - 1);
}

/* What was on the disk when it was written. */
static inline uint64_t ipc_log_proves(const LogRecord *r) {
  return r->sequence > r->behind ? r->sequence - r->behind : 0;
}

/* A walk over a file. */
typedef struct LogScan {
  int fd;
  const LogHead *head;
  uint64_t at;       /* of the next record */
  uint64_t sequence; /* that it should have */
  uint64_t time;     /* of the last one; 0 */
  uint64_t durable;  /* what the records prove to have been on the disk */
  uint64_t records;
  uint64_t limit; /* no more than this is worth reading; 0: all */
  uint32_t before;
  bool marked; /* the last is a mark */
  Buffer window;
  uint64_t window_at;
} LogScan;

void ipc_log_scan_start(LogScan *s, int fd, const LogHead *h);
void ipc_log_scan_end(LogScan *s);

/* The next record: 0, at *r, its message at *message until the next call;
 * EBADMSG: there is none. */
int ipc_log_scan_next(LogScan *s, LogRecord *r, const char **message);

/* Behind the end of a walk: whether there is anything but zeros (*dirty), and
 * the first record from s->at on that is one by itself, of a sequence not below
 * s->sequence: *found is its place, 0 if there is none. With `proof` only one
 * that proves that s->sequence was on the disk. */
int ipc_log_scan_rest(LogScan *s, bool proof, bool *dirty, uint64_t *found,
                      LogRecord *r);

/* Reads as much as there is up to `size`. */
int ipc_log_read(int fd, void *bytes, size_t size, uint64_t at, size_t *got);
int ipc_log_write(int fd, const void *bytes, size_t size, uint64_t at,
                  size_t *put);

/* ---------------------------------------------------------------- control */

/* Where the next record goes. Two of them, used in turn. */
typedef struct LogTail {
  SegmentWide number, base, size; /* the file; number 0: there is none */
  SegmentWide at, sequence, time; /* of the last record */
  SegmentWide zeroed; /* the file has zeros on the disk up to here */
  _Atomic uint32_t salt, before;
  _Atomic uint32_t dirty; /* what is behind it is not zero: not to be used */
  uint32_t unused;
} LogTail;

/* What all who have the journal open agree on, in the segment. It is made from
 * the files when nobody has. Under the writers' lock but for durable. */
typedef struct LogControl {
  _Atomic uint32_t ready;  /* the files were looked at */
  _Atomic uint32_t failed; /* an errno: the disk lost what it was given */
  _Atomic uint32_t busy;   /* an append has begun and is not published */
  _Atomic uint32_t turn;   /* tail[turn & 1] counts: publishes */
  SegmentWide committed;   /* readers may read up to here */
  SegmentWide durable;     /* is on the disk up to here */
  SegmentWide synced;      /* when the last sync began, of ipc_now */
  _Atomic uint32_t gone;   /* it was removed: closed for all */
  uint32_t unused;
  LogTail tail[2];
  uint8_t id[16];
} LogControl;

typedef enum LogDurability { LOG_INTERVAL, LOG_SYNC, LOG_NONE } LogDurability;

/* A copy of a tail that counts. */
typedef struct LogAt {
  uint64_t number, base, size, at, sequence, time, zeroed;
  uint32_t salt, before;
  bool dirty;
} LogAt;

/* A file that is open to be synced. */
typedef struct LogSync {
  int fd;
  uint64_t number;
} LogSync;

typedef struct LogReader {
  uint64_t next;  /* the sequence that is wanted */
  uint64_t since; /* ns since 1970: older ones are skipped; 0 */
  uint64_t acked; /* the last one done */
  LogName name;   /* of the file that is open */
  LogHead head;
  LogScan scan;     /* fd -1: none is open */
  LogRecord record; /* of the message that was found */
  const char *message;
  bool have;     /* there is one */
  bool follow;   /* waits for more */
  bool damaged;  /* cannot go on */
  uint64_t lost; /* records that were removed before they were read */
  int place;     /* the file of its place, locked; -1: it has no name */
  uint64_t count;
} LogReader;

typedef struct Log {
  int dir;    /* -1: not open */
  Segment *s; /* joined */
  LogControl *c;
  LogDurability durability;
  Nanos interval;
  uint64_t room;         /* bytes of a new file */
  uint64_t retain_bytes; /* 0: all */
  uint64_t retain_ns;    /* 0: all */
  bool slowest;          /* keeps what named readers have not done */
  bool hurt;             /* the last file is damaged behind the tail */
  uint64_t promised;     /* what was on the disk before the last crash */
  uint8_t promised_id[16];
  int fd;       /* the file that is written; -1 */
  LogHead head; /* of it */
  LogSync sync;
  Buffer out;
  uint64_t syncs, rolls, removed;
  char why[LOG_WORDS]; /* of the last error, or "" */
} Log;

/* A Log that is not open. */
#define LOG_CLOSED ((Log){.dir = -1, .fd = -1, .sync = {.fd = -1}})

/* Says what is wrong with a file; returns err. */
int ipc_log_say(Log *l, const LogName *n, uint64_t at, const char *what,
                int err);

LogAt ipc_log_tail(const Log *l);

/* Under the writers' lock: makes control right, from the files if it must.
 * EBADMSG: they are damaged; who only `reads` can do so up to there, and
 * l->hurt is set. */
int ipc_log_recover(Log *l, bool reads);

/* The same: appends; *done is how many. ENOSPC ...: the next is not in. EIO:
 * the journal has ended. */
int ipc_log_append(Log *l, const Message *m, size_t count, size_t *done);

/* The same: a mark that all is on the disk, which it must be. */
int ipc_log_mark(Log *l);

/* Under the readers' lock, which is the one for this: all that was appended
 * goes to the disk. */
int ipc_log_sync(Log *l, LogSync *sync);
void ipc_log_sync_end(LogSync *sync);

static inline uint64_t ipc_log_durable(const Log *l) {
  return atomic_load_explicit(&l->c->durable, memory_order_acquire);
}
static inline uint64_t ipc_log_committed(const Log *l) {
  return atomic_load_explicit(&l->c->committed, memory_order_acquire);
}

/* The last sequence that a control file says to be on the disk, of the journal
 * `id`; whether anybody has it open or not. 0: it says nothing. */
uint64_t ipc_log_promised(int dir, uint8_t id[16]);

/* An errno that ends the journal for all. */
int ipc_log_failed(Log *l, int err);

void ipc_log_close(Log *l);

/* Removes the files of a journal, but for its control. */
int ipc_log_erase(int dir);

/* ---------------------------------------------------------------- readers */

#define LOG_READER ((LogReader){.scan = {.fd = -1}, .place = -1})

/* The next message is r->record, r->message: 0; EAGAIN: there is none yet.
 * ESTALE: some were removed, r->next is the first that is there. EBADMSG. */
int ipc_log_next(Log *l, LogReader *r);

/* It was taken. */
void ipc_log_took(LogReader *r);

/* Where to start: the first there is, behind the last, at a time. */
int ipc_log_first(Log *l, uint64_t *sequence);
int ipc_log_since(Log *l, LogReader *r, uint64_t time);

void ipc_log_reader_close(LogReader *r);

/* ------------------------------------------------------- places, retention */

/* The place of a reader of this name is ours: 0, *known: it has one, in
 * r->acked. EBUSY: another has it. */
int ipc_log_place_open(Log *l, LogReader *r, const char *name, bool *known);
int ipc_log_place_save(Log *l, LogReader *r, uint64_t sequence, bool sync);

/* Under the writers' lock, after a new file was begun: removes what need not be
 * kept any more. */
void ipc_log_keep(Log *l);

/* ----------------------------------------------------------- verification */

typedef struct LogDamage {
  char file[LOG_NAME];
  char reason[96];
  uint64_t offset, sequence;
} LogDamage;

typedef struct LogReport {
  uint64_t files, records, first, last, bytes;
  uint64_t torn;     /* files that end with what was not on the disk yet */
  uint64_t repaired; /* files that were put aside */
  uint64_t promised; /* given: was on the disk, of the journal `id` */
  uint8_t id[16];
  LogDamage *damage; /* the caller's to free */
  size_t damages, room;
} LogReport;

/* Reads all of it. With `repair`, nobody else having it open, what is damaged
 * is put aside and the rest made readable. */
int ipc_log_verify(int dir, bool repair, LogReport *report,
                   char words[LOG_WORDS]);

#endif
