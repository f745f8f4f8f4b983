---@meta ipc
-- Annotations for editors (LuaCATS). The reference is in the sources.

---@class ipc
---@field parent? ipc.channel the channel to the process that started this one
---@field handles? table<string, userdata> of a spawned process: those that were given names
---@field null lightuserdata what stands for nil where Lua could not keep one
---@field errno table<string|integer, integer|string> names to numbers and back
local ipc = {}

---@class ipc.options what every mechanism takes
---@field timeout? number seconds every call waits by default (for ever)
---@field linger? number seconds close waits for accepted messages (1)
---@field maxsize? integer bytes of a message (64 MiB)
---@field spin? number seconds a wait retries before it sleeps (70e-6); 0: never
---@field create? boolean|"new"
---@field temporary? boolean
---@field permissions? string
---@field retry? number|boolean
---@field keepalive? boolean

---@class ipc.pipe.options: ipc.options
---@field duplex? boolean both ends send and receive
---@field packet? boolean each message is one packet, at most 4,095 bytes
---@field capacity? integer bytes the kernel holds
---@field unit? "message"|"stream"

---@class ipc.fifo.options: ipc.options
---@field unit? "message"|"stream"
---@field capacity? integer bytes the kernel holds
---@field writers? integer 1: this is the only one, no lock is taken
---@field readers? integer 1: no other handle may read so (EADDRINUSE)

---@class ipc.stdio.options: ipc.options
---@field unit? "message"|"stream"

---@class ipc.socket.options: ipc.options
---@field type? "stream"|"seqpacket"|"datagram" of unix sockets
---@field unit? "message"|"stream"
---@field handles? integer descriptors one message may bring; unix sockets
---@field allow_uids? integer[] who may be at the other end; unix sockets
---@field bind? string the socket's own address
---@field backlog? integer clients that may wait (511)
---@field capacity? integer bytes the kernel holds in each direction
---@field nodelay? boolean TCP
---@field user_timeout? number seconds; TCP on Linux

---@class ipc.mqueue.options: ipc.options
---@field maxmsg? integer messages a new queue holds
---@field msgsize? integer bytes of its longest message

---@class ipc.sysv.options: ipc.options
---@field project? integer|string for ftok(3): 1 to 255, or one character
---@field capacity? integer bytes the queue holds
---@field id? integer of the queue to open, the key being nil

---@class ipc.ring.options: ipc.options
---@field capacity? integer bytes of the ring
---@field size? integer bytes of the longest message, with `count`
---@field count? integer messages of that size
---@field writers? 1|"many" 1: a second gets EBUSY, no lock is taken
---@field participants? integer handles that may have it open at once (112)
---@field persist? boolean the last one out leaves it
---@field huge? boolean in huge pages, where the system has some
---@field prefault? boolean pages are touched at once

---@class ipc.shm.options: ipc.ring.options
---@field readers? 1|"many" 1: a second gets EBUSY, no lock is taken
---@field lease? boolean what take gave is kept until it is acknowledged

---@class ipc.broadcast.options: ipc.ring.options
---@field slow? "lose"|"hold" what becomes of slow subscribers
---@field latest? boolean only the newest counts

---@class ipc.pollable
---@field pollfd fun(self): integer?
---@field events fun(self): string
---@field timeout fun(self): number?

---@class ipc.channel: ipc.pollable
local channel = {}

---@param bytes string|ipc.view
---@param tag? integer
---@param timeout? number seconds
---@return true? ok
---@return string? message
---@return integer? errno
function channel:send(bytes, tag, timeout) end

---@param timeout? number seconds
---@param tag? integer
---@return string? bytes
---@return string|integer? message_or_tag
---@return integer? errno
function channel:recv(timeout, tag) end

---@param value any
---@param tag? integer
---@param timeout? number seconds
---@return true? ok
---@return string? message
---@return integer? errno
function channel:put(value, tag, timeout) end

---@param timeout? number seconds
---@param tag? integer
---@return any value
---@return string|integer? message_or_tag
---@return integer? errno
function channel:get(timeout, tag) end

---@param list (string|ipc.view)[]
---@param tag? integer
---@param timeout? number seconds
---@return integer? count
---@return string? message
---@return integer? errno
---@return integer? accepted
function channel:sendmany(list, tag, timeout) end

---@param max integer
---@param timeout? number seconds
---@param tag? integer
---@return string[]? messages
---@return string? message
---@return integer? errno
function channel:recvmany(max, timeout, tag) end

---@param what integer|"l"|"L"|"a"
---@param timeout? number seconds
---@return string? bytes
---@return string? message
---@return integer? errno
function channel:read(what, timeout) end

---@param timeout? number seconds
---@param tag? integer
---@return fun(): string?, integer?
function channel:messages(timeout, tag) end

---@param timeout? number seconds
---@param tag? integer
---@return fun(): any, integer?
function channel:values(timeout, tag) end

---@param timeout? number seconds
---@return fun(): string?
function channel:lines(timeout) end

---@param timeout? number seconds
---@return true? ok
---@return string? message
---@return integer? errno
function channel:flush(timeout) end

---@return true? ok
---@return string? message
---@return integer? errno
function channel:close() end

---@return true? ok
---@return string? message
---@return integer? errno
function channel:shutdown() end

---@param seconds? number
---@return true
function channel:settimeout(seconds) end

---@return integer bytes
function channel:maxsize() end

---@return table<string, integer>
function channel:stats() end

---@return ipc.channel? copy
---@return string? message
---@return integer? errno
function channel:dup() end

---@return integer? descriptor
function channel:pollfd() end

---@return string events
function channel:events() end

---@return number? seconds
function channel:timeout() end

---@class ipc.reason
---@field kind "exit"|"signal"|"error"|"unknown"
---@field text string
---@field code? integer
---@field signal? string|integer
---@field core? boolean
---@field value? any

---@class ipc.usage
---@field user number seconds
---@field system number seconds
---@field maxrss integer bytes

