/* MessagePack-RPC messages to and from Lua's stack; see envelope.h. The values
 * in them are encode.c's and unpack.c's. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <string.h>

#include "envelope.h"
#include "put.h"
#include "unpack.h"

enum { ENVELOPE_FRAMES = 64 }; /* on the C stack; deeper limits: a userdata */

/* ---------------------------------------------------------------- finding */

void ipc_scan_start(Scan *s) {
  s->at = 0;
  s->pending = 1;
}

/* The element at p, of which `have` bytes are there: *need is its size, its
 * elements not included, *count these. False: nothing begins so. With fewer
 * bytes than its head *need is at least that. */
static bool scan_element(const unsigned char *p, size_t have, uint64_t *need,
                         uint64_t *count) {
  unsigned type = *p;
  *need = 1;
  *count = 0;
  if (type < 0x80 || type >= 0xe0)
    return true;
  if (type < 0x90) {
    *count = 2 * (uint64_t)(type & 0x0f);
    return true;
  }
  if (type < 0xa0) {
    *count = type & 0x0f;
    return true;
  }
  if (type < 0xc0) {
    *need = 1 + (uint64_t)(type & 0x1f);
    return true;
  }
  *need = ipc_head_size[type - 0xc0];
  if (*need == 0)
    return false;
  if (*need > have)
    return true;
  switch (type) {
  case 0xc4:
  case 0xc7:
  case 0xd9:
    *need += p[1];
    break;
  case 0xc5:
  case 0xc8:
  case 0xda:
    *need += get16(p + 1);
    break;
  case 0xc6:
  case 0xc9:
  case 0xdb:
    *need += get32(p + 1);
    break;
  case 0xd4:
  case 0xd5:
  case 0xd6:
  case 0xd7:
  case 0xd8:
    *need += (uint64_t)1 << (type - 0xd4);
    break;
  case 0xdc:
    *count = get16(p + 1);
    break;
  case 0xdd:
    *count = get32(p + 1);
    break;
  case 0xde:
    *count = 2 * (uint64_t)get16(p + 1);
    break;
  case 0xdf:
    *count = 2 * (uint64_t)get32(p + 1);
    break;
  default:
    break;
  }
  return true;
}

/* Whether a message can begin so, as far as it is there. */
static bool scan_begins(const unsigned char *p, size_t have, uint64_t need,
                        uint64_t count) {
  if (*p != 0xdc && *p != 0xdd && (*p & 0xf0) != 0x90)
    return false;
  return need > have || count == 3 || count == 4;
}

int ipc_scan(Scan *s, const char *bytes, size_t have, size_t limit) {
  while (s->pending > 0) {
    uint64_t need, count;
    const unsigned char *p = (const unsigned char *)bytes + s->at;
    size_t there = have - s->at;
    if (there == 0)
      return s->at + s->pending > limit ? EMSGSIZE : EAGAIN;
    if (!scan_element(p, there, &need, &count)) {
      s->why = "byte c1 starts no value";
      return EBADMSG;
    }
    if (s->at == 0 && !scan_begins(p, there, need, count)) {
      s->why = "not an array of three or four (does the peer speak "
               "MessagePack-RPC?)";
      return EBADMSG;
    }
    /* Whatever is to come takes a byte at least. */
    if (s->at > limit || need + count + s->pending - 1 > limit - s->at)
      return EMSGSIZE;
    if (need > there)
      return EAGAIN;
    s->at += (size_t)need;
    s->pending += count;
    s->pending--;
  }
  return 0;
}

/* --------------------------------------------------------------- decoding */

typedef struct Reader {
  lua_State *L;
  const unsigned char *start, *p, *end;
  Decode d;
  const EnvelopeLimits *limits;
  EnvelopeExts *exts;
  const char *option; /* whose limit a refusal is of, or NULL */
  bool shapeless;     /* what is refused is no name and arguments at all */
  int base;           /* Lua's stack before anything was pushed */
  Frame few[ENVELOPE_FRAMES];
} Reader;

/* The bytes are whole elements: what is read here is there, up to `end`. */

