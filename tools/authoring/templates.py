"""Write the editor's templates, workflows/*.json, from graphs in API format: `python tools/authoring/templates.py`.

workflows/api/*.json is what people edit. Beside class_type and inputs, each node's `_meta` says its title, the group it
is drawn in and its column; nodes are listed in the order they run, and stand in that order below each other.
workflows/notes/ holds what the notes say. What the editor needs besides, such as the order of widgets and the types of
slots, comes from a running server. Runs in ComfyUI's Python, which `python3 tools/host.py` prints.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

from tools import host  # noqa: E402
from tools.authoring import notes, subgraphs  # noqa: E402
from tools.authoring.subgraphs import Link, Workflow  # noqa: E402
from tools.comfy.graphs import Graph, Node  # noqa: E402
from tools.comfy.server import Server  # noqa: E402
from tools.download.places import PLACES  # noqa: E402

WORKFLOWS = host.ROOT / "workflows"
Cell = tuple[str, str, int]  # a node's key, its group and its column

# What a widget can hold; inputs of every other type are slots.
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3"}

# The editor's measures, in its own pixels.
TITLE, ROW, WIDGET, EDGE = 30, 20, 24, 6
WIDTH, NODE_GAP, COLUMN_GAP, GROUP_EDGE, GROUP_TITLE, GROUP_GAP = 330, 24, 90, 20, 50, 24
NOTE_LINE, NOTE_CHARACTERS = 15, 58
EXTRA_WIDTH = {"KandinskyVideoTextEncode": 60, "KandinskyVideoPickFrames": 20}
EXTRA_HEIGHT = {
    "KandinskyVideoTextEncode": 100,
    "LoadImage": 230,
    "PreviewImage": 230,
    "SaveImage": 230,
    "SaveVideo": 330,
    "PreviewAny": 250,
    "BatchImagesNode": 24,
    "KandinskyVideoParameterCurve": 30,
    "KandinskyVideoTextOverTime": 30,
}
COLOURS = {
    "Models": "#b5934a",
    "Text": "#7fae7f",
    "First frame": "#8496d0",
    "Pictures": "#8496d0",
    "Keyframes": "#5aa0d0",
    "Interpolation": "#52b0a8",
    "Decode": "#b07cc0",
    "Looking": "#c07c8c",
    "Sampler and schedules": "#a08060",
    "Curves": "#a08060",
    "Extension": "#8496d0",
    "Loop": "#8496d0",
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes workflows/*.json from workflows/api/*.json.")
    host.add_option(parser)
    with tempfile.TemporaryDirectory() as work, new_server(parser.parse_args().comfyui, Path(work)) as server:
        nodes = server.client.object_info()
    for name in names():
        path(name).write_text(to_text(build(name, nodes)), encoding="utf-8", newline="\n")
    subgraphs.BLUEPRINT.parent.mkdir(exist_ok=True)
    blueprint = to_text(subgraphs.blueprint(build(subgraphs.TEMPLATE, nodes)))
    subgraphs.BLUEPRINT.write_text(blueprint, encoding="utf-8", newline="\n")
    print(f"Wrote {len(names())} templates to {WORKFLOWS}.")
    return 0


def new_server(comfyui: str | None, work: Path) -> Server:
    """A server that keeps its files in `work`, still to be entered. Raises HostError where there is no ComfyUI."""
    found = host.find_comfyui(comfyui) or host.CACHE / "ComfyUI"
    if not host.is_comfyui(found):
        raise host.HostError("There is no ComfyUI yet: run `python3 tools/host.py`, or name one with --comfyui.")
    return Server(host.Host(found, host.check_version(found), Path(sys.executable)), work, device="cpu")


# The files


def names() -> list[str]:
    return sorted(file.stem for file in (WORKFLOWS / "api").glob("*.json"))


def path(name: str) -> Path:
    return WORKFLOWS / f"{name}.json"


def api_graph(name: str) -> Graph:
    return json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))


def to_text(workflow: Workflow) -> str:
    """JSON with one line a node, a link or a group, so that changes can be read."""
    lines = []
    for key, value in workflow.items():
        items = isinstance(value, list) and ",".join(f"\n    {_line(item)}" for item in value)
        lines.append(f'  "{key}": ' + (f"[{items}\n  ]" if items else _line(value)))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# The graph


def build(name: str, object_info: dict[str, Any]) -> Workflow:
    """The template in the editor's format 0.4."""
    graph = api_graph(name)
    ids = {key: number for number, key in enumerate(graph, 1)}
    nodes = {key: editor_node(ids[key], node, object_info[node["class_type"]]) for key, node in graph.items()}
    links = connect(graph, nodes, ids)
    seed = next(node for node in nodes.values() if "fixed" in node["widgets_values"])["widgets_values"]
    seed[seed.index("fixed")] = "randomize"  # Run again gives another clip: everything depends on the first seed
    texts = notes.write(name, graph, len(nodes))
    lay_out(nodes | texts, cells(graph))
    workflow = {
        "revision": 0,
        "last_node_id": len(nodes) + len(texts),
        "last_link_id": len(links),
        "nodes": [*nodes.values(), *texts.values()],
        "links": links,
        "groups": groups(graph, nodes),
        "config": {},
        "extra": {},
        "version": 0.4,
    }
    return subgraphs.fold(workflow, ids) if name == subgraphs.TEMPLATE else workflow