---@class ipc.process: ipc.channel
---@field pid integer
---@field reason? ipc.reason
---@field usage? ipc.usage
---@field stdin? ipc.channel
---@field stdout? ipc.channel
---@field stderr? ipc.channel
local process = {}

---@param timeout? number seconds
---@return true? ok
---@return any ...
function process:wait(timeout) end

---@param signal? string|integer
---@param whom? "process"|"group"
---@return true? ok
---@return string? message
---@return integer? errno
function process:kill(signal, whom) end

---@param grace? number seconds
---@return true
function process:stop(grace) end

---@param grace? number seconds
---@return true? ok
---@return string? message
---@return integer? errno
function process:close(grace) end

---@class ipc.exit
local exit = {}

---@return ipc.exit? exit
---@return string? message
---@return integer? errno
function process:exited() end

---@param timeout? number seconds
---@return true? ok
---@return any ...
function exit:wait(timeout) end

---@return true
function exit:close() end

---@return integer? descriptor
function exit:pollfd() end

---@return string
function exit:events() end

---@return number? seconds
function exit:timeout() end

---@param options? ipc.pipe.options
---@return ipc.channel? reader
---@return ipc.channel|string writer_or_message
---@return integer? errno
function ipc.pipe(options) end

---@class ipc.mqueue.stat
---@field messages integer
---@field maxmsg integer
---@field msgsize integer
---@field uid integer
---@field gid integer
---@field permissions string

---@class ipc.mqueue: ipc.channel
local mqueue = {}

---@return ipc.mqueue.stat? stat
---@return string? message
---@return integer? errno
function mqueue:stat() end

---@return true? ok
---@return string? message
---@return integer? errno
function mqueue:remove() end

---@param signal? string|integer
---@return true? ok
---@return string? message
---@return integer? errno
function mqueue:notify(signal) end

---@param name string
---@param mode? "r"|"w"|"rw"
---@param options? ipc.mqueue.options
---@return ipc.mqueue? queue
---@return string? message
---@return integer? errno
function ipc.mqueue(name, mode, options) end

---@class ipc.sysv.stat
---@field messages integer
---@field bytes integer
---@field capacity integer
---@field last_send_pid integer
---@field last_recv_pid integer
---@field send_time integer
---@field recv_time integer
---@field change_time integer
---@field uid integer
---@field gid integer
---@field creator_uid integer
---@field creator_gid integer
---@field permissions string
---@field key integer
---@field id integer

---@class ipc.sysv.changes
---@field permissions? string
---@field capacity? integer
---@field uid? integer
---@field gid? integer

---@class ipc.sysv: ipc.channel
local sysv = {}

---@return integer
function sysv:id() end

---@return ipc.sysv.stat? stat
---@return string? message
---@return integer? errno
function sysv:stat() end

---@param changes ipc.sysv.changes
---@return true? ok
---@return string? message
---@return integer? errno
function sysv:set(changes) end

---@return true? ok
---@return string? message
---@return integer? errno
function sysv:remove() end

---@param key integer|string|nil
---@param mode? "r"|"w"|"rw"
---@param options? ipc.sysv.options
---@return ipc.sysv? queue
---@return string? message
---@return integer? errno
function ipc.sysv(key, mode, options) end

---@class ipc.ticket a message that is to be acknowledged
---@field bytes string
---@field offered integer how often it was, this time included
local ticket = {}

---@return any value
---@return string? message
---@return integer? errno
function ticket:get() end

---@return true? ok
---@return string? message
---@return integer? errno
function ticket:ack() end

---@return true? ok
---@return string? message
---@return integer? errno
function ticket:nack() end

---@class ipc.shm: ipc.channel
local shm = {}

---@param size integer bytes
---@param timeout? number seconds
---@return ipc.view? view to be committed
---@return string? message
---@return integer? errno
function shm:reserve(size, timeout) end

---@param timeout? number seconds
---@return ipc.view? view to be released
---@return string? message
---@return integer? errno
function shm:peek(timeout) end

---@param timeout? number seconds
---@return ipc.ticket? ticket to be settled
---@return string? message
---@return integer? errno
function shm:take(timeout) end

---@return true? ok
---@return string? message
---@return integer? errno
function shm:remove() end

---@class ipc.mmap: ipc.shm
local mmap = {}

---@param size integer bytes
---@param timeout? number seconds
---@return ipc.view? view
---@return string? message
---@return integer? errno
function mmap:reserve(size, timeout) end

---@param timeout? number seconds
---@return ipc.view? view
---@return string? message
---@return integer? errno
function mmap:peek(timeout) end

---@param timeout? number seconds
---@return ipc.ticket? ticket
---@return string? message
---@return integer? errno
function mmap:take(timeout) end

---@return true? ok
---@return string? message
---@return integer? errno
function mmap:remove() end

---@param name string
---@param mode "r"|"w"|"rw"
---@param options? ipc.shm.options
---@return ipc.shm? channel
---@return string? message
---@return integer? errno
function ipc.shm(name, mode, options) end

---@param options? ipc.shm.options
---@return ipc.shm? reader
---@return ipc.shm|string writer_or_message
---@return integer? errno
function ipc.queue(options) end

---@param path string
---@param mode "r"|"w"|"rw"
---@param options? ipc.shm.options
---@return ipc.mmap? channel
---@return string? message
---@return integer? errno
function ipc.mmap(path, mode, options) end

---@class ipc.broadcast: ipc.channel
local broadcast = {}

---@return true? ok
---@return string? message
---@return integer? errno
function broadcast:remove() end

---@param name string
---@param mode "r"|"w"
---@param options? ipc.broadcast.options
---@return ipc.broadcast? channel
---@return string? message
---@return integer? errno
---@overload fun(options?: ipc.broadcast.options): ipc.broadcast?, ipc.broadcast|string, integer?
function ipc.broadcast(name, mode, options) end