/* An integer of any width from 0 to `most`. */
static bool read_count(Reader *r, uint64_t most, uint64_t *n) {
  unsigned type = r->p < r->end ? *r->p : 0xc1;
  size_t size = 1;
  if (type >= 0xcc && type <= 0xd3) {
    static const unsigned char sizes[] = {2, 3, 5, 9};
    size = sizes[(type - 0xcc) & 3];
    if (size > (size_t)(r->end - r->p))
      return false;
    *n = size == 2   ? r->p[1]
         : size == 3 ? get16(r->p + 1)
         : size == 5 ? get32(r->p + 1)
                     : get64(r->p + 1);
    if (type >= 0xd0 && *n >> ((size - 1) * 8 - 1)) /* negative */
      return false;
  } else if (type < 0x80) {
    *n = type;
  } else {
    return false;
  }
  r->p += size;
  return *n <= most;
}

static bool read_array(Reader *r, uint64_t *count) {
  uint64_t need;
  size_t there = (size_t)(r->end - r->p);
  unsigned type = there ? *r->p : 0xc0;
  if ((type & 0xf0) != 0x90 && type != 0xdc && type != 0xdd)
    return false;
  if (!scan_element(r->p, there, &need, count) || need > there)
    return false;
  r->p += need;
  return true;
}

/* A string of either kind: *size bytes at *bytes. */
static bool read_string(Reader *r, const char **bytes, uint64_t *size) {
  uint64_t count, need;
  size_t there = (size_t)(r->end - r->p);
  unsigned type = there ? *r->p : 0xc0;
  bool is = (type & 0xe0) == 0xa0 || (type >= 0xc4 && type <= 0xc6) ||
            (type >= 0xd9 && type <= 0xdb);
  if (!is || !scan_element(r->p, there, &need, &count) || need > there)
    return false;
  size_t head = type < 0xc0 ? 1 : ipc_head_size[type - 0xc0];
  *bytes = (const char *)r->p + head;
  *size = need - head;
  r->p += need;
  return true;
}

/* Leaves what is on top at `index`, and nothing above it. */
static void read_keep(lua_State *L, int index) {
  lua_copy(L, -1, index);
  lua_settop(L, index);
}

/* The limit that a value is refused by, as its option is called; or NULL. */
static const char *read_limit(const char *cause) {
  static const struct {
    const char *cause, *option;
  } limits[] = {{"nested deeper", "depth"},
                {"more than %I keys", "keys"},
                {"more than %I tables", "tables"},
                {"more than %I values", "values"}};
  for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
    if (strncmp(cause, limits[i].cause, strlen(limits[i].cause)) == 0)
      return limits[i].option;
  return NULL;
}

/* Pushes one value, nil as nil. False: a text instead, which says why not. */
static bool read_value(Reader *r) {
  if (r->p < r->end && *r->p == 0xc0) {
    lua_pushnil(r->L);
    r->p++;
    return true;
  }
  Decode *d = &r->d;
  int top = lua_gettop(r->L);
  d->depth = 0;
  d->owed = 0;
  d->taken = (size_t)(r->p - r->start);
  if (ipc_decode_run(r->L, d, &r->p, r->end) == 0)
    return true;
  if (r->exts && r->exts->told) {
    read_keep(r->L, top + 1);
    return false;
  }
  lua_settop(r->L, top);
  ipc_decode_explain(r->L, d);
  r->option = read_limit(d->cause);
  return false;
}

/* What the limits of users' calls do not take from the library's own, whose
 * names begin with $: bytes of a name, and arguments. */
enum { OWN_NAME = 16, OWN_PARAMS = 8 };

/* Pushes an array's elements. False: a text as well, which says why not. */
static bool read_values_to(Reader *r, uint64_t count, const char *what,
                           int limit) {
  lua_State *L = r->L;
  if (count > (uint64_t)limit ||
      !lua_checkstack(L, (int)count + LUA_MINSTACK)) {
    lua_pushfstring(L, "%I %s, but the limit is %d", (LUAI_UACINT)count, what,
                    limit);
    r->option = "params";
    return false;
  }
  if (count > r->d.limits.values - r->d.values) {
    lua_pushfstring(L, "more than %I values", (LUAI_UACINT)r->d.limits.values);
    r->option = "values";
    return false;
  }
  r->d.values += (uint32_t)count;
  for (uint64_t i = 0; i < count; i++)
    if (!read_value(r))
      return false;
  return true;
}

static bool read_values(Reader *r, uint64_t count, const char *what) {
  return read_values_to(r, count, what, r->limits->params);
}

/* Leaves nothing but the text on top. */
static int read_bad(Reader *r) {
  read_keep(r->L, r->base + 1);
  return 0;
}

static int read_refuse(Reader *r, const char *why) {
  lua_pushstring(r->L, why);
  return read_bad(r);
}

/* A request that will be answered with an error: the text is on top, and is
 * read by the other side. */
