/* Starting programs: reads what the options ask for, opens what goes along,
 * starts. Knows nothing of the handle on the child. */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cmsg.h"
#include "exec.h"
#include "frame.h"
#include "ipc.h"
#include "life.h"
#include "os.h"

static const char *const exec_streams[] = {"stdin", "stdout", "stderr"};

/* ---------------------------------------------------------------- options */

/* Keeps the value on top for as long as the call takes; its place. */
static int exec_anchor(lua_State *L, Exec *x) {
  lua_rawseti(L, x->anchor, ++x->anchored);
  return x->anchored;
}

static void *exec_block(lua_State *L, Exec *x, size_t count, size_t size) {
  void *block = lua_newuserdatauv(L, (count + 1) * size, 0);
  memset(block, 0, (count + 1) * size);
  exec_anchor(L, x);
  return block;
}

static int exec_type(lua_State *L, const char *name) {
  lua_pushstring(L, name);
  return lua_rawget(L, 1);
}

static int exec_expected(lua_State *L, const char *name, const char *what) {
  return luaL_argerror(L, 1,
                       lua_pushfstring(L, "option '%s': %s expected, got %s",
                                       name, what, luaL_typename(L, -1)));
}

/* The string on top, popped and kept: what the system takes for one. */
static const char *exec_text(lua_State *L, Exec *x, const char *name) {
  size_t size;
  if (lua_type(L, -1) != LUA_TSTRING)
    exec_expected(L, name, "string");
  const char *text = lua_tolstring(L, -1, &size);
  if (strlen(text) != size)
    luaL_argerror(L, 1,
                  lua_pushfstring(L, "option '%s': contains zeros", name));
  exec_anchor(L, x);
  return text;
}

static void exec_check_names(lua_State *L, lua_Integer words) {
  static const char *const names[] = {
      "stdin", "stdout", "stderr",    "input",  "env",     "cwd",    "rlimits",
      "nice",  "group",  "clean_env", "detach", "timeout", "maxsize"};
  lua_pushnil(L);
  while (lua_next(L, 1)) {
    lua_pop(L, 1);
    if (lua_isinteger(L, -1) && lua_tointeger(L, -1) >= 1 &&
        lua_tointeger(L, -1) <= words)
      continue;
    bool known = false;
    const char *name =
        lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "";
    for (size_t i = 0; i < sizeof names / sizeof *names && !known; i++)
      known = strcmp(names[i], name) == 0;
    if (!known)
      luaL_argerror(L, 1,
                    lua_pushfstring(L, "unknown option '%s'",
                                    luaL_tolstring(L, -1, NULL)));
  }
}

static void exec_words(lua_State *L, Exec *x) {
  lua_Integer n = (lua_Integer)lua_rawlen(L, 1);
  luaL_argcheck(L, n > 0, 1, "a program expected at [1]");
  exec_check_names(L, n);
  const char **argv = exec_block(L, x, (size_t)n, sizeof *argv);
  for (lua_Integer i = 1; i <= n; i++) {
    lua_rawgeti(L, 1, i);
    if (lua_type(L, -1) != LUA_TSTRING)
      luaL_argerror(L, 1,
                    lua_pushfstring(L, "[%I]: string expected, got %s",
                                    (LUAI_UACINT)i, luaL_typename(L, -1)));
    char name[32];
    snprintf(name, sizeof name, "[%lld]", (long long)i);
    argv[i - 1] = exec_text(L, x, name);
  }
  x->os.argv = (char *const *)(uintptr_t)argv;
  const char *slash = strrchr(argv[0], '/');
  x->name = slash && slash[1] ? slash + 1 : argv[0];
}

/* Whether `entry` ("NAME=value") sets a variable that env names. */
static bool exec_overrides(lua_State *L, int env, const char *entry) {
  const char *end = strchr(entry, '=');
  if (!end || lua_isnil(L, env))
    return false;
  lua_pushlstring(L, entry, (size_t)(end - entry));
  bool found = lua_rawget(L, env) != LUA_TNIL;
  lua_pop(L, 1);
  return found;
}

/* Checks the table of variables and keeps those that it sets as entries; how
 * many. Their places follow each other. */
