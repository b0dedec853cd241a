"""Opens the model's files safely and without copying them into memory, and converts them to safetensors.

    python -m kv_core.files.checkpoints inspect FILE
    python -m kv_core.files.checkpoints convert IN OUT [--dtype float16]

A file is safetensors, the published `.pt`, or a Hugging Face folder with the T5 encoder. `.pt` files are pickles: only
tensors and plain containers are read from them, and nothing in them is ever run.
"""

import argparse
import json
import shutil
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .conversion import DTYPES, appearing, write_safetensors
from .detection import DECODER, METADATA_KEY, PARTS, CheckpointError, check_complete, detect

__all__ = ["Checkpoint", "CheckpointError", "convert", "detect", "encoder_shards", "main", "open_checkpoint"]

# A Hugging Face folder names its weights in one of these ways; the safe format comes first.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# What a folder needs besides its weights.
COMPANIONS = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "spiece.model",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A recognised, complete file.

    `part` is a key of PARTS, `config` the keyword sizes of its class, `metadata` the file's own, and `null_embedding`
    a U-Net's unconditional token `(d,)` where the file has one.
    """

    path: Path
    part: str
    config: dict
    metadata: dict[str, str]
    null_embedding: torch.Tensor | None
    tensors: dict[str, torch.Tensor]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The tensors under their published names, mapped from the disk: they take no memory until they are used."""
        return dict(self.tensors)


def open_checkpoint(path: str | Path, expect: str | tuple[str, ...] | None = None) -> Checkpoint:
    """Opens a file or folder, recognises it, and compares every tensor's shape with the model it must fit.

    `expect` names the part, or parts, the caller can use. Raises CheckpointError, with one sentence, for anything else.
    """
    path = Path(path)
    tensors, metadata = _read_folder(path) if path.is_dir() else _read_file(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found = detect(shapes, metadata, path.name)
    what, loader = PARTS[found.part]
    expected = (expect,) if isinstance(expect, str) else expect
    if expected and found.part not in expected:
        wanted = " or ".join(PARTS[part][0] for part in expected)
        raise CheckpointError(f"{path.name} holds {what} instead of {wanted}; the node {loader} takes it.")
    check_complete(found, shapes, path.name)
    published = {name: tensors[in_file] for name, in_file in found.tensors.items()}
    if not all(tensor.is_floating_point() for tensor in published.values()):
        raise CheckpointError(
            f"{path.name} holds integers, so another program quantized it; use the original file, or convert that to "
            f"a smaller type."
        )
    null_embedding = None
    if found.null_embedding:
        null_embedding = _null_embedding(tensors[found.null_embedding], found.config["context_dim"], path.name)
    return Checkpoint(path, found.part, found.config, metadata, null_embedding, published)


def convert(
    source: str | Path,
    target: str | Path,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], object] = lambda written, total: None,
) -> Checkpoint:
    """Converts a file to one safetensors file, or a T5 folder to a folder with one, in `dtype` (None: as it is).

    Holds one tensor at a time, calls `progress` with the bytes written and all bytes after each, and leaves nothing
    under `target` unless it is complete. Raises CheckpointError and OSError. Returns the converted checkpoint, opened.
    """
    checkpoint, target = open_checkpoint(source), Path(target)
    if target.exists():
        raise CheckpointError(f"{target} exists already; delete it or choose another name.")
    if not target.parent.is_dir():
        raise CheckpointError(f"{target.parent} is not a folder; create it first.")
    tensors = checkpoint.state_dict()
    if checkpoint.null_embedding is not None:
        tensors["null_embedding"] = checkpoint.null_embedding
    metadata = {METADATA_KEY: json.dumps({"part": checkpoint.part, "config": checkpoint.config})}
    if checkpoint.path.is_dir():
        with appearing(target) as folder:
            folder.mkdir()
            for name in COMPANIONS:
                if (checkpoint.path / name).is_file():
                    shutil.copyfile(checkpoint.path / name, folder / name)
            write_safetensors(folder / "model.safetensors", tensors, metadata, dtype, progress)
    elif target.suffix == ".safetensors":
        write_safetensors(target, tensors, metadata, dtype, progress)
    else:
        raise CheckpointError(f"{target.name} must end in .safetensors.")
    return open_checkpoint(target)


def encoder_shards(index: object, name: str = "The index") -> list[str]:
    """The names of the weight files that hold an encoder, by a folder's index as read from JSON; `name` is its name.

    A whole T5 has more files, with its decoder, which are not needed. Raises CheckpointError where none is named.
    """
    weight_map = index.get("weight_map") if isinstance(index, Mapping) else None
    weight_map = weight_map if isinstance(weight_map, Mapping) else {}
    # Only the name counts: a file lies beside its index, whatever path the index may give.
    shards = {Path(str(file)).name for tensor, file in weight_map.items() if not tensor.startswith(DECODER)}
    if not shards:
        raise CheckpointError(f"{name} does not say which files hold the weights; download it again.")
    return sorted(shards)


def _null_embedding(tensor, context_dim, name):
    if tuple(tensor.shape) not in ((context_dim,), (1, context_dim), (1, 1, context_dim)):
        raise CheckpointError(
            f"{name} has a null embedding of shape {tuple(tensor.shape)}; expected ({context_dim},), the width of its "
            f"text context."
        )
    return tensor.reshape(-1)