---@param address string
---@param options? table
---@return ipc.channel? one
---@return ipc.channel|string other_or_message
---@return integer? errno
function ipc.pair(address, options) end

---@class ipc.fifo: ipc.channel
local fifo = {}

---@param timeout? number seconds
---@return true? ok
---@return string? message
---@return integer? errno
function fifo:reopen(timeout) end

---@return true? ok
---@return string? message
---@return integer? errno
function fifo:remove() end

---@param path string
---@param mode "r"|"w"
---@param options? ipc.fifo.options
---@return ipc.fifo? channel
---@return string? message
---@return integer? errno
function ipc.fifo(path, mode, options) end

---@param options? ipc.stdio.options
---@return ipc.channel? channel
---@return string? message
---@return integer? errno
function ipc.stdio(options) end

---@param reader ipc.channel|string a channel, or an address
---@param writer ipc.channel|string likewise
---@param options? table of addresses only
---@return ipc.channel? channel
---@return string? message
---@return integer? errno
function ipc.duplex(reader, writer, options) end

---@param fn function
---@param ... any
---@return ipc.process? child
---@return string? message
---@return integer? errno
function ipc.fork(fn, ...) end

---@class ipc.exec.file
---@field file string path
---@field append? boolean
---@alias ipc.exec.stream "inherit"|"null"|"pipe"|"stdout"|ipc.exec.file|ipc.channel|ipc.process|file*

---@class ipc.exec.options
---@field [integer] string the program and its arguments
---@field stdin? ipc.exec.stream
---@field stdout? ipc.exec.stream
---@field stderr? ipc.exec.stream
---@field input? string
---@field env? table<string, string|false>
---@field clean_env? boolean
---@field cwd? string
---@field rlimits? table<string, number|number[]>
---@field nice? integer
---@field group? boolean
---@field detach? boolean
---@field timeout? number seconds
---@field maxsize? integer bytes of one read

---@param options ipc.exec.options
---@return ipc.process? process
---@return string? message
---@return integer? errno
function ipc.exec(options) end

---@class ipc.run.options: ipc.exec.options the program, its arguments, and what ipc.exec takes
---@field timeout? number seconds for all of it (for ever)
---@field grace? number seconds between TERM and KILL at the timeout (0: KILL at once)
---@field maxsize? integer bytes of each captured stream (no limit)
---@field check? boolean false: an exit with other than 0 is no failure

---@class ipc.run.result
---@field out? string nil where stdout was not captured
---@field err? string likewise
---@field code? integer the exit status
---@field signal? string|integer what killed it
---@field usage? { user: number, system: number, maxrss: integer }
---@field seconds? number of the whole call
---@field stages? ipc.run.result[] of a pipeline

---@class ipc.pipeline.options
---@field [integer] ipc.exec.options a program each
---@field timeout? number seconds for all of it (for ever)
---@field grace? number seconds between TERM and KILL at the timeout (0: KILL at once)
---@field maxsize? integer bytes of each captured stream (no limit)
---@field check? boolean false: an exit with other than 0 is no failure

---@param options ipc.run.options
---@return ipc.run.result? result
---@return string? message
---@return integer? errno
---@return ipc.run.result? partial
function ipc.run(options) end

---@param options ipc.pipeline.options
---@return ipc.run.result? result
---@return string? message
---@return integer? errno
---@return ipc.run.result? partial
function ipc.pipeline(options) end

---@class ipc.spawn.options one of fn, file and module
---@field fn? function
---@field file? string a script's path
---@field module? string a name for `require`; if that gives a function it is called
---@field args? table a list, with `n` if there are nils in it
---@field handles? table<string, userdata> become `ipc.handles` there
---@field lua? string the interpreter
---@field count? integer how many processes; the handle is a crew then
---@field stdin? any "null" unless given; this and what follows as `ipc.exec`
---@field stdout? any
---@field stderr? any
---@field env? table<string, string|false>
---@field clean_env? boolean
---@field cwd? string
---@field rlimits? table<string, integer|integer[]>
---@field nice? integer
---@field group? boolean
---@field detach? boolean
---@field timeout? number seconds that its calls wait by default
---@field maxsize? integer bytes of a message

---@class ipc.crew several processes as one
---@field [integer] ipc.process
local crew = {}

---@param timeout? number seconds
---@return boolean? ended
---@return string? message
---@return integer? errno
function crew:wait(timeout) end

---@param signal? string|integer
---@param whom? "process"|"group"
---@return boolean? sent
---@return string? message
---@return integer? errno
function crew:kill(signal, whom) end

---@param grace? number seconds
---@return boolean? stopped
---@return string? message
---@return integer? errno
function crew:stop(grace) end

---@return boolean? closed
---@return string? message
---@return integer? errno
function crew:close() end

---@param fn function|ipc.spawn.options
---@param ... any its arguments
---@return ipc.process|ipc.crew? child
---@return string? message
---@return integer? errno
function ipc.spawn(fn, ...) end

---@alias ipc.entry ipc.pollable|{ [1]: ipc.channel, [2]: "r"|"w"|"rw" }

---@param list ipc.entry[]
---@param timeout? number seconds
---@return table? ready a list and a set
---@return string? message
---@return integer? errno
function ipc.poll(list, timeout) end

---@alias ipc.waitable ipc.pollable|integer a handle, a foreign object, a descriptor

---@class ipc.poller: ipc.pollable
---@operator len: integer
local poller = {}

---@param object ipc.waitable
---@param events? "r"|"w"|"rw"
---@param once? boolean told once, then not before modify
---@return true? ok
---@return string? message
---@return integer? errno
function poller:add(object, events, once) end

---@param object ipc.waitable
---@param events? "r"|"w"|"rw"
---@param once? boolean
---@return true? ok
---@return string? message
---@return integer? errno
function poller:modify(object, events, once) end

---@param object ipc.waitable
---@return true? ok
---@return string? message
---@return integer? errno
function poller:remove(object) end