static size_t exec_variables(lua_State *L, Exec *x, int env) {
  size_t count = 0;
  lua_pushnil(L);
  while (!lua_isnil(L, env) && lua_next(L, env)) {
    size_t size;
    const char *name =
        lua_type(L, -2) == LUA_TSTRING ? lua_tolstring(L, -2, &size) : NULL;
    if (!name || !*name || strlen(name) != size || strchr(name, '='))
      luaL_argerror(L, 1, "option 'env': a variable's name expected");
    bool unset = lua_isboolean(L, -1) && !lua_toboolean(L, -1);
    if (!unset && lua_type(L, -1) != LUA_TSTRING)
      luaL_argerror(L, 1,
                    lua_pushfstring(L,
                                    "option 'env': %s: string or false "
                                    "expected, got %s",
                                    name, luaL_typename(L, -1)));
    if (!unset) {
      lua_pushfstring(L, "%s=", name);
      lua_pushvalue(L, -2);
      lua_concat(L, 2);
      (void)exec_text(L, x, "env");
      count++;
    }
    lua_pop(L, 1);
  }
  return count;
}

static void exec_environment(lua_State *L, Exec *x) {
  int type = exec_type(L, "env"), env = lua_gettop(L);
  if (type != LUA_TNIL && type != LUA_TTABLE)
    exec_expected(L, "env", "table");
  bool clean = ipc_option_flag(L, 1, "clean_env", false);
  size_t from = (size_t)x->anchored, set = exec_variables(L, x, env), ours = 0;
  char **all = ipc_os_environment();
  while (!clean && all && all[ours])
    ours++;
  const char **envp = exec_block(L, x, ours + set, sizeof *envp);
  size_t n = 0;
  for (size_t i = 0; i < set; i++) {
    lua_rawgeti(L, x->anchor, (lua_Integer)(from + i + 1));
    envp[n++] = lua_tostring(L, -1);
    lua_pop(L, 1);
  }
  for (size_t i = 0; i < ours && all[i]; i++)
    if (!exec_overrides(L, env, all[i]))
      envp[n++] = all[i];
  x->os.envp = (char *const *)(uintptr_t)envp;
  lua_pop(L, 1);
}

/* Where the program may be: PATH of its own environment. */
static void exec_paths(lua_State *L, Exec *x) {
  const char *program = x->os.argv[0], *path = "/bin:/usr/bin";
  for (char *const *e = x->os.envp; *e; e++)
    if (strncmp(*e, "PATH=", 5) == 0) {
      path = *e + 5;
      break;
    }
  size_t count = 1;
  for (const char *p = path; *p; p++)
    count += *p == ':';
  const char **paths = exec_block(L, x, count, sizeof *paths);
  x->os.paths = paths;
  if (strchr(program, '/') || !*program) {
    paths[0] = program;
    return;
  }
  for (size_t i = 0; i < count; i++) {
    size_t size = strcspn(path, ":");
    lua_pushlstring(L, path, size);
    if (size > 0 && path[size - 1] != '/')
      lua_pushliteral(L, "/");
    else
      lua_pushliteral(L, "");
    lua_pushstring(L, program);
    lua_concat(L, 3); /* an empty one is the current directory */
    paths[i] = lua_tostring(L, -1);
    exec_anchor(L, x);
    path += size + 1;
  }
}

/* The limit on top: an integer, or infinity. */
static uint64_t exec_limit(lua_State *L, const char *name) {
  int isnum = 0;
  lua_Integer n =
      lua_type(L, -1) == LUA_TNUMBER ? lua_tointegerx(L, -1, &isnum) : 0;
  bool infinite = lua_type(L, -1) == LUA_TNUMBER && !isnum &&
                  lua_tonumber(L, -1) == (lua_Number)HUGE_VAL;
  if (!infinite && (!isnum || n < 0))
    luaL_argerror(L, 1,
                  lua_pushfstring(L,
                                  "option 'rlimits': %s: a limit or "
                                  "{ soft, hard } expected",
                                  name));
  lua_pop(L, 1);
  return infinite ? UINT64_MAX : (uint64_t)n;
}