static int read_invalid(Reader *r, uint64_t id) {
  lua_State *L = r->L;
  if (r->option)
    lua_pushfstring(L, "%s (the other side's option '%s')", lua_tostring(L, -1),
                    r->option);
  (void)read_bad(r);
  lua_pushinteger(L, ENVELOPE_INVALID);
  lua_insert(L, r->base + 1);
  lua_pushinteger(L, (lua_Integer)id);
  lua_insert(L, r->base + 2);
  return 3;
}

/* What cannot be taken of a notification is told here: nobody is answered. The
 * text is on top. */
static int read_unheard(Reader *r) {
  lua_State *L = r->L;
  const char *why = lua_tostring(L, -1);
  if (r->option)
    lua_pushfstring(L,
                    "a notification cannot be taken: %s (the option '%s' here)",
                    why, r->option);
  else
    lua_pushfstring(L, "a notification cannot be taken: %s", why);
  (void)read_bad(r);
  lua_pushinteger(L, ENVELOPE_NOTIFICATION);
  lua_insert(L, r->base + 1);
  lua_pushnil(L);
  lua_insert(L, r->base + 2);
  return 3;
}

/* Where there should be a name, or arguments. False, and a text. */
static bool read_shapeless(Reader *r, const char *why) {
  lua_pushstring(r->L, why);
  r->shapeless = true;
  return false;
}

static bool read_is(const char *name, uint64_t size, const char *what) {
  return size == strlen(what) && memcmp(name, what, strlen(what)) == 0;
}

/* Pushes method and arguments; of our own two that have arguments in an array
 * of their own: what goes before it, and these. False: a text. */
static bool read_call(Reader *r, bool inside) {
  lua_State *L = r->L;
  const char *name;
  uint64_t size, count;
  if (!read_string(r, &name, &size))
    return read_shapeless(r, "the method is no string");
  bool own = size > 0 && size <= OWN_NAME && name[0] == '$';
  if (size > r->limits->method && !own) {
    lua_pushfstring(L, "a method's name of %I bytes, but the limit is %I",
                    (LUAI_UACINT)size, (LUAI_UACINT)r->limits->method);
    r->option = "method";
    return false;
  }
  bool call = !inside && read_is(name, size, "$call");
  bool invoke = read_is(name, size, "$invoke");
  lua_pushlstring(L, name, (size_t)size);
  if (!read_array(r, &count))
    return read_shapeless(r, "the arguments are no array");
  if (!call && !invoke)
    return read_values_to(
        r, count, "arguments",
        own && r->limits->params < OWN_PARAMS ? OWN_PARAMS : r->limits->params);
  if (count != 3)
    return read_shapeless(r, "three arguments expected");
  if (!read_value(r)) /* of what, or about the call */
    return false;
  if (call)
    return read_call(r, true);
  if (!read_value(r)) /* the name */
    return false;
  if (!read_array(r, &count))
    return read_shapeless(r, "the arguments are no array");
  return read_values(r, count, "arguments");
}

static int read_request(Reader *r) {
  uint64_t id;
  if (!read_count(r, UINT32_MAX, &id))
    return read_refuse(r, "a request's id is no integer of 32 bits");
  lua_pushinteger(r->L, ENVELOPE_REQUEST);
  lua_pushinteger(r->L, (lua_Integer)id);
  return read_call(r, false) ? lua_gettop(r->L) - r->base : read_invalid(r, id);
}

/* What cannot be taken of a response is an error to who waits for it, as if it
 * had come: [0, text, {errno}]. The text is on top. */
static int read_untaken(Reader *r, int index) {
  lua_State *L = r->L;
  if (r->option)
    lua_pushfstring(L, "the reply cannot be taken: %s (the option '%s' here)",
                    lua_tostring(L, -1), r->option);
  else
    lua_pushfstring(L, "the reply cannot be taken: %s", lua_tostring(L, -1));
  read_keep(L, index);
  lua_createtable(L, 3, 0);
  lua_pushinteger(L, 0);
  lua_rawseti(L, -2, 1);
  lua_pushvalue(L, index);
  lua_rawseti(L, -2, 2);
  lua_createtable(L, 0, 1);
  lua_pushinteger(L, EINVAL);
  lua_setfield(L, -2, "errno");
  lua_rawseti(L, -2, 3);
  read_keep(L, index);
  return 3;
}

