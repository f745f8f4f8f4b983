# The gem neovim as a client of ours: attaches to the socket, does the check of that
# name and prints "ok".
require "neovim"

where, check = ARGV
nvim = Neovim.attach_unix(where)

def must(what, text = what.inspect)
  raise "not so: #{text}" unless what
end

def refused(session, method, why, *params)
  session.request(method, *params)
rescue RuntimeError => error
  must(error.message.include?(why), error.message)
else
  raise "#{method} was not refused"
end

session = nvim.session
case check
when "calls"
  must nvim.channel_id.is_a?(Integer)
  must session.request(:add, 1, 2) == 3
  must session.request(:none).nil?
  must session.request(:echo, 1, nil, "x") == [1, nil, "x"]
  value = { "a" => [1, { "b" => true }], "text" => "é", "n" => 2**62, "f" => 0.5 }
  must session.request(:echo, value) == value
when "errors"
  refused(session, :fail, "the reason", "the reason")
  refused(session, :no_such_method, "no_such_method")
  must session.request(:add, 1, 2) == 3
when "callbacks" # they are run in the loop only
  seen = []
  session.notify(:begin)
  session.run do |message|
    if message.method_name == "begun"
      seen << session.request(:back, 2)
      session.shutdown
    elsif message.sync?
      sum = session.request(:add, *(message.arguments * 2)) # nested
      session.respond(message.id, sum)
    end
  end
  must seen == ["got 4"], seen.inspect
end
puts "ok"
