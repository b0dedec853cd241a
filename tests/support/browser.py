"""For tests in ComfyUI's editor: what they need, and the prompt that the editor should queue for a graph."""

from contextlib import contextmanager

import pytest

from tools.authoring import templates
from tools.comfy.editor import Editor, missing
from tools.comfy.server import PACK

needs_browser = pytest.mark.skipif(missing() is not None, reason=missing() or "")

UNKNOWN = "app.rootGraph.nodes.filter(node => !(node.type in LiteGraph.registered_node_types)).map(node => node.type)"


@contextmanager
def opened(address, template="", **settings):
    with Editor(address, **settings) as editor:
        editor.open(template, PACK if template else "")
        yield editor


ENDS = """['execution_success', 'execution_error', 'execution_interrupted'].forEach(end =>
    app.api.addEventListener(end, event => { window.ended = [end, event.detail.exception_message] }))"""


def run_by_the_button(editor):
    """Runs the graph as a person does, to its good end."""
    editor.page.evaluate(f"() => {{ {ENDS} }}")
    editor.page.click("[data-testid=queue-button]")
    ended = editor.page.wait_for_function("window.ended", timeout=900_000).json_value()
    assert ended[0] == "execution_success", ended


def prompt_of(editor):
    return editor.page.evaluate("app.graphToPrompt()")["output"]


def expected_prompt(graph, object_info, workflow=None):
    """The prompt for a graph in API format, with what is left alone spelled out.

    Its nodes are numbered in their order; workflow: the template, if some of them are in its subgraph.
    """
    numbers = {key: number for number, key in enumerate(graph, 1)}
    ids = flat_ids(workflow, numbers) if workflow else {key: str(number) for key, number in numbers.items()}
    return {
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


def flat_ids(workflow, numbers):
    """Key -> the id that a node has in the prompt, where some are in the subgraph of the first node."""
    within = {node["id"]: workflow["nodes"][0]["id"] for node in workflow["definitions"]["subgraphs"][0]["nodes"]}
    return {key: f"{within[id]}:{id}" if id in within else str(id) for key, id in numbers.items()}


def defaults(info):
    """What the optional widgets of a node hold until somebody sets them."""
    optional = {name: templates.spec_of(spec) for name, spec in info["input"].get("optional", {}).items()}
    return {name: options["default"] for name, (_, options) in optional.items() if "default" in options}


def without_seeds(prompt):
    """The prompt without the first seed, which the editor draws anew as soon as a graph is queued."""
    return {
        id: {**node, "inputs": {name: value for name, value in node["inputs"].items() if name != "seed"}}
        for id, node in prompt.items()
    }
