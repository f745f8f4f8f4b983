/* Structs as C lays them out: sizes, offsets, fields by name, and their values
 * in bytes of either order. Knows no Lua and not whose bytes they are. */
#ifndef IPC_LAYOUT_H
#define IPC_LAYOUT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LAYOUT_MOST INT32_MAX /* bytes of a struct */

enum { LAYOUT_DEEPEST = 32 }; /* structs within structs */

/* How the bytes of a value are read. */
typedef enum Code {
  CODE_INT8,
  CODE_UINT8,
  CODE_INT16,
  CODE_UINT16,
  CODE_INT32,
  CODE_UINT32,
  CODE_INT64, /* signed or not: the same bits */
  CODE_FLOAT,
  CODE_DOUBLE,
  CODE_BOOLEAN,
  CODE_INTEGER, /* of odd size, or in the other order of bytes */
  CODE_REAL,    /* in the other order of bytes */
  CODE_BYTES,   /* all of them */
  CODE_TEXT,    /* up to the first zero */
  CODE_STRUCT
} Code;

typedef struct Layout Layout;

typedef struct Type {
  const Layout *layout; /* of a struct; else NULL */
  uint32_t size;
  uint32_t align;
  uint8_t code; /* a Code */
  bool is_signed;
  bool swapped; /* the other order of bytes than this machine's */
} Type;

typedef struct Field {
  const void *key; /* what the name is found by: the address of the interned
                    * string, which somebody keeps alive */
  const char *name;
  uint32_t length; /* of the name */
  uint32_t offset;
  uint32_t count; /* of an array; 0: it is none */
  Type type;      /* of it, or of one element */
} Field;

/* A place of the table that fields are found in; a free one has no field. */
typedef struct Slot {
  const void *key;
  const Field *field;
} Slot;

struct Layout {
  Type self;       /* as one type; self.size is that of what it takes in
                    * memory, versions included */
  uint32_t size;   /* of the data */
  uint32_t filled; /* of that, what fields take: no padding */
  uint32_t packed; /* the largest alignment of a field */
  uint32_t depth;  /* of structs in it */
  uint32_t count;  /* fields */
  uint32_t mask;   /* slots - 1 */
  uint32_t shift;  /* of the hash */
  bool versioned;  /* a record has two copies; see versioned.h */
  bool swapped;    /* the default of its fields */
  Field *fields;   /* count of them, in order */
  Slot *map;       /* by the key's hash, probed in order */
};

/* A value between bytes and Lua. */
typedef enum ValueKind {
  VALUE_INTEGER,
  VALUE_NUMBER,
  VALUE_BOOLEAN,
  VALUE_BYTES
} ValueKind;

typedef struct Value {
  ValueKind kind;
  union {
    int64_t integer;
    double number;
    struct {
      const char *bytes;
      size_t size;
    };
  };
} Value;

/* The type that the `length` letters of `text` name, as string.pack has them;
 * false: none. Its size is 0 when it is out of range. */
bool ipc_type_parse(const char *text, size_t length, bool swapped, Type *type);

/* Bytes in front of the fields: how large a block for ipc_layout_begin. */
size_t ipc_layout_block(uint32_t count);

/* Makes an empty layout for up to `count` fields in the zeroed block. */
Layout *ipc_layout_begin(void *block, uint32_t count);

/* Puts the next field behind those there are. `f` has all but its offset.
 * False: the struct would be larger than LAYOUT_MOST. */
bool ipc_layout_add(Layout *s, const Field *f);

/* The last field is in: the size. False: it is too large. */
bool ipc_layout_end(Layout *s);

/* The field whose name is these bytes, or NULL. */
const Field *ipc_layout_named(const Layout *s, const char *name, size_t length);

static inline uint32_t layout_hash(const Layout *s, const void *key) {
  uint64_t at = (uint64_t)(uintptr_t)key;
  return (uint32_t)((at * UINT64_C(0x9E3779B97F4A7C15)) >> s->shift) & s->mask;
}

/* The field of that key, or NULL. */
static inline const Field *layout_find(const Layout *s, const void *key) {
  const Slot *at = &s->map[layout_hash(s, key)];
  while (at->key != key && at->field)
    at = at == &s->map[s->mask] ? s->map : at + 1;
  return at->field;
}

/* The range of an integer of that type, of less than 8 bytes. */
void ipc_type_range(const Type *t, int64_t *least, int64_t *most);

/* Of codes that layout_get and layout_put leave out. */
void ipc_type_get(const Type *t, const char *at, Value *v);
void ipc_type_put(const Type *t, char *at, const Value *v);

/* Other processes may read and write the same bytes at the same time: what is
 * aligned is never seen in parts. */
#define LAYOUT_ALIGNED(at, type) (((uintptr_t)(at) & (sizeof(type) - 1)) == 0)

static inline uint8_t layout_load8(const char *at) {
  return atomic_load_explicit((_Atomic uint8_t *)(uintptr_t)at,
                              memory_order_relaxed);
}

