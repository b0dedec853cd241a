"""The download, run by ComfyUI's Python: plan it, ask for confirmation, then fetch and convert one part at a time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
from tqdm import tqdm

from kv_core.files.checkpoints import COMPANIONS, WEIGHT_FILES, encoder_shards, open_checkpoint
from kv_core.files.conversion import DTYPES, convert
from kv_core.files.detection import PART_NAMES, CheckpointError
from kv_core.files.published import PUBLISHED, Published
from tools import host
from tools.download import hub
from tools.download.places import PLACES, Place

DOWNLOADS = "kandinsky-video-download"  # in ComfyUI's models folder, where no loader looks
LOCK = "running.lock"
# Bytes of a converted parameter; in 8 bits, norms and tables keep their own type.
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1.05}


@dataclass(frozen=True)
class Step:
    """One part to download to `source`, a file or a folder, and to convert to `target`; sizes are in bytes."""

    entry: Published
    files: list[hub.RemoteFile]
    source: Path
    target: Path
    dtype: str | None

    @property
    def place(self) -> Place:
        return PLACES[self.entry.part]

    @property
    def download(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def arrived(self) -> int:
        return sum(hub.arrived(file, self.path(file)) for file in self.files)

    @property
    def converted(self) -> int:
        """An upper bound where the type stays as published: the encoder's files hold some of a T5's decoder too."""
        return int(self.entry.parameters * BYTES[self.dtype]) if self.dtype else self.download

    def path(self, file: hub.RemoteFile) -> Path:
        return self.source if self.entry.file else self.source / file.name


def main(options: dict[str, Any]) -> int:
    models = Path(options["models"])
    steps = []
    for key in options["only"] or PUBLISHED:
        there = find(PUBLISHED[key], models)
        print(f"{key}: {PART_NAMES[PUBLISHED[key].part]}" + (f", already there: {there}" if there else ""))
        if not there:
            steps.append(plan(PUBLISHED[key], models, options["dtype"]))
            describe(steps[-1])
    # The largest first: its original is removed before anything else takes space.
    steps.sort(key=lambda step: -step.download)
    needed = space_needed(steps, options["keep_original"])
    if steps:
        summarize(steps, needed)
    if options["dry_run"]:
        return 0
    if steps:
        check_space(needed)
        if not (options["yes"] or confirmed()):
            return 1
        with exclusive(models):
            for step in steps:
                run(step, options["keep_original"])
    report_kept(models)
    return 0


# The plan


def find(entry: Published, models: Path) -> Path | None:
    """A part that is already there, converted or as published. Raises HostError for a damaged one."""
    folder = models / PLACES[entry.part].folder
    for path in [folder / name for name in (entry.name, entry.file) if name]:
        if path.exists():
            try:
                open_checkpoint(path, expect=entry.part)
            except CheckpointError as error:
                raise host.HostError(f"Delete {path}, which cannot be used: {error}") from None
            return path
    return None


def plan(entry: Published, models: Path, dtype: str | None) -> Step:
    """What to do for one part, given what its repository has now. Raises HostError."""
    listed = hub.list_files(entry.repository)
    place = PLACES[entry.part]
    names = [entry.file] if entry.file else encoder_files(listed, entry.repository)
    missing = [name for name in names if name not in listed]
    if missing:
        raise host.HostError(
            f"{entry.repository} no longer has the file {missing[0]}: see {entry.page}, and put what replaces it into "
            f"{models / place.folder} by hand."
        )
    # Autoencoders lose too much quality in 8 bits, which their loaders do not offer.
    dtype = None if place.folder == "vae" and dtype == "float8_e4m3fn" else dtype
    source = models / DOWNLOADS / (entry.file or entry.name)
    return Step(entry, [listed[name] for name in names], source, models / place.folder / entry.name, dtype)


def encoder_files(listed: dict[str, hub.RemoteFile], repository: str) -> list[str]:
    """The files of a T5 that its encoder needs: settings, tokenizer, and the weights without the decoder's."""
    weights = next((name for name in WEIGHT_FILES if name in listed), None)
    if weights is None:
        raise host.HostError(f"{repository} no longer has any of {', '.join(WEIGHT_FILES)}.")
    names = [name for name in COMPANIONS if name in listed] + [weights]
    if not weights.endswith(".json"):
        return names
    try:
        return names + encoder_shards(json.loads(hub.read(listed[weights])), weights)
    except (ValueError, RecursionError):  # a CheckpointError is a ValueError too
        raise host.HostError(f"{weights} in {repository} does not say which files hold the weights.") from None


