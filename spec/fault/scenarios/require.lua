-- Loading the library, and loading it again after that failed.
local fault = ...
local ok, ipc = fault.try(require, "ipc")
if not ok then
  assert(tostring(ipc):find "not enough memory" or tostring(ipc):find "error loading module", ipc)
  package.loaded["ipc"], package.loaded["ipc.core"] = nil, nil
  ipc = require "ipc"
end
local r, w = fault.sure(ipc.pair, "pipe")
assert(w:send "hello")
fault.equal(r:recv(5), "hello")
