-- Who waits for what: members wait for descriptors and moments, and are woken by
-- them. A member is a table (a task, a coroutine of a host, who is outside of both),
-- whose method `woken` is called once when what it waits for may be there; one that waits
-- for a moment alone can answer the next.
local core = require "ipc.core"
local ipc = core.flat

local look, flush = core.task.look, core.task.flush

local reactor = {}

local set              -- of descriptors; made when first needed
local heard            -- all of what the last look told
local quiet            -- a pipe that nobody writes to
local interest         -- descriptor -> what the set is told: 1 to read, 2 to write, 3
local readers, writers -- descriptor -> the first link of a chain
local heap, size       -- members by when they must be looked at
local events           -- of the last look: descriptor, bits, ...

local NAP <const> = 0.001        -- seconds between looks at what cannot be polled

-- ------------------------------------------------------------------ descriptors

local function the_set()
  if not set then
    set = assert(core.task.set())
  end
  return set
end

-- Tells the kernel what of a descriptor matters: bits. True; or nil and an errno:
-- EPERM of one that cannot be polled, which is to say ready at any time.
local function watch(fd, bits)
  local ok, _, errno = the_set():change(fd, bits, not interest[fd])
  if ok then
    interest[fd] = bits
  end
  return ok, errno
end

local function unwatch(fd)
  if interest[fd] then
    interest[fd] = nil
    set:change(fd, 0)
  end
end

-- A link joins the chain of those who wait for a descriptor to become readable, or
-- writable; the first knows the last.
local function join(link, chains, fd)
  local first = chains[fd]
  link.fd, link.chains = fd, chains
  if first then
    local last = first.last
    last.next, link.before, first.last = link, last, link
  else
    chains[fd], link.last = link, link
  end
end

local function leave(link)
  local fd, chains, before, next = link.fd, link.chains, link.before, link.next
  if before then
    before.next = next
    if not next then
      chains[fd].last = before
    end
  else
    chains[fd] = next
    if next then
      next.last = link.last
    end
  end
  if next then
    next.before = before
  end
  link.fd, link.before, link.next, link.last = nil, nil, nil, nil
  if link.passing and interest[fd] and not readers[fd] and not writers[fd] then
    unwatch(fd) -- nobody tells when it is closed
  end
end

-- -------------------------------------------------------------------- deadlines

