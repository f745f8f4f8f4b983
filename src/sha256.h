/* SHA-256 (FIPS 180-4), and HMAC (RFC 2104) with it: what both sides of a
 * connection prove by that they know a key. */
#ifndef IPC_SHA256_H
#define IPC_SHA256_H

#include <stddef.h>
#include <stdint.h>

enum { SHA256_SIZE = 32, SHA256_BLOCK = 64 };

typedef struct Sha256 {
  uint32_t state[8];
  uint64_t size; /* bytes so far */
  unsigned char block[SHA256_BLOCK];
} Sha256;

void ipc_sha256_start(Sha256 *s);
void ipc_sha256_add(Sha256 *s, const void *bytes, size_t size);
void ipc_sha256_end(Sha256 *s, unsigned char digest[SHA256_SIZE]);

void ipc_sha256_hmac(const void *key, size_t key_size, const void *text,
                     size_t size, unsigned char digest[SHA256_SIZE]);

#endif