---@param timeout? number seconds
---@param max? integer the most to answer
---@return table? ready a list, and what each is ready for by object
---@return string[]|string|nil what each is ready for, by place; or the message
---@return integer? errno
function poller:wait(timeout, max) end

---@return true
function poller:close() end

---@return ipc.poller? poller
---@return string? message
---@return integer? errno
function ipc.poller() end

---@class ipc.source: ipc.pollable
local source = {}

---@param timeout? number seconds
---@return string|integer|nil next a signal's name, or how often a timer expired
---@return string? message
---@return integer? errno
function source:recv(timeout) end

---@param timeout? number seconds
---@return string|integer|nil next
---@return string? message
---@return integer? errno
function source:get(timeout) end

---@param timeout? number seconds, for each
---@return fun(): string|integer|nil
function source:messages(timeout) end

---@param timeout? number seconds, for each
---@return fun(): string|integer|nil
function source:values(timeout) end

---@param seconds? number
---@return true
function source:settimeout(seconds) end

---@return { received: integer } counters
function source:stats() end

---@return true
function source:close() end

---@class ipc.signals.options
---@field timeout? number seconds that calls wait by default

---@param list (string|integer)[] names without SIG, or numbers
---@param options? ipc.signals.options
---@return ipc.source? signals
---@return string? message
---@return integer? errno
function ipc.signals(list, options) end

---@class ipc.timer.options
---@field after? number seconds until the first (every)
---@field every? number seconds from each to the next; else there is one
---@field timeout? number seconds that calls wait by default

---@param options ipc.timer.options
---@return ipc.source? timer
---@return string? message
---@return integer? errno
function ipc.timer(options) end

---@param value any
---@param options? { strings?: "str"|"bin" }
---@return string bytes
function ipc.pack(value, options) end

---@class ipc.unpack.options
---@field bytes? integer
---@field depth? integer
---@field values? integer
---@field tables? integer
---@field keys? integer
---@field nulls? boolean
---@field uint64? "float"|"error"|"wrap"

---@param bytes string
---@param options? ipc.unpack.options
---@return any value
---@return string? message
---@return integer? errno
function ipc.unpack(bytes, options) end

---@class ipc.bytes what views and memories have in common; offsets count from 0
---@operator len: integer
local bytes = {}

---@param offset integer
---@param format string of `string.pack`
---@param ... any values
---@return integer? after
---@return string? message
---@return integer? errno
function bytes:pack(offset, format, ...) end

---@param offset integer
---@param format string of `string.unpack`
---@return any ... values, then the offset after them; or nil, message, errno
function bytes:unpack(offset, format) end

---@param offset? integer
---@param count? integer
---@return string? bytes
---@return string? message
---@return integer? errno
function bytes:read(offset, count) end

---@param offset integer
---@param from string|ipc.bytes
---@return integer? after
---@return string? message
---@return integer? errno
function bytes:write(offset, from) end

---@param offset integer
---@param from string|ipc.bytes
---@param from_offset? integer
---@param count? integer
---@return integer? after
---@return string? message
---@return integer? errno
function bytes:copy(offset, from, from_offset, count) end

---@param byte integer
---@param offset? integer
---@param count? integer
---@return integer? after
---@return string? message
---@return integer? errno
function bytes:fill(byte, offset, count) end

---@param what string|ipc.bytes
---@param offset? integer
---@param count? integer
---@return integer? offset nil alone: not there
---@return string? message
---@return integer? errno
function bytes:find(what, offset, count) end

---@param offset integer
---@param other string|ipc.bytes
---@param other_offset? integer
---@param count? integer
---@return -1|0|1|nil order
---@return string? message
---@return integer? errno
function bytes:compare(offset, other, other_offset, count) end

---@param offset integer
---@param count? integer
---@return ipc.view range
function bytes:range(offset, count) end

---@alias ipc.word "I8"|"i8"|"I4"|"i4"

---@param offset integer a multiple of the word's size
---@param type? ipc.word "I8" by default
---@return integer? number
---@return string? message
---@return integer? errno
function bytes:load(offset, type) end

---@param offset integer
---@param number integer
---@param type? ipc.word
---@return true? ok
---@return string? message
---@return integer? errno
function bytes:store(offset, number, type) end

---@param offset integer
---@param number integer
---@param type? ipc.word
---@return integer? before
---@return string? message
---@return integer? errno
function bytes:add(offset, number, type) end

---@param offset integer
---@param number integer
---@param type? ipc.word
---@return integer? before
---@return string? message
---@return integer? errno
function bytes:sub(offset, number, type) end

---@param offset integer
---@param mask integer
---@param type? ipc.word
---@return integer? before
---@return string? message
---@return integer? errno
function bytes:band(offset, mask, type) end

---@param offset integer
---@param mask integer
---@param type? ipc.word
---@return integer? before
---@return string? message
---@return integer? errno
function bytes:bor(offset, mask, type) end

---@param offset integer
---@param number integer
---@param type? ipc.word
---@return integer? before
---@return string? message
---@return integer? errno
function bytes:xchg(offset, number, type) end

---@param offset integer
---@param expected integer
---@param new integer
---@param type? ipc.word
---@return boolean? done
---@return integer|string|nil current
---@return integer? errno
function bytes:cas(offset, expected, new, type) end

---@param offset integer
---@param expected integer
---@param timeout? number seconds
---@param type? ipc.word
---@return true? ok
---@return string? message
---@return integer? errno
function bytes:wait(offset, expected, timeout, type) end

---@param offset integer
---@param count? integer all by default
---@param type? ipc.word
---@return integer? woken
---@return string? message
---@return integer? errno
function bytes:wake(offset, count, type) end

---@class ipc.view: ipc.bytes bytes of a queue or a memory, in place
local view = {}

---@param size? integer bytes, from the start
---@return true? ok
---@return string? message
---@return integer? errno
function view:commit(size) end

---@return true? ok
---@return string? message
---@return integer? errno
function view:release() end

---@return true
function view:close() end

