/* Layouts: types by their letters, the offsets that C gives fields, and the
 * values that take more than one load. */
#include "prefix.h"

#include <limits.h>
#include <lua.h>

#include "layout.h"

/* A C compiler aligns within a struct otherwise than `_Alignof` says on some
 * machines: a double of i386 by 4. */
#define LAYOUT_ALIGN(type)                                                     \
  offsetof(                                                                    \
      struct {                                                                 \
        char before;                                                           \
        type it;                                                               \
      },                                                                       \
      it)

_Static_assert(sizeof(float) == 4 && sizeof(double) == 8, "IEEE 754");
_Static_assert(CHAR_BIT == 8, "bytes");

static bool layout_little(void) {
  const uint16_t one = 1;
  char first;
  memcpy(&first, &one, 1);
  return first == 1;
}

/* ------------------------------------------------------------------- types */

static void type_integer(Type *t, size_t size, size_t align, bool is_signed) {
  static const uint8_t codes[] = {
      [1] = CODE_INT8, [2] = CODE_INT16, [4] = CODE_INT32, [8] = CODE_INT64};
  uint8_t code = CODE_INTEGER;
  if (size == 8 && !t->swapped)
    code = CODE_INT64;
  else if (size == 1 || (!t->swapped && (size == 2 || size == 4)))
    code = (uint8_t)(codes[size] + !is_signed);
  t->size = (uint32_t)size;
  t->align = (uint32_t)align;
  t->code = code;
  t->is_signed = is_signed;
}

static void type_real(Type *t, size_t size, size_t align) {
  t->size = (uint32_t)size;
  t->align = (uint32_t)align;
  if (t->swapped)
    t->code = CODE_REAL;
  else
    t->code = size == sizeof(float) ? CODE_FLOAT : CODE_DOUBLE;
}

/* An integer of `size` bytes that its letter tells: aligned as the native one,
 * and as an array of bytes where there is none. */
static void type_sized(Type *t, size_t size, bool is_signed) {
  static const uint8_t aligns[] = {[1] = LAYOUT_ALIGN(int8_t),
                                   [2] = LAYOUT_ALIGN(int16_t),
                                   [4] = LAYOUT_ALIGN(int32_t),
                                   [8] = LAYOUT_ALIGN(int64_t)};
  if (size < 1 || size > 8) {
    t->size = 0;
    return;
  }
  type_integer(t, size, aligns[size] ? aligns[size] : 1, is_signed);
}

static bool type_letter(char letter, Type *t) {
  switch (letter) {
  case 'b':
  case 'B':
    type_integer(t, 1, 1, letter == 'b');
    return true;
  case 'h':
  case 'H':
    type_integer(t, sizeof(short), LAYOUT_ALIGN(short), letter == 'h');
    return true;
  case 'i':
  case 'I':
    type_integer(t, sizeof(int), LAYOUT_ALIGN(int), letter == 'i');
    return true;
  case 'l':
  case 'L':
    type_integer(t, sizeof(long), LAYOUT_ALIGN(long), letter == 'l');
    return true;
  case 'j':
  case 'J':
    type_integer(t, sizeof(lua_Integer), LAYOUT_ALIGN(lua_Integer),
                 letter == 'j');
    return true;
  case 'T':
    type_integer(t, sizeof(size_t), LAYOUT_ALIGN(size_t), false);
    return true;
  case 'f':
    type_real(t, sizeof(float), LAYOUT_ALIGN(float));
    return true;
  case 'd':
    type_real(t, sizeof(double), LAYOUT_ALIGN(double));
    return true;
  case 'n':
    type_real(t, sizeof(lua_Number), LAYOUT_ALIGN(lua_Number));
    return true;
  case '?':
    t->code = CODE_BOOLEAN;
    t->size = t->align = 1;
    return true;
  default:
    return false;
  }
}

