// The npm package neovim as a client of ours: attaches to the socket, does the check
// of that name and prints "ok".
const assert = require("assert");
const net = require("net");
const { attach } = require("neovim");

const [where, check] = process.argv.slice(2);
const logger = {};
for (const level of ["info", "warn", "error", "debug", "log"]) logger[level] = () => {};

const checks = {
  async calls(nvim) {
    assert(Number.isInteger(await nvim.channelId));
    assert.strictEqual(await nvim.request("add", [1, 2]), 3);
    assert.strictEqual(await nvim.request("none", []), null);
    assert.deepStrictEqual(await nvim.request("echo", [1, null, "x"]), [1, null, "x"]);
    const value = { a: [1, { b: true }], text: "é", n: 2 ** 53 - 1, f: 0.5 };
    assert.deepStrictEqual(await nvim.request("echo", [value]), value);
    const many = await Promise.all(
      Array.from({ length: 200 }, (_, i) => nvim.request("add", [i, i])));
    many.forEach((sum, i) => assert.strictEqual(sum, 2 * i));
  },

  async errors(nvim) {
    for (const [method, params, why] of [
      ["fail", ["the reason"], "the reason"],
      ["no_such_method", [], "no_such_method"],
    ]) {
      await assert.rejects(nvim.request(method, params), (error) => {
        assert(error.message.includes(why), error.message);
        return true;
      });
    }
    assert.strictEqual(await nvim.request("add", [1, 2]), 3);
  },

  async callbacks(nvim) {
    nvim.on("request", async (method, params, response) => {
      if (method !== "double") return response.send([0, "no method " + method], true);
      response.send(await nvim.request("add", [params[0], params[0]])); // nested
    });
    const told = new Promise((resolve) => nvim.on("notification", (...all) => resolve(all)));
    await nvim.channelId;
    assert.strictEqual(await nvim.request("back", [2]), "got 4");
    await nvim.request("tell_back", [3]);
    assert.deepStrictEqual(await told, ["tick", [3]]);
  },
};

async function main() {
  const socket = net.createConnection(where);
  const nvim = attach({ reader: socket, writer: socket, options: { logger } });
  await checks[check](nvim);
  socket.end();
  console.log("ok");
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
