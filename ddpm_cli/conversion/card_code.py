"""The code in a model card, which samples from the model with diffusers as ddpm-sample does."""

from collections.abc import Iterator
from dataclasses import dataclass

MOST_STEPS = 50  # of the shorter way
FEWEST_STEPS = 10  # for which it is worth a block of code
SOLVER_STEPS = 25  # of DPM-Solver++
# What has diffusers' solvers clip x_0, which do not know clip_sample: dynamic thresholding with an s of 1.
CLIPPED = "thresholding=True, sample_max_value=1.0"
SHOWN = 4  # images


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What the sampling code depends on.

    Args:
        channels, height, width: of the images.
        timesteps: of the schedule.
        ends_in_noise: whether the last of them is pure noise.
        labels: how many there are; None: the network takes none.
        no_label: the one that stands for none; None: the network is always given one.
        guided: whether it has been trained without labels too, as guidance needs.
        learns_variance: whether it answers with twice the channels.
        clips: whether x_0 is clipped to [-1, 1].
        rescales: whether it is scaled down to [-1, 1] instead.
    """

    channels: int
    height: int
    width: int
    timesteps: int
    ends_in_noise: bool
    labels: int | None
    no_label: int | None
    guided: bool
    learns_variance: bool
    clips: bool
    rescales: bool

    @property
    def few(self) -> int:
        """The most steps of equal length up to `MOST_STEPS`: diffusers walks DDIM by T // steps, whatever is next."""
        return max(steps for steps in range(1, MOST_STEPS + 1) if self.timesteps % steps == 0)

    @property
    def worth_few(self) -> bool:
        """Whether `few` is neither too small nor all T."""
        return FEWEST_STEPS <= self.few < self.timesteps

    @property
    def bounded(self) -> bool:
        """Whether x_0 is kept in [-1, 1], and eps must be derived again."""
        return self.clips or self.rescales


def drawing_code(drawing: Drawing) -> Iterator[str]:
    """Lines of Markdown. Each block of code runs as it is, in the directory of the model."""
    yield from _with_pipelines(drawing) if drawing.labels is None else _with_labels(drawing)
    if drawing.learns_variance:
        yield from (
            "",
            "Its variance is learned: only DDPMScheduler reads the channels of the variance. `ddpm-export "
            "variance=fixed_small` writes the model without them, for the other schedulers.",
        )


def _with_pipelines(drawing: Drawing) -> Iterator[str]:
    yield from (
        "```python",
        "from diffusers import DDPMPipeline",
        "",
        'pipeline = DDPMPipeline.from_pretrained(".")  # this directory, or its name on a hub',
        f"images = pipeline(batch_size={SHOWN}, num_inference_steps={drawing.timesteps}).images",
        "for i, image in enumerate(images):",
        '    image.save(f"{i}.png")',
        "```",
    )
    if drawing.learns_variance:
        return
    if drawing.worth_few:
        clipped = ", use_clipped_model_output=True" if drawing.bounded else ""
        yield from (
            "",
            f"or in {drawing.few} steps:",
            "",
            "```python",
            "from diffusers import DDIMPipeline",
            "",
            'pipeline = DDIMPipeline.from_pretrained(".")',
            f"images = pipeline(batch_size={SHOWN}, num_inference_steps={drawing.few}{clipped}).images",
            "```",
        )
    if drawing.timesteps > SOLVER_STEPS:
        solver = "DPMSolverMultistepScheduler"
        more = f", {CLIPPED}" if drawing.clips else ""
        yield from (
            "",
            f"or in {SOLVER_STEPS} steps of DPM-Solver++{', which clips x_0 only if it is told to' if more else ''}:",
            "",
            "```python",
            f"from diffusers import DDPMPipeline, {solver}",
            "",
            'pipeline = DDPMPipeline.from_pretrained(".")',
            f"pipeline.scheduler = {solver}.from_config(pipeline.scheduler.config{more})",
            f"images = pipeline(batch_size={SHOWN}, num_inference_steps={SOLVER_STEPS}).images",
            "```",
        )


def _with_labels(drawing: Drawing) -> Iterator[str]:
    yield from ("diffusers' pipelines give no labels. This loop does:", "", "```python")
    yield from ("import torch", "from diffusers import DDPMScheduler, UNet2DModel", "from PIL import Image", "")
    yield 'unet = UNet2DModel.from_pretrained(".", subfolder="unet")  # this directory, or its name on a hub'
    yield 'scheduler = DDPMScheduler.from_pretrained(".", subfolder="scheduler")'
    yield from _what_to_draw(drawing)
    yield from ("for t in scheduler.timesteps:", "    with torch.no_grad():")
    yield "        output = unet(x, t, class_labels=labels).sample"
    if drawing.guided:
        of = f"[:, :{drawing.channels}]"
        yield from (
            "        if scale != 1:",
            f"            without = unet(x, t, class_labels=torch.full_like(labels, {drawing.no_label})).sample",
            f"            output{of} = without{of} + scale * (output{of} - without{of})",
        )
    yield "    x = scheduler.step(output, t, x, generator=generator).prev_sample"
    yield "pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()  # [N, H, W, C]"
    yield "for i, image in enumerate(pixels):"
    yield '    Image.fromarray(image.squeeze()).save(f"{i}.png")'
    yield "```"
    if not drawing.learns_variance:
        yield from _fewer_steps(drawing)


def _fewer_steps(drawing: Drawing) -> Iterator[str]:
    """What to change in the loop."""
    if drawing.worth_few:
        clipped = " and `use_clipped_model_output=True` in `step`" if drawing.bounded else ""
        ddim = f"`DDIMScheduler` instead of `DDPMScheduler`, `set_timesteps({drawing.few})`{clipped}"
        yield from ("", f"In {drawing.few} steps: {ddim}.")
    if drawing.timesteps > SOLVER_STEPS:
        more = f", {CLIPPED}" if drawing.clips else ""
        solver = f"`DPMSolverMultistepScheduler.from_config(scheduler.config{more})`"
        yield from ("", f"In {SOLVER_STEPS} steps of DPM-Solver++: {solver} and `set_timesteps({SOLVER_STEPS})`.")


def _what_to_draw(drawing: Drawing) -> Iterator[str]:
    assert drawing.labels is not None
    shown = ", ".join(str(i % drawing.labels) for i in range(SHOWN))
    none = f"  # {drawing.no_label}: without a label" if drawing.guided else ""
    yield f"labels = torch.tensor([{shown}]){none}"
    if drawing.guided:
        yield "scale = 1.0  # guidance: above 1 goes further towards the labels"
    yield "generator = torch.Generator().manual_seed(0)"
    yield f"scheduler.set_timesteps({drawing.timesteps})"
    size = f"{drawing.channels}, {drawing.height}, {drawing.width}"
    yield f"x = torch.randn(len(labels), {size}, generator=generator)"
