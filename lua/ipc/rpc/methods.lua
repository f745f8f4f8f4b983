--- What a session can call: by its names, with their documentation.
-- @module ipc.rpc
local core = require "ipc.core"

local ipc = core.flat
local E = ipc.errno

local methods = {}

-- A function of Neovim's, as its manual writes it.
local function signature(fn)
  local parameters = {}
  for i, parameter in ipairs(type(fn.parameters) == "table" and fn.parameters or {}) do
    parameters[i] = type(parameter) == "table" and table.concat(parameter, " ") or tostring(parameter)
  end
  return ("%s(%s) -> %s"):format(fn.name, table.concat(parameters, ", "), tostring(fn.return_type))
end

local function of_nvim(answer)
  local info = type(answer) == "table" and answer[2]
  if type(info) ~= "table" or type(info.functions) ~= "table" then
    return nil, "bad answer: nvim_get_api_info", E.EBADMSG
  end
  local all = {}
  for _, fn in ipairs(info.functions) do
    if type(fn) == "table" and type(fn.name) == "string" then
      local ok, text = pcall(signature, fn)
      all[fn.name] = ok and text or ""
    end
  end
  return all
end

--- What the other side lets be called. Of Neovim (`peer = "nvim"`): its functions, with
-- their parameters and results as documentation.
-- @function session:methods
-- @treturn table name -> documentation, "" where it has none (see the option `docs`); or
-- nil, message, errno as `session:call`, ENOSYS where the peer knows no such question
-- @usage for name, text in pairs(assert(session:methods())) do print(name, text) end
function methods.methods(session)
  local nvim = session.core.options.peer == "nvim"
  local ok, answer, errno, problem = session:call(nvim and "nvim_get_api_info" or "$methods")
  if not ok then
    return nil, answer, errno, problem
  elseif nvim then
    return of_nvim(answer)
  elseif type(answer) ~= "table" then
    return nil, "bad answer: $methods", E.EBADMSG
  end
  local all = {}
  for name, text in pairs(answer) do
    if type(name) == "string" then
      all[name] = type(text) == "string" and text or ""
    end
  end
  return all
end

return methods
