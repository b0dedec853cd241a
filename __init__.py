"""Kandinsky Video 1.1 for ComfyUI: the entry point.

The host is imported inside the function only, so that tools and tests can import this folder without ComfyUI.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Gives ComfyUI the extension; raises RuntimeError where ComfyUI is too old for it."""
    from comfyui_version import __version__

    if tuple(int(part) for part in __version__.split(".")[:2]) < (0, 30):
        raise RuntimeError(f"Kandinsky Video needs ComfyUI 0.30.0 or newer, but this is {__version__}: update ComfyUI.")

    from .nodes import KandinskyVideoExtension

    return KandinskyVideoExtension()