---@class ipc.decoder
local decoder = {}

---@param message string
function decoder:feed(message) end

---@return any value
---@return string? message
---@return integer? errno
function decoder:get() end

function decoder:close() end

---@param options? ipc.unpack.options
---@return ipc.decoder
function ipc.decoder(options) end

---@generic T: table
---@param t T
---@return T
function ipc.array(t) end

---@generic T: table
---@param t T
---@return T
function ipc.map(t) end

---@class ipc.ext
---@field type integer
---@field data string

---@param type integer
---@param data string
---@return ipc.ext
function ipc.ext(type, data) end

---@param scheduler? { is_task: function, wait: function, cancel: function }
function ipc.scheduler(scheduler) end

---@return number seconds
function ipc.now() end

---@param seconds number
---@return true? ok
---@return string? message
---@return integer? errno
function ipc.sleep(seconds) end

---@return integer
function ipc.pid() end

---@return integer
function ipc.cpus() end

---@return table[] rows
function ipc.mechanisms() end

---@return table[] rows
function ipc.limits() end

---@param address string
---@param mode? "r"|"w"|"rw"
---@param options? table
---@return ipc.channel? channel
---@return string? message
---@return integer? errno
function ipc.open(address, mode, options) end

---@class ipc.listener: ipc.pollable
local listener = {}

---@param timeout? number seconds
---@return ipc.channel? client
---@return string? message
---@return integer? errno
function listener:accept(timeout) end

---@return true
function listener:close() end

---@return string? address
---@return string? message
---@return integer? errno
function listener:address() end

---@param seconds? number
---@return true
function listener:settimeout(seconds) end

---@return table counters
function listener:stats() end

---@class ipc.socket: ipc.channel
local socket = {}

---@return string? address
---@return string? message
---@return integer? errno
function socket:peer() end

---@return string? address
---@return string? message
---@return integer? errno
function socket:address() end

---@return {uid: integer, gid: integer, pid?: integer}? credentials
---@return string? message
---@return integer? errno
function socket:credentials() end

---@param message string|ipc.view
---@param handles ipc.channel[]
---@param tag? string
---@param timeout? number seconds
---@return true? ok
---@return string? message
---@return integer? errno
function socket:sendmsg(message, handles, tag, timeout) end

---@param timeout? number seconds
---@param options? {unit?: "message"|"stream"}
---@return string? bytes
---@return ipc.channel[]|string handles_or_message
---@return string|integer? tag_or_errno
function socket:recvmsg(timeout, options) end

---@param address string
---@param options? table
---@return ipc.listener? listener
---@return string? message
---@return integer? errno
function ipc.listen(address, options) end

---@param address string
---@param options? table
---@return ipc.channel? channel
---@return string? message
---@return integer? errno
function ipc.connect(address, options) end

---@class ipc.memory: ipc.bytes bytes that processes share
local memory = {}

---@param offset? integer
---@param count? integer
---@param async? boolean
---@return true? ok
---@return string? message
---@return integer? errno
function memory:flush(offset, count, async) end

---@param what "normal"|"sequential"|"random"|"willneed"|"dontneed"|"hugepage"|"nohugepage"
---@param offset? integer
---@param count? integer
---@return true? ok
---@return string? message
---@return integer? errno
function memory:advise(what, offset, count) end

---@param size integer bytes
---@return true? ok
---@return string? message
---@return integer? errno
function memory:resize(size) end

---@param offset? integer
---@param count? integer
---@param mode? "r"|"rw"
---@param timeout? number seconds
---@return ipc.filelock? lock
---@return string? message
---@return integer? errno
function memory:lock(offset, count, mode, timeout) end

---@param mode? "r"|"rw"
---@param timeout? number seconds
---@return ipc.filelock? lock
---@return string? message
---@return integer? errno
function memory:flock(mode, timeout) end

---@return true? ok
---@return string? message
---@return integer? errno
function memory:remove() end

---@return true
function memory:close() end

---@param seconds? number
---@return true
function memory:settimeout(seconds) end

---@return { size: integer, participants: integer? }
function memory:stats() end

---@param i integer from 1
---@return ipc.mutex? mutex
---@return string? message
---@return integer? errno
function memory:mutex(i) end

---@param i integer from 1
---@return ipc.rwlock? rwlock
---@return string? message
---@return integer? errno
function memory:rwlock(i) end

---@param i integer from 1
---@param permits? integer|table
---@return ipc.semaphore? semaphore
---@return string? message
---@return integer? errno
function memory:semaphore(i, permits) end

---@param i integer from 1
---@return ipc.condition? condition
---@return string? message
---@return integer? errno
function memory:condition(i) end

---@param i integer from 1
---@param options? table
---@return ipc.event? event
---@return string? message
---@return integer? errno
function memory:event(i, options) end

---@param i integer from 1
---@param parties? integer|table
---@return ipc.barrier? barrier
---@return string? message
---@return integer? errno
function memory:barrier(i, parties) end

---@class ipc.filelock a lock on a file, or on bytes of it
local filelock = {}

---@return true
function filelock:unlock() end

---@return true
function filelock:close() end

---@class ipc.memory.options: ipc.options
---@field file? string a path
---@field mode? "rw"|"r"
---@field private? boolean
---@field locks? integer
---@field persist? boolean
---@field participants? integer
---@field huge? boolean
---@field prefault? boolean

---@param name? string "/counters"
---@param size? integer bytes
---@param options? ipc.memory.options
---@return ipc.memory? memory
---@return string? message
---@return integer? errno
function ipc.memory(name, size, options) end

---@class ipc.struct
---@field size integer bytes of a record in memory
---@field align integer
---@field versioned boolean
local struct = {}

---@param name string
---@param i? integer an element of an array
---@return integer offset in bytes
function struct:offset(name, i) end

---@return {name: string, type: string|ipc.struct, count?: integer, offset: integer, size: integer}[] rows, options
function struct:fields() end

