"""Says what a weight file is, or converts it to safetensors: `python -m tools.weights inspect|convert`."""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from kv_core.files.checkpoints import open_checkpoint
from kv_core.files.conversion import DTYPES, convert
from kv_core.files.detection import PART_NAMES, CheckpointError


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return _inspect(options.file) if options.command == "inspect" else _convert(options)
    except CheckpointError as error:
        message = str(error)
    except KeyboardInterrupt:
        message = "Stopped; nothing was left behind."
    print(message, file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.weights", description="Kandinsky Video 1.1's weight files.")
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="say which part a file is, its sizes and types")
    inspect.add_argument("file", type=Path, help="safetensors or .pt file, or T5 folder")
    converter = commands.add_parser(
        "convert",
        help="convert to safetensors",
        description="Converts a .pt or safetensors file to one safetensors file, or a T5 folder to a folder with one.",
    )
    converter.add_argument("input", type=Path, help="safetensors or .pt file, or T5 folder")
    converter.add_argument("output", type=Path, help="a new .safetensors file; for a T5 folder, a new folder")
    converter.add_argument("--dtype", choices=DTYPES, help="type of the weights written (default: unchanged)")
    return parser


def _inspect(path: Path) -> int:
    checkpoint = open_checkpoint(path)
    bytes_by_type: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        dtype = str(tensor.dtype).removeprefix("torch.")
        bytes_by_type[dtype] = bytes_by_type.get(dtype, 0) + tensor.nbytes
    parameters = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    print(f"{path.name} holds {PART_NAMES[checkpoint.part]}.")
    print(f"parameters: {parameters:,} in {len(checkpoint.tensors)} tensors")
    print("stored as: " + ", ".join(f"{dtype} {size / 2**30:.3f} GiB" for dtype, size in bytes_by_type.items()))
    if checkpoint.null_embedding is not None:
        print("with its null embedding")
    for size, value in checkpoint.config.items():
        print(f"{size}: {value}")
    return 0


def _convert(options: argparse.Namespace) -> int:
    dtype = DTYPES[options.dtype] if options.dtype else None
    try:
        with tqdm(unit="B", unit_scale=True, desc=f"Writing {options.output.name}") as bar:

            def show(written: int, total: int) -> None:
                bar.total = total
                bar.update(written - bar.n)

            checkpoint = convert(options.input, options.output, dtype, show)
    except OSError as error:
        message = f"{options.output} could not be written: {error.strerror or error}; nothing was left behind."
        raise CheckpointError(message) from None
    print(f"{options.output} holds {PART_NAMES[checkpoint.part]}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
