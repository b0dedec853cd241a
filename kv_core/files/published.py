"""The published files: what each is, where it is published, and how large it is.

The one place for these facts: the download (`tools/get_weights.py`), the loaders' messages, the templates and the
README take them from here. Which part a file holds is still read from its tensors, never from its name.
"""

from dataclasses import dataclass
from pathlib import PurePosixPath

KANDINSKY = "ai-forever/KandinskyVideo_1_1"
FLAN_UL2 = "google/flan-ul2"  # the name that the published configs.json has for the text encoder


@dataclass(frozen=True)
class Published:
    """A published part; `part` is a key of detection.PART_NAMES, `file` is empty where the part is a folder of files.

    `gigabytes` is the approximate size of the download, for messages and pages only. The repositories' pages state 8.3,
    7.96, 1.08 and 0.134 GB for four of the files, and 19.6 GB for the first four of Flan-UL2's eight; the temporal
    MoVQ's follows from its parameters in float32. The download asks the repositories for exact sizes.
    """

    part: str
    repository: str
    file: str
    parameters: int
    gigabytes: float

    @property
    def name(self) -> str:
        """What it is called once it is downloaded and converted."""
        return f"{PurePosixPath(self.file).stem}.safetensors" if self.file else self.repository.split("/")[1]

    @property
    def page(self) -> str:
        return f"huggingface.co/{self.repository}"

    @property
    def url(self) -> str:
        return f"https://{self.page}/resolve/main/{self.file}"


# The keys are what `tools/get_weights.py --only` takes.
PUBLISHED = {
    "keyframes": Published("keyframe_unet", KANDINSKY, "t2v.pt", 4_149_077_956, 8.3),
    "interpolation": Published("interpolation_unet", KANDINSKY, "interpolation.pt", 3_979_941_530, 8.0),
    "movq": Published("image_movq", KANDINSKY, "movq.pt", 270_603_567, 1.1),
    "video_movq": Published("video_movq", KANDINSKY, "video_movq.pt", 666_131_275, 2.7),
    "text": Published("text_encoder", FLAN_UL2, "", 8_721_797_632, 19.6),
    "projections": Published("projections", KANDINSKY, "t5_projections.pt", 33_570_816, 0.13),
}
