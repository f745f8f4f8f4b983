-- busted's own command, as a script for whichever Lua runs it: the one in the
-- PATH may be for another Lua, or a shell script. Lines leave at once, because
-- a sanitizer that finds something at the end throws the buffer away.
io.stdout:setvbuf "line"
require "busted.runner" { standalone = false }
