"""What people see of a stage while it runs: previews that move, the time left, and a line in the log at its end."""

import contextlib
import logging
import threading
import time

import comfy.model_management
import comfy.utils
import latent_preview
import torch
from comfy.patcher_extension import WrappersMP
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from einops import rearrange
from tqdm.auto import tqdm

from ...kv_core.networks import memory
from ...kv_core.pictures import images, latent_rgb
from ...kv_core.sampling.frames import CLIP_SECONDS

PREVIEW_RATE = 12  # frames a second


@contextlib.contextmanager
def measured(stage):
    """Times the block and, where it succeeds, logs its seconds and its most memory in 10^9 bytes.

    The memory is what was allocated meanwhile where the host computes by CUDA; elsewhere the most that the process ever
    held.
    """
    device = comfy.model_management.get_torch_device()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) if cuda else memory.peak()
    where = f"on {device}" if cuda else "in the process"
    logging.info(f"{stage}: {seconds:.1f} s, at most {peak / 1e9:.2f} GB {where}")


def progress(chunks, total, stage):
    """The chunks of frames as they are, while the log shows how many of `total` are done and the time left."""
    with bar(total, stage, "frame") as shown:
        for chunk in chunks:
            yield chunk
            shown.update(len(chunk))


def bar(total, stage, unit, disable=False):
    """A bar in the log that counts to `total` and estimates the time left."""
    return tqdm(total=total, desc=stage, unit=unit, disable=disable or not comfy.utils.PROGRESS_BAR_ENABLED)


def step_offset(model, done, total):
    """A clone of the model whose sampling reports its steps as those after `done` of `total` steps."""
    clone = model.clone()

    def sample(executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, *arguments, **more):
        def report(step, x0, x, steps):
            callback(done + step, x0, x, total)

        return executor(noise, latent_image, sampler, sigmas, denoise_mask, report, *arguments, **more)

    clone.add_wrapper(WrappersMP.OUTER_SAMPLE, sample)
    return clone


class Preview:
    """A stage's progress and previews: the sampler's callback within `with Preview(...) as callback`.

    clip: turns what is predicted into the latents `[1, 4, F, h, w]` of all frames there are. The step's callback shows
    one of them, as ComfyUI's own does; between steps, which on large models take seconds, a thread shows the next ones.
    Nothing is shown where ComfyUI's preview method is none.
    """

    def __init__(self, patcher, steps, clip):
        self.bar = comfy.utils.ProgressBar(steps)
        self.format = patcher.model.latent_format
        self.wanted = latent_preview.get_previewer(patcher.load_device, self.format) is not None
        self.clip = clip
        self.context = get_executing_context()
        self.shown = None  # step, steps and pictures, replaced as a whole for the thread's sake
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._play, daemon=True)

    def __enter__(self):
        if self.wanted and self.context is not None:
            self.thread.start()
        return self

    def __exit__(self, *exception):
        self.stop.set()
        if self.thread.is_alive():
            self.thread.join()

    def __call__(self, step, x0, x, steps):
        picture = None
        if self.wanted:
            self.shown = step + 1, steps, self._pictures(x0)
            picture = current(self.shown[2])
        self.bar.update_absolute(step + 1, steps, picture)

    def _pictures(self, x0):
        frames = rearrange(self.clip(x0).float(), "1 c f h w -> f c h w")
        frames = frames[:: max(1, round(len(frames) / (PREVIEW_RATE * CLIP_SECONDS)))]  # at no less than its own speed
        rgb = latent_rgb.to_rgb(frames, self.format.latent_rgb_factors, self.format.latent_rgb_factors_bias)
        return images.to_images(images.to_bytes(rgb))

    def _play(self):
        while not self.stop.wait(1 / PREVIEW_RATE):
            if self.shown is not None and len(self.shown[2]) > 1:
                step, steps, pictures = self.shown
                # Not by the progress bar, which would raise a cancelled run's exception in this thread.
                get_progress_state().update_progress(self.context.node_id, step, steps, current(pictures))


def current(pictures):
    """The picture whose turn it is, in the form in which ComfyUI takes previews: format, picture, largest side."""
    return "JPEG", pictures[int(time.monotonic() * PREVIEW_RATE) % len(pictures)], latent_preview.MAX_PREVIEW_RESOLUTION
