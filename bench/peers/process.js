// What bench/process.lua measures, with node's child_process; prints ns.
// Arguments: run (spawn of /bin/true, to its end) | fork (a node of its own,
// until its first message), seconds.
"use strict";
const { fork, spawn } = require("child_process");
const [, file, work, length] = process.argv;

const now = () => Number(process.hrtime.bigint());

// Calls done(ns that do not count) when it is through.
function run(done) {
  spawn("/bin/true", { stdio: "ignore" }).on("close", () => done(0));
}

function message(done) {
  let then;
  const child = fork(file, ["child"]);
  child.on("message", () => {
    then = now();
    child.disconnect();
  });
  child.on("exit", () => done(now() - then));
}

function main(batch, seconds) {
  const took = [];
  let begin = now(), last = begin, warm = true;
  function next() {
    batch((aside) => {
      const at = now();
      if (warm && at - begin >= seconds * 1e8) {
        warm = false;
        begin = at;
      } else if (!warm) {
        took.push(at - last - aside);
      }
      last = at;
      if (warm || took.length < 3 || at - begin < seconds * 1e9) return next();
      took.sort((a, b) => a - b);
      console.log(took[took.length >> 1].toFixed(1));
    });
  }
  next();
}

if (work === "child") process.send(1);
else main(work === "run" ? run : message, Number(length));
