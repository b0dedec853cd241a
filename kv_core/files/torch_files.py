"""Reads PyTorch's `.pt` files without running anything in them; their tensors stay mapped from the disk.

Such a file is an uncompressed zip archive. Its entry `data.pkl` is a pickle that describes nested dictionaries of
tensors; the entries `data/...` hold the raw numbers of one storage each. A pickle is a program for a stack machine, and
unpicklers, even PyTorch's restricted one, call what it asks for: a few bytes can then take all memory. The published
files need some thirty instructions, which are interpreted here without calling anything; any other is refused.
"""

import io
import pickletools
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

STORAGES = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}
DICTIONARY = "collections OrderedDict"
TENSOR, PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
# Instructions that push their argument, and those that push an empty container.
CONSTANTS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
SINGLETONS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Global(NamedTuple):
    """A function or class that a pickle names; it is never looked up."""

    name: str


class _Storage(NamedTuple):
    key: str
    dtype: torch.dtype


class _Tensor(NamedTuple):
    """A tensor as the pickle describes it; offset and strides in elements."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_torch(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.pt` file, mapped from the disk, their names joined by dots: {"unet": {"a": t}} -> "unet.a".

    What is no tensor is left out. Raises CheckpointError for anything but tensors in dictionaries.
    """
    try:
        return _read(path)
    except (CheckpointError, OSError):
        raise
    except Exception:  # a damaged or hostile file makes zipfile, pickletools or the stack machine raise anything
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
        try:
            described = _tensors(_run(archive.read(entries["data.pkl"])))
        except _UnknownError as error:
            raise CheckpointError(f"{path.name} {error}") from None
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


class _UnknownError(Exception):
    """A pickle with something else than plain tensors; the message continues a sentence that begins with the file."""


def _run(pickle: bytes) -> Any:
    """Interprets the pickle's instructions as far as they describe dictionaries of tensors; returns the result."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop_marked() -> list[Any]:
        mark = marks.pop()
        items = stack[mark:]
        del stack[mark:]
        return items

    argument: Any
    for opcode, argument, _ in pickletools.genops(pickle):
        name = opcode.name
        if name in CONSTANTS:
            stack.append(argument)
        elif name in SINGLETONS:
            stack.append(SINGLETONS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(pop_marked()))
        elif name in TUPLES:
            stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set(stack[-1], [key, value])
        elif name == "SETITEMS":
            items = pop_marked()
            _set(stack[-1], items)
        elif name == "APPEND":
            stack.pop()  # lists hold no weights
        elif name == "APPENDS":
            pop_marked()
        elif name == "GLOBAL":
            stack.append(_named(argument))
        elif name == "BINPERSID":
            stack.append(_storage(*stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_made(function, *arguments))
        elif name == "BUILD":
            stack.pop()  # the attributes of a state dict, its modules' versions
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            raise _unknown()
    raise ValueError("no end")


def _set(target: Any, items: list[Any]) -> None:
    """Puts alternating keys and values into a dictionary. Only text is kept: hashing other keys can take forever."""
    if type(target) is not dict:
        raise _unknown()
    target.update((key, value) for key, value in zip(items[::2], items[1::2]) if type(key) is str)


def _named(name: str) -> _Global:
    if name in STORAGES or name in (DICTIONARY, TENSOR, PARAMETER):
        return _Global(name)
    if name.startswith(("torch._utils _rebuild_", "torch._tensor _rebuild_")):
        raise _UnknownError(
            "holds tensors that are sparse, quantized or without values; expected plain ones, as the published files "
            "have."
        )
    raise _unknown()


def _unknown() -> _UnknownError:
    return _UnknownError(
        "is damaged or holds more than tensors; what else a .pt file holds can run code, so it is never read, and only "
        "the published files or safetensors are."
    )


def _storage(word: str, kind: _Global, key: str, *_: Any) -> _Storage:
    if word != "storage" or type(key) is not str:
        raise _unknown()
    return _Storage(key, STORAGES[kind.name])


def _made(function: _Global, *arguments: Any) -> Any:
    """What a call in a pickle makes."""
    if function == (DICTIONARY,) and not arguments:
        return {}
    if function == (TENSOR,) and type(arguments[0]) is _Storage and len(arguments[2]) <= AXES:
        return _Tensor(*arguments[:4])
    if function == (PARAMETER,) and type(arguments[0]) is _Tensor:
        return arguments[0]
    raise _unknown()


def _tensors(content: Any) -> dict[str, _Tensor]:
    """All tensors in nested dictionaries by their joined names; a dictionary that occurs again is skipped."""
    found: dict[str, _Tensor] = {}
    seen: set[int] = set()

    def walk(value: Any, name: str, depth: int) -> None:
        if len(name) > LONGEST_NAME:
            raise _UnknownError("has names that no part of Kandinsky Video 1.1 has; it is damaged or hostile.")
        if type(value) is _Tensor:
            found[name] = value
        elif type(value) is dict and id(value) not in seen:
            if depth == DEPTH:
                raise _UnknownError(f"holds dictionaries nested more than {DEPTH} deep; it is damaged or hostile.")
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
    storages: dict[str, torch.UntypedStorage] = {}
    tensors = {}
    for name, tensor in described.items():
        key, dtype = tensor.storage
        if key not in storages:
            entry = entries[f"data/{key}"]
            start = _data_start(file, entry)
            storages[key] = whole[start : start + entry.file_size]
        # Refuses what reaches beyond the storage, since a mapped one cannot grow.
        tensors[name] = torch.empty(0, dtype=dtype, device="cpu").set_(
            storages[key], tensor.offset, tensor.size, tensor.stride
        )
    if sum(tensor.nbytes for tensor in tensors.values()) > NAMES_OF_ONE_STORAGE * size:
        raise CheckpointError(f"{path.name} describes more numbers than it holds; it is damaged or hostile.")
    return tensors


def _data_start(file: io.FileIO, entry: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin: after its own header, whose length the table of contents does not tell."""
    file.seek(entry.header_offset + 26)
    name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return entry.header_offset + 30 + name + extra
