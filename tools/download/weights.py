"""The download in ComfyUI's Python: plan it, ask, fetch and convert one part after the other."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import filelock
from tqdm import tqdm

from kv_core.files.checkpoints import COMPANIONS, WEIGHTS, CheckpointError, convert, encoder_shards, open_checkpoint
from kv_core.files.conversion import DTYPES
from kv_core.files.detection import PARTS
from kv_core.files.published import PUBLISHED, Published
from tools import host
from tools.download import hub

DOWNLOADS = "kandinsky-video-download"  # in ComfyUI's models folder, but in no folder that a loader lists
LOCK = "running.lock"
# What a converted parameter takes; with 8 bits, norms and tables keep their own type.
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
    def download(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def arrived(self) -> int:
        return sum(hub.arrived(file, self.path(file)) for file in self.files)

    @property
    def converted(self) -> int:
        """At most, where the type stays as published: a whole T5's files hold some of its decoder too."""
        return int(self.entry.parameters * BYTES[self.dtype]) if self.dtype else self.download

    def path(self, file: hub.RemoteFile) -> Path:
        return self.source if self.entry.file else self.source / file.name


def main(options: dict) -> int:
    models = Path(options["models"])
    steps = []
    for key in options["only"] or PUBLISHED:
        there = find(PUBLISHED[key], models)
        print(f"{key}: {PARTS[PUBLISHED[key].part][0]}" + (f", is there already: {there}" if there else ""))
        if not there:
            steps.append(plan(PUBLISHED[key], models, options["dtype"]))
            describe(steps[-1])
    # The largest first, which needs the least space at once.
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
        with alone(models):
            for step in steps:
                run(step, options["keep_original"])
    report_kept(models)
    return 0


# The plan


def find(entry: Published, models: Path) -> Path | None:
    """Where a part is already, as the download leaves it or as published. Raises HostError for a damaged one."""
    folder = models / entry.folder
    for path in [folder / name for name in (entry.name, entry.file) if name]:
        if path.exists():
            try:
                open_checkpoint(path, expect=entry.part)
            except CheckpointError as error:
                raise host.HostError(f"Delete {path}, which cannot be used: {error}") from None
            return path
    return None


def plan(entry: Published, models: Path, dtype: str | None) -> Step:
    """What to do for one part, by what its repository has now. Raises HostError."""
    listed = hub.list_files(entry.repository)
    names = [entry.file] if entry.file else encoder_files(listed, entry.repository)
    missing = [name for name in names if name not in listed]
    if missing:
        raise host.HostError(
            f"{entry.repository} has no file {missing[0]} any more: look at {entry.page}, and put what it has instead "
            f"into {models / entry.folder} by hand."
        )
    # Autoencoders lose too much in 8 bits, and their loaders do not offer them.
    dtype = None if entry.folder == "vae" and dtype == "float8_e4m3fn" else dtype
    source = models / DOWNLOADS / (entry.file or entry.name)
    return Step(entry, [listed[name] for name in names], source, models / entry.folder / entry.name, dtype)


def encoder_files(listed: dict[str, hub.RemoteFile], repository: str) -> list[str]:
    """The files of a T5 that its encoder needs: settings, tokenizer, and the weights without the decoder's."""
    weights = next((name for name in WEIGHTS if name in listed), None)
    if weights is None:
        raise host.HostError(f"{repository} has none of the files {', '.join(WEIGHTS)} any more.")
    names = [name for name in COMPANIONS if name in listed] + [weights]
    if not weights.endswith(".json"):
        return names
    try:
        return names + encoder_shards(json.loads(hub.read(listed[weights])), weights)
    except (ValueError, CheckpointError):  # a CheckpointError is a ValueError: both say that it is no index
        raise host.HostError(f"{weights} in {repository} does not say which files hold the weights.") from None


def space_needed(steps: list[Step], keep: bool) -> dict[Path, int]:
    """A folder on every disk that is written to, and the most bytes that are needed there at once."""
    used, peak, folders = defaultdict(int), defaultdict(int), {}
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
    """The nearest folder above a path that is there."""
    return next(folder for folder in path.parents if folder.is_dir())


