"""A page in headless Chromium, driven over its debugging protocol: what a reader sees, points at and types."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
from collections.abc import Callable, Coroutine
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE_SECONDS = 30.0


class Page:
    """One page, of the file `path`; `events` holds what the browser told of it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, path: Path) -> None:
        self._socket, self._ids, self._path = socket, count(1), path
        self.events: list[dict[str, Any]] = []

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol, and its answer."""
        own = next(self._ids)
        await self._socket.send_json({"id": own, "method": method, "params": params})
        while True:
            message = await self._socket.receive_json(timeout=PATIENCE_SECONDS)
            if message.get("id") == own:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    async def open(self, width: int = 1100, height: int = 900, dark: bool = False) -> None:
        """Loads it in a window of so many pixels, and waits until its charts are drawn."""
        for domain in ("Page", "Network", "Runtime", "Log"):
            await self.send(f"{domain}.enable")
        await self.resize(width, height)
        await self.scheme(dark)
        await self.send("Page.navigate", url=self._path.resolve().as_uri())
        await self.until("document.readyState === 'complete' && [...document.querySelectorAll('.is-live > div')]"
                         ".every(box => box.shadowRoot || box.childElementCount)")  # fmt: skip

    async def resize(self, width: int, height: int) -> None:
        """Gives the window other sizes."""
        phone = width < 600
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )

    async def scheme(self, dark: bool) -> None:
        """Which colours its reader likes."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])

    async def ask(self, expression: str) -> Any:
        """The value of an expression in the page."""
        told = await self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def until(self, expression: str) -> None:
        """Waits for an expression to hold."""
        for _ in range(int(PATIENCE_SECONDS / 0.1)):
            if await self.ask(expression):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"never came to hold: {expression}")

    async def mouse(self, kind: str, x: float, y: float, **params: Any) -> None:
        """A movement (`mouseMoved`), a button or a wheel at a place of the window."""
        await self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **params)

    async def picture(self, path: Path) -> None:
        """What is seen of it, as PNG."""
        path.write_bytes(base64.b64decode((await self.send("Page.captureScreenshot"))["data"]))


def look(folder: Path, path: Path, work: Callable[[Page], Coroutine[Any, Any, None]]) -> None:
    """Starts a browser with its files in `folder`, gives `work` the page of a file, and ends it."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "about:blank"]
    with subprocess.Popen(
        [*command, f"--user-data-dir={folder}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as browser:
        try:
            asyncio.run(asyncio.wait_for(_with_page(folder, path, work), 4 * PATIENCE_SECONDS))
        finally:
            browser.terminate()


async def _with_page(folder: Path, path: Path, work: Callable[[Page], Coroutine[Any, Any, None]]) -> None:
    port = folder / "DevToolsActivePort"
    while not (port.exists() and port.read_text().count("\n")):
        await asyncio.sleep(0.1)
    where = f"http://127.0.0.1:{port.read_text().split()[0]}"
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{where}/json/list") as answer:
            pages = json.loads(await answer.text())
        place = next(each["webSocketDebuggerUrl"] for each in pages if each["type"] == "page")
        async with session.ws_connect(place, max_msg_size=0) as socket:
            await work(Page(socket, path))
