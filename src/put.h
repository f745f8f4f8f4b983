/* How MessagePack writes numbers and heads, and which strings are UTF-8. What
 * is put goes to p, takes 9 bytes at most, and the place behind it is returned.
 * For encode.c and envelope.c alone. */
#ifndef IPC_PUT_H
#define IPC_PUT_H

#include <lua.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline char *put16(char *p, uint64_t v) {
  p[0] = (char)(v >> 8);
  p[1] = (char)v;
  return p + 2;
}

static inline char *put32(char *p, uint64_t v) {
  return put16(put16(p, v >> 16), v & 0xffff);
}

static inline char *put64(char *p, uint64_t v) {
  return put32(put32(p, v >> 32), v & 0xffffffff);
}

static inline char *put_head(char *p, int type) {
  *p = (char)type;
  return p + 1;
}

static inline char *put_integer(char *p, lua_Integer v) {
  uint64_t u = (uint64_t)v;
  if (v >= -32 && v <= 0x7f)
    return put_head(p, (int)(u & 0xff));
  if (v >= 0) {
    if (v <= 0xff)
      return put_head(put_head(p, 0xcc), (int)u);
    if (v <= 0xffff)
      return put16(put_head(p, 0xcd), u);
    if (v <= 0xffffffff)
      return put32(put_head(p, 0xce), u);
    return put64(put_head(p, 0xcf), u);
  }
  if (v >= INT8_MIN)
    return put_head(put_head(p, 0xd0), (int)(u & 0xff));
  if (v >= INT16_MIN)
    return put16(put_head(p, 0xd1), u);
  if (v >= INT32_MIN)
    return put32(put_head(p, 0xd2), u);
  return put64(put_head(p, 0xd3), u);
}

static inline char *put_float(char *p, lua_Number v) {
  double d = (double)v;
  uint64_t u;
  memcpy(&u, &d, sizeof u);
  return put64(put_head(p, 0xcb), u);
}

static inline char *put_str(char *p, size_t n) {
  if (n < 32)
    return put_head(p, 0xa0 | (int)n);
  if (n <= 0xff)
    return put_head(put_head(p, 0xd9), (int)n);
  if (n <= 0xffff)
    return put16(put_head(p, 0xda), n);
  return put32(put_head(p, 0xdb), n);
}

static inline char *put_bin(char *p, size_t n) {
  if (n <= 0xff)
    return put_head(put_head(p, 0xc4), (int)n);
  if (n <= 0xffff)
    return put16(put_head(p, 0xc5), n);
  return put32(put_head(p, 0xc6), n);
}

static inline char *put_ext(char *p, size_t n, int type) {
  if (n == 1 || n == 2 || n == 4 || n == 8 || n == 16)
    p = put_head(p, n == 1   ? 0xd4
                    : n == 2 ? 0xd5
                    : n == 4 ? 0xd6
                    : n == 8 ? 0xd7
                             : 0xd8);
  else if (n <= 0xff)
    p = put_head(put_head(p, 0xc7), (int)n);
  else if (n <= 0xffff)
    p = put16(put_head(p, 0xc8), n);
  else
    p = put32(put_head(p, 0xc9), n);
  return put_head(p, type);
}

static inline char *put_array(char *p, uint64_t n) {
  if (n < 16)
    return put_head(p, 0x90 | (int)n);
  if (n <= 0xffff)
    return put16(put_head(p, 0xdc), n);
  return put32(put_head(p, 0xdd), n);
}

/* Nothing above 0x7f? Most strings are plain, and short: the last word may
 * overlap the one before it. */
static inline int ascii(const char *s, size_t n) {
  uint64_t word = 0;
  if (n >= sizeof word) {
    const char *last = s + n - sizeof word;
    for (; s < last; s += sizeof word) {
      memcpy(&word, s, sizeof word);
      if (word & 0x8080808080808080)
        return 0;
    }
    memcpy(&word, last, sizeof word);
  } else if (n >= sizeof(uint32_t)) {
    uint32_t half;
    memcpy(&half, s, sizeof half);
    memcpy(&word, s + n - sizeof half, sizeof half);
    word |= half;
  } else if (n) {
    word = (unsigned char)(s[0] | s[n / 2] | s[n - 1]);
  }
  return !(word & 0x8080808080808080);
}

/* UTF-8 as RFC 3629 has it: shortest forms, no surrogates, up to U+10FFFF. */
static inline int utf8(const char *string, size_t n) {
  const unsigned char *s = (const unsigned char *)string;
  const unsigned char *end = s + n;
  while (s < end) {
    uint64_t word;
    if (end - s >= (ptrdiff_t)sizeof word) {
      memcpy(&word, s, sizeof word);
      if (!(word & 0x8080808080808080)) {
        s += sizeof word;
        continue;
      }
    }
    unsigned c = *s++;
    if (c < 0x80)
      continue;
    int more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
    if (c < 0xc2 || c > 0xf4 || end - s < more)
      return 0;
    unsigned low = 0x80, high = 0xbf; /* of the second byte */
    if (c == 0xe0)
      low = 0xa0;
    else if (c == 0xed)
      high = 0x9f;
    else if (c == 0xf0)
      low = 0x90;
    else if (c == 0xf4)
      high = 0x8f;
    if (*s < low || *s > high)
      return 0;
    for (s++; more > 1; more--, s++)
      if ((*s & 0xc0) != 0x80)
        return 0;
  }
  return 1;
}

#endif
