"""The templates in ComfyUI's real editor, in a headless Chromium."""

import asyncio
import json
import re

import pytest

from tools.authoring import subgraphs, templates
from tools.authoring import words as locales
from tools.comfy.editor import Editor, find_chromium
from tools.comfy.server import PACK

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium on this machine"),
]

SIZES = "Object.fromEntries(app.rootGraph.nodes.map(node => [node.id, [...node.size]]))"
UNKNOWN = "app.rootGraph.nodes.filter(node => !(node.type in LiteGraph.registered_node_types)).map(node => node.type)"
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
BUTTON = "document.querySelector('[data-testid=info-button]')"
HELP = "document.querySelector('.node-help-content')"


@pytest.mark.parametrize("name", templates.names())
def test_template_opens(server, address, usual_errors, name):
    async def look():
        async with Editor(address) as editor:
            await editor.open(name, PACK)
            scripts = {"sizes": SIZES, "unknown": UNKNOWN, "dialogs": DIALOGS, "cut": CUT}
            found = {key: await editor.evaluate(script) for key, script in scripts.items()}
            found["prompt"] = (await editor.evaluate("app.graphToPrompt()"))["output"]
            return found, set(editor.errors)

    found, errors = asyncio.run(look())
    assert found["unknown"] == []
    assert found["dialogs"] == []
    assert found["cut"] == []
    assert errors - usual_errors == set()
    check_sizes(found["sizes"], json.loads(templates.path(name).read_text(encoding="utf-8")))
    check_prompt(found["prompt"], name, server.client.object_info())


def check_sizes(sizes, template):
    """No node takes more room than the template's layout gave it."""
    for node in template["nodes"]:
        width, height = sizes[str(node["id"])]
        assert width <= node["size"][0] and height <= node["size"][1], node["type"]


def check_prompt(prompt, name, object_info):
    """The editor would queue the very graph that the template was built from, with what is left alone spelled out."""
    graph, workflow = templates.api_graph(name), json.loads(templates.path(name).read_text(encoding="utf-8"))
    numbers = {key: number for number, key in enumerate(graph, 1)}
    folded = "definitions" in workflow
    ids = subgraphs.flat_ids(workflow, numbers) if folded else {key: str(id) for key, id in numbers.items()}
    expected = {
        ids[key]: {
            "class_type": node["class_type"],
            "inputs": defaults(object_info[node["class_type"]])
            | {
                name: [ids[value[0]], value[1]] if isinstance(value, list) else value
                for name, value in node["inputs"].items()
            },
            "_meta": {"title": node["_meta"]["title"]},
        }
        for key, node in graph.items()
    }
    assert prompt == expected


def defaults(info):
    """What the optional widgets of a node hold until somebody sets them."""
    optional = {name: templates.spec_of(spec) for name, spec in info["input"].get("optional", {}).items()}
    return {name: options["default"] for name, (_, options) in optional.items() if "default" in options}


SHOWN = """(() => {
    const graphs = [app.rootGraph, ...app.rootGraph.nodes.filter(node => node.subgraph).map(node => node.subgraph)]
    const named = item => item.label ?? item.localized_name ?? item.name
    return graphs.flatMap(graph => [
        ...graph.groups.map(group => group.title),
        ...graph.nodes.flatMap(node => node.type.startsWith('KandinskyVideo') || node.subgraph
            ? [node.title, ...[...node.inputs, ...node.outputs, ...node.widgets ?? []].map(named)] : [node.title]),
        ...graph.nodes.filter(node => node.type == 'MarkdownNote').map(note => note.widgets[0].value),
    ])
})()"""
# The editor's own: nodes that others translate, and what it calls the setting beside a seed.
HOSTS = re.compile(r"control[_ ]after[_ ]generate|codec|encoding", re.IGNORECASE)


@pytest.mark.parametrize("language", ["zh", "ru"])
@pytest.mark.parametrize("name", templates.names())
def test_nothing_of_ours_is_left_in_english(address, name, language):
    async def look():
        async with Editor(address, locale=language) as editor:
            await editor.open(name, PACK)
            return await editor.evaluate(SHOWN), await editor.evaluate(CUT)

    shown, cut = asyncio.run(look())
    shown = [text for text in shown if not HOSTS.search(text)]
    assert cut == []
    letters = {"zh": r"[\u4e00-\u9fff]", "ru": "[А-Яа-яЁё]"}[language]
    assert len(shown) > 10
    assert {text for text in shown if not re.search(letters, text)} <= KEPT


# Names that are the same in every language.
KEPT = {"MoVQ", "Latent"}


@pytest.mark.parametrize("language", locales.LANGUAGES)
def test_the_editor_speaks(address, language):
    """Every node's words, and one node's help as its button opens it."""

    async def look():
        async with Editor(address, locale=language) as editor:
            await editor.open("keyframes-only", PACK)
            nodes = await editor.evaluate(NODES)
            await editor.evaluate(f"{SELECT}, true")
            await editor.wait_for(f"{BUTTON} != null")
            await editor.evaluate(f"{BUTTON}.click(), true")
            await editor.wait_for(f"{HELP}?.querySelector('img')?.naturalWidth > 0")
            return nodes, await editor.evaluate(f"{HELP}.querySelector('h1').innerText")

    nodes, title = asyncio.run(look())
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
