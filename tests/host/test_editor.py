"""The templates in ComfyUI's real editor, in a headless Chromium."""

import json
import re

import pytest

from tests.support.browser import UNKNOWN, expected_prompt, needs_browser, opened, prompt_of
from tools.authoring import templates
from tools.authoring import words as locales
from tools.authoring.notes import TRANSLATIONS

pytestmark = [pytest.mark.slow, needs_browser]

SIZES = "Object.fromEntries(app.rootGraph.nodes.map(node => [node.id, [...node.size]]))"
DIALOGS = "[...document.querySelectorAll('[role=dialog], .p-toast-message')].map(dialog => dialog.innerText)"
# Notes that do not show all of their text, and titles that leave no room for the buttons beside them.
CUT = """(() => {
    const pen = document.createElement('canvas').getContext('2d')
    const room = node => node.size[0] - 2 * LiteGraph.NODE_TITLE_HEIGHT - 4
    const notes = app.rootGraph.nodes.filter(node => node.type == 'MarkdownNote')
        .map(node => node.widgets[0].element.querySelector('.tiptap'))
        .filter(text => text.scrollHeight > text.clientHeight).map(text => text.innerText)
    const titles = app.rootGraph.nodes.filter(node => {
        pen.font = node.titleFontStyle
        return pen.measureText(node.getTitle()).width > room(node)
    }).map(node => node.getTitle())
    return [...notes, ...titles]
})()"""

NODES = f"""Object.fromEntries(Object.keys(LiteGraph.registered_node_types)
    .filter(id => id.startsWith('{locales.PACK_NODES}')).map(id => {{
        const node = LiteGraph.createNode(id)
        const named = items => Object.fromEntries(items.map(item => [item.name, item.label ?? item.localized_name]))
        return [id, {{
            display_name: node.title, description: node.constructor.nodeData.description,
            inputs: named(node.inputs), outputs: named(node.outputs), widgets: named(node.widgets ?? []),
        }}]
    }}))"""
SELECT = "app.canvas.selectNode(app.rootGraph.nodes.find(node => node.type == 'KandinskyVideoKeyframes'))"
HELP = "document.querySelector('.node-help-content')"


@pytest.mark.parametrize("name", templates.names())
def test_template_opens(server, address, usual_errors, name):
    template = json.loads(templates.path(name).read_text(encoding="utf-8"))
    with opened(address, name) as editor:
        look = editor.page.evaluate
        assert [look(UNKNOWN), look(DIALOGS), look(CUT)] == [[], [], []]
        assert set(editor.errors) - usual_errors == set()
        check_sizes(look(SIZES), template)
        folded = template if "definitions" in template else None
        graph = templates.api_graph(name)
        assert prompt_of(editor) == expected_prompt(graph, server.client.object_info(), folded)


def check_sizes(sizes, template):
    """No node takes more room than the template's layout gave it."""
    for node in template["nodes"]:
        width, height = sizes[str(node["id"])]
        assert width <= node["size"][0] and height <= node["size"][1], node["type"]


NOTES = """app.rootGraph.nodes.filter(node => node.type == 'MarkdownNote')
    .map(note => [note.widgets[0].value, Object.keys(note.properties)])"""


@pytest.mark.parametrize("name", templates.names())
def test_the_notes_are_translated(address, name):
    """In the language with the longest texts: the notes and the names of nodes have room."""
    with opened(address, name, locale="ru") as editor:
        notes = editor.page.evaluate(NOTES)
        assert len(notes) == 2
        assert all(re.search("[А-Яа-яЁё]", text) and TRANSLATIONS not in kept for text, kept in notes)
        assert editor.page.evaluate(CUT) == []


