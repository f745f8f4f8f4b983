/* SHA-256 and HMAC; see sha256.h. For a few bytes a connection, so written for
 * the reader and not for the processor. */
#include "prefix.h"

#include <string.h>

#include "sha256.h"

static const uint32_t sha256_k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
    0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
    0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
    0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
    0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
    0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

static uint32_t sha256_word(const unsigned char *p) {
  return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 |
         p[3];
}

static void sha256_put(unsigned char *p, uint32_t v) {
  p[0] = (unsigned char)(v >> 24);
  p[1] = (unsigned char)(v >> 16);
  p[2] = (unsigned char)(v >> 8);
  p[3] = (unsigned char)v;
}

static void sha256_block(Sha256 *s) {
  uint32_t w[64], v[8];
  for (int i = 0; i < 16; i++)
    w[i] = sha256_word(s->block + (size_t)i * 4);
  for (int i = 16; i < 64; i++) {
    uint32_t a = w[i - 15], b = w[i - 2];
    w[i] = w[i - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[i - 7] +
           (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
  }
  memcpy(v, s->state, sizeof v);
  for (int i = 0; i < 64; i++) {
    uint32_t e = v[4], a = v[0];
    uint32_t t1 = v[7] + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) +
                  ((e & v[5]) ^ (~e & v[6])) + sha256_k[i] + w[i];
    uint32_t t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) +
                  ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
    memmove(v + 1, v, 7 * sizeof *v);
    v[4] += t1;
    v[0] = t1 + t2;
  }
  for (int i = 0; i < 8; i++)
    s->state[i] += v[i];
}

void ipc_sha256_start(Sha256 *s) {
  static const uint32_t first[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372,
                                    0xa54ff53a, 0x510e527f, 0x9b05688c,
                                    0x1f83d9ab, 0x5be0cd19};
  memcpy(s->state, first, sizeof first);
  s->size = 0;
}

void ipc_sha256_add(Sha256 *s, const void *bytes, size_t size) {
  const unsigned char *p = bytes;
  while (size > 0) {
    size_t at = s->size % SHA256_BLOCK, n = SHA256_BLOCK - at;
    if (n > size)
      n = size;
    memcpy(s->block + at, p, n);
    s->size += n;
    p += n;
    size -= n;
    if (s->size % SHA256_BLOCK == 0)
      sha256_block(s);
  }
}

void ipc_sha256_end(Sha256 *s, unsigned char digest[SHA256_SIZE]) {
  static const unsigned char padding[SHA256_BLOCK] = {0x80};
  uint64_t bits = s->size * 8;
  unsigned char length[8];
  size_t at = s->size % SHA256_BLOCK;
  ipc_sha256_add(s, padding, (at < 56 ? 56 : 120) - at);
  sha256_put(length, (uint32_t)(bits >> 32));
  sha256_put(length + 4, (uint32_t)bits);
  ipc_sha256_add(s, length, sizeof length);
  for (int i = 0; i < 8; i++)
    sha256_put(digest + (size_t)i * 4, s->state[i]);
}

void ipc_sha256_hmac(const void *key, size_t key_size, const void *text,
                     size_t size, unsigned char digest[SHA256_SIZE]) {
  unsigned char block[SHA256_BLOCK] = {0};
  Sha256 s;
  if (key_size > sizeof block) {
    ipc_sha256_start(&s);
    ipc_sha256_add(&s, key, key_size);
    ipc_sha256_end(&s, block);
  } else if (key_size > 0) {
    memcpy(block, key, key_size);
  }
  for (size_t i = 0; i < sizeof block; i++)
    block[i] ^= 0x36;
  ipc_sha256_start(&s);
  ipc_sha256_add(&s, block, sizeof block);
  ipc_sha256_add(&s, text, size);
  ipc_sha256_end(&s, digest);
  for (size_t i = 0; i < sizeof block; i++)
    block[i] ^= 0x36 ^ 0x5c;
  ipc_sha256_start(&s);
  ipc_sha256_add(&s, block, sizeof block);
  ipc_sha256_add(&s, digest, SHA256_SIZE);
  ipc_sha256_end(&s, digest);
}