static void exec_limits(lua_State *L, Exec *x) {
  int type = exec_type(L, "rlimits"), at = lua_gettop(L);
  if (type != LUA_TNIL && type != LUA_TTABLE)
    exec_expected(L, "rlimits", "table");
  size_t count = 0;
  for (lua_pushnil(L); type == LUA_TTABLE && lua_next(L, at); lua_pop(L, 1))
    count++;
  lua_settop(L, at);
  OsResource *all = exec_block(L, x, count, sizeof *all);
  size_t n = 0;
  lua_pushnil(L);
  while (type == LUA_TTABLE && n < count && lua_next(L, at)) {
    OsResource *r = &all[n++];
    if (lua_type(L, -2) == LUA_TSTRING)
      r->name = lua_tostring(L, -2);
    r->resource = r->name ? ipc_os_resource(r->name) : -1;
    if (r->resource < 0)
      luaL_argerror(L, 1,
                    lua_pushfstring(L, "option 'rlimits': unknown limit '%s'",
                                    r->name ? r->name : "?"));
    lua_pushvalue(L, -2);
    exec_anchor(L, x);
    bool both = lua_istable(L, -1);
    for (lua_Integer k = 1; k <= 2; k++) {
      if (both)
        lua_rawgeti(L, -1, k);
      else
        lua_pushvalue(L, -1);
      *(k == 1 ? &r->soft : &r->hard) = exec_limit(L, r->name);
    }
    lua_pop(L, 1);
  }
  x->os.limits = all;
  x->os.limit_count = n;
  lua_settop(L, at - 1);
}

/* --------------------------------------------------------------- streams */

static int exec_refuse(lua_State *L, int i, const char *why) {
  return luaL_argerror(
      L, 1, lua_pushfstring(L, "option '%s': %s", exec_streams[i], why));
}

static bool exec_word(lua_State *L, Exec *x, int i) {
  const char *word = lua_tostring(L, -1);
  OsStream *o = &x->os.stream[i];
  if (strcmp(word, "inherit") == 0) {
    o->fd = OS_INHERIT;
  } else if (strcmp(word, "null") == 0) {
    *o = (OsStream){.fd = OS_FILE,
                    .path = "/dev/null",
                    .flags = i == 0 ? O_RDONLY : O_WRONLY};
  } else if (strcmp(word, "pipe") == 0 && !x->lua) {
    x->stream[i].pipe = true;
  } else if (strcmp(word, "stdout") == 0 && i == 2) {
    o->fd = OS_STDOUT;
  } else {
    return false;
  }
  return true;
}

static void exec_file(lua_State *L, Exec *x, int i) {
  OsStream *o = &x->os.stream[i];
  int at = lua_gettop(L);
  bool append = false;
  lua_pushnil(L);
  while (lua_next(L, at)) {
    const char *name =
        lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "";
    if (strcmp(name, "append") == 0 && lua_isboolean(L, -1))
      append = lua_toboolean(L, -1);
    else if (strcmp(name, "file") != 0)
      exec_refuse(L, i, "{ file = path, append = true } expected");
    lua_pop(L, 1);
  }
  lua_getfield(L, at, "file");
  o->fd = OS_FILE;
  o->path = exec_text(L, x, exec_streams[i]);
  o->flags = i == 0 ? O_RDONLY : O_WRONLY | O_CREAT;
  if (i != 0)
    o->flags |= append ? O_APPEND : O_TRUNC;
}

/* A channel, or a process's standard output: bytes, and its direction. */
static void exec_channel(lua_State *L, Exec *x, int i) {
  ExecStream *s = &x->stream[i];
  Handle *h = ipc_handle_at(L, -1);
  int want = i == 0 ? IPC_READ : IPC_WRITE;
  if (h->moved)
    exec_refuse(L, i, "it has moved: dup() keeps one");
  Handle *part = h->channel ? ipc_handle_part(h, want) : h;
  bool process = strcmp(h->ops->type, "ipc.process") == 0;
  if (process && i != 0)
    exec_refuse(L, i, "a process can only be read from");
  if (process && part == h)
    exec_refuse(L, i, "the process's stdout is no pipe");
  Given g = {.kind = ""};
  if (part->ops->give)
    (void)part->ops->give(part, &g);
  if (!part->channel ||
      (strcmp(g.kind, "pipe") != 0 && strcmp(g.kind, "socket") != 0))
    exec_refuse(
        L, i, lua_pushfstring(L, "%s is no stream of bytes", part->ops->type));
  const Chan *c = (const Chan *)part;
  if (want == IPC_READ ? !c->reader : !c->writer)
    exec_refuse(L, i,
                want == IPC_READ ? "this end only sends"
                                 : "this end only receives");
  if (((const Framed *)part)->packets)
    exec_refuse(L, i, "packets: a program takes bytes");
  s->given = part;
  s->whole = process ? part : h;
  if (process)
    lua_getiuservalue(L, -1, IPC_UV_READER);
  else
    lua_pushvalue(L, -1);
  x->moving[i] = exec_anchor(L, x);
}