@pytest.mark.parametrize("language", locales.LANGUAGES)
def test_the_editor_speaks(address, language):
    """Every node's words, and one node's help as its button opens it."""
    with opened(address, "keyframes-only", locale=language) as editor:
        nodes = editor.page.evaluate(NODES)
        editor.page.evaluate(f"() => {{ {SELECT} }}")
        editor.page.click("[data-testid=info-button]")
        editor.page.wait_for_function(f"{HELP}?.querySelector('img')?.naturalWidth > 0")
        title = editor.page.inner_text(".node-help-content h1")
    words = json.loads((locales.LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert nodes.keys() == words.keys()
    for id, expected in words.items():
        assert nodes[id]["display_name"] == expected["display_name"]
        assert nodes[id]["description"] == expected["description"]
        inputs = {name: each["name"] for name, each in expected["inputs"].items()}
        assert nodes[id]["inputs"] == inputs, id
        assert {name: label for name, label in nodes[id]["widgets"].items() if name in inputs}.items() <= inputs.items()
        assert list(nodes[id]["outputs"].values()) == [each["name"] for each in expected["outputs"].values()], id
    assert title == words["KandinskyVideoKeyframes"]["display_name"]


EMPTY = {
    "id": "7e5a0bf3-1ad5-4b5c-8a33-0d8d3b5c0001",
    "version": 1,
    "revision": 0,
    "name": "Nothing in it",
    "state": {"lastGroupId": 0, "lastNodeId": 0, "lastLinkId": 0, "lastRerouteId": 0},
    "config": {},
    "inputNode": {"id": -10, "bounding": [0, 0, 120, 60]},
    "outputNode": {"id": -20, "bounding": [400, 0, 120, 60]},
    "inputs": [],
    "outputs": [],
}


def user_node(number, kind, title, values, **properties):
    place = {"pos": [400 * number, 0], "size": [330, 300], "flags": {}, "order": number, "mode": 0}
    slots = {"inputs": [], "outputs": []}
    return {"id": number, "type": kind, "title": title, **place, **slots} | {
        "properties": properties,
        "widgets_values": values,
    }


# Titles as the templates have them, and properties that are named like those of others.
USERS = [
    user_node(1, "KSampler", "Text", [7, "fixed", 20, 8, "euler", "simple", 1]),
    user_node(2, "KandinskyVideoUNetLoader", "Models", ["kv-tiny/keyframes.safetensors", "default"]),
    user_node(3, "MarkdownNote", "About this graph", ["mine"], translations={"zh": "\u6211\u7684"}),
    user_node(4, EMPTY["id"], "Decode", []),
]
OURS = user_node(5, "MarkdownNote", "About this graph", ["ours"], **{TRANSLATIONS: {"zh": "\u6211\u4eec\u7684"}})
GROUPS = ["Text", "Decode", "Models"]


def test_a_graph_of_the_users_stays_as_it_is(address, tmp_path):
    """In a Chinese editor only a note that brings its translations is shown in Chinese."""
    group = {"bounding": [0, -60, 300, 400], "color": "#333", "flags": {}}
    workflow = {
        "revision": 0,
        "last_node_id": 5,
        "last_link_id": 0,
        "nodes": [*USERS, OURS],
        "links": [],
        "groups": [{"id": id, "title": title, **group} for id, title in enumerate(GROUPS, 1)],
        "definitions": {"subgraphs": [EMPTY]},
        "config": {},
        "extra": {},
        "version": 0.4,
    }
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(workflow), encoding="utf-8")
    with opened(address, locale="zh") as editor:
        before = len(editor.errors)
        editor.open_file(file)
        editor.page.wait_for_function("app.rootGraph.nodes.length == 5")
        editor.settle()
        assert editor.errors[before:] == []
        assert editor.page.evaluate(DIALOGS) == []
        kept = editor.page.evaluate("app.rootGraph.serialize()")
    *users, ours = kept["nodes"]
    for now, then in zip(users, USERS, strict=True):
        assert {key: now.get(key) for key in ("type", "title")} == {key: then[key] for key in ("type", "title")}
        assert now["properties"].items() >= then["properties"].items()
        assert now.get("widgets_values", []) == then["widgets_values"]
    assert [group["title"] for group in kept["groups"]] == GROUPS
    assert [each["id"] for each in kept["definitions"]["subgraphs"]] == [EMPTY["id"]]
    assert (ours["widgets_values"], ours["properties"]) == ([OURS["properties"][TRANSLATIONS]["zh"]], {})
