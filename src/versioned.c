/* The record's word is (claimed << 32 | published): tickets, of which each
 * store takes one that nobody had. Copy `published & 1` is the record; all its
 * cells have the ticket `published`. A store claims a ticket of the other
 * parity, writes the other copy, and publishes; who claims after it takes that
 * copy over. */
#include "prefix.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "versioned.h"

enum {
  VERSIONED_TRIES = 1 << 12, /* of a load that is overtaken */
  VERSIONED_LOOKS = 1 << 11, /* at a word that stays claimed, at least */
  VERSIONED_OTHERS = 64,     /* whose stores one waits for, at the most */
  VERSIONED_SLOW = 16        /* looks for a byte: longer than it is written */
};

typedef _Atomic uint64_t Cell;

static uint32_t versioned_cells(uint32_t size) { return (size + 3) / 4; }

uint64_t ipc_versioned_size(uint32_t size) {
  return 8 + UINT64_C(16) * versioned_cells(size);
}

/* The cells of the copy that belongs to a ticket. */
static Cell *versioned_copy(Cell *record, uint32_t size, uint32_t ticket) {
  return record + 1 + (ticket & 1 ? versioned_cells(size) : 0);
}

/* The bytes [offset, offset + count) out of a copy's cells; false: one is not
 * of this ticket. */
static bool versioned_read(const Cell *cells, uint32_t ticket, uint32_t offset,
                           uint32_t count, char *to) {
  uint32_t at = offset / 4, skip = offset % 4;
  while (count) {
    uint64_t cell = atomic_load_explicit(&cells[at++], memory_order_relaxed);
    uint32_t data = (uint32_t)cell, part = 4 - skip;
    if (cell >> 32 != ticket)
      return false;
    if (part > count)
      part = count;
    memcpy(to, (const char *)&data + skip, part);
    to += part;
    count -= part;
    skip = 0;
  }
  return true;
}

int ipc_versioned_load(const char *record, uint32_t size, uint32_t offset,
                       uint32_t count, char *to, uint32_t *ticket) {
  Cell *word = (Cell *)(uintptr_t)record;
  atomic_thread_fence(memory_order_acquire); /* what was read before it */
  uint32_t first = (uint32_t)atomic_load_explicit(word, memory_order_relaxed);
  bool moves = false;
  for (int tries = 0; tries < VERSIONED_TRIES; tries++) {
    uint64_t w = atomic_load_explicit(word, memory_order_acquire);
    *ticket = (uint32_t)w;
    moves = moves || *ticket != first;
    if (versioned_read(versioned_copy(word, size, *ticket), *ticket, offset,
                       count, to))
      return 0;
  }
  return moves ? EAGAIN : EBADMSG;
}

/* Writes a copy's cells while `mine` is the record's word. */
static bool versioned_write(Cell *word, uint64_t mine, Cell *cells,
                            const char *bytes, uint32_t size) {
  for (uint32_t at = 0; at < size; at += 4, cells++) {
    uint32_t data = 0;
    memcpy(&data, bytes + at, size - at < 4 ? size - at : 4);
    uint64_t next = mine >> 32 << 32 | data;
    /* Acquire: who sees the cell of a later store sees that it has claimed. */
    uint64_t cell = atomic_load_explicit(cells, memory_order_acquire);
    do {
      if (atomic_load_explicit(word, memory_order_relaxed) != mine)
        return false;
    } while (!atomic_compare_exchange_weak_explicit(
        cells, &cell, next, memory_order_acq_rel, memory_order_acquire));
  }
  return true;
}

static bool versioned_claimed(uint64_t w) { return w >> 32 != (uint32_t)w; }

uint64_t ipc_versioned_await(const char *record, uint32_t size, bool hurry) {
  Cell *word = (Cell *)(uintptr_t)record;
  uint64_t w = atomic_load_explicit(word, memory_order_acquire);
  for (int i = 0; versioned_claimed(w) && !hurry && i < VERSIONED_OTHERS; i++) {
    uint64_t first = w, looks = VERSIONED_LOOKS;
    looks += (uint64_t)VERSIONED_SLOW * size;
    while (w == first && looks--)
      w = atomic_load_explicit(word, memory_order_acquire);
    if (w == first)
      break; /* who claimed is stopped, or dead */
  }
  return w;
}

int ipc_versioned_store(char *record, uint32_t size, const char *bytes,
                        uint64_t was) {
  Cell *word = (Cell *)(void *)record;
  uint32_t claimed = (uint32_t)(was >> 32), published = (uint32_t)was;
  /* The next ticket that is not of the published one's copy. */
  uint32_t next = claimed + 1 + ((claimed + 1) % 2 == published % 2);
  uint64_t mine = (uint64_t)next << 32 | published;
  if (!atomic_compare_exchange_strong_explicit(
          word, &was, mine, memory_order_acq_rel, memory_order_relaxed))
    return EAGAIN;
  if (!versioned_write(word, mine, versioned_copy(word, size, next), bytes,
                       size))
    return EAGAIN;
  if (!atomic_compare_exchange_strong_explicit(
          word, &mine, (uint64_t)next << 32 | next, memory_order_acq_rel,
          memory_order_relaxed))
    return EAGAIN;
  atomic_thread_fence(memory_order_release); /* what is written after it */
  return 0;
}
