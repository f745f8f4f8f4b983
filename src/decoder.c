/* Values in pieces: ipc.decoder, and decoding from streams for channels. Keeps
 * what unpack.c was building on the Lua stack while bytes are awaited, and the
 * element they were cut in. */

/***
 * @module ipc.decoder
 */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdint.h>
#include <string.h>

#include "buffer.h"
#include "msgpack.h"
#include "unpack.h"

enum { DECODER_KEEP = 64 * 1024 }; /* bytes of a buffer kept while empty */

/* The key of decoders' metatable in the registry: its address. */
static const char decoder_key = 'd';

/* Uservalues of a decoder. */
enum { DECODER_TABLES = 1, DECODER_ERROR, DECODER_USERVALUES = DECODER_ERROR };

typedef struct Decoder {
  int open;
  int failed;    /* DECODER_ERROR holds the text, nil for lack of memory */
  int running;   /* finalizers see this; it stays set when memory ran out */
  int saved;     /* stack slots put away in DECODER_TABLES */
  size_t at;     /* of input: where the next element starts */
  Buffer input;  /* fed by Lua, not yet taken */
  Buffer cut;    /* the beginning of an element */
  Decode decode; /* its frames are the ones below */
  Frame frames[];
} Decoder;

void ipc_decoder_push_within(lua_State *L, const ValueLimits *limits) {
  if (!limits)
    limits = &ipc_value_limits;
  luaL_checkstack(L, 4, NULL);
  size_t size = sizeof(Decoder) + limits->depth * sizeof(Frame);
  Decoder *d = lua_newuserdatauv(L, size, DECODER_USERVALUES);
  memset(d, 0, sizeof *d);
  d->open = 1;
  d->decode.limits = *limits;
  d->decode.frames = d->frames;
  ipc_decode_start(&d->decode);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &decoder_key);
  lua_setmetatable(L, -2);
}

void ipc_decoder_push(lua_State *L) { ipc_decoder_push_within(L, NULL); }

static void decoder_free(Decoder *d) {
  d->at = 0;
  ipc_buffer_free(&d->input);
  ipc_buffer_free(&d->cut);
}

static void decoder_empty(Buffer *b) {
  b->size = 0;
  if (b->room > DECODER_KEEP)
    ipc_buffer_free(b);
}

/* Stack slots that the open tables and their keys take. */
static int decoder_slots(const Decode *d) {
  int slots = 0;
  for (uint32_t i = 0; i < d->depth; i++)
    slots += d->frames[i].state == FRAME_VALUE ? 2 : 1;
  return slots;
}

/* Puts the open tables away, unless they still are: pops them into a table of
 * the decoder's. */
static void decoder_save(lua_State *L, Decoder *d, int index) {
  int slots = decoder_slots(&d->decode);
  if (!slots || d->saved)
    return;
  luaL_checkstack(L, 4, NULL);
  if (lua_getiuservalue(L, index, DECODER_TABLES) != LUA_TTABLE) {
    lua_pop(L, 1);
    lua_createtable(L, slots, 0);
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, index, DECODER_TABLES);
  }
  lua_insert(L, -1 - slots);
  for (int i = slots; i > 0; i--)
    lua_rawseti(L, -1 - i, i);
  lua_pop(L, 1);
  d->saved = slots;
}

static void decoder_restore(lua_State *L, Decoder *d, int index) {
  if (!d->saved)
    return;
  luaL_checkstack(L, d->saved + LUA_MINSTACK, NULL);
  lua_getiuservalue(L, index, DECODER_TABLES);
  int tables = lua_gettop(L);
  for (int i = 1; i <= d->saved; i++)
    lua_rawgeti(L, tables, i);
  lua_remove(L, tables);
  d->saved = 0;
}

/* The value is complete, its tables no longer the decoder's. */
static void decoder_next(lua_State *L, Decoder *d, int index) {
  lua_pushnil(L);
  lua_setiuservalue(L, index, DECODER_TABLES);
  decoder_empty(&d->cut);
  ipc_decode_start(&d->decode);
}

