"""Moving previews: while a clip is sampled, the frames it has so far are shown one after another, over and over."""

import threading
import time

import comfy.utils
import latent_preview
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from einops import rearrange

from ...kv_core.pictures import images, latent_rgb
from ...kv_core.sampling.frames import CLIP_SECONDS

RATE = 12  # frames a second


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
        frames = frames[:: max(1, round(len(frames) / (RATE * CLIP_SECONDS)))]  # at no less than its own speed
        rgb = latent_rgb.to_rgb(frames, self.format.latent_rgb_factors, self.format.latent_rgb_factors_bias)
        return images.to_images(images.to_bytes(rgb))

    def _play(self):
        while not self.stop.wait(1 / RATE):
            if self.shown is not None and len(self.shown[2]) > 1:
                step, steps, pictures = self.shown
                # Not by the progress bar, which would raise a cancelled run's exception in this thread.
                get_progress_state().update_progress(self.context.node_id, step, steps, current(pictures))


def current(pictures):
    """The picture whose turn it is, in the form in which ComfyUI takes previews: format, picture, largest side."""
    return "JPEG", pictures[int(time.monotonic() * RATE) % len(pictures)], latent_preview.MAX_PREVIEW_RESOLUTION
