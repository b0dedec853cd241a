"""Trains every part of the tiny Kandinsky Video from nothing: `python -m training.train`.

The stages run one after the other, each in several processes at once. An interrupted stage resumes from its last saved
state; a finished one does not run again. At the end come the files the loaders take, and the command that shows what
they give.
"""

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kv_core.files.conversion import appearing, write_safetensors
from kv_core.files.detection import METADATA_KEY

from . import tiny, workers
from .stages import Stages
from .trainer import SIDE_BY_SIDE

NAMES = ("text", "movq", "movq_decoder", "video_movq", "interpolation", "keyframes")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    folder = options.work
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(SIDE_BY_SIDE)
    missing = unfinished(folder)
    run([name for name in missing if name in options.stages], options)
    if missing := unfinished(folder):
        print(f"Still to train: {', '.join(missing)}.")
        return
    write(Stages(folder).finished(), options.out)
    print(f"The files are in {options.out}. Next: python -m evaluation.report --work {folder} --models {options.out}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("training-work"), help="folder for states, curves and clips")
    parser.add_argument("--out", type=Path, default=Path("models"), help="folder for the finished files")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full run's steps and clips, for a trial")
    parser.add_argument("--stages", nargs="+", choices=NAMES, default=NAMES, help="only these (default: all)")
    parser.add_argument("--workers", type=int, help="processes that share a batch (default: one a core, at most 2)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    if options.workers is None:
        options.workers = min(2, os.cpu_count() or 1) if options.device == "cpu" else 1
    return options


def unfinished(folder: Path) -> list[str]:
    return [name for name in NAMES if not (folder / f"{name}.done").is_file()]


def run(stages: Sequence[str], options: argparse.Namespace) -> None:
    """Trains the named stages in parallel processes. When one fails, ends the others and raises SystemExit."""
    meeting_place = options.work / "meeting"
    meeting_place.unlink(missing_ok=True)
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=worker, args=(stages, options, meeting_place, rank), daemon=True)
        for rank in range(options.workers)
    ]
    for process in processes:
        process.start()
    try:
        waiting = {process.sentinel: process for process in processes}
        while waiting:
            for sentinel in multiprocessing.connection.wait(list(waiting)):
                process = waiting.pop(sentinel)
                process.join()
                if process.exitcode:
                    sys.exit("Training stopped; the same command goes on from the last saved states.")
    finally:
        for process in processes:
            process.terminate()
        meeting_place.unlink(missing_ok=True)


def worker(stages: Sequence[str], options: argparse.Namespace, meeting_place: Path, rank: int) -> None:
    """One of the processes that train the stages."""
    # The tiny tensors are too small for threads to pay: a process a core is faster than all cores for one.
    torch.set_num_threads(1)
    with workers.joined(meeting_place, rank, options.workers):
        for name in stages:
            getattr(Stages(options.work, options.scale, options.device), name)()
            workers.wait()  # for the state that the next stage reads
            if rank == 0:
                (options.work / f"{name}.done").touch()


def write(parts: Mapping[str, Any], folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Writes finished parts as the files that the loaders take, under `<folder>/<category>/kv-tiny`."""
    unets, vae, text = (Path(folder, name, "kv-tiny") for name in ("diffusion_models", "vae", "text_encoders"))
    state = {name: part.state_dict() for name, part in parts.items() if not isinstance(part, tuple)}
    encoder, projections = parts["text"].text_encoder.state_dict(), parts["text"].projections.state_dict()
    unet = {
        name: parts[name][0].state_dict() | {"null_embedding": parts[name][1]}
        for name in ("keyframes", "interpolation")
    }
    files = {
        unets / "keyframes.safetensors": ("keyframe_unet", tiny.KEYFRAME_UNET, unet["keyframes"]),
        unets / "interpolation.safetensors": ("interpolation_unet", tiny.INTERPOLATION_UNET, unet["interpolation"]),
        vae / "movq.safetensors": ("image_movq", tiny.MOVQ, state["movq"]),
        vae / "video_movq.safetensors": ("video_movq", tiny.MOVQ | {"temporal": True}, state["video_movq"]),
        text / "flan-ul2/model.safetensors": ("text_encoder", tiny.encoder_config(), encoder),
        text / "t5_projections.safetensors": ("projections", {}, projections),
    }
    for path, (part, config, tensors) in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {METADATA_KEY: json.dumps({"part": part, "config": config})}
        tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
        write_safetensors(path, tensors, metadata, dtype)
    for path, content in tiny.text_files(text / "flan-ul2").items():
        with appearing(path) as partial:
            partial.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
