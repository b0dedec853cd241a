"""Which model files the loaders offer, where they are, and which node loads which part."""

import json
import re
from pathlib import Path

import folder_paths

from ...kv_core.files import checkpoints
from ...kv_core.files.detection import CheckpointError, WrongPartError
from ...kv_core.files.published import PUBLISHED

PACK = Path(__file__).parents[2]

_LOADERS = json.loads((PACK / "nodes" / "loaders.json").read_text(encoding="utf-8"))
LOADED_BY = {part: loader["node"] for part, loader in _LOADERS.items()}
CATEGORIES = tuple(dict.fromkeys(loader["folder"] for loader in _LOADERS.values()))

# One Hugging Face folder holds its weights in one such file, or in several with an index beside them.
_FOLDER_WEIGHTS = re.compile(r"(?P<folder>.+)/(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)")


def open_checkpoint(path, expect):
    """`checkpoints.open_checkpoint`; the node that takes another part is named.

    Raises ValueError: the editor shows an error's type before its message, and of a type of our own its module's path.
    """
    try:
        return checkpoints.open_checkpoint(path, expect)
    except WrongPartError as error:
        message = f"{str(error).removesuffix('.')}; the node {LOADED_BY[error.part]} takes it."
    except CheckpointError as error:
        message = str(error)
    raise ValueError(message)


def add_model_folders():
    """Adds `<pack>/models/<category>`, where the tiny demonstration models lie, to the host's search paths."""
    for category in CATEGORIES:
        folder_paths.add_model_folder_path(category, str(PACK / "models" / category))


def names(category):
    """Names for a loader's list, relative to the category's folders, with "/" on every system.

    A Hugging Face folder is listed as itself, not as the files in it. Reads only the host's cached list: schemas are
    built often.
    """
    found = set()
    for name in folder_paths.get_filename_list(category):
        name = name.replace("\\", "/")
        weights = _FOLDER_WEIGHTS.fullmatch(name) if category == "text_encoders" else None
        found.add(weights["folder"] if weights else name)
    return sorted(found)


def choices(category, preferred):
    """Options and default of a loader's list: the tiny model `preferred` where it is there, else the first."""
    options = names(category)
    return {"options": options, "default": preferred if preferred in options else None}


def check(category, name, parts):
    """True where `name` (None while it comes over a link) can be loaded, else one sentence that says what to do.

    `parts` are the keys of PUBLISHED that go there; of several, one whose file is called so is meant.
    """
    if name is None or name in names(category):
        return True
    file = name.split("/")[-1]
    parts = [part for part in parts if file in (PUBLISHED[part].file, PUBLISHED[part].name)] or parts
    files = " and ".join(PUBLISHED[part].name for part in parts)
    size = f"{sum(PUBLISHED[part].gigabytes for part in parts):.1f} GB"
    return (
        f"'{name}' is not in ComfyUI's models/{category} folder: run 'python3 tools/get_weights.py --only "
        f"{' '.join(parts)}' in this pack's folder, which puts {files} there ({size} from {PUBLISHED[parts[0]].page}), "
        "and choose it in this node."
    )


def path(category, name):
    """The full path of a file or folder in the list; raises FileNotFoundError where it is gone."""
    if name in names(category):
        for root in folder_paths.get_folder_paths(category):
            if (found := Path(root, name)).exists():
                return str(found)
    raise FileNotFoundError(f"'{name}' is no longer in ComfyUI's models/{category} folder: choose another file.")
