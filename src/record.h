/* Structs over bytes that are somewhere: ipc.struct's userdata, and views of
 * records and arrays of them, whose fields are read and written in place. The
 * constructor is in struct.c. */
#ifndef IPC_RECORD_H
#define IPC_RECORD_H

#include <lua.h>

#include "layout.h"

/* Pushes an ipc.struct of no fields yet, with room for `count`. */
Layout *ipc_layout_new(lua_State *L, uint32_t count);

/* The layout of the ipc.struct at `index`, or NULL if that is none. */
const Layout *ipc_layout_at(lua_State *L, int index);

/* The method `view` of all that has a View: (bytes, struct [, offset
 * [, count]]) -> a record, or an array of them. */
int ipc_struct_view(lua_State *L);

/* Methods of ipc.struct: (struct, record [, into]) and (struct, record, table).
 */
int ipc_record_load(lua_State *L);
int ipc_record_store(lua_State *L);

/* Makes the metatables of what is seen through a struct, and puts that of
 * ipc.struct on top. */
void ipc_record_open(lua_State *L);

#endif
