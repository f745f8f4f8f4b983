"""pynvim as a client of ours: attaches to the socket, or to its own stdio, does the
check of that name and prints "ok"."""
import sys

import pynvim

where, check = sys.argv[1], sys.argv[2]
nvim = pynvim.attach("stdio") if where == "stdio" else pynvim.attach("socket", path=where)


def calls():
    assert isinstance(nvim.channel_id, int)
    assert {"Buffer", "Window", "Tabpage"} <= set(nvim.metadata["types"])
    assert nvim.request("add", 1, 2) == 3
    assert nvim.request("none") is None
    assert nvim.request("echo", 1, None, "x") == [1, None, "x"]
    assert nvim.request("echo", {"a": [1, {"b": True}]}) == {"a": [1, {"b": True}]}
    assert "add" in [function["name"] for function in nvim.metadata["functions"]]


def errors():
    for method, params, why in [
        ("fail", ["the reason"], "the reason"),
        ("no_such_method", [], "no_such_method"),
        ("nvim_no_such_method", [], "nvim_no_such_method"),
    ]:
        try:
            nvim.request(method, *params)
        except pynvim.NvimError as error:
            assert why in str(error), error
        else:
            raise AssertionError(method)
    assert nvim.request("add", 1, 2) == 3


def callbacks():
    ticks = []

    def on_request(method, params):
        if method == "double":
            return nvim.request("add", params[0], params[0])  # nested
        raise pynvim.ErrorResponse([0, "no doubling today"])

    def setup():
        ticks.append(nvim.request("back", 2))
        nvim.request("tell_back", 3)

    def on_notification(method, params):
        ticks.append([method, params])
        nvim.stop_loop()

    nvim.run_loop(on_request, on_notification, setup)
    assert ticks == ["got 4", ["tick", [3]]], ticks


def child():
    """A plugin host: its parent calls it."""
    def on_request(method, params):
        if method == "double":
            return nvim.request("add", params[0], params[0])
        raise pynvim.ErrorResponse([0, "no method " + method])

    nvim.run_loop(on_request, lambda method, params: nvim.stop_loop())


globals()[check]()
nvim.close()
if where != "stdio":
    print("ok")
