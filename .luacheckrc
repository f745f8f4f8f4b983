std = "lua54"
max_line_length = 120
self = false -- a method that does not need itself is still a method
ignore = { "211/held" } -- a guard: what counts is the end of its scope
exclude_files = { "build", "lua_modules", ".luarocks" }

files["spec"].std = "+busted"
-- Annotations for editors: declarations nobody calls, with empty bodies.
files["types"] = { ignore = { "1", "2" } }