---@param record ipc.record
---@param into? table
---@return table? fields
---@return string|integer? message_or_version
---@return integer? errno
function struct:load(record, into) end

---@param record ipc.record
---@param t table|ipc.record
---@return true? ok
---@return string? message
---@return integer? errno
function struct:store(record, t) end

---@class ipc.record
---@field [string] any a field of its struct

---@class ipc.vector
---@field [integer] any an element
---@operator len: integer
---@operator call(...): function
local vector = {}

---@param i? integer all, if there is none
---@param into? table
---@return any element
---@return string|integer? message_or_version
---@return integer? errno
function vector:load(i, into) end

---@param i integer
---@param value any
---@return true? ok
---@return string? message
---@return integer? errno
function vector:store(i, value) end

---@param description ipc.struct
---@param offset? integer in bytes
---@param count? integer
---@return ipc.record|ipc.vector
function bytes:view(description, offset, count) end

---@class ipc.struct.fields
---@field packed? boolean
---@field align? integer
---@field endian? "native"|"little"|"big"
---@field versioned? boolean
---@field [integer] { [1]: string, [2]: string|ipc.struct, [3]: integer? }

---@param fields ipc.struct.fields
---@return ipc.struct
function ipc.struct(fields) end

---What a call of a lock got: a to-be-closed value.
---@class ipc.guard
local guard = {}

---@return true? ok
---@return string? message
---@return integer? errno
function guard:unlock() end

---@class ipc.lock_options
---@field create? boolean|"new"
---@field permissions? string
---@field retry? number|true seconds
---@field temporary? boolean
---@field timeout? number seconds
---@field persist? boolean
---@field participants? integer
---@field huge? boolean
---@field prefault? boolean

---What all locks have.
---@class ipc.lock
local lock = {}

---@return true
function lock:close() end

---@param seconds? number
---@return true
function lock:settimeout(seconds) end

---@return table figures
function lock:stats() end

---@return true? ok
---@return string? message
---@return integer? errno
function lock:remove() end

---@class ipc.mutex: ipc.lock
local mutex = {}

---@param timeout? number seconds
---@return ipc.guard? guard
---@return string? state_or_message "owner_dead"
---@return integer? errno
function mutex:lock(timeout) end

---@return true? ok
---@return string? message
---@return integer? errno
function mutex:unlock() end

---@return true? ok
---@return string? message
---@return integer? errno
function mutex:consistent() end

---@class ipc.rwlock: ipc.lock
local rwlock = {}

---@param timeout? number seconds
---@return ipc.guard? guard
---@return string? state_or_message "owner_dead"
---@return integer? errno
function rwlock:read(timeout) end

---@param timeout? number seconds
---@return ipc.guard? guard
---@return string? state_or_message "owner_dead"
---@return integer? errno
function rwlock:write(timeout) end

---@return true? ok
---@return string? message
---@return integer? errno
function rwlock:unlock() end

---@return true? ok
---@return string? message
---@return integer? errno
function rwlock:consistent() end

---@class ipc.semaphore: ipc.lock
local semaphore = {}

---@param timeout? number seconds
---@param n? integer
---@return ipc.guard? guard
---@return string? message
---@return integer? errno
function semaphore:acquire(timeout, n) end

---@param n? integer
---@return true? ok
---@return string? message
---@return integer? errno
function semaphore:release(n) end

---@class ipc.condition: ipc.lock
local condition = {}

---@param held ipc.mutex
---@param timeout? number seconds
---@return true? ok
---@return string? state_or_message "owner_dead"
---@return integer? errno
---@return boolean? held
function condition:wait(held, timeout) end

---@param n? integer
---@return true? ok
---@return string? message
---@return integer? errno
function condition:notify(n) end

---@return true? ok
---@return string? message
---@return integer? errno
function condition:notify_all() end

---@class ipc.event: ipc.lock
local event = {}

---@param timeout? number seconds
---@return true? ok
---@return string? message
---@return integer? errno
function event:wait(timeout) end

---@return true? ok
---@return string? message
---@return integer? errno
function event:set() end

---@return true? ok
---@return string? message
---@return integer? errno
function event:clear() end

---@return boolean? set
---@return string? message
---@return integer? errno
function event:is_set() end

---@class ipc.barrier: ipc.lock
local barrier = {}

---@param timeout? number seconds
---@return true? ok
---@return boolean|string|nil last_or_message
---@return integer? errno
function barrier:wait(timeout) end

---@param name? string
---@param options? ipc.lock_options
---@return ipc.mutex? mutex
---@return string? message
---@return integer? errno
function ipc.mutex(name, options) end

---@param name? string
---@param options? ipc.lock_options
---@return ipc.rwlock? rwlock
---@return string? message
---@return integer? errno
function ipc.rwlock(name, options) end

---@class ipc.semaphore_options: ipc.lock_options
---@field permits? integer
---@field owned? boolean

---@param name? string
---@param options? ipc.semaphore_options
---@return ipc.semaphore? semaphore
---@return string? message
---@return integer? errno
function ipc.semaphore(name, options) end

---@param name? string
---@param options? ipc.lock_options
---@return ipc.condition? condition
---@return string? message
---@return integer? errno
function ipc.condition(name, options) end

---@class ipc.event_options: ipc.lock_options
---@field auto? boolean

---@param name? string
---@param options? ipc.event_options
---@return ipc.event? event
---@return string? message
---@return integer? errno
function ipc.event(name, options) end

---@class ipc.barrier_options: ipc.lock_options
---@field parties? integer

---@param name? string
---@param options? ipc.barrier_options
---@return ipc.barrier? barrier
---@return string? message
---@return integer? errno
function ipc.barrier(name, options) end

---@class ipc.journal: ipc.channel
local journal = {}

---@param sequence? integer
---@return true? ok
---@return string? message
---@return integer? errno
function journal:ack(sequence) end

---@return true? ok
---@return string? message
---@return integer? errno
function journal:remove() end