static void exec_stream(lua_State *L, Exec *x, int i) {
  static const char expected[] =
      "\"inherit\", \"null\", \"pipe\", { file = path }, a channel, a file or "
      "a process";
  int type = exec_type(L, exec_streams[i]);
  OsStream *o = &x->os.stream[i];
  luaL_Stream *file = luaL_testudata(L, -1, LUA_FILEHANDLE);
  o->fd = OS_INHERIT;
  if (type == LUA_TNIL) {
    if (x->lua && i == 0)
      *o = (OsStream){.fd = OS_FILE, .path = "/dev/null"};
  } else if (type == LUA_TSTRING) {
    if (!exec_word(L, x, i))
      exec_refuse(L, i, lua_pushfstring(L, "%s expected", expected));
  } else if (type == LUA_TTABLE) {
    exec_file(L, x, i);
  } else if (file) {
    if (!file->closef)
      exec_refuse(L, i, "the file is closed");
    o->fd = fileno(file->f);
    x->stream[i].file = file;
    lua_pushvalue(L, -1);
    exec_anchor(L, x);
  } else if (ipc_handle_at(L, -1)) {
    exec_channel(L, x, i);
  } else {
    exec_expected(L, exec_streams[i], expected);
  }
  lua_pop(L, 1);
}

static void exec_input(lua_State *L, Exec *x) {
  int type = exec_type(L, "input");
  if (type != LUA_TNIL) {
    if (type != LUA_TSTRING)
      exec_expected(L, "input", "string");
    if (exec_type(L, "stdin") != LUA_TNIL)
      luaL_argerror(L, 1, "options 'input' and 'stdin' exclude each other");
    lua_pop(L, 1);
    x->input = lua_tolstring(L, -1, &x->input_size);
    exec_anchor(L, x);
    return;
  }
  lua_pop(L, 1);
}

/* -------------------------------------------------------------- all of it */

/* A program that reads from our terminal must be of the group in front of it,
 * and Ctrl-C should reach both. */
static OsGroup exec_group(lua_State *L, const Exec *x) {
  int fd = x->os.stream[0].fd;
  bool inherits = fd == OS_INHERIT && !x->stream[0].pipe &&
                  !x->stream[0].given && !x->input;
  bool ours = inherits ? isatty(0) : x->stream[0].file && isatty(fd);
  bool own = ipc_option_flag(L, 1, "group", !ours);
  return x->detached ? OS_GROUP_SESSION : own ? OS_GROUP_OWN : OS_GROUP_OURS;
}

static int exec_nice(lua_State *L) {
  int type = exec_type(L, "nice"), isnum = 0;
  lua_Integer n = type == LUA_TNUMBER ? lua_tointegerx(L, -1, &isnum) : 0;
  if (type != LUA_TNIL && !isnum)
    exec_expected(L, "nice", "integer");
  luaL_argcheck(L, n >= -40 && n <= 40, 1, "option 'nice': -40 .. 40 expected");
  lua_pop(L, 1);
  return (int)n;
}

void ipc_exec_options(lua_State *L, Exec *x, bool lua, const char *call) {
  *x = (Exec){.call = call,
              .lua = lua,
              .report = -1,
              .socket = {-1, -1},
              .held = {-1, -1}};
  x->os.drop = -1;
  x->os.lua = lua;
  for (int i = 0; i < OS_KEPT; i++)
    x->os.keep[i] = -1;
  luaL_checkstack(L, 20, NULL);
  lua_newtable(L);
  x->anchor = lua_gettop(L);
  exec_words(L, x);
  exec_environment(L, x);
  exec_paths(L, x);
  exec_limits(L, x);
  exec_input(L, x);
  for (int i = 0; i < 3; i++)
    exec_stream(L, x, i);
  if (exec_type(L, "cwd") != LUA_TNIL)
    x->os.cwd = exec_text(L, x, "cwd");
  else
    lua_pop(L, 1);
  x->os.nice = exec_nice(L);
  x->detached = ipc_option_flag(L, 1, "detach", false);
  x->os.group = exec_group(L, x);
  x->timeout = ipc_option_time(L, 1, "timeout", IPC_FOREVER);
  x->limit = ipc_option_size(L, 1, "maxsize", 1, FRAME_MOST, 0);
  lua_settop(L, x->anchor);
}

