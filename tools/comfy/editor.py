"""ComfyUI's editor in a headless Chromium, driven over the DevTools protocol. Runs in ComfyUI's Python (aiohttp)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import aiohttp

from tools.host import HostError

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-port=0"
).split()
# The editor is served from this machine; what it would fetch from elsewhere must not change what is seen.
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
# As if the editor had been used before, so that nothing opens on top of the graph; and no tools that float over it.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
}
SECONDS = 60


class EditorError(HostError):
    """The editor did not come up or refused something; the message says what."""


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


class Editor:
    """One page with the editor of the server at `address`: `async with Editor(address) as editor`.

    locale: the language it speaks, such as zh. errors: what the page wrote to its console as an error, in order,
    without the addresses' ports.
    """

    def __init__(self, address: str, width: int = 1600, height: int = 1000, locale: str = "en"):
        self.address = address
        self.locale = locale
        self.size = width, height
        self.errors: list[str] = []
        self._session = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict]] = {}

    async def __aenter__(self) -> Editor:
        program = find_chromium()
        if program is None:
            raise EditorError("There is no Chromium on this machine: install Chromium or Google Chrome.")
        async with contextlib.AsyncExitStack() as stack:
            profile = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            process = subprocess.Popen(
                [program, *FLAGS, OFFLINE, f"--user-data-dir={profile}", "about:blank"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            http = await stack.enter_async_context(aiohttp.ClientSession())
            self._socket = await stack.enter_async_context(
                http.ws_connect(await _debugger(Path(profile)), max_msg_size=0)
            )
            listener = asyncio.create_task(self._listen())
            stack.callback(listener.cancel)
            settings = {**SETTINGS, "Comfy.Locale": self.locale}
            async with http.post(f"{self.address}/settings", json=settings) as answer:
                answer.raise_for_status()
            await self._open_page()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exception) -> None:
        await self._stack.aclose()

    async def _open_page(self) -> None:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.resize(*self.size)

    async def _listen(self) -> None:
        async for message in self._socket:
            content = json.loads(message.data)
            if "id" in content:
                self._waiting.pop(content["id"]).set_result(content)
            elif error := _error(content["method"], content["params"]):
                self.errors.append(error.replace(self.address, ""))

    async def call(self, method: str, **parameters) -> dict:
        """A command of the DevTools protocol. Raises EditorError with its complaint."""
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        session: dict = {"sessionId": self._session} if self._session else {}
        await self._socket.send_json({"id": number, "method": method, "params": parameters, **session})
        content = await asyncio.wait_for(answer, SECONDS)
        if "error" in content:
            raise EditorError(f"{method}: {content['error']['message']}")
        return content["result"]

    async def evaluate(self, script: str):
        """The JSON value of a JavaScript expression, awaited if it is a promise."""
        found = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise EditorError(f"The editor failed at {script}: {found['exceptionDetails']['exception']['description']}")
        return found["result"].get("value")

    async def wait_for(self, script: str, seconds: float = SECONDS) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not await self.evaluate(script):
            if time.monotonic() > end:
                raise EditorError(f"Not so after {seconds:.0f} s in the editor: {script}")
            await asyncio.sleep(0.2)

    async def resize(self, width: int, height: int) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def drag(self, start: list[float], *way: list[float]) -> None:
        """Press the mouse at a point of the page, move along a way, and release it at its end; none: a click."""
        await self._mouse("mouseMoved", start)
        await self._mouse("mousePressed", start)
        for point in way:
            await self._mouse("mouseMoved", [(a + b) / 2 for a, b in zip(start, point)])
            await self._mouse("mouseMoved", point)
        await self._mouse("mouseReleased", (start, *way)[-1])

    async def _mouse(self, kind: str, point: list[float]) -> None:
        x, y = point
        await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
        await asyncio.sleep(0.1)  # the editor looks at the mouse once a picture

    async def click(self, selector: str) -> None:
        """Click the middle of the first element that a CSS selector finds, once it is there."""
        found = f"document.querySelector({json.dumps(selector)})"
        await self.wait_for(f"{found}?.getBoundingClientRect().width > 0")
        await self.drag(
            await self.evaluate(
                f"(box => [box.x + box.width / 2, box.y + box.height / 2])({found}.getBoundingClientRect())"
            )
        )

    async def open_file(self, path: Path) -> None:
        """Open a workflow, or a picture or a video that holds one, as by the editor's menu."""
        document = (await self.call("DOM.getDocument"))["root"]["nodeId"]
        found = await self.call("DOM.querySelector", nodeId=document, selector="#comfy-file-input")
        await self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=found["nodeId"])

    async def screenshot(self) -> bytes:
        """The page as PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])

    async def open(self, template: str = "", source: str = "") -> None:
        """Load the editor, with a template as the template browser opens it."""
        query = f"?template={template}&source={source}" if template else ""
        await self.call("Page.navigate", url=f"{self.address}/{query}")
        await self.wait_for("Boolean(window.app?.extensionManager && window.app.isGraphReady)")
        if template:
            await self.wait_for("app.rootGraph.nodes.length > 0")
        await asyncio.sleep(2)  # widgets, fonts and pictures come after the nodes


async def _debugger(profile: Path) -> str:
    """The address of the protocol, which Chromium writes into its profile when it is up."""
    file = profile / "DevToolsActivePort"
    for _ in range(10 * SECONDS):
        lines = file.read_text().split() if file.is_file() else []
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        await asyncio.sleep(0.1)
    raise EditorError("Chromium did not start.")


def _error(method: str, parameters: dict) -> str | None:
    """What an event of the page says, if it is an error."""
    if method == "Runtime.exceptionThrown":
        return parameters["exceptionDetails"].get("exception", {}).get("description", "an exception")
    if method == "Runtime.consoleAPICalled" and parameters["type"] == "error":
        return " ".join(str(part.get("value", part.get("description"))) for part in parameters["args"])
    if method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
        return f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}"
    return None