---@return number? seconds
function journal:time() end

---@class ipc.journal_options
---@field durability? "interval"|"sync"|"none"
---@field interval? number seconds
---@field segment? integer bytes
---@field retain_bytes? integer
---@field retain_seconds? number
---@field slowest? boolean
---@field from? integer|"first"|"end"
---@field since? number seconds since 1970
---@field follow? boolean
---@field reader? string
---@field participants? integer
---@field create? boolean|"new"
---@field permissions? string
---@field temporary? boolean
---@field retry? number|boolean
---@field timeout? number seconds
---@field maxsize? integer bytes
---@field linger? number seconds
---@field spin? number seconds

---@param directory string
---@param mode "r"|"w"|"rw"
---@param options? ipc.journal_options
---@return ipc.journal? journal
---@return string? message
---@return integer? errno
function ipc.journal(directory, mode, options) end

---@class ipc.journal_report
---@field files integer
---@field records integer
---@field first integer
---@field last integer
---@field bytes integer
---@field torn integer
---@field repaired integer
---@field damage {file: string, offset: integer, sequence: integer, reason: string}[]

---@class ipc.verify_options
---@field repair? boolean

---@param directory string
---@param options? ipc.verify_options
---@return ipc.journal_report? report
---@return string? message
---@return integer? errno
function ipc.verify(directory, options) end

---@class ipc.task
local task = {}

---@param timeout? number seconds
---@return true? ok
---@return any ... results; or message, errno, the error's value
function task:wait(timeout) end

---@return boolean alive
function task:cancel() end

---@class ipc.scope_options
---@field limit? integer tasks at once

---@class ipc.scope
local scope = {}

---@param fn function
---@param ... any
---@return ipc.task
function scope:go(fn, ...) end

---@param timeout? number seconds
---@return true? ok
---@return string? message
---@return integer? errno
---@return any value
function scope:wait(timeout) end

function scope:cancel() end

---@return true ok
function scope:close() end

---@class ipc.loop.queue
local queue = {}

---@param value any
---@param timeout? number seconds
---@return true? ok
---@return string? message
---@return integer? errno
function queue:put(value, timeout) end

---@param timeout? number seconds
---@return any value
---@return string? message
---@return integer? errno
function queue:get(timeout) end

---@param timeout? number seconds
---@return fun(): any
function queue:values(timeout) end

---@return true ok
function queue:close() end

---@class ipc.loop: ipc.pollable
local loop = {}

---@param fn function
---@param ... any
---@return ipc.task
function loop.go(fn, ...) end

---@param fn function
---@param ... any
---@return any ...
function loop.run(fn, ...) end

---@param seconds number
---@return true ok
function loop.sleep(seconds) end

---@param options? ipc.scope_options
---@return ipc.scope
function loop.scope(options) end

---@param size? integer
---@return ipc.loop.queue
function loop.queue(size) end

---@generic F: function
---@param fn F
---@return F
function loop.wrap(fn) end

---@param timeout? number seconds
---@return integer alive
function loop.step(timeout) end

---@return integer? descriptor
function loop.pollfd() end

---@return "r"
function loop.events() end

---@return number? seconds
function loop.timeout() end

---@param name "cqueues"|"luv"|"copas"|nil
---@param controller? any
---@return any drives
function loop.use(name, controller) end

ipc.loop = loop

---@param fn function
---@param ... any
function ipc.main(fn, ...) end

---@class ipc.serve_options: ipc.socket.options
---@field limit? integer clients at once (1000)
---@field grace? number seconds that close gives them (5)
---@field on_error? fun(value: any, peer: string?, trace: string?)

---@class ipc.server
---@field address string
local server = {}

---@param timeout? number seconds
---@return true? ok
---@return string? message
---@return integer? errno
function server:wait(timeout) end

---@return true ok
function server:stop() end

---@return true ok
function server:close() end

---@param where string|ipc.listener
---@param fn fun(conn: ipc.channel, peer: string?)
---@param options? ipc.serve_options
---@return ipc.server? server
---@return string? message
---@return integer? errno
function ipc.serve(where, fn, options) end

-- ---- calls

---@alias ipc.rpc.exports table<string, function|table> functions by name; nested tables are flattened

---@class ipc.rpc.options: ipc.socket.options
---@field name? string what the other side sees as session.name
---@field docs? table<string, string> of functions by name, for session:methods()
---@field timeout? number seconds a call may take, here and there (30)
---@field calls? integer calls in flight of one connection (1000)
---@field params? integer arguments of a call, and its results, from 2 (250)
---@field method? integer bytes of a method's name (100)
---@field nested? integer calls that wait within calls (16)
---@field unsent? integer bytes of answers and notifications that may be left unread (16 MiB)
---@field first? number seconds to the first message (10)
---@field stall? number seconds for the rest of a message (30)
---@field references? integer functions and objects that the other side may hold (10000)
---@field maxsize? integer bytes of a message, from 512 (16 MiB)
---@field depth? integer tables within tables, from 4 to 1000 (64)
---@field values? integer values in a message, from 64 (1,000,000)
---@field tables? integer tables in a message, from 8 (100,000)
---@field keys? integer keys of one table that are not strings (1024)
---@field errors? "array"|"string" how errors go to peers that are not ours
---@field traceback? boolean whether errors carry it to the other side
---@field authkey? string the secret that both sides have
---@field allow? fun(session: ipc.rpc.session): boolean, string? whether who is there may call
---@field peer? "ours"|"plain"|"nvim" what is on the other side
---@field nvim? boolean answers nvim_get_api_info
---@field on_open? fun(session: ipc.rpc.session)
---@field on_close? fun(session: ipc.rpc.session, message: string?, errno: integer?)
---@field on_error? fun(error: any, session: ipc.rpc.session, traceback: string?)

---@class ipc.rpc.serve_options: ipc.rpc.options
---@field limit? integer connections at once (256)
---@field grace? number seconds that close gives the calls that run (5)
---@field process? boolean in a process of its own
---@field workers? integer processes that serve the same address

