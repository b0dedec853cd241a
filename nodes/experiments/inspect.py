"""Looking into latents at any stage: as a sheet of frames, or against another latent."""

from comfy_api.latest import io

from ...kv_core.pictures import images, sheets
from .. import inputs, pictures, sockets


class ContactSheet(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoContactSheet",
            display_name="Contact Sheet",
            category=inputs.EXPERIMENTS,
            description="Shows all frames of a latent in one image, at any stage of the graph.",
            search_aliases=["kandinsky", "preview", "grid", "storyboard"],
            inputs=[
                inputs.any_latent("samples", "A first frame, keyframes or a video."),
                inputs.ranged("columns", 6, 1, 100, "Frames per row."),
                io.Boolean.Input("numbers", default=True, tooltip="Shows the number of each frame, counted from 0."),
                inputs.preview_movq(),
            ],
            outputs=[io.Image.Output("sheet", tooltip="One image with all frames.")],
        )

    @classmethod
    def execute(cls, samples, columns, numbers, movq=None) -> io.NodeOutput:
        frames = pictures.show("Contact Sheet", sockets.samples_of(samples, *sockets.LATENTS), movq)
        return io.NodeOutput(sheets.contact_sheet(frames, min(columns, len(frames)), numbers)[None])


class Difference(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoDifference",
            display_name="Latent Difference",
            category=inputs.EXPERIMENTS,
            description="Shows where two latents differ, frame by frame, and by how much.",
            search_aliases=["kandinsky", "compare", "psnr", "heat map"],
            inputs=[
                inputs.any_latent("samples", "A first frame, keyframes or a video."),
                inputs.any_latent("other", "The latent to compare with: the same number of frames, of the same size."),
                inputs.ranged(
                    "brightest",
                    0.0,
                    0.0,
                    2.0,
                    "Difference mapped to white. 0 scales to the largest difference. Latents lie between about "
                    "-1 and 1.",
                    step=0.01,
                ),
            ],
            outputs=[
                io.Image.Output(
                    "heat_map",
                    tooltip="One image per frame: the mean difference of the four channels, from black through red and "
                    "yellow to white.",
                ),
                io.String.Output(
                    "report",
                    tooltip="Mean difference, largest difference and PSNR of each frame and of all, as a table.",
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
        maps, means, largest, psnr = sheets.differences(a, b.to(a))
        heat = sheets.heat(sheets.enlarged(maps / (brightest or maps.max().item() or 1)))
        whole = "all", means.mean(), largest.max(), images.psnr(a.cpu(), b.cpu().to(a.dtype), 2, None)
        rows = [f"{'frame':>5}  {'mean':>7}  {'largest':>7}  {'PSNR':>8}"]
        for name, mean, most, ratio in [*zip(range(len(maps)), means, largest, psnr), whole]:
            rows.append(f"{name:>5}  {mean:7.4f}  {most:7.4f}  {ratio:5.1f} dB")
        return io.NodeOutput(heat, "\n".join(rows))
