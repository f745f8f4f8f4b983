-- Two machines: network namespaces joined by a veth pair, a program in each.
-- Nothing of it outlives the call: namespaces end with their processes.
local with = require "spec.support.with"

local namespaces = {}

namespaces.here = "10.99.0.1"
namespaces.there = "10.99.0.2"

-- As root, or in a user namespace of our own.
local OWN <const> = "unshare -n"
local MAPPED <const> = "unshare -rn"

local TRY <const> = "ip link add v0 type veth peer name v1 && ip link set v0 up"

local function allowed(command)
  return select(2, with.shell(("%s sh -c %s"):format(command, with.quote(TRY)))) == 0
end

-- How to get there, or nil and what the system says.
function namespaces.way()
  for _, command in ipairs { OWN, MAPPED } do
    if allowed(command) then return command end
  end
  return nil, (with.shell(("%s sh -c %s"):format(MAPPED, with.quote(TRY))))
end


-- Runs `programs.there` on the other machine and `programs.here` on this one,
-- both Lua with `ipc`, the addresses as globals and `sh(command)`, which runs a
-- shell command on this machine. `programs.setup` is a shell command run before,
-- here. Returns what both wrote, here first, and the status of the one here.
function namespaces.run(programs)
  local prelude = ([[
    ipc = require "ipc"
    here, there = %q, %q
    function sh(command) assert(os.execute(command)) end
    io.stdout:setvbuf "line"
  ]]):format(namespaces.here, namespaces.there)
  local script = ([[
set -e
dir=$(mktemp -d)
ip link set lo up
unshare -n sleep 300 &
holder=$!
server=
trap 'kill -9 $holder $server 2>/dev/null; rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
while [ "$(readlink /proc/$holder/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do :; done
ip link add v0 type veth peer name v1 netns $holder
ip addr add %s/24 dev v0
ip link set v0 up
nsenter -t $holder -n ip link set lo up
nsenter -t $holder -n ip addr add %s/24 dev v1
nsenter -t $holder -n ip link set v1 up
%s
(%s) >"$dir/there" 2>&1 &
server=$!
status=0
(%s) || status=$?
wait $server || echo "there: status $?"
server=
cat "$dir/there"
exit $status
]]):format(namespaces.here, namespaces.there, programs.setup or ":",
    with.command(prelude .. programs.there):gsub("^exec", "exec nsenter -t $holder -n"),
    (with.command(prelude .. programs.here)))
  return with.shell(("timeout -k 5 %d %s sh -c %s"):format(3 * with.patience, namespaces.way(), with.quote(script)))
end

return namespaces
