"""What a stage took: one line in the log, and a plain record that travels with its latent."""

import contextlib
import logging
import time

import comfy.model_management
import comfy.utils
import torch
from tqdm.auto import tqdm

from ...kv_core.networks import memory

GIGA = 1e9


def history_of(*latents):
    """The records of all that led to these latents, each once, in order."""
    history = []
    for latent in latents:
        history += [record for record in latent.get("history", ()) if record not in history]
    return history


@contextlib.contextmanager
def measured(stage, *before):
    """Times the block as `stage`, and logs it where it succeeds.

    Gives a list that afterwards is the latent's `history`: the records of the latents `before` that the stage began
    from, then its own: {"stage", "seconds", "peak_gb"}. peak_gb, in 10^9 bytes, is the most memory that was allocated
    meanwhile where the host computes by CUDA; elsewhere the most that its process ever held.
    """
    history = history_of(*before)
    device = comfy.model_management.get_torch_device()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    yield history
    seconds = time.perf_counter() - start
    peak = (torch.cuda.max_memory_allocated(device) if cuda else memory.peak()) / GIGA
    history.append({"stage": stage, "seconds": round(seconds, 3), "peak_gb": round(peak, 3)})
    where = f"on {device}" if cuda else "in the process"
    logging.info(f"{stage}: {seconds:.1f} s, at most {peak:.2f} GB {where}")


def progress(chunks, total, stage):
    """The chunks of frames as they are, while the log shows how many of `total` are done and the time that is left."""
    with bar(total, stage, "frame") as shown:
        for chunk in chunks:
            yield chunk
            shown.update(len(chunk))


def bar(total, stage, unit, disable=False):
    """A bar in the log that counts to `total` and estimates the time that is left."""
    return tqdm(total=total, desc=stage, unit=unit, disable=disable or not comfy.utils.PROGRESS_BAR_ENABLED)