/* Appends to `cut` what it lacks of its element; EAGAIN if that is not all. */
static int decoder_complete(lua_State *L, Decoder *d, const char *bytes,
                            size_t size, size_t *used) {
  if (d->cut.size >= d->decode.need)
    return 0;
  size_t lacks = d->decode.need - d->cut.size;
  size_t n = size - *used < lacks ? size - *used : lacks;
  if (ipc_buffer_reserve(&d->cut, n))
    luaL_error(L, "not enough memory");
  if (n)
    memcpy(d->cut.bytes + d->cut.size, bytes + *used, n);
  d->cut.size += n;
  *used += n;
  return n < lacks ? EAGAIN : 0;
}

/* Takes bytes until a value is complete. The open tables are on the stack only
 * while an element that is not cut is there to be taken. */
static int decoder_run(lua_State *L, Decoder *d, int index, const char *bytes,
                       size_t size, size_t *used) {
  Decode *v = &d->decode;
  int bad;
  while (d->cut.size) {
    bad = decoder_complete(L, d, bytes, size, used);
    if (bad)
      return bad;
    decoder_restore(L, d, index);
    const unsigned char *p = (const unsigned char *)d->cut.bytes;
    const unsigned char *start = p;
    bad = ipc_decode_run(L, v, &p, start + d->cut.size);
    if (p > start)
      d->cut.size = 0;
    if (bad != EAGAIN)
      return bad;
  }
  decoder_restore(L, d, index);
  size_t n = size - *used;
  if (n > v->limits.bytes - v->taken)
    n = v->limits.bytes - v->taken;
  const unsigned char *p = (const unsigned char *)bytes + *used;
  const unsigned char *start = p, *end = p + n;
  bad = ipc_decode_run(L, v, &p, end);
  *used += (size_t)(p - start);
  if (bad == EAGAIN && p < end) {
    size_t rest = (size_t)(end - p);
    if (ipc_buffer_reserve(&d->cut, rest))
      luaL_error(L, "not enough memory");
    memcpy(d->cut.bytes, p, rest);
    d->cut.size = rest;
    *used += rest;
  }
  return bad;
}

int ipc_decoder_feed(lua_State *L, int index, const char *bytes, size_t size,
                     size_t *used) {
  Decoder *d = lua_touserdata(L, index);
  index = lua_absindex(L, index);
  luaL_checkstack(L, LUA_MINSTACK, NULL);
  *used = 0;
  if (!d->open || d->running || d->failed) {
    if (!d->open)
      lua_pushliteral(L, "closed");
    else if (lua_getiuservalue(L, index, DECODER_ERROR) != LUA_TSTRING) {
      lua_pop(L, 1);
      lua_pushliteral(L, "busy, or memory ran out when it was");
    }
    return EBADMSG;
  }
  if (!size)
    return EAGAIN;
  int top = lua_gettop(L);
  d->running = 1;
  int bad = decoder_run(L, d, index, bytes, size, used);
  if (bad == EAGAIN) {
    decoder_save(L, d, index);
  } else if (bad) {
    lua_settop(L, top);
    ipc_decode_explain(L, &d->decode);
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, index, DECODER_ERROR);
    d->failed = 1;
    decoder_empty(&d->cut);
  } else {
    decoder_next(L, d, index);
  }
  d->running = 0;
  if (!d->open) /* closed by a finalizer meanwhile */
    decoder_free(d);
  return bad;
}

/* --- ipc.decoder --- */

static Decoder *decoder_check(lua_State *L) {
  Decoder *d = lua_touserdata(L, 1);
  if (d && lua_getmetatable(L, 1)) {
    lua_rawgetp(L, LUA_REGISTRYINDEX, &decoder_key);
    int same = lua_rawequal(L, -1, -2);
    lua_pop(L, 2);
    if (same)
      return d;
  }
  luaL_typeerror(L, 1, "ipc.decoder");
  return NULL;
}

static int decoder_closed(lua_State *L) {
  lua_pushnil(L);
  lua_pushliteral(L, "closed");
  lua_pushinteger(L, EPIPE);
  return 3;
}

/*** A decoder: takes bytes in pieces of any size and gives values.
 *
 * @type decoder
 */

/*** Gives more bytes to the decoder, which copies them.
 *
 * @function feed
 * @param bytes a string
 * @return[1] true
 * @return[2] nil
 * @return[2] message
 * @return[2] EBADMSG after bytes that were no value, EPIPE once closed
 */
