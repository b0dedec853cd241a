"""Take the pictures of the help pages, one of every node: `python tools/authoring/pictures.py [ids]`.

Writes web/docs/images/<node id>.jpg: the node as it stands in a template, whole, between the nodes it is linked to.
Needs Chromium and Playwright; runs in ComfyUI's Python, which `python3 tools/host.py` prints.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

from tools import host  # noqa: E402
from tools.authoring import templates  # noqa: E402
from tools.authoring.screenshot import FOCUS, picture_of, write  # noqa: E402
from tools.authoring.words import PACK_NODES  # noqa: E402
from tools.comfy.editor import Editor  # noqa: E402
from tools.comfy.server import PACK  # noqa: E402

IMAGES = host.ROOT / "web" / "docs" / "images"
# The first one that has a node shows it.
TEMPLATES = (
    "text-to-video-medium",
    "morph",
    "all-in-one",
    "interpolate-video",
    "cross-fade",
    "blocks-off",
    "motion-grid",
    "attention-maps",
    "custom-sampling",
    "prompt-switch",
    "motion-curve",
    "extend-clip",
)
MARGIN = 16
BYTES = 40_000


def main() -> int:
    parser = argparse.ArgumentParser(description="Takes a picture of each node in the editor.")
    parser.add_argument("ids", nargs="*", help="the nodes' ids (default: all)")
    host.add_option(parser)
    options = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work, templates.new_server(options.comfyui, Path(work)) as server:
        with Editor(server.client.address) as editor:
            for template, ids in shown_by().items():
                if wanted := [id for id in ids if id in options.ids or not options.ids]:
                    with host.step(template):
                        take(editor, template, wanted)
    return 0


def take(editor: Editor, template: str, ids: list[str]) -> None:
    """The pictures of these nodes, as they stand in the template."""
    editor.open(template, PACK)
    editor.page.evaluate(UNFOLD)
    editor.page.evaluate(FOCUS)
    editor.page.evaluate("() => { window.template = app.rootGraph.serialize() }")
    for id in ids:
        picture = picture_of(editor, editor.page.evaluate(ISOLATE, id), MARGIN)
        write(picture, IMAGES / f"{id}.jpg", picture.width, BYTES)


def shown_by() -> dict[str, list[str]]:
    """Template -> the ids of the pack's nodes whose picture it gives."""
    found: dict[str, list[str]] = {}
    seen: set[str] = set()
    for name in TEMPLATES:
        kinds = dict.fromkeys(node["class_type"] for node in templates.api_graph(name).values())
        found[name] = [kind for kind in kinds if kind.startswith(PACK_NODES) and kind not in seen]
        seen.update(found[name])
    return found


# What a subgraph hides stands in its place.
UNFOLD = """app.rootGraph.nodes.filter(node => node.isSubgraphNode?.())
    .forEach(node => app.rootGraph.unpackSubgraph(node))"""

# Leaves one node of the template, and the nodes it is linked to with nothing but those links; lays them out anew.
ISOLATE = """async id => {
    await app.loadGraphData(structuredClone(window.template))
    const graph = app.rootGraph
    const node = graph.nodes.find(node => node.type == id)
    const linked = (links, end) => [...new Set(links.filter(link => link != null)
        .map(link => graph.getNodeById(graph.links.get(link)[end])))]
    const sources = linked(node.inputs.map(slot => slot.link), 'origin_id')
    const targets = linked(node.outputs.flatMap(slot => slot.links ?? []), 'target_id')
    const kept = [...sources, node, ...targets]
    for (const item of [...graph.nodes.filter(item => !kept.includes(item)), ...graph.groups]) graph.remove(item)
    for (const link of [...graph.links.values()])
        if (link.origin_id != node.id && link.target_id != node.id) graph.removeLink(link.id)
    for (const item of kept) item.title = item.constructor.title
    // The help is shown in a narrow column: wide pictures become small there.
    node.size = [Math.max(node.computeSize()[0] + 30, sources.length && targets.length ? 250 : 330), node.size[1]]
    for (const item of [...sources, ...targets]) {
        item.title = item.title.replace(/ ?[(（].*/, '')
        for (const widget of [...item.widgets ?? []]) item.removeWidget(widget)
        for (let slot = item.inputs.length - 1; slot >= 0; slot--)
            if (item.inputs[slot].link == null) item.removeInput(slot)
            else Object.assign(item.inputs[slot], {widget: undefined, pos: undefined})
        for (let slot = item.outputs.length - 1; slot >= 0; slot--)
            if (!item.outputs[slot].links?.length) item.removeOutput(slot)
        const [width, rows] = item.computeSize()
        item.size = [width + 24, rows]  // or long titles are cut
    }
    const [title, gap, between] = [30, 44, 14]
    const height = column => column.reduce((sum, item) => sum + title + item.size[1] + between, -between)
    const columns = [sources, [node], targets].filter(column => column.length)
    const highest = Math.max(...columns.map(height))
    let x = 0
    for (const column of columns) {
        const width = Math.max(...column.map(item => item.size[0]))
        let y = (highest - height(column)) / 2
        for (const item of column) {
            item.pos = [column == sources ? x + width - item.size[0] : x, y + title]
            y += title + item.size[1] + between
        }
        x += width + gap
    }
    return [0, 0, x - gap, highest]
}"""


if __name__ == "__main__":
    sys.exit(host.guard(main))
