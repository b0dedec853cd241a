"""One node for a whole template: the subgraph *Kandinsky Video*, which hides the chain from a prompt to a clip.

templates.py writes it twice: in the template, and as a blueprint that the editor offers among its nodes.
"""

from __future__ import annotations

import copy
import uuid
from typing import Any

from tools import host
from tools.comfy.graphs import Node

Workflow = dict[str, Any]  # in the editor's format
Link = list[Any]  # number, node and slot at its start, node and slot at its end, type

TEMPLATE = "all-in-one"
NAME = "Kandinsky Video"
BLUEPRINT = host.ROOT / "subgraphs" / f"{NAME}.json"
DESCRIPTION = "Makes a clip from a prompt, or from a picture and a prompt, with Kandinsky Video 1.1."

# What the one node shows: its input -> the inputs inside, by the keys of workflows/api.
INPUTS = {
    "image": [("choice", "picture")],
    "prompt": [("prompt", "text")],
    "fps": [("rate", "fps")],
    "motion": [("keyframes", "motion")],
    "seed": [("first_frame", "seed"), ("keyframes", "seed"), ("video", "seed"), ("smooth_video", "seed")],
}
OUTPUT = ("clip", "video")
OUTSIDE = ("save",)

ENTRY, EXIT = -10, -20  # the editor's numbers for the two ends of a subgraph
NODE_SIZE, SAVE_SIZE, NOTE_WIDTH, GAP = [400, 300], [400, 510], 330, 60
ROW, END_WIDTH, TITLE, EDGE, GROUP_TITLE = 20, 160, 30, 20, 50


