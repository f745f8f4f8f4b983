/* Records of one moment: written whole, read whole, by any number of processes
 * at once, without a lock; a process that is killed or stopped in the middle of
 * either costs the others nothing. Knows no Lua and no fields.
 *
 * The bytes are public: see the reference of ipc.struct. A word of 8 bytes says
 * which of two copies is the record; a cell of 8 bytes has 4 bytes of the data
 * and the ticket of the store that wrote it, so that no cell can be taken for
 * one of another store, and a store that was overtaken cannot change what its
 * successor wrote. */
#ifndef IPC_VERSIONED_H
#define IPC_VERSIONED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { VERSIONED_ALIGN = 8 };

/* Bytes that a record of `size` bytes takes; `size` is below 2^31. */
uint64_t ipc_versioned_size(uint32_t size);

/* Loads and stores are in order with what the caller reads and writes
 * otherwise: who loads what a store made sees all that was written before it;
 * who has read bytes that were written after a store finds that store, or a
 * later one, by the next load. */

/* Waits for a store that seems to be under way, as long as one takes and a bit
 * (`hurry`: not at all). Answers what the record's word is: what to give to
 * ipc_versioned_store. Its lower half is the ticket of the record. */
uint64_t ipc_versioned_await(const char *record, uint32_t size, bool hurry);

/* Copies `count` bytes from `offset` on of the newest whole record at `record`,
 * aligned by 8, of `size` bytes, and tells its ticket. 0. EAGAIN: it was
 * overwritten again and again. EBADMSG: nobody does that, but its cells are not
 * of one store. */
int ipc_versioned_load(const char *record, uint32_t size, uint32_t offset,
                       uint32_t count, char *to, uint32_t *ticket);

/* Makes these `size` bytes the record, if its word still is `word`: 0. EAGAIN:
 * it is not, or another store came in between; nothing was written. */
int ipc_versioned_store(char *record, uint32_t size, const char *bytes,
                        uint64_t word);

#endif
