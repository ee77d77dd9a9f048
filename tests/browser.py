"""Headless Chromium, spoken to over pipes with the DevTools protocol: no package, no port, no network."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--no-first-run", "--hide-scrollbars"),
    *("--enable-unsafe-swiftshader", "--use-angle=swiftshader", "--disable-dev-shm-usage", "--mute-audio"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
)
COMPLAINTS = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
"""Events of everything that a console shows."""


def chromium() -> str | None:
    """Path of Chromium; None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Tab:
    """One page in a browser."""

    def __init__(self, write: int, read: int, seconds: float) -> None:
        self.write, self.read = write, read
        self.deadline = time.monotonic() + seconds
        self.numbers = itertools.count(1)
        self.rest = b""
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", session="", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", session="", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol, and return its result."""
        number = next(self.numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session is None:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            assert time.monotonic() < self.deadline, "the browser does not answer"
            part = os.read(self.read, 1 << 20)
            assert part, "the browser has ended"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        return dict(json.loads(message))

    def evaluate(self, expression: str) -> Any:
        """Evaluate JavaScript in the page, awaited, and return its value."""
        done = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def open(self, path: Path, width: int, height: int = 900) -> None:
        """Open a file in a window of that many pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.send("Page.navigate", url=path.absolute().as_uri())
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def wait_for(self, expression: str) -> None:
        """Wait until an expression is true in the page."""
        while not self.evaluate(expression):
            assert time.monotonic() < self.deadline, f"never true: {expression}\n{self.complaints()}"
            time.sleep(0.05)

    def complaints(self) -> list[str]:
        """List everything that the console shows: exceptions, messages, and what the page's policy refused."""
        return [json.dumps(event["params"])[:600] for event in self.events if event.get("method") in COMPLAINTS]

    def requests(self) -> list[str]:
        """List the addresses that the page asked for, besides those that hold their content."""
        asked = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("data:", "blob:"))]

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Save a picture of the page, or of the window alone."""
        made = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(made["data"]))


@contextmanager
def browser_tab(program: str, folder: Path, *flags: str, seconds: float = 120) -> Iterator[Tab]:
    """Start Chromium with an empty profile in `folder`, and open a page in it; it ends with the block."""
    to_browser, ours_out = os.pipe()
    ours_in, from_browser = os.pipe()
    command = [program, *FLAGS, *flags, f"--user-data-dir={folder}"]
    script = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *command],
        pass_fds=(to_browser, from_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        yield Tab(ours_out, ours_in, seconds)
    finally:
        os.close(ours_out)
        process.kill()
        process.wait()
        os.close(ours_in)