---@class ipc.rpc.connect_options: ipc.rpc.options
---@field exports? ipc.rpc.exports what the server may call
---@field reconnect? number|boolean seconds it tries to connect again
---@field idempotent? boolean|string[] what is called again after that

---@class ipc.rpc.with
---@field timeout? number seconds
---@field trace? string goes with each call
---@field idempotent? boolean

---@class ipc.rpc.error what a remote function raises: tostring is its text
---@field message string
---@field errno integer 0: the function raised it
---@field method? string its name
---@field code? integer
---@field traceback? string
---@field data? any what the table that was raised had so

---@class ipc.rpc.remote
---@field [string] any functions of the other side, and tables of them

---@class ipc.rpc.session
---@field remote ipc.rpc.remote
---@field peer? string
---@field name? string what the other side calls itself
---@field uid? integer of who is there, on unix sockets; of a pair, of who made it
---@field pid? integer
---@field data table yours, empty at first: it goes with the session
---@field deadline? number seconds left for the call that runs
---@field trace? string of the call that runs
local session = {}

---@alias ipc.rpc.target string|ipc.rpc.function_|ipc.rpc.object|ipc.rpc.future

---@param target ipc.rpc.target
---@param ... any a method's name first, if the target is an object or a future
---@return true? ok
---@return any ... results; or message, errno, error
function session:call(target, ...) end

---@param target ipc.rpc.target
---@param ... any
---@return ipc.rpc.future
function session:async(target, ...) end

---@param target ipc.rpc.target
---@param ... any
---@return true? ok
---@return string? message
---@return integer? errno
function session:notify(target, ...) end

---@return ipc.rpc.batch
function session:batch() end

---@param defaults ipc.rpc.with
---@return ipc.rpc.session
function session:with(defaults) end

---@return table<string, string>? methods name to documentation
---@return string? message
---@return integer? errno
function session:methods() end

---@param timeout? number seconds
---@return true? ok
---@return string? message
---@return integer? errno
function session:serve(timeout) end

---@param timeout? number seconds
---@return true? ok
---@return string? message
---@return integer? errno
function session:wait(timeout) end

---@return true? ok
---@return string? message
---@return integer? errno
function session:close() end

---@return boolean # whether the call that runs is to end
function session:cancelled() end

---@return table<string, integer>
function session:stats() end

---@class ipc.rpc.future
---@field done boolean
local future = {}

---@param timeout? number seconds; 0 takes what is there
---@return true? ok
---@return any ... results; or message, errno, error
function future:wait(timeout) end

---@return boolean
function future:cancel() end

---@param method string of the object that the call is going to answer
---@param ... any
---@return true? ok
---@return any ...
function future:call(method, ...) end

---@param method string
---@param ... any
---@return ipc.rpc.future
function future:async(method, ...) end

---@class ipc.rpc.batch
local batch = {}

---@param target ipc.rpc.target
---@param ... any
---@return ipc.rpc.future
function batch:async(target, ...) end

---@param target ipc.rpc.target
---@param ... any
---@return true? ok
---@return string? message
---@return integer? errno
function batch:notify(target, ...) end

---@param timeout? number seconds
---@return true? ok
---@return string? message
---@return integer? errno
function batch:send(timeout) end

---@return true ok
function batch:close() end

---@class ipc.rpc.function_ a function of the other side
---@overload fun(...: any): any
local remote_function = {}

---@param ... any
---@return true? ok
---@return any ...
function remote_function:call(...) end

---@param ... any
---@return ipc.rpc.future
function remote_function:async(...) end

---@param ... any
---@return true? ok
---@return string? message
---@return integer? errno
function remote_function:notify(...) end

---@class ipc.rpc.object an object of the other side: its methods and properties
---@field [string] any

---@class ipc.rpc.stream values of the other side, one after the other: `for v in s do`
---@overload fun(): any
local remote_stream = {}

---@param timeout? number seconds; nil: for ever
---@return any ... the values of the next step; nil at the end; or nil, message, errno, error
function remote_stream:next(timeout) end

---@class ipc.rpc.local_stream a stream that was made here, used here as the other side's are
---@overload fun(): any
local stream = {}

---@param timeout? number seconds; nil: for ever
---@return any ... the values of the next step; nil at the end; or nil, message, errno, error
function stream:next(timeout) end

---@class ipc.rpc.server
---@field address string?
---@field addresses string[]
---@operator len: integer
local rpc_server = {}

---@param timeout? number seconds
---@return true? ok
---@return string? message
---@return integer? errno
function rpc_server:wait(timeout) end

---@return true ok
function rpc_server:stop() end

---@return true ok
function rpc_server:close() end

---@class ipc.rpc
local rpc = {}

---@param where string|ipc.listener|ipc.channel|(string|ipc.listener)[]
---@param exports ipc.rpc.exports
---@param options? ipc.rpc.serve_options
---@return ipc.rpc.server|ipc.rpc.session|nil server of a channel: its session
---@return string? message
---@return integer? errno
function rpc.serve(where, exports, options) end

---@param where string|ipc.channel|string[] a program is a list of words
---@param options? ipc.rpc.connect_options
---@return ipc.rpc.session? session
---@return string? message
---@return integer? errno
function rpc.connect(where, options) end

---@return ipc.rpc.session? session of the call that runs
function rpc.caller() end

---@generic T
---@param state T
---@param methods table<string, fun(state: T, ...: any): any>
---@param options? { properties?: string[], writable?: string[] }
---@return any object
function rpc.object(state, methods, options) end

---@param iterator fun(...: any): any or function(emit)
---@param state? any
---@param control? any
---@param closing? any is closed when the stream ends
---@return ipc.rpc.local_stream stream
function rpc.stream(iterator, state, control, closing) end

---@param reference any a function, object or stream of the other side
---@return true
function rpc.release(reference) end

ipc.rpc = rpc

return ipc
