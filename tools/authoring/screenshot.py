"""Take a picture of every template in the editor, after it ran: `python tools/authoring/screenshot.py [names]`.

Writes workflows/<name>.jpg, which the template browser shows: what the graph made, and under it the graph; and
docs/graph.jpg for the README. Needs Chromium and Playwright; runs in ComfyUI's Python, which `python3 tools/host.py`
prints.
"""

from __future__ import annotations

import argparse
import io
import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

import av  # noqa: E402
from PIL import Image  # noqa: E402

from tools import host  # noqa: E402
from tools.authoring import templates  # noqa: E402
from tools.comfy.client import Client  # noqa: E402
from tools.comfy.editor import Editor  # noqa: E402
from tools.comfy.server import PACK, Server  # noqa: E402

T = TypeVar("T")

MARGIN = 40  # around the graph, in the editor's pixels
MENU = 60  # over the graph stands the button that ends the focus mode
GAP = 12  # between the pictures that it made
MADE_HEIGHT, ROW_HEIGHT = 0.35, 0.45  # of theirs together, and of one row at most, as a part of the width
TEMPLATE = {"width": 1200, "bytes": 150_000}
README = {"width": 1800, "bytes": 300_000}
README_NAME = "text-to-video-medium"


def main() -> int:
    parser = argparse.ArgumentParser(description="Takes a picture of each template in the editor.")
    parser.add_argument("names", nargs="*", help="the templates' names (default: all)")
    parser.add_argument("--as-opened", action="store_true", help="do not run the graphs first")
    host.add_option(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        server = templates.new_server(options.comfyui, Path(work))
        with server:
            take(server, options.names or templates.names(), not options.as_opened)
    return 0


def take(server: Server, names: list[str], run: bool) -> None:
    for name in names:
        with host.step(name):
            picture = photograph(server.client.address, name, run)
            card = above(made(server.client), picture) if run else picture
        write(card, templates.path(name).with_suffix(".jpg"), **TEMPLATE)
        if name == README_NAME:
            write(picture, host.ROOT / "docs/graph.jpg", **README)


def photograph(address: str, name: str, run: bool) -> Image.Image:
    """The whole graph and nothing else."""
    with Editor(address) as editor:
        editor.open(name, PACK)
        editor.page.evaluate(FOCUS)
        if run:
            editor.page.evaluate(RUN)
        return picture_of(editor, editor.page.evaluate(BOUNDS), MARGIN)


def picture_of(editor: Editor, bounds: Sequence[float], margin: int) -> Image.Image:
    """A part of a graph without menus, one pixel of the picture for one of the graph.

    bounds: left, top, right and bottom in the graph; the margin is added on all sides.
    """
    left, top, right, bottom = bounds
    width, height = (round(side) + 2 * margin for side in (right - left, bottom - top))
    editor.page.set_viewport_size({"width": width, "height": height + MENU})
    editor.page.wait_for_function("app.canvas.canvas.width == innerWidth && app.canvas.canvas.height == innerHeight")
    editor.page.evaluate(PLACE, [margin - left, margin + MENU - top])
    picture = Image.open(io.BytesIO(editor.settle())).convert("RGB")
    return picture.crop((0, MENU, width, height + MENU))


FOCUS = "app.extensionManager.command.execute('Workspace.ToggleFocusMode')"

BOUNDS = """(() => {
    const items = [...app.rootGraph.nodes, ...app.rootGraph.groups].map(item => item.boundingRect ?? item._bounding)
    const least = index => Math.min(...items.map(item => item[index]))
    const most = index => Math.max(...items.map(item => item[index] + item[index + 2]))
    return [least(0), least(1), most(0), most(1)]
})()"""

PLACE = """offset => {
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = offset
    app.canvas.setDirty(true, true)
}"""

RUN = """new Promise((resolve, reject) => {
    app.api.addEventListener('execution_success', () => resolve(true))
    app.api.addEventListener('execution_error', event => reject(new Error(event.detail.exception_message)))
    app.queuePrompt(0)
})"""


def made(client: Client) -> list[Image.Image]:
    """Some frames of the first clip that the last graph saved; if it saved none, the pictures that its nodes show."""
    [entry] = client.get("/history?max_items=1").values()
    shown = [node["images"] for node in entry["outputs"].values() if "images" in node]
    contents = [[client.download(file) for file in some_of(files)] for files in shown]
    clips = [content for [content, *_], [file, *_] in zip(contents, shown) if file["filename"].endswith(".mp4")]
    if not clips:
        return [Image.open(io.BytesIO(content)).convert("RGB") for content in itertools.chain(*contents)]
    with av.open(io.BytesIO(clips[0])) as clip:
        return some_of([frame.to_image() for frame in clip.decode(video=0)])


def some_of(items: list[T], count: int = 4) -> list[T]:
    """At most `count` of them, from the first to the last."""
    return items if len(items) <= count else [items[i * (len(items) - 1) // (count - 1)] for i in range(count)]


def above(pictures: list[Image.Image], graph: Image.Image) -> Image.Image:
    """The pictures over the graph, in as many rows as come next to the wanted height."""
    width = graph.width - 2 * MARGIN
    layouts = [in_rows(pictures, count, width) for count in range(1, len(pictures) + 1)]
    rows = min(layouts, key=lambda rows: abs(sum(row[0].height for row in rows) - MADE_HEIGHT * width))
    tops = list(itertools.accumulate((row[0].height + GAP for row in rows), initial=MARGIN))
    card = Image.new("RGB", (graph.width, tops[-1] + graph.height), graph.getpixel((0, 0)))
    for top, row in zip(tops, rows):
        lefts = itertools.accumulate((picture.width + GAP for picture in row), initial=MARGIN)
        for left, picture in zip(lefts, row):
            card.paste(picture, (left, top))
    card.paste(graph, (0, tops[-1]))
    return card


def in_rows(pictures: list[Image.Image], count: int, width: int) -> list[list[Image.Image]]:
    """Rows at most as wide as that, each with its pictures at one height."""
    size = -(-len(pictures) // count)
    rows = [pictures[i : i + size] for i in range(0, len(pictures), size)]
    fitting = [(width - GAP * (len(row) - 1)) / sum(each.width / each.height for each in row) for row in rows]
    heights = [int(min(height, ROW_HEIGHT * width)) for height in fitting]
    return [
        [each.resize((height * each.width // each.height, height)) for each in row]
        for row, height in zip(rows, heights)
    ]


def write(picture: Image.Image, path: Path, width: int, bytes: int) -> None:
    """A JPEG of this width, as good as the number of bytes allows."""
    path.parent.mkdir(exist_ok=True)
    height = round(picture.height * width / picture.width)
    small = picture.resize((width, height), Image.Resampling.LANCZOS)
    for quality in range(92, 40, -4):
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality, optimize=True, progressive=True)
        if buffer.tell() <= bytes:
            break
    path.write_bytes(buffer.getvalue())


if __name__ == "__main__":
    sys.exit(host.guard(main))