static int read_response(Reader *r, bool spread) {
  lua_State *L = r->L;
  uint64_t id, count;
  if (!read_count(r, UINT32_MAX, &id))
    return read_refuse(r, "a response's id is no integer of 32 bits");
  lua_pushinteger(L, ENVELOPE_RESPONSE);
  lua_pushinteger(L, (lua_Integer)id);
  int error = lua_gettop(L) + 1;
  if (!read_value(r))
    return read_untaken(r, error);
  if (!lua_isnil(L, -1))
    return 3;
  bool good = spread && read_array(r, &count) ? read_values(r, count, "results")
                                              : read_value(r);
  return good ? lua_gettop(L) - r->base : read_untaken(r, error);
}

static int read_notification(Reader *r) {
  lua_pushinteger(r->L, ENVELOPE_NOTIFICATION);
  if (read_call(r, false))
    return lua_gettop(r->L) - r->base;
  return r->shapeless ? read_bad(r) : read_unheard(r);
}

static int read_message(Reader *r, bool spread) {
  uint64_t count, kind;
  if (!read_array(r, &count) || !read_count(r, 2, &kind) ||
      count != (kind == ENVELOPE_NOTIFICATION ? 3 : 4))
    return read_refuse(r, "not a request, response or notification");
  switch (kind) {
  case ENVELOPE_REQUEST:
    return read_request(r);
  case ENVELOPE_RESPONSE:
    return read_response(r, spread);
  default:
    return read_notification(r);
  }
}

int ipc_envelope_decode(lua_State *L, const char *bytes, size_t size,
                        const EnvelopeLimits *limits, bool spread,
                        EnvelopeExts *x) {
  Reader r;
  luaL_checkstack(L, LUA_MINSTACK, NULL);
  r.L = L;
  r.start = r.p = (const unsigned char *)bytes;
  r.end = r.start + size;
  r.limits = limits;
  r.base = lua_gettop(L);
  r.d.limits = limits->values;
  r.d.limits.bytes = size;
  r.d.whole = 1;
  r.d.frames = r.few;
  ipc_decode_start(&r.d);
  r.d.foreign = x ? &x->f : NULL;
  r.exts = x;
  r.option = NULL;
  r.shapeless = false;
  if (limits->values.depth <= ENVELOPE_FRAMES)
    return read_message(&r, spread);
  r.d.frames = lua_newuserdatauv(L, limits->values.depth * sizeof(Frame), 0);
  r.base++;
  int n = read_message(&r, spread);
  lua_remove(L, r.base);
  return n;
}

/* --------------------------------------------------------------- encoding */

static void envelope_id(Encode *e, int count, int kind, uint32_t id) {
  encode_room(e, 2 * ENCODE_ROOM);
  e->at = put_array(e->at, (uint64_t)count);
  e->at = put_integer(e->at, kind);
  e->at = put_integer(e->at, (lua_Integer)id);
}

void ipc_envelope_request(Encode *e, uint32_t id) {
  envelope_id(e, 4, ENVELOPE_REQUEST, id);
}

void ipc_envelope_response(Encode *e, uint32_t id) {
  envelope_id(e, 4, ENVELOPE_RESPONSE, id);
}

void ipc_envelope_notify(Encode *e) {
  encode_room(e, ENCODE_ROOM);
  e->at = put_array(e->at, 3);
  e->at = put_integer(e->at, ENVELOPE_NOTIFICATION);
}

static void envelope_str(Encode *e, const char *s, size_t n) {
  encode_room(e, ENCODE_ROOM + n);
  e->at = put_str(e->at, n);
  memcpy(e->at, s, n);
  e->at += n;
}

void ipc_envelope_name(Encode *e, int index) {
  size_t n;
  const char *s = lua_tolstring(e->L, index, &n);
  envelope_str(e, s, n);
}

void ipc_envelope_literal(Encode *e, const char *name) {
  envelope_str(e, name, strlen(name));
}

void ipc_envelope_nil(Encode *e) {
  encode_room(e, ENCODE_ROOM);
  e->at = put_head(e->at, 0xc0);
}

void ipc_envelope_array(Encode *e, int count) {
  encode_room(e, ENCODE_ROOM);
  e->at = put_array(e->at, (uint64_t)count);
}

int ipc_envelope_values(Encode *e, int first, int top, const char *root) {
  e->root = root;
  ipc_envelope_array(e, top - first + 1);
  for (int i = first; i <= top; i++) {
    e->argument = i - first + 1;
    if (!ipc_encode_index(e, i))
      return 0;
  }
  return 1;
}
