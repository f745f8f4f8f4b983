-- A frame buffer: one process draws, several look on, and nobody waits for
-- anybody. A header tells, all at one moment, which picture is whole.
-- Run: lua5.4 examples/framebuffer.lua
local ipc = require "ipc"

local WIDTH <const>, HEIGHT <const>, FRAMES <const> = 320, 240, 200

local Head = ipc.struct { { "frame", "I8" }, { "width", "I2" }, { "height", "I2" }, versioned = true }
local Picture = ipc.struct { { "pixels", "c" .. WIDTH * HEIGHT } }

local screen <close> = assert(ipc.memory(nil, Head.size + 3 * Picture.size))
local head, pictures = screen:view(Head), screen:view(Picture, Head.size, 3)

local function watch()
  local seen, last = 0, 0
  repeat
    local now = assert(Head:load(head))
    if now.frame > last then
      local pixels = pictures[now.frame % 3 + 1].pixels
      if head.frame <= now.frame + 1 then -- else it may have been drawn over meanwhile
        assert(pixels == string.char(now.frame):rep(now.width * now.height), "torn")
        seen, last = seen + 1, now.frame
      end
    end
  until now.frame == FRAMES
  return seen
end

local viewers = { assert(ipc.fork(watch)), assert(ipc.fork(watch)), assert(ipc.fork(watch)) }
for n = 1, FRAMES do
  pictures[n % 3 + 1].pixels = string.char(n):rep(WIDTH * HEIGHT) -- all of one grey
  Head:store(head, { frame = n, width = WIDTH, height = HEIGHT }) -- now it is seen
end
for i, viewer in ipairs(viewers) do
  local ok, seen = viewer:wait(10)
  print("viewer", i, ok, seen >= 1 and seen <= FRAMES) --> viewer 1 true true
end --> viewer 2 true true
--> viewer 3 true true
print(head.frame, "frames of", head.width, head.height) --> 200 frames of 320 240
