/* Values while memory runs out: everything a state allocates, Lua's memory and
 * the library's own, fails at the nth allocation: once, twice in a row (the
 * first makes Lua collect and try again), and for good; for every n until
 * nothing fails any more. Nothing may crash, and when the state is closed every
 * byte must be back.
 *
 * cc -g starve.c msgpack.c encode.c pack.c unpack.c decoder.c buffer.c
 * -Wl,--wrap=realloc,--wrap=free -llua5.4
 */
#define _GNU_SOURCE 1
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../src/msgpack.h"

static long count;   /* allocations so far */
static long fail_at; /* 0: none */
static long fail_for;
static long fails;
static long blocks; /* of the library, not yet freed */
static long bytes;  /* of Lua, not yet freed */

static int failing(void) {
  count++;
  int fail = fail_at && count >= fail_at && count - fail_at < fail_for;
  fails += fail;
  return fail;
}

void *__real_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size); /* buffer.c's */
void *__wrap_realloc(void *p, size_t size) {
  if (failing())
    return NULL;
  void *q = __real_realloc(p, size);
  blocks += q && !p;
  return q;
}

void __real_free(void *p);
void __wrap_free(void *p);
void __wrap_free(void *p) {
  blocks -= p != NULL;
  __real_free(p);
}

static void *lua_memory(void *ud, void *p, size_t old, size_t size) {
  (void)ud;
  if (!p)
    old = 0; /* it was the kind of object */
  if (!size) {
    bytes -= (long)old;
    __real_free(p);
    return NULL;
  }
  if (size > old && failing()) /* what shrinks must not fail */
    return NULL;
  void *q = __real_realloc(p, size);
  if (q)
    bytes += (long)size - (long)old;
  return q;
}

static const char *const script =
    "local ipc = ...\n"
    "local _ = ('x'):rep(100000) -- Lua 5.4.4 keeps its metatable for long\n"
    "-- strings half made if memory runs out while it makes it\n"
    "local deep = {}\n"
    "for i = 1, 30 do deep = { deep, i } end\n"
    "local function work()\n"
    "  local v = { 1, -1, 1.5, 'text', '\\xff', true, ipc.null,\n"
    "    ipc.ext(5, ('e'):rep(50)), ipc.map {}, ipc.array { 1, nil, 3 },\n"
    "    { a = { b = { c = ('x'):rep(3000) } }, [1.5] = 2, [{ 1 }] = 3 },\n"
    "    deep }\n"
    "  for i = 1, 40 do v[11]['k' .. i] = { i } end\n"
    "  local b = ipc.pack(v)\n"
    "  assert(#ipc.unpack(b, { nulls = true, depth = 70 }) == #v)\n"
    "  assert(ipc.unpack(b:sub(1, -2)) == nil)\n"
    "  assert(not pcall(ipc.pack, { { print } }))\n"
    "  assert(#ipc.pack { 1, ('x'):rep(600), { 2 }, x = 1 } > 600)\n"
    "  local d <close> = ipc.decoder { nulls = true }\n"
    "  for i = 1, #b, 37 do\n"
    "    d:feed(b:sub(i, i + 36))\n"
    "    local got, why, errno = d:get()\n"
    "    assert((got == nil) == (i + 36 < #b))\n"
    "  end\n"
    "  d:feed(b:sub(1, 100))\n"
    "  d:get()\n"
    "  local e = ipc.decoder()\n"
    "  e:feed(b)\n"
    "  e:get()\n"
    "  e:feed('\\x91\\x81\\xc1')\n"
    "  assert(not e:get() and not e:get())\n"
    "  local f = ipc.decoder()\n"
    "  f:feed('\\x92\\x92\\1')\n"
    "  f:get()\n"
    "end\n"
    "local kept = ipc.decoder()\n"
    "local whole = ipc.pack { { ('y'):rep(500) }, { z = 1 } }\n"
    "local function more()\n"
    "  for i = 1, #whole, 100 do\n"
    "    kept:feed(whole:sub(i, i + 99))\n"
    "    local v, why = kept:get()\n"
    "    assert(v ~= nil or why)\n"
    "  end\n"
    "end\n"
    "return work, more\n";