def check_space(needed: dict[Path, int]) -> None:
    """Raises HostError where a disk has too little."""
    for folder, size in needed.items():
        free = shutil.disk_usage(folder).free
        if free < size:
            raise host.HostError(
                f"{folder} has {readable(free)} free, but up to {readable(size)} are needed: free some space, choose "
                "a smaller --dtype, or get the parts one after the other with --only."
            )


# What the user sees


def readable(size: int) -> str:
    unit, scale = next(((unit, scale) for unit, scale in (("GB", 1e9), ("MB", 1e6)) if size >= scale / 10), ("kB", 1e3))
    return f"{size / scale:.2f} {unit}"


def describe(step: Step) -> None:
    """Print every file of a step, where it comes from and what becomes of it."""
    server = hub.constants.ENDPOINT
    for file in step.files:
        there = hub.arrived(file, step.path(file))
        here = f", {readable(there)} of it here already" if there else ""
        print(f"  {server}/{file.repository}: {file.name}, {readable(file.size)}{here}")
    print(f"  becomes {step.target}, at most {readable(step.converted)}, {step.dtype or 'type as published'}")


def summarize(steps: list[Step], needed: dict[Path, int]) -> None:
    size = sum(step.download - step.arrived for step in steps)
    print(f"To download: {readable(size)}. The weights have licences of their own, on their repositories' pages.")
    for folder, space in needed.items():
        free = readable(shutil.disk_usage(folder).free)
        print(f"Space for download and conversion in {folder}: up to {readable(space)}; {free} are free.")


def confirmed() -> bool:
    """Ask whether to begin. Raises HostError where nobody can answer."""
    try:
        return input("Download now? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()  # the question's line is still open
        raise host.HostError("Nothing was downloaded: nobody could be asked, so add --yes to begin.") from None


def report_kept(models: Path) -> None:
    """Say what downloaded files are left, by --keep-original or by a run that was stopped before it removed them."""
    found = (path for path in (models / DOWNLOADS).rglob("*") if path.is_file())
    files = [path for path in found if path.name != LOCK and path.suffix != ".partial"]
    if files:
        size = readable(sum(path.stat().st_size for path in files))
        print(f"{models / DOWNLOADS} holds {size} of downloaded files, which the loaders do not need.")


@contextlib.contextmanager
def bar(title: str):
    """A function that shows a share of bytes on the terminal, from its first call to the end of the block."""
    with contextlib.ExitStack() as stack:
        shown = None

        def show(done: int, total: int) -> None:
            nonlocal shown
            if shown is None:
                shown = stack.enter_context(tqdm(desc=title, total=total, unit="B", unit_scale=True, leave=False))
            shown.update(done - shown.n)

        yield show


# The work


@contextlib.contextmanager
def alone(models: Path):
    """Keeps a second run away from the same files. Raises HostError where one is at work, or nothing can be written."""
    folder = models / DOWNLOADS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise host.HostError(f"Another download into {folder} is at work: wait for it to end.") from None
    except OSError as error:
        raise host.HostError(f"{folder} cannot be written: {error.strerror}.") from None
    try:
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):  # where files are kept, the folder stays
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()


def run(step: Step, keep: bool) -> None:
    """Download, convert and tidy up one part. Raises HostError and CheckpointError."""
    check_writable(step.target.parent)
    for file in step.files:
        with bar(f"Checking {file.name}") as show:
            hub.fetch(file, step.path(file), show)
    open_checkpoint(step.source, expect=step.entry.part)
    with bar(f"Writing {step.target.name}") as show:
        convert(step.source, step.target, step.dtype and DTYPES[step.dtype], show)
    if not keep:
        remove = shutil.rmtree if step.source.is_dir() else os.remove
        remove(step.source)
    print(f"{step.target} is ready: choose it in {PARTS[step.entry.part][1]}.", flush=True)


def check_writable(folder: Path) -> None:
    """Raises HostError before a download whose conversion would have nowhere to go."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise host.HostError(f"{folder} cannot be written: {error.strerror}.") from None


def guarded(options: dict) -> int:
    """`main`, in which what stops it becomes one sentence."""
    try:
        return main(options)
    except CheckpointError as error:
        raise host.HostError(str(error)) from None
    except KeyboardInterrupt:
        print("\nStopped: the same command goes on from here.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(host.guard(lambda: guarded(json.loads(sys.argv[1]))))
