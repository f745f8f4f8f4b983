/* Between encode.c and pack.c. Nobody else includes it: the encoder for
 * channels is in msgpack.h. */
#ifndef IPC_ENCODE_H
#define IPC_ENCODE_H

#include <lua.h>
#include <stddef.h>

#include "buffer.h"
#include "msgpack.h"

/* Strings that are not keys: str if they are UTF-8, else bin; or always so. */
enum { IPC_STRINGS_AUTO, IPC_STRINGS_STR, IPC_STRINGS_BIN };

/* Both encode the value on top of the stack, as ipc_value_encode and
 * ipc_value_encode_at do; they leave it there, and something above it. */
void ipc_encode(lua_State *L, Buffer *out, int strings, PackForeign *f);
size_t ipc_encode_at(lua_State *L, char *bytes, size_t room, int strings);

#endif
