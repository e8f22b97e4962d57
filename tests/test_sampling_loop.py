"""How batches are drawn: by one loop, without waiting for the device, and through a network that has been compiled."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import run
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_cli.checkpoint.pretrained import load
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.guidance import Guidance
from ddpm_cli.diffusion.inversion import invert
from ddpm_cli.diffusion.loss import Hybrid
from ddpm_cli.diffusion.noise_schedule import expand_t
from ddpm_cli.diffusion.repaint import RePaint
from ddpm_cli.diffusion.samplers import DDIM, Ancestral, DPMSolverPP2M, DPMSolverPP2MSDE, Heun, Sampler, UniPC
from ddpm_cli.diffusion.schedule import linear
from ddpm_cli.diffusion.threshold import Dynamic
from ddpm_cli.diffusion.variance import FixedSmall, LearnedRange
from ddpm_cli.io.images import grid, to_uint8
from ddpm_cli.models.unet import UNet
from ddpm_cli.runtime.device import Compute, choose_compute
from ddpm_cli.runtime.seeds import ImageNoise
from ddpm_cli.sampling.build import _compiled
from ddpm_cli.sampling.loop import SamplingLoop
from ddpm_cli.sampling.modes import Generate, Plan, SampleContext

SHAPE = (1, 8, 8)
SOLVERS: dict[str, Sampler] = {
    "ddpm": Ancestral(steps=4, variance=LearnedRange()),
    "ddim": DDIM(steps=4),
    "noisy ddim": DDIM(steps=4, eta=0.5),
    "heun": Heun(steps=4),
    "dpmpp_2m": DPMSolverPP2M(steps=4),
    "dpmpp_2m_sde": DPMSolverPP2MSDE(steps=4),
    "unipc": UniPC(steps=4),
}


def make_ddpm(device: str = "cpu") -> DDPM:
    torch.manual_seed(0)
    network = UNet(8, 1, 8, (1, 2), 1, (4,), 0.0, norm_groups=4, num_classes=3, learn_variance=True)
    for parameter in network.parameters():  # some of them start at zero
        nn.init.normal_(parameter, std=0.1)
    return DDPM(network, linear(20), variance=LearnedRange(), loss=Hybrid()).to(device).eval()


def make_plan(sampler: Sampler, ddpm: DDPM, *, n: int) -> Plan:
    context = SampleContext(ddpm.schedule, sampler, SHAPE, n=n, classes=3, seed=0, device=ddpm.device)
    return Generate().plan(context)._replace(labels=[label for label in range(3) for _ in range(n)])


# Waiting for the device ----------------------------------------------------------------------------------------------


class Watching(TorchDispatchMode):
    """Counts what reads a number out of a tensor: on a GPU that waits until the GPU has done all it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.read += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


# Every way to decide something by t or by x_0.
GUIDANCE, THRESHOLD = Guidance(scale=2, interval=(3, 15), rescale=0.5), Dynamic(quantile=0.9)


def guided(ddpm: DDPM, labels: Tensor | None) -> Denoiser:
    return ddpm.denoiser(labels, guidance=GUIDANCE, threshold=THRESHOLD)


def ways(ddpm: DDPM) -> dict[str, Iterator[Tensor]]:
    x, schedule = torch.randn(2, *SHAPE, device=ddpm.device), ddpm.schedule
    denoise = guided(ddpm, torch.tensor([0, 2], device=ddpm.device))

    def noise() -> Tensor:
        return torch.randn_like(x)

    repaint = RePaint(variance=FixedSmall(), jump_length=2, resamplings=2)
    eight = Ancestral(steps=8).times(schedule)
    return {
        **{
            name: sampler.solve(denoise, schedule, sampler.times(schedule), x, noise)
            for name, sampler in SOLVERS.items()
        },
        "repaint": repaint.paint(denoise, schedule, eight, noise, image=x, mask=x[:1] > 0),
        "invert": invert(denoise, schedule, DDIM(steps=5).times(schedule), x),
    }


@torch.no_grad()
@pytest.mark.parametrize("way", [*SOLVERS, "repaint", "invert"])
def test_no_step_reads_a_number_from_the_device(way: str):
    states = ways(make_ddpm())[way]
    next(states)
    with Watching() as watching:
        bool(torch.ones(1))
        assert watching.read == 1, "it does see that"
        assert len(list(states)) >= 3
    assert watching.read == 1


