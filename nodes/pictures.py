"""Between ComfyUI's IMAGE and latents, for every node that shows, encodes or decodes frames."""

import torch
from einops import rearrange

from ..kv_core.pictures import images, latent_rgb, sheets
from .host import progress
from .host.patchers import finite

TINY_SIDE = 16  # latent pixels; images this small are taken for the tiny model's


def encode(stage, movq, image, width, height):
    """The samples `[1, 4, F, h, w]` of an IMAGE whose pictures are fitted to a size and encoded one by one."""
    pixels = (images.to_pixels(images.fit(to_picture(one), width, height)) for one in image.split(1))
    with progress.measured(stage):
        latents = torch.cat(list(progress.progress(movq.encode_each(pixels, len(image)), len(image), stage)))
        return rearrange(finite(latents, "The MoVQ"), "f c h w -> 1 c f h w")


def decode(stage, decoder, samples, tile_size=0):
    """Samples `[1, 4, F, h, w]` as the host's IMAGE by `decoder`, a MoVQ's method, with progress in the log."""
    frames = rearrange(samples, "1 c f h w -> f c h w")
    with progress.measured(stage):
        return to_images(progress.progress(decoder(frames, tile_size // 8), len(frames), stage))


def show(stage, samples, movq):
    """Frames `[1, 4, F, h, w]` as pictures `[F, 8 h, 8 w, 3]` on the CPU: decoded, or in the previews' colours."""
    if movq is not None:
        return decode(stage, movq.decode_images, samples).cpu()
    frames = rearrange(samples, "1 c f h w -> f c h w")
    tiny = max(frames.shape[-2:]) <= TINY_SIDE
    colours = latent_rgb.to_rgb(frames.float(), *(latent_rgb.TINY if tiny else latent_rgb.PUBLISHED))
    return sheets.enlarged(images.to_bytes(colours).float().cpu() / 255)


def to_picture(image):
    """The host's IMAGE `[1, H, W, 1 to 4]` in [0, 1] -> a Pillow image, 8 bits exact."""
    rgb = image[..., :3] if image.shape[-1] >= 3 else image[..., :1].expand(-1, -1, -1, 3)
    return images.to_images((rgb * 255).round().clamp(0, 255).to(torch.uint8))[0]


def to_images(chunks):
    """Chunks of pixels `[b, 3, H, W]` -> the host's IMAGE `[frames, H, W, 3]`, whose values are k / 255."""
    frames = torch.cat([images.to_bytes(finite(pixels, "The MoVQ")) for pixels in chunks])
    return frames.float() / 255
