"""Converts the model's files to safetensors one tensor at a time, so that no more than one of them is in memory.

The layout is the format's own: eight bytes with the header's length, the header as JSON, then the tensors' bytes in
the header's order without gaps. The safetensors library writes whole dictionaries; a conversion to another type would
hold all of it in memory.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from .checkpoints import COMPANIONS, Checkpoint, open_checkpoint
from .detection import METADATA_KEY, CheckpointError

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
}
FORMAT_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
TABLES = ("shared.weight", "relative_attention_bias.weight", "skip_embeddings.weight")


def convert(
    source: str | Path,
    target: str | Path,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], object] = lambda written, total: None,
) -> Checkpoint:
    """Converts a file to one safetensors file, or a T5 folder to a folder with one, in `dtype` (None: unchanged).

    Calls `progress` with the bytes written so far and in all after every tensor, and leaves nothing at `target` unless
    it is complete. Raises CheckpointError and OSError. Returns the converted checkpoint, opened.
    """
    checkpoint, target = open_checkpoint(source), Path(target)
    if target.exists():
        raise CheckpointError(f"{target} already exists; delete it or choose another name.")
    if not target.parent.is_dir():
        raise CheckpointError(f"{target.parent} is not a folder; create it first.")
    tensors = dict(checkpoint.tensors)
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


def stored_dtype(name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The type that a tensor gets in a conversion to `dtype` (None: its own)."""
    if dtype is None:
        return tensor.dtype
    if dtype == torch.float8_e4m3fn and (tensor.dim() < 2 or name.endswith(TABLES)):
        # Three bits of mantissa move a number by up to 6 %. Matrix products average that out; norms, biases, merges
        # and looked-up rows do not, and they are too few to be worth it.
        return tensor.dtype
    return dtype


def write_safetensors(
    target: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], object] = lambda written, total: None,
) -> None:
    """Writes `tensors`, converted to `dtype` (None: unchanged), to `target`, which appears only when it is complete.

    `progress` is called after every tensor with the bytes written so far and in all. Raises CheckpointError when the
    disk is too small or a value does not fit `dtype`, and OSError when writing fails; neither leaves anything behind.
    """
    dtypes = {name: stored_dtype(name, tensor, dtype) for name, tensor in tensors.items()}
    # Wide types first keep every tensor aligned to its own size, as the library's own files are.
    order = sorted(tensors, key=lambda name: (-dtypes[name].itemsize, name))
    header = _header(order, tensors, dtypes, metadata)
    total, written = sum(tensors[name].numel() * dtypes[name].itemsize for name in order), 0
    _check_space(target, len(header) + total)
    with appearing(target) as partial:
        with partial.open("wb") as file:
            file.write(header)
            for name in order:
                written += file.write(_bytes(name, tensors[name], dtypes[name]))
                progress(written, total)
            file.flush()
            os.fsync(file.fileno())
        with safe_open(partial, "pt"):
            pass  # opening checks the header and that the file is as long as it says


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A path beside `target`, a file or a folder to fill, that takes its name when the block ends without an error.

    It is `target` with `.partial` appended; what a killed run left there is removed first.
    """
    partial = target.with_name(target.name + ".partial")
    _remove(partial)
    try:
        yield partial
        os.replace(partial, target)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _header(
    order: Sequence[str],
    tensors: Mapping[str, torch.Tensor],
    dtypes: Mapping[str, torch.dtype],
    metadata: Mapping[str, str],
) -> bytes:
    entries: dict[str, dict[str, Any]] = {"__metadata__": dict(metadata)}
    start = 0
    for name in order:
        end = start + tensors[name].numel() * dtypes[name].itemsize
        entries[name] = {
            "dtype": FORMAT_NAMES[dtypes[name]], "shape": list(tensors[name].shape), "data_offsets": [start, end],
        }  # fmt: skip
        start = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _check_space(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise CheckpointError(
            f"{target.name} needs {needed / 2**30:.2f} GiB in {target.parent}, where {free / 2**30:.2f} GiB are free; "
            f"free some space, or choose another folder or a smaller type."
        )


def _bytes(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> memoryview:
    """The raw bytes of a tensor in `dtype`; a tensor already in it is not copied."""
    if tensor.dtype != dtype:
        tensor = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # 8-bit floats have no arithmetic
        low, high = tensor.aminmax()
        # Casting would turn what does not fit into infinities or NaN; `not <=` also catches a NaN.
        if not max(-low, high) <= torch.finfo(dtype).max:
            raise CheckpointError(
                f"Tensor {name} holds values that {str(dtype).removeprefix('torch.')} cannot represent; "
                f"convert to bfloat16 or float32."
            )
        tensor = tensor.to(dtype)
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
