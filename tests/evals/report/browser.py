"""A headless Chromium driven over its DevTools pipe: no driver, no port, no package.

Every request that a page makes and everything that it says on the console is kept.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 60.0


def find_chromium() -> str | None:
    """Path of a Chromium or Chrome, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One browser with one page. ``requests`` and ``console`` fill as the page runs."""

    def __init__(self, process: int, read: int, write: int) -> None:
        self.process = process
        self._read, self._write = read, write
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self._emulated: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.console: list[str] = []
        self.events: list[str] = []

    def open_page(self) -> None:
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its result."""
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            answer = self._next(PATIENCE)
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _next(self, patience: float) -> dict[str, Any]:
        """The next message; events are noted as they pass."""
        end = time.monotonic() + patience
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError("the browser does not answer")
            piece = os.read(self._read, 1 << 20)
            if not piece:
                raise ConnectionError("the browser ended")
            self._buffer += piece
        raw, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(raw)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, params: dict[str, Any]) -> None:
        self.events.append(event)
        if event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event == "Runtime.consoleAPICalled":
            self.console.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif event == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.console.append(details.get("exception", {}).get("description", details["text"]))
        elif event == "Log.entryAdded":
            self.console.append(params["entry"]["text"])

    def open(self, url: str) -> None:
        """Goes to a page and waits until it is loaded and has drawn."""
        self.requests.clear()
        self.console.clear()
        self.events.clear()
        self.send("Page.navigate", url=url)
        while "Page.loadEventFired" not in self.events:
            self._next(PATIENCE)
        self.settle()

    def settle(self) -> None:
        """Waits for two frames: what was asked for is drawn."""
        self.run(
            "new Promise(done => requestAnimationFrame(() => "
            "requestAnimationFrame(() => setTimeout(done, 30))))"
        )

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def size(self, width: int, height: int, *, scale: float = 1.0, mobile: bool = False) -> None:
        """The window's size in CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
        self._emulate("Emulation.setDeviceMetricsOverride", metrics)

    def media(self, *, scheme: str = "light", kind: str = "") -> None:
        """The preferred colour scheme, and ``print`` for the style of paper."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._emulate("Emulation.setEmulatedMedia", {"media": kind, "features": features})

    def _emulate(self, method: str, settings: dict[str, Any]) -> None:
        if self._emulated.get(method) != settings:
            self.send(method, **settings)
            self.settle()
            self._emulated[method] = settings

    def point(self, x: float, y: float) -> None:
        """Moves the mouse there."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.settle()

    def key(self, name: str) -> None:
        """Presses and lets go of a key by its name (``ArrowRight``)."""
        codes = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40, "Escape": 27, "Tab": 9, "Enter": 13}
        for kind in ("keyDown", "keyUp"):
            code = codes[name]
            self.send("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)
        self.settle()

    def picture(self, clip: dict[str, float] | None = None) -> bytes:
        """A PNG of the window, or of a part of the page."""
        extra: dict[str, Any] = {}
        if clip is not None:
            extra = {"clip": {**clip, "scale": 1}, "captureBeyondViewport": True}
        return base64.b64decode(self.send("Page.captureScreenshot", format="png", **extra)["data"])

    def pdf(self) -> bytes:
        return base64.b64decode(self.send("Page.printToPDF", printBackground=True)["data"])

    def close(self) -> None:
        try:
            self._session = None
            self.send("Browser.close")
        except (OSError, TimeoutError):
            os.killpg(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self._read)
        os.close(self._write)


@contextmanager
def browser(program: str) -> Iterator[Browser]:
    """A browser without a window, in a profile of its own; it ends with the block."""
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
        "--hide-scrollbars",
        "--remote-debugging-pipe",
    )
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        # The pipe's ends are descriptors 3 and 4 of the browser, by its convention.
        moved = [
            (os.POSIX_SPAWN_DUP2, os.dup2(to_read, 103), 3),
            (os.POSIX_SPAWN_DUP2, os.dup2(from_write, 104), 4),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ]
        process = os.posix_spawn(
            program,
            [program, *flags, f"--user-data-dir={profile}"],
            {**os.environ, "HOME": profile},
            file_actions=moved,
            setpgroup=0,
        )
        for end in (to_read, from_write, 103, 104):
            os.close(end)
        made = Browser(process, from_read, to_write)
        try:
            made.open_page()
            yield made
        finally:
            made.close()


def save(picture: bytes, file: Path) -> Path:
    """Writes a picture."""
    file.write_bytes(picture)
    return file
