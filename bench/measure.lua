-- What the measuring programs share: a core to run on, and a measurement as
-- raw_measure in base.h makes it.

local ipc = require "ipc"

local measure = {}

-- From now on this process runs on that core, from 0.
function measure.pin(core)
  local command = "taskset -cp %d %d >/dev/null"
  assert(os.execute(command:format(core, ipc.pid())), "taskset (util-linux) is needed")
end

-- Calls batch(), which does `count` of something, for so many seconds after a
-- tenth of that as warm-up: the median, in ns for each of the count. A batch
-- may return seconds that do not count.
function measure.run(batch, count, seconds)
  local took, begin = {}, ipc.now()
  repeat batch() until ipc.now() - begin >= seconds / 10
  begin = ipc.now()
  local last = begin
  while #took < 3 or last - begin < seconds do
    local aside = batch() or 0
    local now = ipc.now()
    took[#took + 1] = now - last - aside
    last = now
  end
  table.sort(took)
  return took[#took // 2 + 1] / count * 1e9
end

return measure