def fold(workflow: Workflow, ids: dict[str, int]) -> Workflow:
    """The template with all but the nodes OUTSIDE and the notes in one node; ids: key -> number of a node."""
    workflow = copy.deepcopy(workflow)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    outside = [nodes[ids[key]] for key in OUTSIDE]
    notes = [node for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    inside = [node for node in workflow["nodes"] if node not in outside and node not in notes]
    for node in inside:  # one seed for all, which the node outside counts up
        node["widgets_values"] = ["fixed" if value == "randomize" else value for value in node["widgets_values"]]
    inner: list[Link] = []
    outer: list[Link] = []
    for link in workflow["links"]:
        (inner if nodes[link[3]] in inside else outer).append(link)
    subgraph = definition(inside, inner, workflow["groups"], ids)
    single = node_of(subgraph, workflow["last_node_id"] + 1, nodes, ids)
    for number, link in enumerate(outer, 1):
        target = nodes[link[3]]["inputs"][link[4]]
        target["link"] = number
        single["outputs"][0]["links"].append(number)
        outer[number - 1] = [number, single["id"], 0, link[3], link[4], link[5]]
    arrange(single, outside, notes)
    return workflow | {
        "last_node_id": single["id"],
        "last_link_id": len(outer),
        "nodes": [single, *outside, *notes],
        "links": outer,
        "groups": [frame([single, *outside])],
        "definitions": {"subgraphs": [subgraph]},
    }


def definition(inside: list[Node], links: list[Link], groups: list[dict[str, Any]], ids: dict[str, int]) -> Workflow:
    """The subgraph; its inputs and outputs are linked to the numbers ENTRY and EXIT."""
    nodes = {node["id"]: node for node in inside}
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    table = [dict(zip(keys, link)) for link in links]
    inputs = []
    for slot, (name, targets) in enumerate(INPUTS.items()):
        numbers = []
        for key, input in targets:
            node = nodes[ids[key]]
            index = next(i for i, each in enumerate(node["inputs"]) if each["name"] == input)
            number = max(link["id"] for link in table) + 1
            node["inputs"][index]["link"] = number
            kind = node["inputs"][index]["type"]
            table.append(dict(zip(keys, (number, ENTRY, slot, node["id"], index, kind))))
            numbers.append(number)
        inputs.append({"id": identity(f"input {name}"), "name": name, "type": kind, "linkIds": numbers})
    source = nodes[ids[OUTPUT[0]]]
    number = max(link["id"] for link in table) + 1
    kind = source["outputs"][0]["type"]
    source["outputs"][0]["links"] = [number]
    table.append(dict(zip(keys, (number, source["id"], 0, EXIT, 0, kind))))
    outputs = [{"id": identity("output"), "name": OUTPUT[1], "type": kind, "linkIds": [number]}]
    left = min(node["pos"][0] for node in inside) - 2 * END_WIDTH
    right = max(node["pos"][0] + node["size"][0] for node in inside) + END_WIDTH
    groups = [group for group in groups if group["bounding"][2] and any(inside_of(node, group) for node in inside)]
    return {
        "id": identity("subgraph"),
        "version": 1,
        "state": {"lastGroupId": len(groups), "lastNodeId": max(nodes), "lastLinkId": number, "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": NAME,
        "description": DESCRIPTION,
        "category": NAME,
        "inputNode": {"id": ENTRY, "bounding": [left, 0, END_WIDTH, ROW * (len(inputs) + 2)]},
        "outputNode": {"id": EXIT, "bounding": [right, 0, END_WIDTH, ROW * 3]},
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": inside,
        "groups": groups,
        "links": table,
        "extra": {},
    }


def node_of(subgraph: Workflow, number: int, nodes: dict[int, Node], ids: dict[str, int]) -> Node:
    """The node that stands for a subgraph, with the values of what it shows."""
    inputs = []
    for given in subgraph["inputs"]:
        key, name = INPUTS[given["name"]][0]
        slot = next(slot for slot in nodes[ids[key]]["inputs"] if slot["name"] == name)
        widget = {"widget": {"name": given["name"]}} if "widget" in slot else {"shape": 7}
        inputs.append({"name": given["name"], "type": given["type"], **widget, "link": None})
    outputs = [{"name": each["name"], "type": each["type"], "links": []} for each in subgraph["outputs"]]
    return {
        "id": number,
        "type": subgraph["id"],
        "title": subgraph["name"],
        "pos": [0, 0],
        "size": NODE_SIZE,
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "properties": {"proxyWidgets": []},
        "widgets_values": [],
    }


def blueprint(workflow: Workflow) -> Workflow:
    """The subgraph of a folded template by itself, as the editor keeps those it offers."""
    single = copy.deepcopy(workflow["nodes"][0])
    single["outputs"][0]["links"] = []
    return {
        "revision": 0,
        "last_node_id": single["id"],
        "last_link_id": 0,
        "nodes": [single],
        "links": [],
        "version": 0.4,
        "definitions": workflow["definitions"],
        "extra": {"BlueprintDescription": DESCRIPTION},
    }


def arrange(single: Node, outside: list[Node], notes: list[Node]) -> None:
    """The one node, what it feeds to its right, and the notes to its left."""
    x = 0
    for note in notes:
        note["pos"], note["size"] = [x, 30], [NOTE_WIDTH, note["size"][1]]
        x += NOTE_WIDTH + GAP
    for node, size in ((single, NODE_SIZE), *((node, SAVE_SIZE) for node in outside)):
        node["pos"], node["size"] = [x, 30], size
        x += size[0] + GAP


def frame(nodes: list[Node]) -> dict[str, Any]:
    """A titled frame around nodes side by side."""
    left, right = nodes[0]["pos"][0], nodes[-1]["pos"][0] + nodes[-1]["size"][0]
    top, height = nodes[0]["pos"][1] - TITLE - GROUP_TITLE, max(node["size"][1] for node in nodes)
    bounding = [left - EDGE, top, right - left + 2 * EDGE, height + TITLE + GROUP_TITLE + EDGE]
    return {
        "id": 1,
        "title": "From prompt to clip",
        "bounding": bounding,
        "color": "#5aa0d0",
        "font_size": 24,
        "flags": {},
    }


def inside_of(node: Node, group: dict[str, Any]) -> bool:
    x, y, width, height = group["bounding"]
    return x <= node["pos"][0] <= x + width and y <= node["pos"][1] <= y + height


def identity(name: str) -> str:
    """The same number for the same name, so that the files stay the same from one build to the next."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"kandinsky-video/{name}"))
