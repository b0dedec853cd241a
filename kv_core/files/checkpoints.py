"""Opens the model's files safely: tensors stay mapped from the disk, and nothing in a file is ever run.

A file is safetensors, the published `.pt`, or a Hugging Face folder with the T5 encoder.
"""

import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .detection import (
    DECODER,
    LARGEST_SIZE,
    METADATA_KEY,
    PART_NAMES,
    CheckpointError,
    WrongPartError,
    check_complete,
    check_names,
    detect,
)
from .torch_files import DESCRIPTION_LIMIT, read_torch

# A Hugging Face folder names its weights in one of these ways; the safe format comes first.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# What a folder needs besides its weights.
COMPANIONS = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

# The weights' types; what has another was made by another program, to save memory.
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
# The most bytes of a safetensors header. Names and shapes take 0.3 MB, but some programs add long metadata.
HEADER_LIMIT = 8_000_000


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A recognised, complete file.

    `part` is a key of PART_NAMES, `config` the keyword sizes of its class, `metadata` the file's own, `tensors` those
    under their published names, mapped from the disk, and `null_embedding` a U-Net's token `(d,)` where there is one.
    """

    path: Path
    part: str
    config: dict[str, Any]
    metadata: dict[str, str]
    null_embedding: torch.Tensor | None
    tensors: dict[str, torch.Tensor]


def open_checkpoint(path: str | Path, expect: str | tuple[str, ...] | None = None) -> Checkpoint:
    """Opens a file or folder, recognises it, and compares every tensor's shape with the model it must fit.

    `expect` names the part, or parts, that the caller can use. Raises WrongPartError for another part and
    CheckpointError for anything else, each with one sentence.
    """
    path = Path(path)
    tensors, metadata = _read_folder(path) if path.is_dir() else _read_file(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found = detect(shapes, metadata, path.name)
    expected = (expect,) if isinstance(expect, str) else expect
    if expected and found.part not in expected:
        wanted = " or ".join(PART_NAMES[part] for part in expected)
        raise WrongPartError(f"{path.name} holds {PART_NAMES[found.part]} instead of {wanted}.", found.part)
    check_complete(found, shapes, path.name)
    published = {name: tensors[in_file] for name, in_file in found.tensors.items()}
    _check_types(published, path.name)
    null_embedding = None
    if found.null_embedding:
        null_embedding = _null_embedding(tensors[found.null_embedding], found.config["context_dim"], path.name)
    return Checkpoint(path, found.part, found.config, metadata, null_embedding, published)


def encoder_shards(index: object, name: str = "The index") -> list[str]:
    """The names of the weight files that hold an encoder, from a folder's parsed index; `name` is the index's own.

    A whole T5 has more files, for its decoder, which are not needed. Raises CheckpointError where none is named.
    """
    weight_map = index.get("weight_map") if isinstance(index, Mapping) else None
    weight_map = weight_map if isinstance(weight_map, Mapping) else {}
    # Only the name is used: a file lies beside its index, whatever path the index may give.
    shards = {Path(str(file)).name for tensor, file in weight_map.items() if not tensor.startswith(DECODER)}
    if not shards or not all(re.fullmatch(r"\w[\w.-]{0,99}", shard) for shard in shards):
        raise CheckpointError(f"{name} does not say which files hold the weights; download it again.")
    return sorted(shards)


def _check_types(tensors: Mapping[str, torch.Tensor], name: str) -> None:
    strange = next((tensor.dtype for tensor in tensors.values() if tensor.dtype not in FLOATS), None)
    if strange:
        raise CheckpointError(
            f"{name} holds weights of type {str(strange).removeprefix('torch.')}, so another program quantized or "
            f"changed it; use the original file, or convert that to a smaller type."
        )


def _null_embedding(tensor: torch.Tensor, context_dim: int, name: str) -> torch.Tensor:
    _check_types({"null_embedding": tensor}, name)
    if tuple(tensor.shape) not in ((context_dim,), (1, context_dim), (1, 1, context_dim)):
        raise CheckpointError(
            f"{name} has a null embedding of shape {reprlib.repr(tuple(tensor.shape))}; expected ({context_dim},), "
            f"the width of its text context."
        )
    return tensor.reshape(-1)


def _read_folder(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if weights is None:
        raise CheckpointError(
            f"{folder.name} is a folder without weights; a T5 encoder's folder holds model.safetensors, or "
            f"model.safetensors.index.json with its parts."
        )
    tensors: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    for part in [weights] if weights.suffix != ".json" else _shards(weights):
        part_tensors, part_metadata = _read_file(part)
        tensors |= part_tensors
        metadata |= part_metadata
    settings = _read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if settings.get("feed_forward_proj", "gated-silu") != "gated-silu":
        raise CheckpointError(
            f"{folder.name} holds a T5 with {reprlib.repr(settings['feed_forward_proj'])} feed-forward, but Flan-UL2 "
            f"has 'gated-silu'; choose Flan-UL2's encoder."
        )
    distance = settings.get("relative_attention_max_distance")
    if METADATA_KEY not in metadata and distance is not None:
        if type(distance) is not int or not 1 <= distance <= LARGEST_SIZE:
            raise CheckpointError(
                f"config.json in {folder.name} states relative_attention_max_distance {reprlib.repr(distance)}; "
                f"expected a whole number above 0."
            )
        metadata[METADATA_KEY] = json.dumps({"config": {"relative_attention_max_distance": distance}})
    return tensors, metadata


def _shards(index: Path) -> list[Path]:
    """The files with the encoder that an index names, in order."""
    shards = [index.parent / name for name in encoder_shards(_read_json(index), index.name)]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent.name} lacks {len(missing)} of its {len(shards)} weight files, {missing[0]} first; download "
            f"them into the same folder."
        )
    return shards


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(DESCRIPTION_LIMIT + 1)
        content = json.loads(text) if len(text) <= DESCRIPTION_LIMIT else None
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} in {path.parent.name} is not a readable JSON object; download it again.")
    return content


def _read_file(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The mapped tensors of one file and its metadata, whatever the file's name ends in."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is not a file.")
    try:
        with path.open("rb") as file:
            head = file.read(64)
        if head[8:9] == b"{":
            return _read_safetensors(path, int.from_bytes(head[:8], "little"))
        if head.startswith(b"PK"):
            return read_torch(path), {}
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror or error}.") from None
    raise CheckpointError(f"{path.name} {_stray_file(head)}.")


def _stray_file(head: bytes) -> str:
    if not head:
        return "is empty; download it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights; run 'git lfs pull' in the repository it came from"
    if head.lstrip().startswith(b"<"):
        return "is a web page, not weights; the download was refused or redirected, so download it again"
    if head.startswith(b"\x80"):
        return (
            "is a pickle, or was saved by a PyTorch older than 1.6; neither can be mapped from the disk, and a pickle "
            "can run code, so get it as safetensors"
        )
    return "is neither a safetensors nor a PyTorch file, or its beginning is damaged; download it again"


def _read_safetensors(path: Path, header: int) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        if header > min(HEADER_LIMIT, path.stat().st_size):
            raise SafetensorError("its header is too long")
        with safe_open(path, "pt") as file:
            check_names(file.keys(), path.name)
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except SafetensorError:
        raise CheckpointError(
            f"{path.name} is a damaged or cut short safetensors file; download or convert it again."
        ) from None
