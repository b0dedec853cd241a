"""The demo in ComfyUI's Python: edit the workflow, run it on a server of its own, report the clip."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import av
from PIL import Image, UnidentifiedImageError

from tools import host
from tools.comfy import graphs
from tools.comfy.client import ServerError
from tools.comfy.server import Server


class Progress:
    """Prints a line for every node that ran, with a bar while it runs."""

    def __init__(self, graph: graphs.Graph):
        self.graph = graph
        self.started: dict[str, float] = {}
        self.done: set[str] = set()

    def __call__(self, kind: str, data: Any) -> None:
        if kind != "progress_state":
            return
        for node, state in data["nodes"].items():
            if node in self.done:
                continue
            now = time.monotonic()
            duration = host.duration(now - self.started.setdefault(node, now))
            title = graphs.title(self.graph, state["real_node_id"])
            if state["state"] == "running":
                host.show(f"  {title}: {bar(state['value'], state['max'])}{duration}")
            else:
                host.show("")
                print(f"  {title}: {duration}", flush=True)
                self.done.add(node)


def bar(value: float, maximum: float, width: int = 24) -> str:
    """A bar and the count; nothing for a node that does not count."""
    if maximum <= 1:
        return ""
    filled = int(width * value / maximum)
    return f"[{'#' * filled}{'-' * (width - filled)}] {value:.0f}/{maximum:.0f}, "


def check_picture(path: str) -> None:
    try:
        with Image.open(path) as picture:
            picture.verify()
    except (UnidentifiedImageError, OSError, SyntaxError):
        raise host.HostError(f"--image: {path} is not a picture that Pillow can read.") from None


def describe(path: Path) -> str:
    """Frames, size and duration of a video, from decoding all of it."""
    with av.open(str(path)) as video:
        stream = video.streams.video[0]
        frames = sum(1 for _ in video.decode(stream))
        rate, width, height = float(stream.average_rate), stream.width, stream.height
    return f"{frames} frames of {width}x{height}, {rate:.2f} a second, {frames / rate:.1f} s"


def make_clip(server: Server, settings: dict[str, Any]) -> Path:
    """Run the workflow that the options ask for; returns the clip's path. Raises HostError."""
    picture = None
    if settings["image"]:
        picture = "picture" + Path(settings["image"]).suffix
        shutil.copy(settings["image"], server.input / picture)
    graph = graphs.edit(graphs.load(settings["fps"]), settings, picture)
    try:
        run = server.client.run(graph, Progress(graph), timeout=24 * 3600)
    except ServerError as error:
        raise ServerError(f"{error} {server.log_tail()}") from None
    if run.status != "success":
        raise host.HostError(f"The clip was not made: {run.error or 'it was interrupted.'}")
    saved = next(file for file in run.files() if file["filename"].endswith(".mp4"))
    path = server.output / saved["subfolder"] / saved["filename"]
    return Path(shutil.move(path, settings["out"])) if settings["out"] else path


def leave_open(server: Server) -> None:
    print(f"ComfyUI is open at {server.client.address}; Ctrl-C ends it.")
    print("In its menu, Browse Templates has this clip's workflow under Kandinsky Video.")
    if server.process:
        server.process.wait()


def main() -> int:
    settings = json.loads(sys.argv[1])
    path = Path(settings["comfyui"])
    comfyui = host.Host(path, host.check_version(path), Path(sys.executable))
    if settings["image"]:
        check_picture(settings["image"])
    options = {"device": settings["device"], "verbose": settings["verbose"], "output": host.ROOT / "output"}
    with contextlib.ExitStack() as running:
        with host.step(f"Starting ComfyUI {comfyui.version}"):
            server = running.enter_context(Server(comfyui, host.CACHE / "demo", **options))
        with host.step("Making the clip"):
            clip = make_clip(server, settings)
        print(f"{describe(clip)}:\n{clip}", flush=True)
        if settings["serve"]:
            leave_open(server)
    return 0


if __name__ == "__main__":
    sys.exit(host.guard(main))