/* The digits as a number up to LAYOUT_MOST; 0: too large, or no digits. */
static size_t type_digits(const char *text, size_t length) {
  size_t n = 0;
  for (; length; text++, length--) {
    if (*text < '0' || *text > '9' || n > LAYOUT_MOST / 10)
      return 0;
    n = n * 10 + (size_t)(*text - '0');
  }
  return n > LAYOUT_MOST ? 0 : n;
}

bool ipc_type_parse(const char *text, size_t length, bool swapped, Type *type) {
  *type = (Type){.swapped = swapped};
  if (length == 0)
    return false;
  if (length == 1)
    return type_letter(*text, type);
  for (size_t i = 1; i < length; i++)
    if (text[i] < '0' || text[i] > '9')
      return false;
  size_t n = type_digits(text + 1, length - 1);
  switch (*text) {
  case 'i':
  case 'I':
    type_sized(type, n, *text == 'i');
    return true;
  case 'c':
  case 'z':
    type->code = *text == 'c' ? CODE_BYTES : CODE_TEXT;
    type->size = (uint32_t)n;
    type->align = 1;
    return true;
  default:
    return false;
  }
}

void ipc_type_range(const Type *t, int64_t *least, int64_t *most) {
  uint32_t bits = t->size * 8;
  if (t->is_signed) {
    *most = (INT64_C(1) << (bits - 1)) - 1;
    *least = -*most - 1;
  } else {
    *least = 0;
    *most = (INT64_C(1) << bits) - 1;
  }
}

/* ------------------------------------------------------------------ values */

/* The integer of `size` bytes, in the order that `swapped` tells. A swapped
 * one of a machine's own size is loaded at once. */
static uint64_t type_bits(const Type *t, const char *at) {
  unsigned char bytes[8] = {0};
  uint64_t n = 0;
  uint32_t size = t->size;
  if (size == 2) {
    uint16_t half = layout_load16(at);
    memcpy(bytes, &half, sizeof half);
  } else if (size == 4) {
    uint32_t word = layout_load32(at);
    memcpy(bytes, &word, sizeof word);
  } else if (size == 8) {
    uint64_t wide = layout_load64(at);
    memcpy(bytes, &wide, sizeof wide);
  } else {
    memcpy(bytes, at, size);
  }
  bool little = layout_little() != t->swapped;
  for (uint32_t i = 0; i < size; i++)
    n = n << 8 | bytes[little ? size - 1 - i : i];
  return n;
}

static void type_set_bits(const Type *t, char *at, uint64_t n) {
  unsigned char bytes[8] = {0};
  uint32_t size = t->size;
  bool little = layout_little() != t->swapped;
  for (uint32_t i = 0; i < size; i++, n >>= 8)
    bytes[little ? i : size - 1 - i] = (unsigned char)n;
  if (size == 2) {
    uint16_t half;
    memcpy(&half, bytes, sizeof half);
    layout_store16(at, half);
  } else if (size == 4) {
    uint32_t word;
    memcpy(&word, bytes, sizeof word);
    layout_store32(at, word);
  } else if (size == 8) {
    uint64_t wide;
    memcpy(&wide, bytes, sizeof wide);
    layout_store64(at, wide);
  } else {
    memcpy(at, bytes, size);
  }
}

void ipc_type_get(const Type *t, const char *at, Value *v) {
  uint64_t bits;
  switch (t->code) {
  case CODE_BOOLEAN:
    v->kind = VALUE_BOOLEAN;
    v->integer = layout_load8(at) != 0;
    return;
  case CODE_REAL:
    bits = type_bits(t, at);
    v->kind = VALUE_NUMBER;
    if (t->size == sizeof(double)) {
      memcpy(&v->number, &bits, sizeof v->number);
    } else {
      uint32_t word = (uint32_t)bits;
      float narrow;
      memcpy(&narrow, &word, sizeof narrow);
      v->number = narrow;
    }
    return;
  case CODE_BYTES:
  case CODE_TEXT:
    v->kind = VALUE_BYTES;
    v->bytes = at;
    v->size = t->size;
    return;
  default:
    bits = type_bits(t, at);
    if (t->is_signed && t->size < 8 && bits >> (t->size * 8 - 1))
      bits |= UINT64_MAX << (t->size * 8);
    v->kind = VALUE_INTEGER;
    v->integer = (int64_t)bits;
  }
}

