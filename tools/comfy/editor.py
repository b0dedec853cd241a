"""ComfyUI's editor in a headless Chromium, driven by Playwright, which the extra `dev` brings."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tools.host import HostError

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page, Request

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
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
FRAME = "new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(() => drawn())))"
# A graph is being loaded until what it lacks is known too.
LOADED = """window.app?.extensionManager?.workflow?.activeWorkflow?.changeTracker?.constructor.isLoadingGraph === false
    && app.isGraphReady && document.fonts.status == 'loaded'
    && [...document.querySelectorAll('video')].every(video => video.readyState > 1)"""
PAUSE = """[...document.querySelectorAll('video')].filter(video => !video.paused).forEach(video => {
    video.pause()
    video.currentTime = 0
})"""


class EditorError(HostError):
    """The editor did not come up or refused something; the message says what."""


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


def missing() -> str | None:
    """What to install before an editor can be opened, as one sentence."""
    if importlib.util.find_spec("playwright") is None:
        return "There is no Playwright in this Python: install it with `python -m pip install playwright`."
    if find_chromium() is None:
        return "There is no Chromium on this machine: install Chromium or Google Chrome."
    return None


class Editor:
    """One page with the editor of the server at `address`: `with Editor(address) as editor`.

    locale: the language it speaks, such as zh. page: Playwright's page, to look and act in. errors: what the page wrote
    to its console as an error, in order, without the address. No asyncio in this thread while it is open: Playwright
    runs its own.
    """

    page: Page

    def __init__(self, address: str, width: int = 1600, height: int = 1000, locale: str = "en"):
        self.address = address
        self.locale = locale
        self.size = width, height
        self.errors: list[str] = []
        self._fetching: set[Request] = set()

    def __enter__(self) -> Editor:
        if lack := missing():
            raise EditorError(lack)
        from playwright.sync_api import sync_playwright

        width, height = self.size
        with contextlib.ExitStack() as stack:
            playwright = stack.enter_context(sync_playwright())
            browser = playwright.chromium.launch(executable_path=find_chromium(), args=[OFFLINE])
            stack.callback(browser.close)
            self.page = browser.new_page(viewport={"width": width, "height": height})
            self.page.set_default_timeout(1000 * SECONDS)
            self._listen()
            self.page.request.post(f"{self.address}/settings", data={**SETTINGS, "Comfy.Locale": self.locale})
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _listen(self) -> None:
        def complain(message: ConsoleMessage) -> None:
            if message.type == "error":
                self.errors.append(f"{message.text} {message.location['url']}".replace(self.address, ""))

        self.page.on("console", complain)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self._fetching.add(request))
        self.page.on("requestfinished", lambda request: self._fetching.discard(request))
        self.page.on("requestfailed", lambda request: self._fetching.discard(request))

    def open(self, template: str = "", source: str = "") -> None:
        """Load the editor, with a template as the template browser opens it."""
        query = f"?template={template}&source={source}" if template else ""
        self.page.goto(f"{self.address}/{query}")
        self.page.wait_for_function(LOADED)
        if template:
            self.page.wait_for_function("app.rootGraph.nodes.length > 0")
        self.settle()

    def open_file(self, path: Path) -> None:
        """Open a workflow, or a picture or a video that holds one, as by the editor's menu."""
        self.page.set_input_files("#comfy-file-input", path)

    def settle(self) -> bytes:
        """Wait until nothing is fetched any more and the page stands still; returns its picture as PNG.

        Widgets, fonts and pictures come after the nodes. Videos are halted at their first frame.
        """
        end = time.monotonic() + SECONDS
        before = b""
        while time.monotonic() < end:
            self.page.wait_for_function(LOADED)
            self.page.evaluate(PAUSE)
            self.page.wait_for_timeout(100)  # Playwright hears of requests meanwhile
            picture = b"" if self._fetching else self.page.screenshot()
            if picture and picture == before:
                return picture
            before = picture
        raise EditorError(f"The page did not stand still within {SECONDS} s.")

    def drag(self, start: list[float], *way: list[float]) -> None:
        """Press the mouse at a point of the page, move along a way, and release it at its end."""
        mouse = self.page.mouse
        mouse.move(*start)
        self.page.evaluate(FRAME)  # the editor looks at the mouse once a picture
        mouse.down()
        for point in way:
            mouse.move(*point, steps=2)
            self.page.evaluate(FRAME)
        mouse.up()
        self.page.evaluate(FRAME)