@pytest.mark.cuda
@torch.no_grad()
@pytest.mark.parametrize("way", [*SOLVERS, "repaint", "invert"])
def test_no_step_waits_for_the_gpu(way: str):
    states = ways(make_ddpm("cuda"))[way]
    next(states)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(states)) >= 3
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_the_images_of_a_gpu_are_those_of_a_cpu_nearly():
    found = []
    for device in ("cpu", "cuda"):
        ddpm = make_ddpm(device)
        plan = make_plan(SOLVERS["ddpm"], ddpm, n=3)
        found.append(drawn(SamplingLoop(ddpm, plan, compute(device), denoiser=partial(guided, ddpm))))
    assert (found[0].int() - found[1].int()).abs().max() <= 2


@pytest.mark.cuda
def test_a_schedule_goes_to_the_gpu_with_its_model_and_stays_exact():
    ddpm, t = make_ddpm(), torch.arange(20)
    expected = [*ddpm.schedule.alpha_sigma(t, (20, 1)), *ddpm.schedule.posterior(t, t - 1, (20, 1))]
    ddpm.to("cuda", torch.bfloat16)
    assert torch.equal(ddpm.schedule.log_alpha_bar.cpu(), linear(20).log_alpha_bar)
    t = t.cuda()
    found = [*ddpm.schedule.alpha_sigma(t, (20, 1)), *ddpm.schedule.posterior(t, t - 1, (20, 1))]
    for one, other in zip(expected, found, strict=True):
        assert other.device.type == "cuda"
        torch.testing.assert_close(one, other.cpu(), rtol=1e-6, atol=1e-8)


def test_a_time_is_told_to_the_network_without_reading_one():
    x = torch.zeros(3, *SHAPE)
    with Watching() as watching:
        t = expand_t(7, x)
    assert watching.read == 0
    assert t.tolist() == [7, 7, 7]
    assert (t.dtype, t.device) == (torch.int64, x.device)


# Compiled ------------------------------------------------------------------------------------------------------------


def compute(device: str = "cpu") -> Compute:
    return choose_compute(device, "fp32")


def drawn(loop: SamplingLoop, *, batch_size: int = 4) -> Tensor:
    """uint8 `[N, C, H, W]`"""
    parts = []
    count = loop.plan.images
    batches = [range(count)[first : first + batch_size] for first in range(0, count, batch_size)]
    loop.draw(batches, lambda indices, images, trajectory: parts.append(images))
    return torch.cat(parts)


@pytest.mark.parametrize("solver", [pytest.param("ddpm", marks=pytest.mark.slow), "dpmpp_2m"])
def test_a_compiled_network_is_one_graph_for_every_step_of_every_whole_batch(solver: str, monkeypatch):
    """With and without labels, that is two; the batch that is left over goes through the network as it was written."""
    graphs, calls = [], []

    def backend(module: torch.fx.GraphModule, _):
        graphs.append(module)

        def call(*inputs: Tensor):
            calls.append(len(graphs))
            return module(*inputs)

        return call

    monkeypatch.setattr(
        Compute, "compile", lambda self, module: module.compile(backend=backend, fullgraph=True, dynamic=False)
    )
    torch.compiler.reset()
    ddpm = make_ddpm()
    sampler = SOLVERS[solver]
    make = partial(SamplingLoop, ddpm, make_plan(sampler, ddpm, n=3), compute(), denoiser=partial(guided, ddpm))
    as_written = drawn(make())
    loop = make(compiled=4)
    loop.compile(SHAPE)
    assert len(calls) == 1, "t = 0 is not guided"
    assert torch.equal(drawn(loop), as_written)
    assert len(graphs) == 2
    guided_steps = sum(3 <= t <= 15 for t in sampler.times(ddpm.schedule))
    assert len(calls) == 1 + 2 * (4 + guided_steps), "two batches of four, and one image that is left"


@pytest.mark.slow
def test_compiled_by_the_command_the_images_are_the_same(labelled: Path, tmp_path: Path):
    """By the real compiler, in a process of its own; n is no multiple of the batch."""
    options = [f"ckpt={labelled}", "n=5", "batch_size=2", "sampler=dpmpp_2m", "sampler.steps=6", "save=npz"]
    found = {}
    for compiled in ("true", "auto"):
        done = run("sample", *options, f"compile={compiled}", f"out=out_{compiled}", cwd=tmp_path, timeout=600)
        assert done.returncode == 0, done.stderr
        assert ("on cpu, fp32, compiled\n" in done.stdout) == (compiled == "true"), "auto compiles nothing on a CPU"
        with np.load(tmp_path / f"out_{compiled}" / "samples.npz") as archive:
            found[compiled] = archive["arr_0"].astype(int)
    assert np.abs(found["true"] - found["auto"]).max() <= 1