def _read_folder(folder):
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise CheckpointError(
            f"{folder.name} is a folder without weights; a T5 encoder's folder holds model.safetensors, or "
            f"model.safetensors.index.json with its parts."
        )
    parts = [weights] if weights.suffix != ".json" else _shards(weights)
    tensors, metadata = {}, {}
    for part in parts:
        part_tensors, part_metadata = _read_file(part)
        tensors |= part_tensors
        metadata |= part_metadata
    settings = _read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    activation = settings.get("feed_forward_proj", "gated-silu")
    if activation != "gated-silu":
        raise CheckpointError(
            f"{folder.name} holds a T5 with {activation} feed-forward, but Flan-UL2 has gated-silu; choose Flan-UL2's "
            f"encoder."
        )
    if METADATA_KEY not in metadata and "relative_attention_max_distance" in settings:
        stated = {"relative_attention_max_distance": settings["relative_attention_max_distance"]}
        metadata[METADATA_KEY] = json.dumps({"config": stated})
    return tensors, metadata


def _shards(index):
    """The files with the encoder that an index names, in order."""
    shards = [index.parent / name for name in encoder_shards(_read_json(index), index.name)]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent.name} lacks {len(missing)} of its {len(shards)} weight files, {missing[0]} first; download "
            f"them beside the others."
        )
    return shards


def _read_json(path):
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} in {path.parent.name} is not a readable JSON object; download it again.")
    return content


def _read_file(path):
    """The mapped tensors of one file and its metadata, whatever the file's name ends in."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is not a file.")
    try:
        with path.open("rb") as file:
            head = file.read(64)
        if head[8:9] == b"{":
            return _read_safetensors(path)
        if head.startswith(b"PK"):
            return _read_torch(path)
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror or error}.") from None
    raise CheckpointError(f"{path.name} {_stray_file(head)}.")


def _stray_file(head):
    if not head:
        return "is empty; download it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer of a few lines, not the weights; run 'git lfs pull' where it came from"
    if head.lstrip().startswith(b"<"):
        return "is a web page, not weights; the download was refused or redirected, so download it again"
    if head.startswith(b"\x80"):
        return (
            "is a pickle, or was saved by a PyTorch older than 1.6; neither can be mapped from the disk, and a pickle "
            "can run code, so get it as safetensors"
        )
    return "is neither a safetensors nor a PyTorch file, or its first part is damaged; download it again"


def _read_safetensors(path):
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except SafetensorError:
        raise CheckpointError(
            f"{path.name} is a damaged or cut short safetensors file; download or convert it again."
        ) from None


def _read_torch(path):
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):  # its table of contents is at the end
        raise CheckpointError(f"{path.name} is damaged or cut short; download it again.") from None
    if not any(name.endswith("/data.pkl") for name in names):
        raise CheckpointError(f"{path.name} is a zip archive, but not PyTorch's; unpack it if it holds weights.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # a damaged or hostile pickle makes the reader raise anything
        raise CheckpointError(
            f"{path.name} is damaged or holds more than tensors; what else a .pt file holds can run code, so it is "
            f"never read, and only the published files or safetensors are."
        ) from None
    return _flatten(content), {}


def _flatten(content, prefix=""):
    """{"unet": {"in_layer.weight": tensor}} -> {"unet.in_layer.weight": tensor}; what is no tensor is left out."""
    if isinstance(content, torch.Tensor):
        return {prefix.removesuffix("."): content.detach()}
    if not isinstance(content, Mapping):
        return {}
    return {
        name: tensor
        for key, value in content.items()
        for name, tensor in _flatten(value, f"{prefix}{key}.").items()
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return _inspect(options.file) if options.command == "inspect" else _convert(options)
    except CheckpointError as error:
        message = str(error)
    except KeyboardInterrupt:
        message = "Stopped; nothing was left behind."
    print(message, file=sys.stderr)
    return 1


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m kv_core.files.checkpoints", description="Kandinsky Video 1.1's files."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="say which part a file is, its sizes and types")
    inspect.add_argument("file", type=Path, help="safetensors or .pt file, or T5 folder")
    converter = commands.add_parser(
        "convert", help="convert to safetensors",
        description="Converts a .pt or safetensors file to one safetensors file, or a T5 folder to a folder with one.",
    )  # fmt: skip
    converter.add_argument("input", type=Path, help="safetensors or .pt file, or T5 folder")
    converter.add_argument("output", type=Path, help="a new .safetensors file; for a T5 folder, a new folder")
    converter.add_argument("--dtype", choices=DTYPES, help="type of the weights written (default: as they are)")
    return parser


def _inspect(path):
    checkpoint = open_checkpoint(path)
    bytes_by_type = {}
    for tensor in checkpoint.tensors.values():
        dtype = str(tensor.dtype).removeprefix("torch.")
        bytes_by_type[dtype] = bytes_by_type.get(dtype, 0) + tensor.nbytes
    parameters = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    print(f"{path.name} holds {PARTS[checkpoint.part][0]}; the node {PARTS[checkpoint.part][1]} takes it.")
    print(f"parameters: {parameters:,} in {len(checkpoint.tensors)} tensors")
    print("stored as: " + ", ".join(f"{dtype} {size / 2**30:.3f} GiB" for dtype, size in bytes_by_type.items()))
    if checkpoint.null_embedding is not None:
        print("with its null embedding")
    for size, value in checkpoint.config.items():
        print(f"{size}: {value}")
    return 0


def _convert(options):
    from tqdm import tqdm

    dtype = DTYPES[options.dtype] if options.dtype else None
    try:
        with tqdm(unit="B", unit_scale=True, desc=f"Writing {options.output.name}") as bar:

            def show(written, total):
                bar.total = total
                bar.update(written - bar.n)

            checkpoint = convert(options.input, options.output, dtype, show)
    except OSError as error:
        message = f"{options.output} could not be written: {error.strerror or error}; nothing was left behind."
        raise CheckpointError(message) from None
    print(f"{options.output} holds {PARTS[checkpoint.part][0]}; the node {PARTS[checkpoint.part][1]} takes it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
