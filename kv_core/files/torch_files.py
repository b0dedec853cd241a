"""Reads PyTorch's `.pt` files without running anything in them; their tensors stay mapped from the disk.

Such a file is an uncompressed zip archive. Its entry `data.pkl` is a pickle that describes nested dictionaries of
tensors; the entries `data/...` hold the raw numbers of one storage each. A pickle is a program for a stack machine, and
unpicklers, even PyTorch's restricted one, call what it asks for: a few bytes can then take all memory. Here Python's
own unpickler has only the instructions that the published files need, and finds nothing to call but what is below.
"""

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .detection import LONGEST_NAME, CheckpointError, check_names

# The most bytes that a table of contents or a pickle may have; those of the largest published file have 0.4 MB.
DESCRIPTION_LIMIT = 1_000_000
# Tensors lie this deep in dictionaries at most, and have so many axes; the published ones lie two deep and have five.
DEPTH = AXES = 8
# A T5's embedding has up to this many names in one file, for one and the same storage.
NAMES_OF_ONE_STORAGE = 4

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
INSTRUCTIONS = b"".join([
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.BINPERSID, pickle.REDUCE, pickle.BUILD),
    *(pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
    *(pickle.BINFLOAT, pickle.BINUNICODE, pickle.SHORT_BINSTRING),
])  # fmt: skip


class _Storage(NamedTuple):
    key: str
    dtype: torch.dtype


class _Tensor(NamedTuple):
    """A tensor as the pickle describes it; offset and strides in elements."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Dictionary(dict):
    """Keeps what has a text as its key, since hashing others can take forever; made empty, and without attributes."""

    def __init__(self) -> None:
        super().__init__()

    def __setitem__(self, key: Any, value: Any) -> None:
        if type(key) is str:
            super().__setitem__(key, value)

    def __setstate__(self, state: Any) -> None:
        """Leaves out the attributes of a state dict, its modules' versions."""


def _tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> _Tensor:
    if type(storage) is not _Storage or len(size) > AXES:
        raise pickle.UnpicklingError
    return _Tensor(storage, offset, size, stride)


# What a pickle may name.
NAMES: Mapping[str, Mapping[str, Any]] = {
    "collections": {"OrderedDict": _Dictionary},
    "torch": DTYPES,
    "torch._utils": {"_rebuild_tensor_v2": _tensor, "_rebuild_parameter": lambda tensor, *_: tensor},
}


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined]  # the one in Python, whose instructions can be chosen
    dispatch = {code: pickle._Unpickler.dispatch[code] for code in INSTRUCTIONS}  # type: ignore[attr-defined]
    dispatch[pickle.EMPTY_DICT[0]] = lambda self: self.append(_Dictionary())  # type: ignore[attr-defined]

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("torch._") and name.startswith("_rebuild_") and name not in NAMES.get(module, ()):
            raise CheckpointError(
                "holds tensors that are sparse, quantized or without values; expected plain ones, as the published "
                "files have."
            )
        return NAMES[module][name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, *_ = pid
        if type(key) is not str:
            raise pickle.UnpicklingError
        return _Storage(key, dtype)


def read_torch(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.pt` file, mapped from the disk, their names joined by dots: {"unet": {"a": t}} -> "unet.a".

    What is no tensor is left out. Raises CheckpointError for anything but tensors in dictionaries.
    """
    try:
        return _read(path)
    except (CheckpointError, OSError):
        raise
    except Exception:  # a damaged or hostile file makes zipfile and torch raise anything
        raise CheckpointError(f"{path.name} is damaged or cut short; download it again.") from None


def _read(path: Path) -> dict[str, torch.Tensor]:
    with _Frugal(path) as file, zipfile.ZipFile(file) as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        if "data.pkl" not in entries:
            raise CheckpointError(f"{path.name} is a zip archive, but not PyTorch's; unpack it if it holds weights.")
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries.values()):
            raise CheckpointError(
                f"{path.name} was compressed by another program, so its weights cannot be mapped from the disk; use "
                f"the file as PyTorch wrote it."
            )
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise CheckpointError(f"{path.name} was written on a big-endian computer; convert it to safetensors there.")
        described = _described(archive.read(entries["data.pkl"]), path.name)
        check_names(described, path.name)
        return _mapped(path, file, entries, described)


class _Frugal(io.FileIO):
    """A file that hands out no more than DESCRIPTION_LIMIT bytes at once, as much as a table of contents claims."""

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(DESCRIPTION_LIMIT + 1 if size is None or size < 0 else min(size, DESCRIPTION_LIMIT + 1))
        if len(data) > DESCRIPTION_LIMIT:
            raise CheckpointError(
                f"{Path(str(self.name)).name} describes its contents in over {DESCRIPTION_LIMIT // 10**6} MB, more "
                f"than any part of Kandinsky Video 1.1 needs; it is damaged or another model's."
            )
        return data


def _described(description: bytes, name: str) -> dict[str, _Tensor]:
    """The tensors of a pickle by their joined names."""
    try:
        return _joined(_Unpickler(io.BytesIO(description)).load())
    except CheckpointError as error:
        raise CheckpointError(f"{name} {error}") from None
    except Exception:  # what is left out of the unpickler raises anything
        raise CheckpointError(
            f"{name} is damaged or holds more than tensors; what else a .pt file holds can run code, so it is never "
            f"read, and only the published files or safetensors are."
        ) from None


def _joined(content: Any) -> dict[str, _Tensor]:
    """All tensors in nested dictionaries by their joined names; a dictionary that occurs again is skipped."""
    found: dict[str, _Tensor] = {}
    seen: set[int] = set()

    def walk(value: Any, name: str, depth: int) -> None:
        if len(name) > LONGEST_NAME:
            raise CheckpointError("has names that no part of Kandinsky Video 1.1 has; it is damaged or hostile.")
        if type(value) is _Tensor:
            found[name] = value
        elif type(value) is _Dictionary and id(value) not in seen:
            if depth == DEPTH:
                raise CheckpointError(f"holds dictionaries nested more than {DEPTH} deep; it is damaged or hostile.")
            seen.add(id(value))
            for key, inner in value.items():
                walk(inner, f"{name}.{key}" if name else key, depth + 1)

    walk(content, "", 0)
    return found


def _mapped(
    path: Path, file: io.FileIO, entries: Mapping[str, zipfile.ZipInfo], described: Mapping[str, _Tensor]
) -> dict[str, torch.Tensor]:
    size = path.stat().st_size
    whole = torch.UntypedStorage.from_file(str(path), False, size)
    tensors = {}
    for name, ((key, dtype), *place) in described.items():
        entry = entries[f"data/{key}"]
        start = _data_start(file, entry)
        # Refuses what reaches beyond the storage, since a mapped one cannot grow.
        tensors[name] = torch.empty(0, dtype=dtype, device="cpu").set_(whole[start : start + entry.file_size], *place)
    if sum(tensor.nbytes for tensor in tensors.values()) > NAMES_OF_ONE_STORAGE * size:
        raise CheckpointError(f"{path.name} describes more numbers than it holds; it is damaged or hostile.")
    return tensors


def _data_start(file: io.FileIO, entry: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin: after its own header, whose length the table of contents does not tell."""
    file.seek(entry.header_offset + 26)
    name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return entry.header_offset + 30 + name + extra
