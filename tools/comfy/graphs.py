"""Graphs in API format, {id: {"class_type", "inputs", "_meta"}}: the demo's options written into a workflow."""

from __future__ import annotations

import json
from typing import Any

from tools.host import ROOT

Node = dict[str, Any]
Graph = dict[str, Node]

FIRST_FRAME = "KandinskyVideoFirstFrame"
KEYFRAMES = "KandinskyVideoKeyframes"
INTERPOLATE = "KandinskyVideoInterpolate"
ENCODE_IMAGE = "KandinskyVideoEncodeImage"
SAMPLERS = (FIRST_FRAME, KEYFRAMES, INTERPOLATE)


def load(fps: str) -> Graph:
    """The text-to-video workflow of a frame rate: low, medium or high."""
    path = ROOT / "workflows/api" / f"text-to-video-{fps}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def edit(graph: Graph, settings: dict[str, Any], picture: str | None = None) -> Graph:
    """The graph with the demo's settings in it; a text, motion or seed that is None leaves what is there.

    settings: prompt, negative, motion, seed, steps, and width and height of the video in pixels. picture: the name of
    a file in ComfyUI's input folder that takes the place of the drawn first frame.
    """
    graph = json.loads(json.dumps(graph))
    if picture is not None:
        begin_with_picture(graph, picture)
    if settings["prompt"] is not None:
        for sampler in nodes(graph, *SAMPLERS):
            graph[sampler["inputs"]["positive"][0]]["inputs"]["text"] = settings["prompt"]
    if settings["negative"] is not None:
        add_negative(graph, settings["negative"])
    write(graph, "motion", settings["motion"], KEYFRAMES)
    write(graph, "seed", settings["seed"], *SAMPLERS)
    write(graph, "steps", settings["steps"], FIRST_FRAME, KEYFRAMES)
    for side in ("width", "height"):
        write(graph, side, settings[side], ENCODE_IMAGE)
        write(graph, side, 2 * settings[side], FIRST_FRAME)  # drawn at twice the size, as published
    return graph


def nodes(graph: Graph, *class_types: str) -> list[Node]:
    return [node for node in graph.values() if node["class_type"] in class_types]


def write(graph: Graph, name: str, value: int | str | list[Any] | None, *class_types: str) -> None:
    if value is not None:
        for node in nodes(graph, *class_types):
            node["inputs"][name] = value


def begin_with_picture(graph: Graph, picture: str) -> None:
    graph["picture"] = {"class_type": "LoadImage", "inputs": {"image": picture}, "_meta": {"title": "Load Image"}}
    write(graph, "image", ["picture", 0], ENCODE_IMAGE)
    needed = upstream(graph, [id for id, node in graph.items() if node["class_type"] == "SaveVideo"])
    for id in graph.keys() - needed:
        del graph[id]


def upstream(graph: Graph, ids: list[str]) -> set[str]:
    """These nodes and all that they depend on."""
    found = set()
    while ids:
        id = ids.pop()
        if id not in found:
            found.add(id)
            ids += [value[0] for value in graph[id]["inputs"].values() if isinstance(value, list)]
    return found


def add_negative(graph: Graph, text: str) -> None:
    """Give every sampler a negative prompt, encoded as its positive one is."""
    for sampler in nodes(graph, *SAMPLERS):
        positive = sampler["inputs"]["positive"][0]
        negative = f"{positive}-negative"
        encoder = graph[positive]
        graph[negative] = {
            **encoder,
            "inputs": {**encoder["inputs"], "text": text},
            "_meta": {"title": "Encode Negative Text"},
        }
        sampler["inputs"]["negative"] = [negative, 0]


def title(graph: Graph, id: str) -> str:
    node = graph[id]
    return node.get("_meta", {}).get("title", node["class_type"])
