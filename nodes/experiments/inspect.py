"""Looking into latents at any stage: as a sheet of frames, against another latent, and what it took to make them."""

from comfy_api.latest import io
from einops import rearrange

from ...kv_core.pictures import images, latent_rgb
from ...kv_core.pictures import sheets as looking
from .. import sockets
from ..inputs import EXPERIMENTS
from ..movq import decoded

TINY_SIDE = 16  # latent pixels; only the tiny models draw pictures this small


def pictures_of(stage, samples, movq):
    """Frames `[1, 4, F, h, w]` as pictures `[F, 8 h, 8 w, 3]` on the CPU: decoded, or in the previews' colours."""
    frames = rearrange(samples, "1 c f h w -> f c h w")
    if movq is not None:
        return decoded(stage, movq.decode_images, frames).cpu()
    tiny = max(frames.shape[-2:]) <= TINY_SIDE
    colours = latent_rgb.to_rgb(frames.float(), *(latent_rgb.TINY if tiny else latent_rgb.PUBLISHED))
    small = images.to_bytes(colours).float().cpu() / 255
    return small.repeat_interleave(looking.CELL, 1).repeat_interleave(looking.CELL, 2)


def any_latent_input(id, tooltip):
    return io.MultiType.Input(id, list(sockets.LATENTS.values()), tooltip=tooltip)


def pictures_input():
    return sockets.MoVQ.Input(
        "movq",
        optional=True,
        tooltip="The image MoVQ from Load MoVQ, for true pictures. Left open, every latent pixel is shown as a square "
        "in the colours of previews, which takes no time.",
    )


class ContactSheet(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoContactSheet",
            display_name="Contact Sheet",
            category=EXPERIMENTS,
            description="Shows all frames of a latent in one picture, at any stage of the graph.",
            search_aliases=["kandinsky", "preview", "grid", "storyboard"],
            inputs=[
                any_latent_input("samples", "A first frame, keyframes or a video."),
                io.Int.Input(
                    "columns",
                    default=6,
                    min=1,
                    max=100,
                    tooltip="Frames beside each other, 1 to 100; the next ones begin a new row.",
                ),
                io.Boolean.Input(
                    "numbers", default=True, tooltip="Whether each frame shows its number, counted from 0."
                ),
                pictures_input(),
            ],
            outputs=[io.Image.Output("sheet", tooltip="One picture with all frames.")],
        )

    @classmethod
    def execute(cls, samples, columns, numbers, movq=None) -> io.NodeOutput:
        frames = pictures_of("Contact Sheet", sockets.samples_of(samples, *sockets.LATENTS), movq)
        return io.NodeOutput(looking.contact_sheet(frames, min(columns, len(frames)), numbers)[None])


class Difference(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoDifference",
            display_name="Latent Difference",
            category=EXPERIMENTS,
            description="Shows where two latents differ, frame by frame, and by how much.",
            search_aliases=["kandinsky", "compare", "psnr", "heat map"],
            inputs=[
                any_latent_input("samples", "A first frame, keyframes or a video."),
                any_latent_input("other", "What it is compared with: as many frames of the same size."),
                io.Float.Input(
                    "brightest",
                    default=0.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    tooltip="The difference that is shown white, 0 to 2; 0: the largest there is. Latents lie between "
                    "about -1 and 1.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "heat_map",
                    tooltip="One picture a frame: the mean of the four channels' differences, from black over red and "
                    "yellow to white.",
                ),
                io.String.Output(
                    "report", tooltip="Mean and largest difference and PSNR of every frame and of all, as a table."
                ),
            ],
        )

    @classmethod
    def execute(cls, samples, other, brightest) -> io.NodeOutput:
        a, b = (sockets.samples_of(latent, *sockets.LATENTS) for latent in (samples, other))
        if a.shape != b.shape:
            raise ValueError(
                f"Latent Difference needs two latents of one size, but got {list(a.shape)} and {list(b.shape)}: choose "
                "the same number of frames, width and height for both."
            )
        maps, means, largest, psnr = looking.differences(a, b.to(a))
        heat = looking.heat(looking.enlarged(maps / (brightest or maps.max().item() or 1)))
        all_frames = looking.differences(*(rearrange(x, "1 c f h w -> 1 c 1 (f h) w") for x in (a, b.to(a))))
        rows = [f"{'frame':>5}  {'mean':>7}  {'largest':>7}  {'PSNR':>8}"]
        named = [*zip(range(len(maps)), means, largest, psnr), ("all", *(number[0] for number in all_frames[1:]))]
        for name, mean, most, ratio in named:
            rows.append(f"{name:>5}  {mean:7.4f}  {most:7.4f}  {ratio:5.1f} dB")
        return io.NodeOutput(heat, "\n".join(rows))


class Report(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoReport",
            display_name="Stage Report",
            category=EXPERIMENTS,
            description=(
                "Says how long each stage that made a latent took, and how much memory. Decoding comes after the "
                "latent: what it took is in the log."
            ),
            search_aliases=["kandinsky", "time", "memory", "profile", "benchmark"],
            inputs=[any_latent_input("samples", "A first frame, keyframes or a video, as its stage gave it.")],
            outputs=[
                io.String.Output(
                    "report",
                    tooltip="A table of the stages in order: seconds, and the most memory that was in use in GB. Show "
                    "it with Preview as Text.",
                )
            ],
        )

    @classmethod
    def execute(cls, samples) -> io.NodeOutput:
        sockets.samples_of(samples, *sockets.LATENTS)
        history = samples.get("history", [])
        if not history:
            return io.NodeOutput("No stage is recorded: this latent was loaded from a file or made by other nodes.")
        lines = [f"{one['stage']}: {one['seconds']:.1f} s, at most {one['peak_gb']:.2f} GB" for one in history]
        total = sum(one["seconds"] for one in history)
        most = max(one["peak_gb"] for one in history)
        return io.NodeOutput("\n".join([*lines, f"All: {total:.1f} s, at most {most:.2f} GB"]))
