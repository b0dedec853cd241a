"""Tables are the output of a command: what is on a page is what was recorded, and what the command measures."""

import json
from pathlib import Path

import pytest

from evaluation import benchmark, precision, record, steps
from tools.host import ROOT

COMMANDS = {"benchmark": benchmark, "precision": precision, "steps": steps}
TASKS = [("a", "0"), ("a", "1"), ("b", "0")]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_tables_are_what_was_measured(name):
    page = ROOT / "docs" / "tiny" / f"{name}.md"
    COMMANDS[name].main(["--check", "--models", str(ROOT / "models"), "--out", str(page)])


class Measured:
    """A page of two kinds of measurement, and what it asked for."""

    def __init__(self, folder):
        self.models = folder / "models"
        self.weights = self.models / "vae" / "kv-tiny" / "movq.safetensors"
        self.weights.parent.mkdir(parents=True)
        self.weights.write_bytes(b"weights")
        self.page = record.Page("toy", folder / "toy.md", self.models, self.render)
        self.asked = []

    def render(self, results):
        return "\n".join(f"{key}: {sum(row['value'] for row in rows.values()):.2f}" for key, rows in results.items())

    def measure(self, tasks):
        for key, index in tasks:
            self.asked.append((key, index))
            yield {"value": 1 / 3 + int(index), "holds": True}

    def run(self, tasks=TASKS):
        results = self.page.complete(tasks, self.measure, str)
        self.page.write(results, "python -m toy")

    def check(self, tasks=TASKS):
        self.page.check(tasks, "python -m toy")


@pytest.fixture
def measured(tmp_path):
    return Measured(tmp_path)


def test_a_page_keeps_what_is_written_by_hand(measured):
    measured.page.path.write_text(f"# By hand\n\n{record.MARK}\n\nold table\n")
    measured.run()
    text = measured.page.path.read_text()
    assert text.startswith(f"# By hand\n\n{record.MARK}\n\nBy `python -m toy`: 3 measurements")
    assert text.endswith("\n\na: 1.67\nb: 0.33") and "old table" not in text
    measured.check()


def test_a_run_resumes(measured):
    with pytest.raises(ZeroDivisionError):
        measured.page.complete(TASKS, lambda tasks: (({"value": 1 / (2 - i)}) for i in range(3)), str)
    measured.run()
    assert measured.asked == [("b", "0")]
    measured.run()
    assert measured.asked == [("b", "0")]


def test_other_models_are_measured_anew(measured):
    measured.run()
    measured.weights.write_bytes(b"others")
    with pytest.raises(SystemExit, match="was measured on other models: run `python -m toy`"):
        measured.check()
    measured.run()
    assert measured.asked == [*TASKS, *TASKS]
    measured.check()


@pytest.mark.parametrize("tasks", [TASKS[:2], [*TASKS, ("b", "1")], TASKS[::-1]])
def test_a_record_of_other_measurements_is_refused(measured, tasks):
    measured.run()
    with pytest.raises(SystemExit, match="does not hold what `python -m toy` measures"):
        measured.check(tasks)


def test_a_changed_table_or_number_is_refused(measured):
    measured.run()
    page, numbers = measured.page.path.read_text(), measured.page.record.read_text()
    measured.page.path.write_text(page.replace("1.67", "1.76"))
    with pytest.raises(SystemExit, match="does not show what"):
        measured.check()
    measured.page.path.write_text(page)
    measured.page.record.write_text(numbers.replace("0.3333", "0.5"))
    with pytest.raises(SystemExit, match="does not show what"):
        measured.check()


def test_a_record_has_a_line_a_measurement(measured):
    measured.run()
    assert '   "1": {"value": 1.333, "holds": true}' in measured.page.record.read_text().splitlines()
    assert json.loads(measured.page.record.read_text())["results"]["b"] == {"0": {"value": 0.3333, "holds": True}}


def test_options_that_decide_what_is_measured_are_stated(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(record.Page, "run", lambda self, options, tasks, measure, line: lines.append(line) or {})
    for arguments in ([], ["--clips", "2", "--stages", "clip", "--out", str(tmp_path / "x.md")]):
        steps.main(arguments)
    assert lines == ["python -m evaluation.steps", "python -m evaluation.steps --stages clip --clips 2"]
    assert record.checksum(Path(ROOT, "models")) != record.checksum(tmp_path)
