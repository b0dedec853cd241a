"""Workflows saved before inputs and a node were renamed run on the server as they are, and open in the editor."""

import json

import pytest

from tests.support.browser import (
    UNKNOWN,
    expected_prompt,
    needs_browser,
    opened,
    prompt_of,
    run_by_the_button,
    without_seeds,
)
from tools.authoring import templates
from tools.host import ROOT

FOLDER = ROOT / "tests" / "workflows-before-0.1.0"
NAMES = sorted(file.stem for file in FOLDER.glob("*.json"))
STEPS = 2
# Inputs that were set to another value since, which is no rename: name -> node -> inputs.
SINCE = {"loop": {"clip": {"fps": 8.0}}}


def old(name):
    return json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))


def today(name):
    graph = templates.api_graph(name)
    for id, inputs in SINCE.get(name, {}).items():
        graph[id]["inputs"] |= inputs
    return graph


def quick(graph):
    for node in graph.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = STEPS
    return graph


def ran(server):
    """The last prompt that the server ran, as it understood it: id -> class and inputs."""
    [entry] = server.client.get("/history?max_items=1").values()
    assert entry["status"]["status_str"] == "success"
    return bare(entry["prompt"][2])


def bare(graph):
    return {id: {key: node[key] for key in ("class_type", "inputs")} for id, node in graph.items()}


@pytest.mark.parametrize("name", NAMES)
def test_an_old_graph_runs_as_that_of_today(server, run_graph, name):
    run_graph(quick(old(name)))
    assert ran(server) == bare(quick(today(name)))


SET_STEPS = """steps => app.rootGraph.nodes.flatMap(node => node.widgets ?? []).filter(widget => widget.name == 'steps')
    .forEach(widget => { widget.value = steps })"""


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("name", NAMES)
def test_an_old_workflow_runs_in_the_editor(server, address, name):
    """The editor says which node is missing, and replaces it where a person says so."""
    with opened(address) as editor:
        editor.open_file(FOLDER / f"{name}.json")
        editor.page.wait_for_function("app.rootGraph.nodes.length > 3")
        editor.settle()
        if missing := set(editor.page.evaluate(UNKNOWN)):
            assert missing == {"KandinskyVideoSchedule"}
            editor.page.click("[data-testid=error-overlay-see-errors]")
            editor.page.get_by_role("button", name="Replace All").click()
            editor.page.wait_for_function(f"{UNKNOWN}.length == 0")
        editor.page.evaluate(SET_STEPS, STEPS)
        run_by_the_button(editor)
        prompt = prompt_of(editor)
    expected = expected_prompt(quick(today(name)), server.client.object_info())
    assert without_seeds(ran(server)) == without_seeds(bare(expected))
    assert {id: node["_meta"] for id, node in prompt.items()} == {id: node["_meta"] for id, node in expected.items()}
