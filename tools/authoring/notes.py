"""The notes in the templates: what the graph does, and what to choose for the published weights, in every language.

workflows/notes/<language>/ holds the first by the template's name, and the second, where {files} and {sizes} stand for
what the graph has of them. A note keeps its translations beside it; web/kandinsky_video.js shows that of the editor's
language as the graph is opened.
"""

from __future__ import annotations

import json
import unicodedata

from kv_core.files.published import PUBLISHED
from tools import host
from tools.comfy.graphs import Graph, Node

NOTES = host.ROOT / "workflows" / "notes"
TRANSLATIONS = "kandinsky_video_note"  # the property of a note by which web/kandinsky_video.js knows it
ABOUT, WEIGHTS = "About this graph", "Published weights"  # their titles, and their keys beside those of the graph

# The published part in the place of each tiny one.
TINY = {
    "kv-tiny/keyframes.safetensors": PUBLISHED["keyframes"],
    "kv-tiny/interpolation.safetensors": PUBLISHED["interpolation"],
    "kv-tiny/flan-ul2": PUBLISHED["text"],
    "kv-tiny/t5_projections.safetensors": PUBLISHED["projections"],
    "kv-tiny/movq.safetensors": PUBLISHED["movq"],
    "kv-tiny/video_movq.safetensors": PUBLISHED["video_movq"],
}
PUBLISHED_SIZE = {
    "KandinskyVideoFirstFrame": 1024,
    "KandinskyVideoFirstFrameGuider": 1024,
    "KandinskyVideoEncodeImage": 512,
    "KandinskyVideoEncodeFrames": 512,
}


def write(name: str, graph: Graph, last_id: int) -> dict[str, Node]:
    """The template's two notes as nodes of the editor, whose ids follow `last_id`, by their titles."""
    languages = sorted(folder.name for folder in NOTES.iterdir())
    about = {language: read(language, name) for language in languages}
    weights = {language: published(language, graph) for language in languages}
    return {ABOUT: note(last_id + 1, ABOUT, about), WEIGHTS: note(last_id + 2, WEIGHTS, weights)}


def read(language: str, name: str) -> str:
    return (NOTES / language / f"{name}.md").read_text(encoding="utf-8").strip()


def published(language: str, graph: Graph) -> str:
    """What to change in this graph for the published weights at 512x512."""
    files, sizes = [], []
    for node in graph.values():
        values = [value for value in node["inputs"].values() if not isinstance(value, list)]
        chosen = [f"**{TINY[value].name}**" for value in values if value in TINY]
        if chosen:
            files.append(f"- {title_in(language, node)}: {', '.join(chosen)}")
        if node["class_type"] in PUBLISHED_SIZE:
            sizes.append(f"- {title_in(language, node)}: {PUBLISHED_SIZE[node['class_type']]}")
    return read(language, "published weights").format(files="\n".join(files), sizes="\n".join(sizes))


def title_in(language: str, node: Node) -> str:
    """The title of a node as the editor shows it: the template's own, or the node's name in this language."""
    words, english = (
        json.loads((host.ROOT / "locales" / name / "nodeDefs.json").read_text(encoding="utf-8"))[node["class_type"]]
        for name in (language, "en")
    )
    title = node["_meta"]["title"]
    return words["display_name"] if title == english["display_name"] else title


def note(number: int, title: str, texts: dict[str, str]) -> Node:
    """texts: language -> Markdown."""
    translations = {language: text for language, text in texts.items() if language != "en"}
    return {
        "id": number,
        "type": "MarkdownNote",
        "title": title,
        "pos": [0, 0],
        "size": [0, 0],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {TRANSLATIONS: translations},
        "widgets_values": [texts["en"]],
        "color": "#432",
        "bgcolor": "#653",
    }


def lines(node: Node, characters: int) -> float:
    """How many lines its longest text fills at so many characters a line; an empty line is lower."""
    texts = [*node["widgets_values"], *node["properties"][TRANSLATIONS].values()]
    return max(sum(max(-(-columns(line) // characters), 0.6) for line in text.splitlines()) for text in texts)


def columns(text: str) -> int:
    """The width of a text in Latin letters; a Chinese sign is as wide as two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
