"""A headless Chromium with one page, driven over the DevTools protocol as a person would use it."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT_S = 30.0
KEYS = {
    "Enter": {"code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"},
    "Escape": {"code": "Escape", "windowsVirtualKeyCode": 27},
    "Tab": {"code": "Tab", "windowsVirtualKeyCode": 9},
    "ArrowRight": {"code": "ArrowRight", "windowsVirtualKeyCode": 39},
    "ArrowLeft": {"code": "ArrowLeft", "windowsVirtualKeyCode": 37},
}


def find_chromium() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class BrowserError(Exception):
    """The page threw, or what was awaited did not come."""


class Page:
    """The one page of a browser."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self.complaints: list[str] = []
        """Uncaught exceptions, errors on the console, and what the content security policy kept from happening."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        call_id = next(self._ids)
        self._socket.send(json.dumps({"id": call_id, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=WAIT_S))
            if message.get("id") == call_id:
                if "error" in message:
                    raise BrowserError(f"{method}: {message['error']}")
                return dict(message["result"])
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(str(details.get("exception", details).get("description", details)))
        elif message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            entry = f"{params['entry']['text']} {params['entry'].get('url', '')}"
            # The browser looks for one by itself wherever a document names none.
            if not entry.endswith("/favicon.ico"):
                self.complaints.append(entry)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, expression: str) -> Any:
        """The value of an expression in the page, awaited if it is a promise."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise BrowserError(f"{expression}: {details.get('exception', details).get('description', details)}")
        return result["result"].get("value")

    def wait(self, condition: str, timeout_s: float = WAIT_S) -> Any:
        """The condition's value, once it is truthy."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            # While a page is being replaced there is nothing to ask.
            with contextlib.suppress(BrowserError):
                # A node has no value that could be sent.
                if value := self.run(f"((value) => value instanceof Node || value)({condition})"):
                    return value
            time.sleep(0.03)
        raise BrowserError(f"never true: {condition}\n{self.run('document.body.innerText')}\n{self.complaints}")

    def text(self, selector: str) -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def texts(self, selector: str) -> list[str]:
        """What each of them holds, shown or not."""
        return list(self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.textContent)"))

    def count(self, selector: str) -> int:
        return int(self.run(f"document.querySelectorAll({json.dumps(selector)}).length"))

    def click(self, selector: str) -> None:
        """A real click in the middle of the element, which must be in view and on top."""
        box = self.wait(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)}); if (!node) return null;"
            "node.scrollIntoView({block: 'nearest'}); const box = node.getBoundingClientRect();"
            "const x = box.x + box.width / 2, y = box.y + box.height / 2;"
            "const top = document.elementFromPoint(x, y);"
            "return box.width && top && (node.contains(top) || top.contains(node)) ? {x, y} : null; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **box)

    def click_button(self, label: str, within: str = "body") -> None:
        """Click the last visible button that reads or is called so."""
        mark = "data-test-click"
        self.wait(
            f"(() => {{ const all = [...document.querySelectorAll({json.dumps(within + ' button')})];"
            "const name = (button) => (button.getAttribute('aria-label') ?? button.innerText).trim();"
            f"const found = all.filter((b) => b.checkVisibility() && name(b) === {json.dumps(label)}).at(-1);"
            f"if (!found) return false; document.querySelector('[{mark}]')?.removeAttribute('{mark}');"
            f"found.setAttribute('{mark}', ''); return true; }})()"
        )
        self.click(f"[{mark}]")

    def fill(self, selector: str, text: str) -> None:
        """Type over what a field holds."""
        self.click(selector)
        self.run(f"document.querySelector({json.dumps(selector)}).select()")
        self.call("Input.insertText", text=text)

    def press(self, key: str, *, modifiers: int = 0) -> None:
        """A key; 2 is Ctrl, 8 is Shift."""
        common = {"key": key, "modifiers": modifiers, **KEYS[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown" if "text" in common else "rawKeyDown", **common)
        common.pop("text", None)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def compose(self, text: str) -> None:
        """Text that an input method shows and that is not taken yet."""
        self.call("Input.imeSetComposition", text=text, selectionStart=len(text), selectionEnd=len(text))

    def size(self, width: int, height: int, *, is_phone: bool = False) -> None:
        scale = 2 if is_phone else 1
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=is_phone
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=is_phone)

    def colours(self, scheme: str) -> None:
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def wait_for_frame(self) -> None:
        """Until all that was changed is on the screen: text that was never there is no `innerText` yet."""
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def screenshot(self, path: Path) -> None:
        self.wait_for_frame()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def opened_page() -> Iterator[Page]:
    """A browser of its own with a fresh profile, ended on leaving."""
    chromium = find_chromium()
    assert chromium is not None
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        command = [
            chromium,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--hide-scrollbars",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        environment = {**os.environ, "HOME": profile}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        try:
            with connect(_address(Path(profile), process), max_size=None, proxy=None, ping_interval=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def _address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BrowserError(f"the browser ended with {process.returncode}")
        with contextlib.suppress(OSError, IndexError, StopIteration):
            port = (profile / "DevToolsActivePort").read_text().splitlines()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as response:
                targets = json.load(response)
            return str(next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page"))
        time.sleep(0.05)
    raise BrowserError("the browser did not come up")