-- A binary heap by `key`, which may be earlier than when a member is due: one that
-- waits again and again, always for less than its deadline, is not moved.
local function up(member, at)
  local key = member.key
  while at > 1 do
    local above = heap[at // 2]
    if above.key <= key then
      break
    end
    heap[at], above.at = above, at
    at = at // 2
  end
  heap[at], member.at = member, at
end

local function down(member, at)
  local key = member.key
  while 2 * at <= size do
    local below = 2 * at
    if below < size and heap[below + 1].key < heap[below].key then
      below = below + 1
    end
    local other = heap[below]
    if key <= other.key then
      break
    end
    heap[at], other.at = other, at
    at = below
  end
  heap[at], member.at = member, at
end

local function due(member, moment)
  member.due = moment
  local at = member.at
  if not at then
    member.key = moment
    heap[size + 1] = member -- which may fail for lack of memory, as the next may
    member.at = size + 1
    size = size + 1
    up(member, size)
  elseif moment < member.key then
    member.key = moment
    up(member, at)
  end
end

local function drop(member)
  local at = member.at
  if not at then
    return
  end
  local last = heap[size]
  heap[size], member.at = nil, nil
  size = size - 1
  if last ~= member then
    if last.key < member.key then
      up(last, at)
    else
      down(last, at)
    end
  end
end

-- ---------------------------------------------------------------------- members

-- Polls a descriptor for a member. False: it is ready now.
local function poll(member, link, fd, bit)
  local chains = bit == 2 and writers or readers
  local have = interest[fd]
  if not have or have & bit == 0 then
    local ok, errno = watch(fd, (have or 0) | bit)
    if not ok then
      if errno ~= ipc.errno.EPERM then -- no memory, or too many: it looks again
        due(member, ipc.now() + NAP)
      end
      return errno ~= ipc.errno.EPERM
    end
  end
  link.member = member
  join(link, chains, fd)
  return true
end

-- Nothing tells a member any more that descriptors are ready.
local function unlink(member)
  local link, more = member.link, member.more
  if link and link.fd then
    leave(link)
  end
  if more then
    for i = 1, #more do
      if more[i].fd then
        leave(more[i])
      end
    end
    member.more = nil
  end
end

-- What a member waited for may be there: it waits for nothing any more. It is told first:
-- where memory lacks for that it waits on, and is told in the next turn.
local function wake(member)
  if not member.waits then
    return
  end
  local again = member:woken()
  member.waits, member.due, member.timed = false, nil, nil
  if again then
    member.waits = true
    due(member, again)
  end
  local link = member.link
  if link and link.fd or member.more then
    unlink(member)
  end
end
reactor.wake = wake

local function wake_chain(chains, fd)
  local link = chains[fd]
  while link do
    wake(link.member)
    if link.fd then -- of one that waits no more, or for rests
      leave(link)
    end
    link = chains[fd]
  end
end

-- What a foreign object says: a value, or a method that returns one.
local function ask(object, name)
  local value = object[name]
  if type(value) == "function" then
    return value(object)
  end
  return value
end

-- Lets a member wait for one more object; true: it need not.
local function add(member, object, link)
  local fd, bit, moment = look(object)
  if fd == false then
    local way
    fd, way, moment = ask(object, "pollfd"), ask(object, "events"), ask(object, "timeout")
    bit = way == "w" and 2 or 1
    moment = moment and ipc.now() + moment
    link.passing = true
    if moment and math.type(fd) ~= "integer" then -- only its time tells
      member.timed = member.timed or {}
      table.insert(member.timed, { object = object, moment = moment })
    end
    if way == "rw" and math.type(fd) == "integer" then
      local other = { passing = true }
      member.more = member.more or {}
      table.insert(member.more, other)
      if not poll(member, other, fd, 2) then
        return true
      end
    end
  end
  if moment then
    if moment <= 0 then
      return true
    end
    if moment < math.huge and not (member.due and member.due <= moment) then
      due(member, moment)
    end
  end
  return math.type(fd) == "integer" and fd >= 0 and not poll(member, link, fd, bit)
end

-- A member waits: for objects as a scheduler is given them (none: only until it is
-- woken) and for `moment`, of ipc.now(), if there is one.
function reactor.wait(member, moment, object, ...)
  member.waits = true
  if moment then
    due(member, moment)
  end
  if object == nil then
    return
  end
  local link = member.link
  if not link then
    link = { member = member }
    member.link = link
  elseif link.fd or member.more then -- memory lacked for it when it was woken
    unlink(member)
  end
  if ... == nil and not moment then -- as nearly always: one, told of before
    local fd, bit, due_at = look(object)
    if fd and bit == 1 and not due_at and not readers[fd] and (interest[fd] or 0) & 1 == 1 then
      link.fd, link.chains, link.last, link.passing = fd, readers, link, nil
      readers[fd] = link
      return
    end
  end
  link.passing = nil
  local ready = add(member, object, link)
  for i = 1, select("#", ...) do
    if ready then
      break
    end
    link = {}
    member.more = member.more or {}
    table.insert(member.more, link)
    ready = add(member, (select(i, ...)), link)
  end
  if ready then
    wake(member)
  end
end

-- A member will not wait again.
reactor.forget = drop

-- A descriptor is about to be closed, or what its waiters want is there.
function reactor.cancel(fd)
  wake_chain(readers, fd)
  wake_chain(writers, fd)
  unwatch(fd)
end

-- ------------------------------------------------------------------- the look

local flusher = { woken = function() end } -- waits for rests, wants nothing

-- Rests of accepted messages go on when there is room for them, whoever waits.
local function watch_rests(n, ...)
  local nap = false
  for i = 1, n do
    local fd = select(i, ...)
    nap = nap or fd < 0 or not writers[fd] and not poll(flusher, {}, fd, 2)
  end
  flusher.waits = n > 0
  return nap
end

local function unwatch_rests(n, ...)
  for i = 1, n do
    local fd = select(i, ...)
    local link = writers[fd]
    while link do
      local next = link.next
      if link.member == flusher then
        leave(link)
      end
      link = next
    end
  end
end

-- A descriptor is ready: who waits is woken; what nobody waits for is let go.
local function told(fd, what)
  if what & 1 ~= 0 then
    wake_chain(readers, fd)
  end
  if what & 2 ~= 0 then
    wake_chain(writers, fd)
  end
end

local function unasked(fd, what)
  local have = interest[fd] or 0
  local bits = have
  if what & 1 ~= 0 and not readers[fd] then
    bits = bits & ~1
  end
  if what & 2 ~= 0 and not writers[fd] then
    bits = bits & ~2
  end
  if bits ~= have then
    if bits == 0 then
      unwatch(fd)
    else
      watch(fd, bits)
    end
  end
end

-- Seconds until a member is due, by what is known without asking; nil: for ever.
local function until_due()
  if size > 0 then
    return math.max(0, heap[1].key - ipc.now())
  end
end

-- Those whose time has come, of objects that have nothing else.
local function returned(member, now)
  local list = {}
  for _, timed in ipairs(member.timed) do
    if timed.moment <= now then
      list[#list + 1] = timed.object
    end
  end
  return list
end

-- Wakes those whose time has come.
local function expire()
  local now = ipc.now()
  while size > 0 do
    local member = heap[1]
    if member.key > now then
      break
    end
    local moment = member.due
    if not moment then
      drop(member)
    elseif moment > member.key then -- its turn comes later
      member.key = moment
      down(member, 1)
    else -- and is dropped next
      member.returned = member.timed and returned(member, now)
      wake(member)
    end
  end
end

local function look_now(timeout, n, ...)
  if n > 0 and watch_rests(n, ...) then
    timeout = math.min(timeout or NAP, NAP)
  end
  local left = until_due()
  if left and (not timeout or left < timeout) then
    timeout = left
  end
  local all = heard
  heard = false
  local count, words, errno = the_set():wait(events, timeout, all)
  if not count then
    unwatch_rests(n, ...)
    return nil, words, errno
  end
  -- Those that nobody waited for go before any is woken: what is woken may come
  -- back at once. The first are no news of the kernel's, and told of once.
  for i = 2 * words + 1, 2 * count, 2 do
    local fd, what = events[i], events[i + 1]
    if what ~= 1 or not readers[fd] then
      unasked(fd, what)
    end
  end
  for i = 1, 2 * count, 2 do
    local fd, what = events[i], events[i + 1]
    local link = what == 1 and readers[fd]
    local member = link and not link.next and link.member
    if member and link == member.link and not member.more and not link.passing then
      member:woken() -- what wake comes to, nearly always
      readers[fd], link.fd, link.last = nil, nil, nil
      member.waits, member.due, member.timed = false, nil, nil
    else
      told(fd, what)
    end
  end
  heard = true
  if n > 0 then
    unwatch_rests(n, ...)
  end
  if size > 0 then
    expire()
  end
  return true
end

local function with_rests(timeout, ...)
  return look_now(timeout, select("#", ...), ...)
end

-- Waits until somebody can be woken, or for so many seconds, and wakes them.
function reactor.look(timeout)
  return with_rests(timeout, flush())
end

-- The descriptor that is readable when a look would wake somebody.
-- Where the system has no such thing: one that never is.
function reactor.pollfd()
  local fd = the_set():pollfd()
  if not fd then
    quiet = quiet or table.pack(assert(ipc.pipe()))
    fd = quiet[1]:pollfd()
  end
  return fd
end

-- Nobody polls that descriptor any more.
function reactor.own()
  if set then
    set:own()
  end
end

-- Rests that come while no look is made are among what the descriptor tells of;
-- whether there is one that it cannot tell of.
local function announce(...)
  local n = select("#", ...)
  local nap = n > 0 and watch_rests(n, ...)
  unwatch_rests(n, ...)
  return nap or n > 0 and the_set():blind()
end

-- Seconds until a host must look, which has nothing but the descriptor to poll.
function reactor.patience()
  the_set()
  local left = until_due()
  local nap = announce(flush()) or (next(readers) or next(writers)) and the_set():blind()
  if nap and not (left and left < NAP) then
    return NAP
  end
  return left
end

-- Descriptors may have been closed without a word: those that are waited for are
-- told to the kernel again.
function reactor.retell()
  for fd in pairs(interest) do
    local bits = (readers[fd] and 1 or 0) | (writers[fd] and 2 or 0)
    interest[fd] = bits > 0 and bits or nil
    set:change(fd, bits)
  end
end

-- Nobody waits: as the process begins, also one that fork(2) made.
function reactor.begin()
  set, heard, quiet = nil, false, nil
  interest, readers, writers, events = {}, {}, {}, {}
  heap, size = {}, 0
end

return reactor
