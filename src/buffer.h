/* A growing run of bytes in C memory. Whoever holds a Buffer while Lua may
 * raise must hold it in a userdata that frees it. */
#ifndef IPC_BUFFER_H
#define IPC_BUFFER_H

#include <stddef.h>

typedef struct Buffer {
  char *bytes; /* NULL until the first byte */
  size_t size; /* bytes in use */
  size_t room; /* bytes allocated */
} Buffer;

/* Makes room for `more` bytes behind `size`. 0 or ENOMEM; on ENOMEM nothing
 * has changed. Grows by doubling, so appending is linear. */
int ipc_buffer_reserve(Buffer *b, size_t more);

/* Makes the room exactly `room` bytes, at least `size`. 0 or ENOMEM, likewise.
 */
int ipc_buffer_resize(Buffer *b, size_t room);

/* Frees the bytes; the Buffer is empty and usable again. */
void ipc_buffer_free(Buffer *b);

#endif
