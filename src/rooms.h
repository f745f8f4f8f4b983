/* Every room and part, in the order the demo and the reference show them.
 * ROOM: a mechanism with channels. PART: other handles. */
ROOM(pipe)
ROOM(fifo)
ROOM(socket)
ROOM(sysv)
ROOM(mqueue)
ROOM(shm)
ROOM(mmap)
ROOM(broadcast)
PART(stdio)
PART(listener)
PART(process)
PART(poller)
