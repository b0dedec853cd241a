"""The templates in ComfyUI's real editor, in a headless Chromium."""

import asyncio
import json

import pytest

from tools import templates
from tools.editor import Editor, find_chromium
from tools.server import PACK

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium on this machine"),
]

SIZES = "Object.fromEntries(app.rootGraph.nodes.map(node => [node.id, [...node.size]]))"
UNKNOWN = "app.rootGraph.nodes.filter(node => !(node.type in LiteGraph.registered_node_types)).map(node => node.type)"
DIALOGS = "[...document.querySelectorAll('[role=dialog], .p-toast-message')].map(dialog => dialog.innerText)"
CUT_NOTES = """app.rootGraph.nodes.filter(node => node.type == 'MarkdownNote')
    .map(node => node.widgets[0].element.querySelector('.tiptap'))
    .filter(text => text.scrollHeight > text.clientHeight).map(text => text.innerText)"""


@pytest.fixture(scope="module")
def address(server):
    return server.client.address


@pytest.fixture(scope="module")
def usual_errors(address):
    """What the editor complains about without any template."""

    async def look():
        async with Editor(address) as editor:
            await editor.open()
            return set(editor.errors)

    return asyncio.run(look())


@pytest.mark.parametrize("name", templates.names())
def test_template_opens(address, usual_errors, name):
    async def look():
        async with Editor(address) as editor:
            await editor.open(name, PACK)
            scripts = {"sizes": SIZES, "unknown": UNKNOWN, "dialogs": DIALOGS, "cut": CUT_NOTES}
            found = {key: await editor.evaluate(script) for key, script in scripts.items()}
            found["prompt"] = (await editor.evaluate("app.graphToPrompt()"))["output"]
            return found, set(editor.errors)

    found, errors = asyncio.run(look())
    assert found["unknown"] == []
    assert found["dialogs"] == []
    assert found["cut"] == []
    assert errors - usual_errors == set()
    check_sizes(found["sizes"], json.loads(templates.path(name).read_text(encoding="utf-8")))
    check_prompt(found["prompt"], templates.api_graph(name))


def check_sizes(sizes, template):
    """No node takes more room than the template's layout gave it."""
    for node in template["nodes"]:
        width, height = sizes[str(node["id"])]
        assert width <= node["size"][0] and height <= node["size"][1], node["type"]


def check_prompt(prompt, graph):
    """The editor would queue the very graph that the template was built from."""
    ids = {key: str(number) for number, key in enumerate(graph, 1)}
    expected = {
        ids[key]: {
            "class_type": node["class_type"],
            "inputs": {
                name: [ids[value[0]], value[1]] if isinstance(value, list) else value
                for name, value in node["inputs"].items()
            },
            "_meta": {"title": node["_meta"]["title"]},
        }
        for key, node in graph.items()
    }
    assert prompt == expected
