"""How many bytes of activations a stage needs at its widest layer, so that the host can make room for them.

The factors were counted, not timed: the full-size networks ran on the meta device, where nothing is computed, while the
bytes of all tensors alive were added up after every operation (attention by its output alone, as fused kernels need no
more). WORKSPACE covers what such a count does not see: the kernels' scratch memory and fragmentation.
"""

import sys

import psutil  # ComfyUI brings it

WORKSPACE = 1.1


def unet(rows, height, width, model_channels, dtype):
    """Either U-Net on `rows` frames or gaps (of all branches in a call) of `height` x `width` latent pixels.

    Counted at 384 model channels, going up at the outermost level: 2960 to 3160 numbers a latent pixel for keyframes
    (3 x 12 and 1 x 4 frames), 3040 for first frames, 2970 to 2990 for interpolation (2 x 11 and 1 x 44 gaps): about
    7.9 times the model channels.
    """
    return rows * height * width * 7.9 * model_channels * dtype.itemsize * WORKSPACE


def movq_encode(height, width, ch, dtype):
    """A MoVQ encoding one image of `height` x `width` pixels: counted five maps of `ch` channels at that size."""
    return height * width * 5 * ch * dtype.itemsize * WORKSPACE


def movq_decode(frames, height, width, ch, dtype):
    """A MoVQ decoding one chunk of frames to `height` x `width` pixels: counted six maps of `ch` channels.

    The image decoder and the video decoder (chunks of 1, 4 and 5 frames) need the same a frame.
    """
    return frames * height * width * 6 * ch * dtype.itemsize * WORKSPACE


def text_encode(tokens, d_model, d_ff, cast=True):
    """The T5 encoder in float32: four maps of `d_ff` channels, counted 32 numbers a pair of tokens for its position
    bias and, unless it is stored so, its largest layer's weight cast.
    """
    largest = d_ff * d_model if cast else 0
    return (tokens * (4 * d_ff + 32 * tokens) + largest) * 4 * WORKSPACE


def peak():
    """The most bytes of memory that this process ever held."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