/* ------------------------------------------------------------------ pipes */

int ipc_exec_pipes(lua_State *L, Exec *x) {
  for (int i = 0; i < 3; i++) {
    ExecStream *s = &x->stream[i];
    if (!s->pipe)
      continue;
    lua_pushcfunction(L, ipc_room("pipe")->functions->func);
    lua_createtable(L, 0, 3);
    lua_pushliteral(L, "stream");
    lua_setfield(L, -2, "unit");
    lua_pushnumber(L, (lua_Number)x->timeout / 1e9);
    lua_setfield(L, -2, "timeout");
    if (x->limit) {
      lua_pushinteger(L, (lua_Integer)x->limit);
      lua_setfield(L, -2, "maxsize");
    }
    lua_call(L, 1, 3);
    if (!ipc_handle_at(L, -3))
      return (int)lua_tointeger(L, -1);
    lua_pop(L, 1);
    Chan *end[2] = {lua_touserdata(L, -2), lua_touserdata(L, -1)};
    s->ours = end[i == 0];
    s->theirs = end[i != 0];
    int place[2];
    place[1] = exec_anchor(L, x);
    place[0] = exec_anchor(L, x);
    x->place[i] = place[i == 0];
  }
  return 0;
}

void ipc_exec_push(lua_State *L, const Exec *x, int i) {
  lua_rawgeti(L, x->anchor, x->place[i]);
}

static void exec_close_pipes(Exec *x, bool started) {
  for (int i = 0; i < 3; i++) {
    ExecStream *s = &x->stream[i];
    if (s->theirs)
      ipc_handle_release(&s->theirs->h, IPC_DROP);
    if (s->ours && !started)
      ipc_handle_release(&s->ours->h, IPC_DROP);
  }
}

/* -------------------------------------------------------------- the start */

static void exec_close(int *fd) {
  if (*fd >= 0)
    close(*fd);
  *fd = -1;
}

static int exec_channels(Exec *x) {
  for (int i = 0; i < 3; i++) {
    ExecStream *s = &x->stream[i];
    OsStream *o = &x->os.stream[i];
    int want = i == 0 ? IPC_READ : IPC_WRITE;
    x->failed = exec_streams[i];
    if (s->theirs) {
      Handle *h = &s->theirs->h;
      o->fd = h->open ? h->ops->descriptor(h, want) : -1;
      if (o->fd < 0)
        return EBADF;
      if (fcntl(o->fd, F_SETFL, 0) < 0)
        return errno;
    } else if (s->file) { /* a finaliser may have closed it since */
      o->fd = s->file->closef ? fileno(s->file->f) : -1;
      if (o->fd < 0)
        return EBADF;
    } else if (s->given) {
      Given g;
      if (!ipc_handle_usable(s->given))
        return EBADF;
      int err = s->given->ops->give(s->given, &g);
      if (err)
        return err;
      o->fd = s->given->ops->descriptor(s->given, want);
      o->blocking = true;
      if (o->fd < 0)
        return EBADF;
    }
  }
  x->failed = NULL;
  return 0;
}

static int exec_write_input(Exec *x, int *fd) {
  if (!x->input)
    return 0;
  x->failed = "input";
  int err = ipc_os_nameless(fd);
  if (!err)
    err = ipc_os_write_file(*fd, x->input, x->input_size);
  if (!err && lseek(*fd, 0, SEEK_SET) < 0)
    err = errno;
  x->os.stream[0].fd = *fd;
  if (!err)
    x->failed = NULL;
  return err;
}

/* What one of us has beside its streams. */
static int exec_kept(Exec *x) {
  if (!x->lua)
    return 0;
  int err = ipc_os_socketpair(SOCK_STREAM, x->socket);
  if (!err)
    err = ipc_os_nameless(&x->report);
  if (!err && !ipc_os_watches_processes())
    err = ipc_os_pipe(x->held, false);
  x->os.keep[0] = x->socket[1];
  x->os.keep[LIFE_REPORT - LIFE_CHANNEL] = x->report;
  x->os.keep[LIFE_HELD - LIFE_CHANNEL] = x->held[1];
  x->os.drop = x->socket[0];
  return err;
}