static inline uint16_t layout_load16(const char *at) {
  uint16_t n;
  if (LAYOUT_ALIGNED(at, n))
    return atomic_load_explicit((_Atomic uint16_t *)(uintptr_t)at,
                                memory_order_relaxed);
  memcpy(&n, at, sizeof n);
  return n;
}

static inline uint32_t layout_load32(const char *at) {
  uint32_t n;
  if (LAYOUT_ALIGNED(at, n))
    return atomic_load_explicit((_Atomic uint32_t *)(uintptr_t)at,
                                memory_order_relaxed);
  memcpy(&n, at, sizeof n);
  return n;
}

static inline uint64_t layout_load64(const char *at) {
  uint64_t n;
  if (LAYOUT_ALIGNED(at, n))
    return atomic_load_explicit((_Atomic uint64_t *)(uintptr_t)at,
                                memory_order_relaxed);
  memcpy(&n, at, sizeof n);
  return n;
}

static inline void layout_store8(char *at, uint8_t n) {
  atomic_store_explicit((_Atomic uint8_t *)(void *)at, n, memory_order_relaxed);
}

static inline void layout_store16(char *at, uint16_t n) {
  if (LAYOUT_ALIGNED(at, n))
    atomic_store_explicit((_Atomic uint16_t *)(void *)at, n,
                          memory_order_relaxed);
  else
    memcpy(at, &n, sizeof n);
}

static inline void layout_store32(char *at, uint32_t n) {
  if (LAYOUT_ALIGNED(at, n))
    atomic_store_explicit((_Atomic uint32_t *)(void *)at, n,
                          memory_order_relaxed);
  else
    memcpy(at, &n, sizeof n);
}

static inline void layout_store64(char *at, uint64_t n) {
  if (LAYOUT_ALIGNED(at, n))
    atomic_store_explicit((_Atomic uint64_t *)(void *)at, n,
                          memory_order_relaxed);
  else
    memcpy(at, &n, sizeof n);
}

/* Copies a value of so many bytes. */
static inline void layout_move(char *to, const char *from, uint32_t size) {
  if (size == 8)
    layout_store64(to, layout_load64(from));
  else if (size == 4)
    layout_store32(to, layout_load32(from));
  else if (size == 2)
    layout_store16(to, layout_load16(from));
  else
    memcpy(to, from, size);
}

/* The value of a native integer, of a code up to CODE_INT64. */
static inline int64_t layout_integer(uint8_t code, const char *at) {
  switch (code) {
  case CODE_INT8:
    return (int8_t)layout_load8(at);
  case CODE_UINT8:
    return (uint8_t)layout_load8(at);
  case CODE_INT16:
    return (int16_t)layout_load16(at);
  case CODE_UINT16:
    return (uint16_t)layout_load16(at);
  case CODE_INT32:
    return (int32_t)layout_load32(at);
  case CODE_UINT32:
    return (uint32_t)layout_load32(at);
  default:
    return (int64_t)layout_load64(at);
  }
}

/* The same of CODE_FLOAT and CODE_DOUBLE. */
static inline double layout_real(uint8_t code, const char *at) {
  double number;
  if (code == CODE_FLOAT) {
    uint32_t bits = layout_load32(at);
    float narrow;
    memcpy(&narrow, &bits, sizeof narrow);
    return narrow;
  }
  uint64_t wide = layout_load64(at);
  memcpy(&number, &wide, sizeof number);
  return number;
}

/* The value of a field of a type that is no struct. Bytes are left where they
 * are. */
static inline void layout_get(const Type *t, const char *at, Value *v) {
  if (t->code <= CODE_INT64) {
    v->kind = VALUE_INTEGER;
    v->integer = layout_integer(t->code, at);
  } else if (t->code <= CODE_DOUBLE) {
    v->kind = VALUE_NUMBER;
    v->number = layout_real(t->code, at);
  } else {
    ipc_type_get(t, at, v);
  }
}

/* The value is within the type's range. */
static inline void layout_put(const Type *t, char *at, const Value *v) {
  float narrow;
  uint32_t bits;
  uint64_t wide;
  switch (t->code) {
  case CODE_INT8:
  case CODE_UINT8:
    layout_store8(at, (uint8_t)v->integer);
    return;
  case CODE_INT16:
  case CODE_UINT16:
    layout_store16(at, (uint16_t)v->integer);
    return;
  case CODE_INT32:
  case CODE_UINT32:
    layout_store32(at, (uint32_t)v->integer);
    return;
  case CODE_INT64:
    layout_store64(at, (uint64_t)v->integer);
    return;
  case CODE_FLOAT:
    narrow = (float)v->number;
    memcpy(&bits, &narrow, sizeof bits);
    layout_store32(at, bits);
    return;
  case CODE_DOUBLE:
    memcpy(&wide, &v->number, sizeof wide);
    layout_store64(at, wide);
    return;
  default:
    ipc_type_put(t, at, v);
  }
}

#endif