def editor_node(number: int, node: Node, info: dict[str, Any]) -> Node:
    """A node without its place and its links."""
    slots, widgets, values = [], [], []
    for name, spec, optional in flat_inputs(info["input"], node["inputs"]):
        kind, options = spec_of(spec)
        slot = {"name": name, **({"shape": 7} if optional else {}), "type": kind}
        if kind not in WIDGETS or options.get("forceInput"):
            slots.append({**slot, "link": None})
            continue
        value = node["inputs"].get(name, options.get("default"))
        widgets.append({**slot, "widget": {"name": name}, "link": None})
        values.append(options["default"] if isinstance(value, list) else value)
        if options.get("control_after_generate"):
            values.append("fixed")
        if options.get("image_upload"):
            values.append("image")
    outputs = zip(info["output_name"], info["output"], strict=True)
    title = node["_meta"]["title"]
    return {
        "id": number,
        "type": node["class_type"],
        # A title that is the node's own name stays out, so that the editor gives it in its language.
        **({} if title == info["display_name"] else {"title": title}),
        "pos": [0, 0],
        "size": [0, 0],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": slots + widgets,
        "outputs": [{"name": name, "type": kind, "links": []} for name, kind in outputs],
        "properties": {"Node name for S&R": node["class_type"], **links_to_models(values)},
        "widgets_values": values,
    }


def links_to_models(values: list[Any]) -> dict[str, Any]:
    """The property that tells the editor where the published files in the place of the tiny ones are.

    It offers a file only where the node's list is set to that name and lacks it, so never as the template opens.
    """
    parts = [notes.TINY[value] for value in values if isinstance(value, str) and value in notes.TINY]
    files = [{"name": part.file, "url": part.url, "directory": PLACES[part.part].folder} for part in parts if part.file]
    return {"models": files} if files else {}


def flat_inputs(
    inputs: dict[str, Any], values: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, list[Any], bool]]:
    """(name, spec, is optional) of every input; those that the choice in a dynamic list brings follow that list.

    Of an input that grows there are as many as `values` has.
    """
    for section in ("required", "optional"):
        for name, spec in inputs.get(section, {}).items():
            if spec[0] == "COMFY_AUTOGROW_V3":
                [grown] = spec[1]["template"]["input"]["required"].values()
                yield from ((key, grown, False) for key in values if key.startswith(f"{prefix}{name}."))
                continue
            yield prefix + name, spec, section == "optional"
            if spec[0] == "COMFY_DYNAMICCOMBO_V3":
                chosen = next(option for option in spec[1]["options"] if option["key"] == values[prefix + name])
                yield from flat_inputs(chosen["inputs"], values, f"{prefix}{name}.")


def spec_of(spec: list[Any]) -> tuple[str, dict[str, Any]]:
    """Type and options; older nodes write a list's choices in the place of its type."""
    return ("COMBO" if isinstance(spec[0], list) else spec[0]), (spec[1] if len(spec) > 1 else {})


