"""The nodes: thin, each `execute` says what a stage does; what it takes to do it in ComfyUI is in host/."""

from comfy_api.latest import ComfyExtension, io

from . import choices, experiments, first_frame, interpolation, keyframes, latents, loaders, movq, text
from .host import files, renames

FILES = (loaders, text, first_frame, movq, keyframes, interpolation, latents, choices, *experiments.FILES)


class KandinskyVideoExtension(ComfyExtension):
    async def on_load(self):
        files.add_model_folders()
        await renames.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node class that is defined in FILES."""
        classes = (each for file in FILES for each in vars(file).values() if isinstance(each, type))
        return [each for each in classes if issubclass(each, io.ComfyNode) and each.__module__.startswith(__name__)]
