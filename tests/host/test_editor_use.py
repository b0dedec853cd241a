"""What a person does in the editor with the mouse: run a template, load a result back, link sockets, look for files."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from tests.host.test_editor import UNKNOWN
from tests.support.workflow_runs import graphs_of
from tools.authoring import notes, templates
from tools.comfy.editor import Editor, find_chromium
from tools.comfy.server import PACK
from tools.download.places import PLACES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium on this machine"),
]

NAMES = templates.names()
SAMPLERS = ("KandinskyVideoFirstFrame", "KandinskyVideoKeyframes", "KandinskyVideoInterpolate", "SamplerCustomAdvanced")

LISTEN = """(() => {
    const seen = window.seen = {previews: {}, shown: [], named: [], progress: {}, end: null}
    const listen = (name, action) => app.api.addEventListener(name, event => action(event.detail))
    listen('progress', data => (seen.progress[data.node] ??= []).push(data.value))
    listen('b_preview_with_metadata', data => {
        seen.previews[data.displayNodeId] = (seen.previews[data.displayNodeId] ?? 0) + 1
    })
    for (const end of ['execution_success', 'execution_error', 'execution_interrupted'])
        listen(end, data => { seen.end = [end, data.exception_message] })
    setInterval(() => {
        for (const node of app.rootGraph.nodes)
            if (node.imgs?.[0]?.naturalWidth && node.imgs[0].src.startsWith('blob:')) seen.shown.push(node.type)
        const overlay = document.querySelector('[data-testid=queue-progress-overlay]')?.innerText ?? ''
        seen.named.push(...overlay.split('\\n').filter(line => !seen.named.includes(line)))
    }, 50)
})(), true"""
# Every result that the graph shows, and how much of it: the width of pictures and videos, the length of texts.
RESULTS = """[...app.rootGraph.nodes.filter(node => node.constructor.nodeData?.output_node).map(node => [
    node.type,
    Math.max(0, ...(node.imgs ?? []).map(image => image.naturalWidth),
        ...(node.widgets ?? []).map(widget => widget.element?.querySelector?.('video')?.videoWidth ?? 0),
        ...(node.type == 'PreviewAny' ? node.widgets.map(widget => `${widget.value ?? ''}`.length) : [])),
])]"""
UNDRAWN = (
    "[...app.rootGraph.links.values()].filter(link => !link.path).map(link => `${link.origin_id}->${link.target_id}`)"
)
SLOT = """(([type, input, name]) => {
    const node = app.rootGraph.nodes.find(node => node.type == type)
    const slots = input ? node.inputs : node.outputs
    const place = node.getConnectionPos(input, slots.findIndex(slot => slot.name == name))
    const canvas = app.canvas.canvas.getBoundingClientRect(), view = app.canvas.ds
    return [0, 1].map(i => (place[i] + view.offset[i]) * view.scale + (i ? canvas.y : canvas.x))
})"""
LINK = """(([type, name]) => {
    const node = app.rootGraph.nodes.find(node => node.type == type)
    const link = app.rootGraph.links.get(node.inputs.find(slot => slot.name == name).link)
    return link ? app.rootGraph.getNodeById(link.origin_id).type : null
})"""


@asynccontextmanager
async def opened(address, name="", **settings):
    async with Editor(address, **settings) as editor:
        await editor.open(name, PACK if name else "")
        yield editor


async def call(editor, script, *arguments):
    return await editor.evaluate(f"{script}({json.dumps(arguments)})")


@pytest.mark.parametrize("name", NAMES)
def test_template_runs_by_the_button(server, address, usual_errors, name):
    async def use():
        async with opened(address, name) as editor:
            await editor.evaluate("app.extensionManager.setting.set('Comfy.Execution.PreviewMethod', 'latent2rgb')")
            await editor.evaluate(LISTEN)
            undrawn = await editor.evaluate(UNDRAWN)
            prompt = (await editor.evaluate("app.graphToPrompt()"))["output"]
            await editor.click("[data-testid=queue-button]")
            await editor.wait_for("seen.end !== null", 900)
            await asyncio.sleep(3)  # pictures and videos are fetched
            seen = await editor.evaluate("seen")
            results = await editor.evaluate(RESULTS)
            titles = await editor.evaluate("app.rootGraph.nodes.map(node => node.title)")
            await editor.evaluate("app.extensionManager.setting.set('Comfy.Execution.PreviewMethod', 'default')")
            errors = set(editor.errors)
        file = newest(server.output, server.work / "temp")
        async with opened(address) as editor:  # another day
            await editor.open_file(file)
            await editor.wait_for(f"app.rootGraph.nodes.length >= {len(titles)}")
            again = (await editor.evaluate("app.graphToPrompt()"))["output"]
            unknown = await editor.evaluate(UNKNOWN)
        return undrawn, seen, results, titles, prompt, again, unknown, errors

    undrawn, seen, results, titles, prompt, again, unknown, errors = asyncio.run(use())
    assert undrawn == []
    assert seen["end"][0] == "execution_success", seen["end"]
    assert errors - usual_errors == set()
    assert results and all(width > 0 for _, width in results), results
    sampled = {id for id, node in prompt.items() if node["class_type"] in SAMPLERS and id in seen["progress"]}
    assert sampled and sampled <= seen["previews"].keys()
    assert seen["shown"], "previews in the nodes"
    assert set(seen["named"]) & {*titles, *(prompt[id]["_meta"]["title"] for id in sampled)}, "which node runs"
    assert without_seeds(again) == without_seeds(prompt), "what the saved file holds"
    assert unknown == []


def newest(*folders):
    """The latest picture or video that a graph saved, or showed."""
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".png", ".mp4")]
    return max(files, key=lambda path: path.stat().st_mtime)


def without_seeds(prompt):
    """The prompt without the first seed, which the editor draws anew as soon as a graph is queued."""
    return {
        id: {**node, "inputs": {name: value for name, value in node["inputs"].items() if name != "seed"}}
        for id, node in prompt.items()
    }


WRONG = {
    "keyframes into a frame's place": (
        ("KandinskyVideoKeyframes", False, "keyframes"),
        ("KandinskyVideoKeyframes", True, "first_frame"),
    ),
    "an image decoder for videos": (
        ("KandinskyVideoMoVQLoader", False, "movq"),
        ("KandinskyVideoDecodeVideo", True, "video_movq"),
    ),
    "a frame into Interpolate Frames": (
        ("KandinskyVideoFirstFrame", False, "first_frame"),
        ("KandinskyVideoInterpolate", True, "samples"),
    ),
    "a latent where a picture belongs": (
        ("KandinskyVideoInterpolate", False, "video"),
        ("KandinskyVideoEncodeImage", True, "image"),
    ),
}
RIGHT = ("KandinskyVideoKeyframes", False, "keyframes"), ("KandinskyVideoDecodeVideo", True, "samples")


def test_wrong_links_are_refused_and_right_ones_made(address):
    async def use():
        found = {}
        async with opened(address, "text-to-video-medium") as editor:
            for case, (start, end) in WRONG.items():
                before = await call(editor, LINK, end[0], end[2])
                await editor.drag(await call(editor, SLOT, *start), await call(editor, SLOT, *end))
                found[case] = before, await call(editor, LINK, end[0], end[2])
                await editor.evaluate("document.activeElement.blur(), true")
            start, end = RIGHT
            before = await call(editor, LINK, end[0], end[2])
            await editor.drag(await call(editor, SLOT, *start), await call(editor, SLOT, *end))
            return found, (before, await call(editor, LINK, end[0], end[2]))

    found, right = asyncio.run(use())
    for case, (before, after) in found.items():
        assert before is not None and after == before, case
    assert right == ("KandinskyVideoInterpolate", "KandinskyVideoKeyframes")


OFFERED = "[...document.querySelectorAll('[role=option]')].map(option => option.innerText.split('\\n')[0])"


def test_right_nodes_are_offered(server, address):
    """A link dropped where there is nothing brings the nodes that take it, and no other of the pack's."""

    async def use():
        async with opened(address, "text-to-video-medium") as editor:
            await editor.evaluate("app.extensionManager.setting.set('Comfy.LinkRelease.Action', 'search box')")
            start = await call(editor, SLOT, "KandinskyVideoKeyframes", False, "keyframes")
            await editor.drag(start, [700, 930])
            await editor.wait_for(f"{OFFERED}.length > 3")
            return await editor.evaluate(OFFERED)

    offered = asyncio.run(use())
    for id, info in server.client.object_info().items():
        if id.startswith("KandinskyVideo"):
            inputs = [spec[0] for section in info["input"].values() for spec in section.values()]
            takes = any("KV_KEYFRAME_LATENT" in str(kind).split(",") for kind in inputs)
            assert (info["display_name"] in offered) == takes, id