def connect(graph: Graph, nodes: dict[str, Node], ids: dict[str, int]) -> list[Link]:
    """The table of links, which the slots at both ends refer to."""
    links: list[Link] = []
    for key, node in nodes.items():
        for index, slot in enumerate(node["inputs"]):
            source = graph[key]["inputs"].get(slot["name"])
            if isinstance(source, list):
                output = nodes[source[0]]["outputs"][source[1]]
                slot["link"] = len(links) + 1
                output["links"].append(slot["link"])
                links.append([slot["link"], ids[source[0]], source[1], node["id"], index, output["type"]])
    return links


# The picture


def lay_out(nodes: dict[str, Node], cells: list[Cell]) -> None:
    """Give every node its size and its place.

    cells: (key, group, column) in order. A group's nodes stand below each other in each of its columns, and the group
    below all that stands in these columns already.
    """
    widths: dict[int, int] = defaultdict(int)
    for key, _, column in cells:
        widths[column] = max(widths[column], WIDTH + EXTRA_WIDTH.get(nodes[key]["type"], 0))
    bottoms: dict[int, int] = defaultdict(int)
    for _, group in itertools.groupby(cells, lambda cell: cell[1]):
        members = list(group)
        top = max(bottoms[column] for _, _, column in members)
        places = dict.fromkeys((column for _, _, column in members), top + GROUP_TITLE)
        for key, _, column in members:
            x = sum(widths[before] + COLUMN_GAP for before in range(column))
            nodes[key]["pos"] = [x, places[column] + TITLE]
            nodes[key]["size"] = [widths[column], height(nodes[key])]
            places[column] += TITLE + nodes[key]["size"][1] + NODE_GAP
        bottoms |= dict.fromkeys(places, max(places.values()) - NODE_GAP + GROUP_EDGE + GROUP_GAP)


def cells(graph: Graph) -> list[Cell]:
    """(key, group, column) of every node, and of the notes: one to the right of the prompt, one below the models."""
    found = [(key, node["_meta"]["group"], node["_meta"]["column"]) for key, node in graph.items()]
    after = max(index for index, cell in enumerate(found) if cell[1] == "Text") + 1
    return [*found[:after], (notes.ABOUT, notes.ABOUT, 2), *found[after:], (notes.WEIGHTS, notes.WEIGHTS, 0)]


def height(node: Node) -> int:
    """What the editor gives a node under its title, and more where it shows text or pictures."""
    if node["type"] == "MarkdownNote":
        return round(notes.lines(node, NOTE_CHARACTERS) * NOTE_LINE + 40)
    slots = sum("widget" not in slot for slot in node["inputs"])
    widgets = len(node["widgets_values"])
    rows = max(slots, len(node["outputs"])) * ROW + EDGE
    return rows + (widgets * WIDGET + 8 if widgets else 0) + EXTRA_HEIGHT.get(node["type"], 0)


def groups(graph: Graph, nodes: dict[str, Node]) -> list[dict[str, Any]]:
    """A titled frame around the nodes of each group."""
    members: dict[str, list[Node]] = {}
    for key, node in graph.items():
        members.setdefault(node["_meta"]["group"], []).append(nodes[key])
    return [
        {"id": number, "title": title, "bounding": frame(inside), "color": COLOURS[title], "font_size": 24, "flags": {}}
        for number, (title, inside) in enumerate(members.items(), 1)
    ]


def frame(nodes: list[Node]) -> list[int]:
    """[x, y, width, height] around nodes with their titles, with room for the group's own title."""
    left = min(node["pos"][0] for node in nodes) - GROUP_EDGE
    top = min(node["pos"][1] for node in nodes) - TITLE - GROUP_TITLE
    right = max(node["pos"][0] + node["size"][0] for node in nodes) + GROUP_EDGE
    bottom = max(node["pos"][1] + node["size"][1] for node in nodes) + GROUP_EDGE
    return [left, top, right - left, bottom - top]


if __name__ == "__main__":
    sys.exit(host.guard(main))