def test_what_cannot_be_compiled_is_a_mistake_only_where_it_was_asked_for(labelled: Path, sample_here, monkeypatch):
    def no_compiler(self: Compute, module: nn.Module) -> None:
        def broken(*_):
            raise RuntimeError("there is no compiler\nand so on")

        module.compile(backend=broken, fullgraph=True, dynamic=False)

    monkeypatch.setattr(Compute, "compile", no_compiler)
    options = [f"ckpt={labelled}", "n=3", "batch_size=2", "sampler.steps=2"]
    done = sample_here(*options, "compile=true", "out=asked")
    assert done.returncode == 2
    assert "ddpm-sample: compile: the network cannot be compiled here: " in done.stderr
    assert "there is no compiler" in done.stderr
    assert not Path("asked").exists(), "nothing was drawn"
    monkeypatch.setattr("ddpm_cli.sampling.build._compiled", lambda *_: True)  # as on CUDA, for many images
    done = sample_here(*options, "out=auto")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("not compiled: ")
    assert ", compiled" not in done.stdout


@pytest.mark.parametrize(
    ("device", "n", "scale", "compiled"),
    [("cuda", 2000, 1, True), ("cuda", 1999, 1, False), ("cuda", 1000, 2, True), ("cpu", 10**6, 2, False)],
)
def test_auto_compiles_by_the_number_of_calls(device: str, n: int, scale: float, compiled: bool):
    options = SimpleNamespace(compile="auto", guidance={"scale": scale}, batch_size=12)
    ddpm = make_ddpm()
    plan = make_plan(SOLVERS["ddim"], ddpm, n=n)  # three classes of them, four steps
    assert plan.steps == 4
    assert _compiled(plan, Compute(torch.device(device), "fp32"), options) is compiled


# One loop ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_ddpm_alone_draws_what_the_loop_draws_of_the_same_noise_bit_for_bit(solver: str, monkeypatch):
    ddpm, sampler = make_ddpm(), SOLVERS[solver]
    loop = SamplingLoop(ddpm, make_plan(sampler, ddpm, n=1), compute(), denoiser=partial(guided, ddpm))
    for i in range(3):
        noise = ImageNoise(0, range(i, i + 1), SHAPE)
        monkeypatch.setattr(torch, "randn", lambda *_, noise=noise, **__: noise())
        alone = ddpm.sample(
            1,
            SHAPE[1:],
            SHAPE[0],
            show_progress=False,
            sampler=sampler,
            labels=torch.tensor([i]),
            guidance=GUIDANCE,
            threshold=THRESHOLD,
        )
        *_, x = loop.states(range(i, i + 1))
        assert torch.equal(alone, x.clamp(-1, 1))
        assert torch.equal(to_uint8(alone), drawn(loop, batch_size=1)[i : i + 1])


@pytest.mark.parametrize("labels", [False, True], ids=["without labels", "labels"])
def test_the_preview_of_a_run_is_what_its_last_checkpoint_draws(labels: bool, request, sample_here):
    """Bit for bit: by the command, and by a DDPM that somebody loads and draws with."""
    if labels:
        run_directory = request.getfixturevalue("labelled")
    else:
        (run_directory,) = (request.getfixturevalue("finished")[0] / "outputs" / "digits").iterdir()
    asked = ["classes=[0,1,2,3]", "n=1"] if labels else ["n=4"]
    done = sample_here(
        f"ckpt={run_directory}", *asked, "sampler=dpmpp_2m_sde", "sampler.steps=3", "save=npz", "out=out"
    )
    assert done.returncode == 0, done.stderr
    with np.load("out/samples.npz") as archive:
        by_command = torch.from_numpy(archive["arr_0"]).permute(0, 3, 1, 2)
    with Image.open(run_directory / "previews" / "step_00000004.png") as picture:
        preview = torch.from_numpy(np.array(picture))[None]
    assert torch.equal(preview, grid(by_command))
    pretrained = load(str(run_directory))
    sampler, schedule, noise = DPMSolverPP2MSDE(steps=3), pretrained.ddpm.schedule, ImageNoise(0, range(4), (1, 16, 16))
    compute().place(pretrained.ddpm)
    denoise = pretrained.ddpm.denoiser(torch.arange(4) if labels else None)
    states = sampler.solve(denoise, schedule, sampler.times(schedule), noise(), noise)
    *_, x = pretrained.ddpm.reverse_process(states)
    assert torch.equal(to_uint8(x), by_command)