static int decoder_feed(lua_State *L) {
  Decoder *d = decoder_check(L);
  luaL_checktype(L, 2, LUA_TSTRING);
  if (!d->open)
    return decoder_closed(L);
  size_t n, none;
  const char *bytes = lua_tolstring(L, 2, &n);
  if (d->running || d->failed) {
    ipc_decoder_feed(L, 1, "", 0, &none);
    return ipc_unpack_fail(L, "ipc.decoder", EBADMSG);
  }
  Buffer *in = &d->input;
  if (d->at && in->room - in->size < n && d->at >= in->size - d->at) {
    in->size -= d->at;
    memmove(in->bytes, in->bytes + d->at, in->size);
    d->at = 0;
  }
  if (ipc_buffer_reserve(in, n))
    return luaL_error(L, "not enough memory");
  if (n)
    memcpy(in->bytes + in->size, bytes, n);
  in->size += n;
  lua_pushboolean(L, 1);
  return 1;
}

/*** The next value of those fed.
 *
 * @function get
 * @return[1] the value; `ipc.null` for nil
 * @return[2] nil
 * @return[2] `"incomplete"`, or what is wrong and where (the offset counts from
 * the start of the value), or `"closed"`
 * @return[2] EAGAIN: feed more; EBADMSG: these bytes are no value, and since
 * nobody can tell where the next one starts every later call says the same;
 * EPIPE: closed
 */
static int decoder_get(lua_State *L) {
  Decoder *d = decoder_check(L);
  if (!d->open)
    return decoder_closed(L);
  size_t used;
  const char *bytes = d->input.size ? d->input.bytes + d->at : "";
  int bad = ipc_decoder_feed(L, 1, bytes, d->input.size - d->at, &used);
  if (!d->open) {
    if (!bad)
      return 1;
    return decoder_closed(L);
  }
  if (!d->running) {
    d->at += used;
    if (d->failed || d->at == d->input.size) {
      d->at = 0;
      decoder_empty(&d->input);
    }
  }
  if (!bad)
    return 1;
  if (bad == EBADMSG)
    return ipc_unpack_fail(L, "ipc.decoder", EBADMSG);
  lua_pushnil(L);
  lua_pushliteral(L, "incomplete");
  lua_pushinteger(L, EAGAIN);
  return 3;
}

/*** Gives back the decoder's memory; may be called any number of times.
 *
 * @function close
 * @return true
 */
static int decoder_close(lua_State *L) {
  Decoder *d = decoder_check(L);
  d->open = 0;
  if (!d->running) /* else a finalizer called, and the bytes are in use */
    decoder_free(d);
  lua_pushboolean(L, 1);
  return 1;
}

/* Differs from close in this: nothing can be running, though memory that ran
 * out may have left it so. */
static int decoder_gc(lua_State *L) {
  Decoder *d = decoder_check(L);
  d->open = 0;
  decoder_free(d);
  return 0;
}

/*** A decoder for values that come one after the other in pieces.
 *
 * @function decoder
 * @param[opt] options as for `unpack`; the limits are those of one value
 * @return a decoder, which may be `<close>`
 * @usage
 * local d <close> = ipc.decoder()
 * d:feed "\x93\x01"
 * print(d:get())                             --> nil  incomplete  11
 * d:feed "\x02\x03"
 * print(table.concat(d:get(), " "))          --> 1 2 3
 */
static int decoder_new(lua_State *L) {
  ValueLimits limits = ipc_value_limits;
  if (!lua_isnoneornil(L, 1))
    ipc_value_options(L, 1, &limits);
  ipc_decoder_push_within(L, &limits);
  return 1;
}

static const luaL_Reg decoder_methods[] = {{"feed", decoder_feed},
                                           {"get", decoder_get},
                                           {"close", decoder_close},
                                           {NULL, NULL}};

static const luaL_Reg decoder_meta[] = {
    {"__gc", decoder_gc}, {"__close", decoder_close}, {NULL, NULL}};

void ipc_decoder_open(lua_State *L) {
  luaL_checkstack(L, 8, NULL);
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &decoder_key) == LUA_TNIL) {
    lua_newtable(L);
    lua_pushliteral(L, "ipc.decoder");
    lua_setfield(L, -2, "__name");
    luaL_setfuncs(L, decoder_meta, 0);
    luaL_newlib(L, decoder_methods);
    lua_setfield(L, -2, "__index");
    lua_rawsetp(L, LUA_REGISTRYINDEX, &decoder_key);
  }
  lua_pop(L, 1);
  lua_pushcfunction(L, decoder_new);
  lua_setfield(L, -2, "decoder");
}
