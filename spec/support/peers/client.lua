-- Neovim as a client of ours: it runs this (`-c "luafile ..."`), calls what is in
-- the environment, and prints what came of it. It is LuaJIT, and Neovim's API.
-- luacheck: globals vim, std luajit
local env = vim.env

local function show(...)
  local words = {}
  for i = 1, select("#", ...) do
    local value = select(i, ...)
    words[i] = type(value) == "string" and value or vim.inspect(value, { newline = " ", indent = "" })
  end
  io.stdout:write(table.concat(words, " "), "\n")
end

-- The first line of an error, without where it was raised.
local function why(...)
  local ok, message = pcall(...)
  return ok and "no error" or (tostring(message):match "[^\n]*")
end

local checks = {}

function checks.calls(channel)
  show(vim.rpcrequest(channel, "add", 1, 2))
  show(vim.rpcrequest(channel, "none"))
  show(vim.rpcrequest(channel, "echo", { a = { 1, { b = true } } }))
  show(vim.rpcrequest(channel, "echo", 1, vim.NIL, 3))
  show(vim.rpcrequest(channel, "math.twice", 21))
  local text = ("x"):rep(2 ^ 20)
  show(vim.rpcrequest(channel, "echo", text) == text)
end

function checks.errors(channel)
  show(why(vim.rpcrequest, channel, "fail", "the reason"))
  show(why(vim.rpcrequest, channel, "no_such_method"))
  show(vim.rpcrequest(channel, "add", 1, 2)) -- the connection is still there
end

function checks.callbacks(channel)
  vim.cmd [[function! Down(n)
    return a:n == 0 ? "bottom" : rpcrequest(g:channel, "down", a:n - 1)
  endfunction]]
  vim.g.channel = channel
  show(vim.rpcrequest(channel, "evaluate", "6 * 7"))
  show(vim.rpcrequest(channel, "down", 5))
  show(vim.rpcrequest(channel, "buffer")) -- handed out and back
end

function checks.notifications(channel)
  for i = 1, 100 do vim.rpcnotify(channel, "note", i) end
  show(#vim.rpcrequest(channel, "noted"))
  vim.rpcnotify(channel, "no_such_method")
  show(vim.rpcrequest(channel, "add", 1, 2))
  vim.rpcrequest(channel, "tell_variable") -- the other way
  show((vim.wait(20000, function() return vim.g.told ~= nil end, 1)))
  show(vim.g.told)
end

local ok, message = xpcall(function()
  local channel
  if env.ADDRESS then
    local mode = env.ADDRESS:find "/" and "pipe" or "tcp"
    channel = vim.fn.sockconnect(mode, env.ADDRESS, { rpc = true })
  else
    channel = vim.fn.jobstart(vim.fn.json_decode(env.PROGRAM), { rpc = true })
  end
  assert(channel > 0, "no channel")
  checks[env.CHECK](channel)
  if not env.ADDRESS then
    vim.fn.chanclose(channel)
    show(vim.fn.jobwait({ channel }, 20000)[1])
  end
end, debug.traceback)
if not ok then show("FAILED", message) end
vim.cmd(ok and "qall!" or "cquit!")
