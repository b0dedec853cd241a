"""What a person does in the editor with the mouse: run a template, load a result back, link sockets, look for files."""

import json

import pytest

from tests.support.browser import UNKNOWN, needs_browser, opened, prompt_of, run_by_the_button, without_seeds
from tests.support.workflow_runs import graphs_of
from tools.authoring import notes, templates
from tools.comfy.server import PACK
from tools.download.places import PLACES

pytestmark = [pytest.mark.slow, needs_browser]

NAMES = templates.names()
SAMPLERS = ("KandinskyVideoFirstFrame", "KandinskyVideoKeyframes", "KandinskyVideoInterpolate", "SamplerCustomAdvanced")

LISTEN = """() => {
    const seen = window.seen = {previews: {}, shown: [], named: [], progress: {}}
    const listen = (name, action) => app.api.addEventListener(name, event => action(event.detail))
    listen('progress', data => (seen.progress[data.node] ??= []).push(data.value))
    listen('b_preview_with_metadata', data => {
        seen.previews[data.displayNodeId] = (seen.previews[data.displayNodeId] ?? 0) + 1
    })
    setInterval(() => {
        for (const node of app.rootGraph.nodes)
            if (node.imgs?.[0]?.naturalWidth && node.imgs[0].src.startsWith('blob:')) seen.shown.push(node.type)
        const overlay = document.querySelector('[data-testid=queue-progress-overlay]')?.innerText ?? ''
        seen.named.push(...overlay.split('\\n').filter(line => !seen.named.includes(line)))
    }, 50)
}"""
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
SLOT = """([type, input, name]) => {
    const node = app.rootGraph.nodes.find(node => node.type == type)
    const slots = input ? node.inputs : node.outputs
    const place = node.getConnectionPos(input, slots.findIndex(slot => slot.name == name))
    const canvas = app.canvas.canvas.getBoundingClientRect(), view = app.canvas.ds
    return [0, 1].map(i => (place[i] + view.offset[i]) * view.scale + (i ? canvas.y : canvas.x))
}"""
LINK = """([type, name]) => {
    const node = app.rootGraph.nodes.find(node => node.type == type)
    const link = app.rootGraph.links.get(node.inputs.find(slot => slot.name == name).link)
    return link ? app.rootGraph.getNodeById(link.origin_id).type : null
}"""
SET = "([name, value]) => app.extensionManager.setting.set(name, value)"


@pytest.mark.parametrize("name", NAMES)
def test_template_runs_by_the_button(server, address, usual_errors, name):
    with opened(address, name) as editor:
        look = editor.page.evaluate
        look(SET, ["Comfy.Execution.PreviewMethod", "latent2rgb"])
        look(LISTEN)
        assert look(UNDRAWN) == []
        prompt = prompt_of(editor)
        run_by_the_button(editor)
        editor.settle()  # pictures and videos are fetched
        seen, results = look("seen"), look(RESULTS)
        titles = look("app.rootGraph.nodes.map(node => node.title)")
        look(SET, ["Comfy.Execution.PreviewMethod", "default"])
        assert set(editor.errors) - usual_errors == set()
    assert results and all(width > 0 for _, width in results), results
    sampled = {id for id, node in prompt.items() if node["class_type"] in SAMPLERS and id in seen["progress"]}
    assert sampled and sampled <= seen["previews"].keys()
    assert seen["shown"], "previews in the nodes"
    assert set(seen["named"]) & {*titles, *(prompt[id]["_meta"]["title"] for id in sampled)}, "which node runs"
    with opened(address) as editor:  # another day
        editor.open_file(newest(server.output, server.work / "temp"))
        editor.page.wait_for_function(f"app.rootGraph.nodes.length >= {len(titles)}")
        assert without_seeds(prompt_of(editor)) == without_seeds(prompt), "what the saved file holds"
        assert editor.page.evaluate(UNKNOWN) == []


def newest(*folders):
    """The latest picture or video that a graph saved, or showed."""
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".png", ".mp4")]
    return max(files, key=lambda path: path.stat().st_mtime)


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
    with opened(address, "text-to-video-medium") as editor:

        def link(start, end):
            """What the input is linked to before and after."""
            before = editor.page.evaluate(LINK, [end[0], end[2]])
            editor.drag(editor.page.evaluate(SLOT, start), editor.page.evaluate(SLOT, end))
            return before, editor.page.evaluate(LINK, [end[0], end[2]])

        for case, (start, end) in WRONG.items():
            before, after = link(start, end)
            assert before is not None and after == before, case
            editor.page.evaluate("document.activeElement.blur()")
        assert link(*RIGHT) == ("KandinskyVideoInterpolate", "KandinskyVideoKeyframes")


OFFERED = "[...document.querySelectorAll('[role=option]')].map(option => option.innerText.split('\\n')[0])"


def test_right_nodes_are_offered(server, address):
    """A link dropped where there is nothing brings the nodes that take it, and no other of the pack's."""
    with opened(address, "text-to-video-medium") as editor:
        editor.page.evaluate(SET, ["Comfy.LinkRelease.Action", "search box"])
        start = editor.page.evaluate(SLOT, ["KandinskyVideoKeyframes", False, "keyframes"])
        editor.drag(start, [700, 930])
        editor.page.wait_for_function(f"{OFFERED}.length > 3")
        editor.settle()
        offered = editor.page.evaluate(OFFERED)
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

    with opened(address) as editor:
        editor.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        editor.page.click("[data-testid=error-overlay-see-errors]")
        editor.page.wait_for_function(f"{MISSING}.length > 0")
        editor.settle()
        lines = "\n".join(editor.page.evaluate(MISSING)).splitlines()
    shown = [line for line in lines if not line.isdecimal()]  # a number says in how many nodes a file is missing
    assert expected
    for file, folder in expected.items():
        row = shown[shown.index(file) :]
        assert row[1:3] == [folder, "Download"], shown


# The list draws what is in sight, so it is scrolled round and round. True once each card was seen with its picture.
CARDS = """names => {
    const seen = window.seen ??= new Set()
    const dialog = document.querySelector('[role=dialog]')
    for (const image of dialog.querySelectorAll('img'))
        if (image.naturalWidth && dialog.innerText.includes(image.alt)) seen.add(image.alt)
    const list = [...dialog.querySelectorAll('.overflow-y-auto')].at(-1)
    const end = list.scrollTop >= list.scrollHeight - list.clientHeight - 1
    list.scrollTop = end ? 0 : list.scrollTop + 400
    return names.every(name => seen.has(name))
}"""


def test_the_template_browser_has_the_templates(address):
    """Under their translated title, each with its picture."""
    titles = json.loads((templates.host.ROOT / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))
    with opened(address, locale="zh") as editor:
        editor.page.evaluate("() => { app.extensionManager.command.execute('Comfy.BrowseTemplates') }")
        dialog = editor.page.get_by_role("dialog")
        dialog.get_by_text(titles["templateWorkflows"]["category"][PACK], exact=True).click()
        editor.page.wait_for_function(CARDS, arg=templates.names(), polling=200)


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
    with opened(address) as editor:
        first = editor.page.evaluate(script)
        editor.page.evaluate(SET, ["Comfy.ColorPalette", "light"])
        light = editor.page.evaluate(script)
        editor.page.evaluate(SET, ["Comfy.ColorPalette", "dark"])
    assert first == light
    assert all(len(set(colours)) == 1 and colours[0].startswith("#") for colours in first.values()), first
    assert len({colours[0] for colours in first.values()}) == len(kinds) >= 6