MISSING = "[...document.querySelectorAll('[data-testid=missing-model-importable-rows]')].map(rows => rows.innerText)"


@pytest.mark.parametrize("name", templates.names())
def test_a_missing_file_is_offered_for_download(address, name):
    """The template set to the published files, of which this machine has none."""
    workflow = json.loads(templates.path(name).read_text(encoding="utf-8"))
    expected = {}
    for node in (node for graph in graphs_of(workflow) for node in graph["nodes"]):
        for i, value in enumerate(node["widgets_values"]):
            part = notes.TINY.get(value) if isinstance(value, str) else None
            if part is not None and part.file:
                node["widgets_values"][i] = part.file
                expected[part.file] = PLACES[part.part].folder

    async def use():
        async with opened(address) as editor:
            await editor.evaluate(f"app.loadGraphData({json.dumps(workflow)}), true")
            await editor.click("[data-testid=error-overlay-see-errors]")
            await editor.wait_for(f"{MISSING}.length > 0")
            await asyncio.sleep(1)
            return "\n".join(await editor.evaluate(MISSING))

    # A number says in how many nodes a file is missing.
    shown = [line for line in asyncio.run(use()).splitlines() if not line.isdecimal()]
    assert expected
    for file, folder in expected.items():
        row = shown[shown.index(file) :]
        assert row[1:3] == [folder, "Download"], shown


