"""Measurements on disk, and the pages that show them.

A page `docs/tiny/NAME.md` ends with the tables that a command writes; what stands above them is written by hand. The
numbers lie beside it in `NAME.json`: {key: {index: what was measured}}, with the checksum of the models. A run measures
what is missing there, so it goes on where it stopped, and `--check` needs no models to run: it draws the tables anew.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from kv_core.files.conversion import appearing

MARK = "<!-- Below this line a command writes, see its --check. -->"
Task = tuple[str, str]  # key and index
Results = dict[str, dict[str, dict[str, Any]]]  # key -> index -> what was measured


class Page:
    """The page at `path`, its record beside it, and the models that are measured.

    module: the command, as in `python -m evaluation.MODULE`; render(results) gives the page's tables.
    """

    def __init__(self, module: str, path: Path, models: Path, render: Callable[[Results], str]):
        self.module, self.path, self.models, self.render = module, path, models, render
        self.record = path.with_suffix(".json")

    def complete(
        self, tasks: Sequence[Task], measure: Callable[[Sequence[Task]], Iterable[dict]], progress: Callable = print
    ) -> Results:
        """Measures those of the tasks that the record lacks; measure(tasks) yields what each gave, in their order."""
        models = checksum(self.models)
        recorded = self._read()
        results = recorded["results"] if recorded["models"] == models else {}
        todo = [(key, index) for key, index in tasks if index not in results.get(key, {})]
        start = time.monotonic()
        for done, ((key, index), row) in enumerate(zip(todo, measure(todo)), 1):
            results.setdefault(key, {})[index] = _rounded(row)
            self._write(models, results)
            left = (time.monotonic() - start) / done * (len(todo) - done) / 60
            progress(f"{done} of {len(todo)}, {left:.0f} minutes left: {key}, {index}")
        results = _of(tasks, results)
        self._write(models, results)
        return results

    def write(self, results: Results, command: str) -> None:
        """Writes the tables into the page, below what is written by hand."""
        head = self._parts()[0] or f"# {self.module.capitalize()}\n\n"
        with appearing(self.path) as partial:
            partial.write_text(head + MARK + self._body(results, command), encoding="utf-8")

    def check(self, tasks: Sequence[Task], command: str) -> None:
        """Raises SystemExit with a sentence unless the page shows what the record holds, and the record the tasks."""
        recorded = self._read()
        if recorded["models"] != checksum(self.models):
            sys.exit(f"{self.record} was measured on other models: run `{command}`.")
        if list(_pairs(recorded["results"])) != list(tasks):
            sys.exit(f"{self.record} does not hold what `{command}` measures: run it.")
        if self._parts()[1] != self._body(recorded["results"], command):
            sys.exit(f"{self.path} does not show what {self.record} holds: run `{command}`.")

    def run(self, options: argparse.Namespace, tasks: Sequence[Task], measure: Callable, command: str) -> Results:
        """What every command does: checks, or measures and writes. Returns the results; none where it checked."""
        if options.check:
            self.check(tasks, command)
            return {}
        results = self.complete(tasks, measure, lambda line: print(line, flush=True))
        self.write(results, command)
        print(f"\n{self.render(results)}\nWritten to {self.path}.")
        return results

    def _body(self, results: Results, command: str) -> str:
        count = len(list(_pairs(results)))
        numbers = f"every number is in [{self.record.name}]({self.record.name})"
        return f"\n\nBy `{command}`: {count} measurements, {numbers}.\n\n{self.render(results)}"

    def _parts(self) -> tuple[str, str]:
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        head, _, body = text.partition(MARK)
        return head, body

    def _read(self) -> dict[str, Any]:
        if not self.record.is_file():
            return {"models": None, "results": {}}
        return json.loads(self.record.read_text(encoding="utf-8"))

    def _write(self, models: str, results: Results) -> None:
        # A measurement a line.
        keys = []
        for key, rows in results.items():
            lines = ",\n".join(f"   {json.dumps(index)}: {json.dumps(row)}" for index, row in rows.items())
            keys.append(f"  {json.dumps(key)}: {{\n{lines}\n  }}")
        text = ",\n".join(keys)
        with appearing(self.record) as partial:
            partial.write_text(f'{{\n "models": "{models}",\n "results": {{\n{text}\n }}\n}}\n', encoding="utf-8")


def add_options(parser: argparse.ArgumentParser, page: str) -> None:
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder with the tiny model's files")
    parser.add_argument("--out", type=Path, default=Path("docs/tiny", page), help="the page (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="only check that the page shows what was measured")


def command(module: str, parser: argparse.ArgumentParser, options: argparse.Namespace, names: Iterable[str]) -> str:
    """The command line that measures the same; names: of the options that decide what is measured."""
    parts = [f"python -m evaluation.{module}"]
    for name in names:
        value = getattr(options, name)
        if value != parser.get_default(name):
            parts += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return " ".join(parts)


def checksum(models: Path) -> str:
    """SHA-256 of the tiny model's weights."""
    total = hashlib.sha256()
    for path in sorted(models.rglob("kv-tiny/**/*.safetensors")):
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _pairs(results: Results) -> Iterable[Task]:
    return ((key, index) for key, rows in results.items() for index in rows)


def _of(tasks: Sequence[Task], results: Results) -> Results:
    found: Results = {}
    for key, index in tasks:
        found.setdefault(key, {})[index] = results[key][index]
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