void ipc_type_put(const Type *t, char *at, const Value *v) {
  switch (t->code) {
  case CODE_BOOLEAN:
    layout_store8(at, v->integer != 0);
    return;
  case CODE_REAL: {
    uint64_t bits;
    if (t->size == sizeof(double)) {
      memcpy(&bits, &v->number, sizeof bits);
    } else {
      float narrow = (float)v->number;
      uint32_t word;
      memcpy(&word, &narrow, sizeof word);
      bits = word;
    }
    type_set_bits(t, at, bits);
    return;
  }
  case CODE_BYTES:
  case CODE_TEXT:
    if (v->size)
      memcpy(at, v->bytes, v->size);
    if (v->size < t->size)
      memset(at + v->size, 0, t->size - v->size);
    return;
  default:
    type_set_bits(t, at, (uint64_t)v->integer);
  }
}

/* ----------------------------------------------------------------- layouts */

static uint32_t layout_slots(uint32_t count) {
  uint32_t slots = 8;
  while (slots < 4 * count)
    slots *= 2;
  return slots;
}

static size_t layout_round(size_t n) {
  size_t unit = LAYOUT_ALIGN(Field);
  return (n + unit - 1) / unit * unit;
}

size_t ipc_layout_block(uint32_t count) {
  return layout_round(sizeof(Layout)) + count * sizeof(Field) +
         layout_slots(count) * sizeof(Slot);
}

Layout *ipc_layout_begin(void *block, uint32_t count) {
  Layout *s = block;
  uint32_t slots = layout_slots(count);
  s->fields = (Field *)((char *)block + layout_round(sizeof *s));
  s->map = (Slot *)(s->fields + count);
  s->mask = slots - 1;
  s->shift = 32;
  s->packed = UINT32_MAX;
  s->self = (Type){.layout = s, .align = 1, .code = CODE_STRUCT};
  return s;
}

bool ipc_layout_add(Layout *s, const Field *f) {
  uint64_t align = f->type.align < s->packed ? f->type.align : s->packed;
  uint64_t at = (s->size + align - 1) / align * align;
  uint64_t size = (uint64_t)f->type.size * (f->count ? f->count : 1);
  if (at + size > LAYOUT_MOST)
    return false;
  Field *own = &s->fields[s->count++];
  *own = *f;
  own->offset = (uint32_t)at;
  s->size = (uint32_t)(at + size);
  uint32_t each = f->type.layout ? f->type.layout->filled : f->type.size;
  s->filled += each * (f->count ? f->count : 1);
  if (align > s->self.align)
    s->self.align = (uint32_t)align;
  if (f->type.layout && f->type.layout->depth >= s->depth)
    s->depth = f->type.layout->depth + 1;
  uint32_t slot = layout_hash(s, f->key);
  while (s->map[slot].field)
    slot = (slot + 1) & s->mask;
  s->map[slot] = (Slot){f->key, own};
  return true;
}

bool ipc_layout_end(Layout *s) {
  uint64_t align = s->self.align;
  uint64_t size = (s->size + align - 1) / align * align;
  if (size > LAYOUT_MOST)
    return false;
  s->size = s->self.size = (uint32_t)size;
  return true;
}

const Field *ipc_layout_named(const Layout *s, const char *name,
                              size_t length) {
  for (uint32_t i = 0; i < s->count; i++)
    if (s->fields[i].length == length &&
        memcmp(s->fields[i].name, name, length) == 0)
      return &s->fields[i];
  return NULL;
}