def space_needed(steps: list[Step], keep: bool) -> dict[Path, int]:
    """For every disk that is written to, a folder on it and the most bytes needed there at any time."""
    used: dict[int, int] = defaultdict(int)
    peak: dict[int, int] = defaultdict(int)
    folders: dict[int, Path] = {}
    for step in steps:
        source, target = (existing(path) for path in (step.source, step.target))
        folders |= {source.stat().st_dev: source, target.stat().st_dev: target}
        used[source.stat().st_dev] += step.download - step.arrived
        used[target.stat().st_dev] += step.converted
        for disk, size in used.items():
            peak[disk] = max(peak[disk], size)
        if not keep:
            used[source.stat().st_dev] -= step.download
    return {folder: peak[disk] for disk, folder in folders.items()}


def existing(path: Path) -> Path:
    """The nearest existing folder above a path."""
    return next(folder for folder in path.parents if folder.is_dir())


def check_space(needed: dict[Path, int]) -> None:
    """Raises HostError where a disk has too little space."""
    for folder, size in needed.items():
        free = shutil.disk_usage(folder).free
        if free < size:
            raise host.HostError(
                f"{folder} has {readable(free)} free, but up to {readable(size)} are needed: free some space, choose "
                "a smaller --dtype, or download one part at a time with --only."
            )


# What the user sees


def readable(size: int) -> str:
    unit, scale = next(((unit, scale) for unit, scale in (("GB", 1e9), ("MB", 1e6)) if size >= scale / 10), ("kB", 1e3))
    return f"{size / scale:.2f} {unit}"


def describe(step: Step) -> None:
    """Print every file of a step, its source and what it becomes."""
    server = hub.constants.ENDPOINT
    for file in step.files:
        there = hub.arrived(file, step.path(file))
        here = f", {readable(there)} already here" if there else ""
        print(f"  {server}/{file.repository}: {file.name}, {readable(file.size)}{here}")
    print(f"  becomes {step.target}, at most {readable(step.converted)}, {step.dtype or 'type as published'}")


def summarize(steps: list[Step], needed: dict[Path, int]) -> None:
    size = sum(step.download - step.arrived for step in steps)
    print(f"To download: {readable(size)}. The weights' own licences are on their repositories' pages.")
    for folder, space in needed.items():
        free = readable(shutil.disk_usage(folder).free)
        print(f"Space for download and conversion in {folder}: up to {readable(space)}; {free} are free.")


def confirmed() -> bool:
    """Ask for confirmation. Raises HostError where nobody can answer."""
    try:
        return input("Download now? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()  # end the question's line
        raise host.HostError("Nothing was downloaded: there is no terminal to ask on, so add --yes.") from None


def report_kept(models: Path) -> None:
    """Report downloaded files that are still there, kept by --keep-original or left by an interrupted run."""
    found = (path for path in (models / DOWNLOADS).rglob("*") if path.is_file())
    files = [path for path in found if path.name != LOCK and path.suffix != ".partial"]
    if files:
        size = readable(sum(path.stat().st_size for path in files))
        print(f"{models / DOWNLOADS} holds {size} of downloaded files, which the loaders do not need.")


@contextlib.contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A function that shows progress in bytes on the terminal, from its first call to the end of the block."""
    with contextlib.ExitStack() as stack:
        shown: tqdm | None = None

        def show(done: int, total: int) -> None:
            nonlocal shown
            if shown is None:
                shown = stack.enter_context(tqdm(desc=title, total=total, unit="B", unit_scale=True, leave=False))
            shown.update(done - shown.n)

        yield show


# The work


@contextlib.contextmanager
def exclusive(models: Path) -> Iterator[None]:
    """Locks the download folder. Raises HostError where another run holds it, or nothing can be written."""
    folder = models / DOWNLOADS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise host.HostError(f"Another download into {folder} is running: wait for it to finish.") from None
    except OSError as error:
        raise host.HostError(f"{folder} cannot be written: {error.strerror}.") from None
    try:
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):  # a folder that is not empty stays
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()


def run(step: Step, keep: bool) -> None:
    """Download and convert one part, then remove the original. Raises HostError and CheckpointError."""
    check_writable(step.target.parent)
    for file in step.files:
        with bar(f"Checking {file.name}") as show:
            hub.fetch(file, step.path(file), show)
    open_checkpoint(step.source, expect=step.entry.part)
    with bar(f"Writing {step.target.name}") as show:
        convert(step.source, step.target, DTYPES[step.dtype] if step.dtype else None, show)
    if not keep:
        remove = shutil.rmtree if step.source.is_dir() else os.remove
        remove(step.source)
    print(f"{step.target} is ready: choose it in the node {step.place.node}.", flush=True)


def check_writable(folder: Path) -> None:
    """Raises HostError, before the download, where its conversion could not be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise host.HostError(f"{folder} cannot be written: {error.strerror}.") from None


def guarded(options: dict[str, Any]) -> int:
    """`main`, with every failure as one sentence."""
    try:
        return main(options)
    except CheckpointError as error:
        raise host.HostError(str(error)) from None
    except KeyboardInterrupt:
        print("\nStopped: run the same command again to resume.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(host.guard(lambda: guarded(json.loads(sys.argv[1]))))
