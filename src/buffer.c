/* A growing run of bytes; see buffer.h. */
#include "prefix.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>

#include "buffer.h"

enum { BUFFER_FIRST = 256 };

int ipc_buffer_reserve(Buffer *b, size_t more) {
  if (more <= b->room - b->size)
    return 0;
  if (more > PTRDIFF_MAX - b->size)
    return ENOMEM;
  size_t need = b->size + more;
  size_t room = b->room ? b->room : BUFFER_FIRST;
  while (room < need)
    room = room > PTRDIFF_MAX / 2 ? need : room * 2;
  return ipc_buffer_resize(b, room);
}

int ipc_buffer_resize(Buffer *b, size_t room) {
  char *bytes = realloc(b->bytes, room);
  if (!bytes)
    return ENOMEM;
  b->bytes = bytes;
  b->room = room;
  return 0;
}

void ipc_buffer_free(Buffer *b) {
  free(b->bytes);
  *b = (Buffer){NULL, 0, 0};
}
