// What pairs.lua does, with node: async functions over unix sockets, since it has
// no pipes of its own. Arguments: pairs, seconds.
"use strict";
const net = require("net");
const fs = require("fs");

const [count, seconds] = process.argv.slice(2).map(Number);
const message = Buffer.alloc(64, "x");
const path = `/tmp/pairs-bench-${process.pid}.sock`;
let trips = 0, stop = false;

function channel(socket) {
  let held = Buffer.alloc(0), wake = null, ended = false;
  socket.on("data", (bytes) => {
    held = held.length ? Buffer.concat([held, bytes]) : bytes;
    if (wake) { const w = wake; wake = null; w(); }
  });
  socket.on("close", () => { ended = true; if (wake) wake(); });
  return async () => {
    while (held.length < 64 && !ended) await new Promise((done) => { wake = done; });
    if (ended) return null;
    const m = held.subarray(0, 64);
    held = held.subarray(64);
    return m;
  };
}

async function ping(socket) {
  const read = channel(socket);
  while (!stop) { socket.write(message); await read(); trips++; }
  socket.destroy();
}

async function pong(socket) {
  const read = channel(socket);
  for (let m = await read(); m; m = await read()) socket.write(m);
}

const server = net.createServer((socket) => pong(socket));
server.listen({ path, backlog: count }, () => {
  for (let i = 0; i < count; i++) { const s = net.connect(path); s.on("connect", () => ping(s)); }
  setTimeout(() => {
    trips = 0;
    const begin = process.hrtime.bigint();
    setTimeout(() => {
      console.log(Number(process.hrtime.bigint() - begin) / trips);
      stop = true;
      fs.rmSync(path, { force: true });
      process.exit(0);
    }, seconds * 1000);
  }, 200 + seconds * 100);
});
