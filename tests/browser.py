"""A real Chromium without a window and without a network, spoken to over its debugging protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from websockets.sync.client import connect
from websockets.sync.connection import Connection

needs_chromium = pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on this machine")
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
          "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-port=0")  # fmt: skip
_SECONDS = 60


class Browser:
    """One tab. `requests` and `complaints` hold what pages asked for and what the console said of them, since `open`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._number = 0
        self._loaded = False
        self.requests: list[str] = []
        self.complaints: list[str] = []
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def open(self, page: Path, width: int, scheme: Literal["light", "dark"] = "light", *, is_phone: bool = False) -> None:
        """Open a file in a window `width` CSS pixels wide, under the system's colour scheme `scheme`."""
        self.requests, self.complaints, self._loaded = [], [], False
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=is_phone)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=page.as_uri())
        while not self._loaded:
            self._receive()
        self.evaluate("Promise.all([...document.images].map((image) => image.decode())).then(() => true)")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def screenshot(self, target: Path, *, height: int = 0) -> None:
        """The page as PNG, down to `height` CSS pixels; 0 for all of it."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"], "scale": 1}
        found = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        target.write_bytes(base64.b64decode(found["data"]))

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """One command of the protocol, and its answer."""
        self._number += 1
        number = self._number
        self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while (message := self._receive()).get("id") != number:
            pass
        assert "error" not in message, message
        result: dict[str, Any] = message["result"]
        return result

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._connection.recv(_SECONDS))
        params = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Log.entryAdded":
                self.complaints.append(params["entry"]["text"])
            case "Runtime.exceptionThrown" | "Runtime.consoleAPICalled":
                self.complaints.append(json.dumps(params))
        return message


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser with its profile in `folder`; it is ended with the block."""
    command = ["chromium", *_FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    with (folder / "chromium.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            with connect(_address(folder / "profile"), max_size=None, open_timeout=_SECONDS, proxy=None) as connection:
                yield Browser(connection)
        finally:
            process.terminate()


def _address(profile: Path) -> str:
    """Where the first tab listens, as soon as the browser has written its port down."""
    import urllib.request

    port_file = profile / "DevToolsActivePort"
    deadline = time.monotonic() + _SECONDS
    while not (port_file.is_file() and port_file.read_text().count("\n")):
        assert time.monotonic() < deadline, "chromium does not start"
        time.sleep(0.05)
    port = port_file.read_text().splitlines()[0]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        with opener.open(f"http://127.0.0.1:{port}/json/list", timeout=_SECONDS) as answer:
            tabs = [one for one in json.load(answer) if one["type"] == "page"]
        if tabs:
            return str(tabs[0]["webSocketDebuggerUrl"])
        assert time.monotonic() < deadline, "chromium opens no tab"
        time.sleep(0.05)