/* What was written before appears before; what was read ahead of a file is
 * given back, as POSIX has it for the descriptor's next user. */
static void exec_flush(const Exec *x) {
  bool inherits = false;
  for (int i = 0; i < 3; i++) {
    inherits = inherits || (i > 0 && x->os.stream[i].fd == OS_INHERIT);
    if (x->stream[i].file && x->stream[i].file->closef)
      (void)fflush(x->stream[i].file->f);
  }
  if (inherits)
    (void)fflush(NULL);
}

int ipc_exec_start(Exec *x, Child *c) {
  int input = -1;
  ipc_os_sweep();
  exec_flush(x);
  if (!x->detached)
    ipc_os_life_prepare();
  int err = exec_channels(x);
  if (!err)
    err = exec_write_input(x, &input);
  if (!err)
    err = exec_kept(x);
  if (!err) {
    err = ipc_os_spawn(&x->os, &x->born);
    if (err)
      x->failed = "";
  }
  exec_close(&input);
  exec_close(&x->socket[1]);
  exec_close(&x->held[1]);
  if (err) {
    exec_close(&x->socket[0]);
    exec_close(&x->held[0]);
    exec_close(&x->report);
    return err;
  }
  exec_close_pipes(x, true);
  c->pid = x->born.pid;
  c->pidfd = x->held[0] < 0 && x->born.ended >= 0;
  c->ended = x->held[0] >= 0 ? x->held[0] : x->born.ended;
  c->life = x->born.life;
  c->report = x->report;
  c->leads = x->os.group != OS_GROUP_OURS;
  c->detached = x->detached;
  return 0;
}

/* What could not be done, as messages name it. */
static const char *exec_step(lua_State *L, const Exec *x) {
  int n = x->born.number;
  switch (x->born.step) {
  case OS_STEP_STREAM:
    return x->os.stream[n].fd == OS_FILE ? x->os.stream[n].path
                                         : exec_streams[n];
  case OS_STEP_GROUP:
    return x->detached ? "setsid(2)" : "setpgid(2)";
  case OS_STEP_DIRECTORY:
    return x->os.cwd;
  case OS_STEP_LIMIT:
    return lua_pushfstring(L, "rlimits.%s", x->os.limits[n].name);
  case OS_STEP_NICE:
    return "nice";
  case OS_STEP_PROGRAM:
    return x->os.argv[0];
  case OS_STEP_FOLLOW:
    return "the pipe that tells of this process's end";
  case OS_STEP_KEEP:
    return "dup2(2)";
  default:
    return "fork(2)";
  }
}

int ipc_exec_fail(lua_State *L, Exec *x, int err) {
  exec_close_pipes(x, false);
  if (err == EMFILE)
    return ipc_fail_limit(L, "ipc", x->call, err, NULL, "RLIMIT_NOFILE");
  const char *what = x->failed;
  if (what && !*what)
    what = exec_step(L, x);
  else if (what && err == EBUSY)
    what = lua_pushfstring(L, "%s: bytes are on their way", what);
  return ipc_fail(L, "ipc", x->call, err, what);
}

/* The handle on top went to the program. */
static void exec_moved(lua_State *L, int pid, int where) {
  Handle *h = lua_touserdata(L, -1);
  if (!h || !h->open || h->moved)
    return;
  lua_pushvalue(L, where);
  ipc_handle_moved(L, -2, pid);
}

void ipc_exec_move(lua_State *L, Exec *x, int pid, int where) {
  for (int i = 0; i < 3; i++) {
    const ExecStream *s = &x->stream[i];
    if (!s->given)
      continue;
    lua_rawgeti(L, x->anchor, x->moving[i]);
    const Chan *c = lua_touserdata(L, -1);
    bool parts = (c->reader && c->reader != c) || (c->writer && c->writer != c);
    for (int part = IPC_UV_READER; parts && part <= IPC_UV_WRITER; part++) {
      lua_getiuservalue(L, -1, part);
      exec_moved(L, pid, where);
      lua_pop(L, 1);
    }
    exec_moved(L, pid, where);
    lua_pop(L, 1);
  }
}