BROWSER = "document.querySelector('[role=dialog]')"
PICTURES = f"[...{BROWSER}.querySelectorAll('img')].filter(image => image.naturalWidth).map(image => image.alt)"
# The list draws the cards that are in sight; the next come as it is scrolled.
CARDS = f"[...{BROWSER}.querySelectorAll('.overflow-y-auto')].at(-1)"
SCROLL = f"(list => [list.scrollTop, list.scrollTop += 400][0] < list.scrollHeight - list.clientHeight)({CARDS})"


@pytest.mark.parametrize("language", ["en", "zh", "ru"])
def test_the_template_browser_has_the_templates(address, language):
    """Under their translated title, each with its picture."""
    title = json.loads((templates.host.ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))
    title = title["templateWorkflows"]["category"][PACK]

    async def use():
        pictures = set()
        async with opened(address, locale=language) as editor:
            await editor.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates'), true")
            item = (
                f"[...{BROWSER}.querySelectorAll('nav span, aside span, span')].find(it => it.innerText == '{title}')"
            )
            await editor.wait_for(f"{BROWSER} != null && {item} != null")
            await editor.evaluate(f"{item}.click(), true")
            more = True
            while more:
                await asyncio.sleep(1)  # pictures are fetched
                pictures.update(await editor.evaluate(PICTURES))
                more = await editor.evaluate(SCROLL)
            return pictures, await editor.evaluate(f"{BROWSER}.innerText")

    pictures, text = asyncio.run(use())
    assert {name for name in templates.names() if name not in text} == set()
    assert pictures == set(templates.names())


COLOURED = """Object.fromEntries(%s.map(type => [type, [
    app.canvas.default_connection_color_byType[type], app.canvas.constructor.link_type_colors[type],
    getComputedStyle(document.documentElement).getPropertyValue(`--color-datatype-${type}`),
]]))"""


def test_sockets_have_their_colours(server, address):
    """Every socket of the pack its own, in both designs, and also after the palette was changed."""
    kinds = set()
    for info in server.client.object_info().values():
        specs = [spec[0] for section in info["input"].values() for spec in section.values()]
        kinds |= {kind for spec in [*specs, *info["output"]] for kind in str(spec).split(",") if kind.startswith("KV_")}
    script = COLOURED % json.dumps(sorted(kinds))

    async def use():
        async with opened(address) as editor:
            first = await editor.evaluate(script)
            await editor.evaluate("app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
            light = await editor.evaluate(script)
            await editor.evaluate("app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
            return first, light

    first, light = asyncio.run(use())
    assert first == light
    assert all(len(set(colours)) == 1 and colours[0].startswith("#") for colours in first.values()), first
    assert len({colours[0] for colours in first.values()}) == len(kinds) >= 6
