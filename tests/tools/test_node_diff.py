"""tools/node_diff.py: what breaks a saved workflow is named, what does not is not."""

import copy
import json
import subprocess
import sys

import pytest

from tools.host import ROOT
from tools.node_diff import breaks

NODES = {
    "Sample": {
        "inputs": [
            {"id": "model", "type": "MODEL", "kind": "required"},
            {"id": "kind", "type": "COMBO", "kind": "required", "options": ["a", "b"]},
            {"id": "clip", "type": "KEYFRAMES,VIDEO", "kind": "optional"},
        ],
        "outputs": [{"id": "samples", "type": "VIDEO"}],
    }
}


def changed(change):
    nodes = copy.deepcopy(NODES)
    change(nodes["Sample"]["inputs"], nodes["Sample"]["outputs"])
    return nodes


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda inputs, outputs: inputs.pop(), "input clip is gone."),
        (lambda inputs, outputs: outputs.pop(), "output samples is gone."),
        (lambda inputs, outputs: inputs.reverse(), "its inputs are in another order; new ones must be last."),
        (
            lambda inputs, outputs: inputs.append({"id": "seed", "type": "INT", "kind": "required"}),
            "input seed is new and required; it must be optional.",
        ),
        (
            lambda inputs, outputs: outputs.insert(0, {"id": "new", "type": "INT"}),
            "its outputs are in another order; new ones must be last.",
        ),
        (lambda inputs, outputs: inputs[2].update(kind="required"), "input clip was optional and is required."),
        (lambda inputs, outputs: inputs[2].update(type="VIDEO"), "input clip was KEYFRAMES,VIDEO and is VIDEO."),
        (lambda inputs, outputs: outputs[0].update(type="VIDEO,IMAGE"), "output samples was VIDEO and is VIDEO,IMAGE."),
        (lambda inputs, outputs: inputs[1]["options"].remove("b"), "input kind has no b any more."),
    ],
)
def test_what_breaks_is_named(change, sentence):
    assert breaks(NODES, changed(change)) == [f"Sample: {sentence}"]


def test_a_node_that_is_gone():
    assert breaks(NODES, {}) == ["Sample is gone."]


def test_what_only_adds_breaks_nothing():
    def add(inputs, outputs):
        inputs.append({"id": "curve", "type": "CURVES", "kind": "optional"})
        inputs[0]["kind"] = "optional"
        inputs[1]["options"].append("c")
        inputs[2]["type"] += ",IMAGE"
        outputs.append({"id": "report", "type": "STRING"})

    assert breaks(NODES, {**changed(add), "New": NODES["Sample"]}) == []


@pytest.mark.parametrize("new, code, said", [(NODES, 0, "Saved workflows still load.\n"), ({}, 1, "Sample is gone.\n")])
def test_as_a_command(tmp_path, new, code, said):
    (tmp_path / "old.json").write_text(json.dumps(NODES))
    (tmp_path / "new.json").write_text(json.dumps(new))
    command = [sys.executable, ROOT / "tools/node_diff.py", tmp_path / "old.json", tmp_path / "new.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, said)
