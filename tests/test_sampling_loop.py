"""How batches are drawn: without waiting for the device, and through a network that has been compiled."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import run
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_cli.diffusion import samplers, threshold, times
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.guidance import Guidance
from ddpm_cli.diffusion.inversion import invert
from ddpm_cli.diffusion.loss import Hybrid
from ddpm_cli.diffusion.repaint import repaint
from ddpm_cli.diffusion.samplers import Sampler, State
from ddpm_cli.diffusion.schedule import linear
from ddpm_cli.diffusion.variance import fixed_small, learned_range
from ddpm_cli.models.unet import UNet
from ddpm_cli.runtime.device import Compute, choose_compute
from ddpm_cli.sampling.build import _compiled
from ddpm_cli.sampling.loop import SamplingLoop
from ddpm_cli.sampling.modes import Generate, Plan, SampleContext

SHAPE = (1, 8, 8)
SOLVERS: dict[str, Sampler] = {
    "ddpm": partial(samplers.ddpm, steps=4, variance=learned_range),
    "ddim": partial(samplers.ddim, steps=4),
    "noisy ddim": partial(samplers.ddim, steps=4, eta=0.5),
    **{s.__name__: partial(s, steps=4) for s in (samplers.heun, samplers.dpmpp_2m, samplers.dpmpp_2m_sde)},
    "unipc": partial(samplers.unipc, steps=4),
}


def make_ddpm(device: str = "cpu") -> DDPM:
    torch.manual_seed(0)
    network = UNet(8, 1, 8, (1, 2), 1, (4,), 0.0, norm_groups=4, num_classes=3, learn_variance=True)
    for parameter in network.parameters():  # some of them start at zero
        nn.init.normal_(parameter, std=0.1)
    return DDPM(network, linear(20), variance=learned_range, loss=Hybrid()).to(device).eval()


def make_plan(sampler: Sampler, ddpm: DDPM, *, n: int) -> Plan:
    setting = SampleContext(ddpm.schedule, sampler, SHAPE, n=n, classes=3, seed=0, device=ddpm.device)
    return Generate().plan(setting)


# Waiting for the device ----------------------------------------------------------------------------------------------


class Watching(TorchDispatchMode):
    """Counts what reads a number out of a tensor: on a GPU that waits until the GPU has done all it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.read += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def guided(ddpm: DDPM, labels: Tensor):
    """Every way to decide something by t or by x_0."""
    bounds = partial(threshold.dynamic, quantile=0.9)
    return ddpm.denoiser(labels, guidance=Guidance(scale=2, interval=(3, 15), rescale=0.5), threshold=bounds)


def ways(ddpm: DDPM) -> dict[str, Iterator[State]]:
    x = torch.randn(2, *SHAPE, device=ddpm.device)
    denoise = guided(ddpm, torch.tensor([0, 2], device=ddpm.device))
    mask = (x[:1] > 0).float()
    painting = {"image": x, "mask": mask, "steps": 8, "jump_length": 2, "jumps": 1, "variance": fixed_small}
    return {
        **{name: sampler(denoise, ddpm.schedule, x, lambda: torch.randn_like(x)) for name, sampler in SOLVERS.items()},
        "repaint": repaint(denoise, ddpm.schedule, x, lambda: torch.randn_like(x), **painting),
        "invert": invert(denoise, ddpm.schedule, x, steps=5),
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
        found.append(
            drawn(
                SamplingLoop(
                    ddpm, make_plan(SOLVERS["ddpm"], ddpm, n=3), partial(guided, ddpm), [0, 1, 2], compute(device)
                )
            )
        )
    assert (found[0].int() - found[1].int()).abs().max() <= 2


def test_a_time_is_known_without_its_tensor_and_forgotten_with_it():
    x = torch.zeros(3, *SHAPE)
    t = times.fill(x, 7)
    assert t.tolist() == [7, 7, 7]
    with Watching() as watching:
        assert times.number(t) == 7
        assert watching.read == 0
        assert times.number(torch.tensor([5, 5])) == 5, "of a tensor from elsewhere too"
    before = len(times._NUMBERS)
    del t
    assert len(times._NUMBERS) == before - 1


# Compiled ------------------------------------------------------------------------------------------------------------


def compute(device: str = "cpu") -> Compute:
    return choose_compute(device, "fp32")


def drawn(drawing: SamplingLoop, *, batch_size: int = 4) -> Tensor:
    """uint8 `[N, C, H, W]`"""
    parts = []
    count = drawing.plan.images
    batches = [range(count)[first : first + batch_size] for first in range(0, count, batch_size)]
    drawing.draw(batches, lambda indices, images, film: parts.append(images))
    return torch.cat(parts)


@pytest.mark.parametrize("solver", ["ddpm", "dpmpp_2m"])
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
    make = partial(
        SamplingLoop, ddpm, make_plan(SOLVERS[solver], ddpm, n=3), partial(guided, ddpm), [0, 1, 2], compute()
    )
    as_written = drawn(make())
    drawing = make(compiled=4)
    drawing.translate(SHAPE)
    assert len(calls) == 1, "t = 0 is not guided"
    assert torch.equal(drawn(drawing), as_written)
    assert len(graphs) == 2
    guided_steps = sum(3 <= t <= 15 for t in samplers_times(solver))
    assert len(calls) == 1 + 2 * (4 + guided_steps), "two batches of four, and one image that is left"


def samplers_times(solver: str) -> list[int]:
    seen = []

    def denoise(x_t: Tensor, t: Tensor):
        seen.append(times.number(t))
        return samplers.Denoised(x_t, x_t, x_t)

    x = torch.zeros(1, *SHAPE)
    list(SOLVERS[solver](denoise, linear(20), x, lambda: x))
    return seen


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
    assert list(Path("asked").iterdir()) == []
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
    assert plan.steps() == 4
    assert _compiled(plan, Compute(torch.device(device), "fp32"), options) is compiled