/* Opened before the library, so finalized after it: packs all the same. */
static const char *const last_script =
    "last = setmetatable({}, { __gc = function()\n"
    "  local b = ipc.pack({ ('z'):rep(5000) })\n"
    "  if not pcall(ipc.pack, print) and #b == 5004 then spoken() end\n"
    "end })\n";

static int last_words;

static int spoken(lua_State *L) {
  (void)L;
  last_words++;
  return 0;
}

/* Opens, loads and runs; what fails here is what is tested. */
static int start(lua_State *L) {
  luaL_requiref(L, "_G", luaopen_base, 1);
  luaL_requiref(L, "string", luaopen_string, 1);
  lua_settop(L, 0);
  lua_pushcfunction(L, spoken);
  lua_setglobal(L, "spoken");
  if (luaL_dostring(L, last_script) || luaL_loadstring(L, script))
    return lua_error(L);
  lua_newtable(L);
  ipc_msgpack_open(L);
  lua_pushvalue(L, -1);
  lua_setglobal(L, "ipc");
  lua_call(L, 1, 2);
  lua_setglobal(L, "more");
  lua_setglobal(L, "work");
  return 0;
}

static int work(lua_State *L) {
  lua_getglobal(L, "work");
  lua_call(L, 0, 0);
  lua_getglobal(L, "more");
  lua_call(L, 0, 0);
  return 0;
}

static int failed;

static void wrong(const char *what, const char *detail) {
  fprintf(stderr, "n = %ld for %ld: %s: %s\n", fail_at, fail_for, what,
          detail ? detail : "");
  failed = 1;
}

/* One state, one run of failures. Did any happen? */
static int once(long at, long lasting, int opened) {
  count = fails = 0;
  fail_at = opened ? 0 : at;
  fail_for = lasting;
  lua_State *L = lua_newstate(lua_memory, NULL);
  if (!L)
    return 1;
  int bad = 0;
  lua_pushcfunction(L, start);
  bad = lua_pcall(L, 0, 0, 0);
  if (!bad) {
    if (opened) {
      count = 0;
      fail_at = at;
    }
    lua_pushcfunction(L, work);
    bad = lua_pcall(L, 0, 0, 0);
  }
  if (bad && !fails)
    wrong("an error without failures", lua_tostring(L, -1));
  if (bad && fails && lua_type(L, -1) == LUA_TSTRING &&
      !strstr(lua_tostring(L, -1), "not enough memory"))
    wrong("another error", lua_tostring(L, -1));
  if (!bad || opened) { /* memory is back: all works but broken decoders */
    fail_at = 0;
    lua_settop(L, 0);
    lua_getglobal(L, "more");
    if (lua_pcall(L, 0, 0, 0))
      wrong("afterwards", lua_tostring(L, -1));
    lua_getglobal(L, "work");
    if (lua_pcall(L, 0, 0, 0))
      wrong("afterwards", lua_tostring(L, -1));
  }
  int any = fails > 0;
  int hears = !bad && lasting <= 2;
  last_words = 0;
  fail_at = any && lasting > 2 ? 1 : 0; /* closing, still without memory */
  lua_close(L);
  fail_at = at;
  if (hears && !last_words)
    wrong("could not pack while the state closed", NULL);
  if (blocks || bytes) {
    fprintf(stderr, "%ld blocks, %ld bytes of Lua: ", blocks, bytes);
    wrong("not given back", NULL);
    blocks = bytes = 0;
  }
  return any;
}

int main(void) {
  static const long lasting[] = {1, 2, 1000000000};
  for (int opened = 0; opened < 2; opened++)
    for (int i = 0; i < 3; i++) {
      long at = 1;
      while (once(at, lasting[i], opened) && !failed)
        at++;
      printf("%s, %ld in a row: %ld places\n",
             opened ? "while working" : "from the start", lasting[i], at - 1);
    }
  if (failed)
    return 1;
  puts("nothing lost");
  return 0;
}
