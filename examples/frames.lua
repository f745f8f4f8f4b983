-- Pictures from one process to another without a copy: the one draws into the
-- ring, the other looks at it there. Both share one piece of memory.
-- Run: lua5.4 examples/frames.lua
local ipc = require "ipc"

local WIDTH <const>, HEIGHT <const>, HEAD <const> = 640, 480, 16
local SIZE <const> = HEAD + WIDTH * HEIGHT

-- Room for three pictures; one process at each end, so that neither takes a lock.
local pictures, screen = assert(ipc.queue {
  size = SIZE, count = 3, writers = 1, readers = 1, timeout = 10,
})

local camera = assert(ipc.fork(function()
  for n = 1, 20 do
    local picture <close> = assert(screen:reserve(SIZE)) -- waits while all three are full
    picture:pack(0, "<I4I4I4", n, WIDTH, HEIGHT)
    picture:fill(n, HEAD, WIDTH * HEIGHT) -- all of one grey
    assert(picture:commit()) -- now the other side sees it
  end
end))

local seen, sum = 0, 0
while true do
  local picture <close>, why = pictures:peek()
  if not picture then
    print(why) --> closed
    break
  end
  local n, width, height = picture:unpack(0, "<I4I4I4")
  local grey = picture:unpack(HEAD + width * height // 2, "B")
  assert(grey == n)
  seen, sum = seen + 1, sum + grey
  picture:release() -- its room is the camera's again
end
print(seen, "pictures", sum) --> 20 pictures 210
print(camera:wait(10)) --> true
