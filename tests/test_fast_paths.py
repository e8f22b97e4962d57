"""What makes a run fast changes nothing that it computes: compiled, graph-captured, accumulated, on the device.

Where a test takes a device it is run on a CPU here and on CUDA where there is one (`scripts/check-gpu`).
"""

import contextlib
import copy
import functools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import TINY_RUN, only, train
from safetensors import safe_open
from torch import Tensor
from trainers import assert_same_state, make_trainer, run

from ddpm_cli.diffusion.samplers import DDIM
from ddpm_cli.models.unet import UNet
from ddpm_cli.runtime.device import Compute
from ddpm_cli.runtime.seeds import ImageNoise
from ddpm_cli.training.batch_size_finder import smallest_accumulate
from ddpm_cli.training.train_state import capture, restore
from ddpm_cli.training.trainer import NonFiniteError, Trainer

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)
BF16_ERROR = 2**-8  # of one number; a loss is the mean of many


@pytest.fixture(params=["cpu", CUDA])
def device(request) -> str:
    return request.param


def losses_of(steps: int = 200, **options) -> Tensor:
    """Mean loss of each of so many steps."""
    trainer = make_trainer(steps=steps, batch_size=16, log_every=steps, dropout=0.0, **options)
    (progress,) = [progress for progress in trainer.run() if progress is not None]
    return progress.losses.view(steps, 16).mean(1)


@pytest.fixture(scope="module", params=[30, pytest.param(200, marks=pytest.mark.slow)])
def plain(request) -> Tensor:
    """Of the loop as the paper has it: float32 on a CPU, with nothing of what this file is about."""
    return losses_of(request.param)


# Compiled ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_whole_forward_pass_is_one_graph():
    """With labels, dropout, attention and a learned variance; `fullgraph` raises where there would be two."""
    unet = UNet(16, 3, 8, (1, 2), 1, (8,), 0.1, norm_groups=4, num_classes=3, learn_variance=True)
    captured = []

    def backend(module, _):
        captured.append(module)
        return module.forward

    unet.compile(fullgraph=True, dynamic=False, backend=backend)
    x, t, labels = torch.randn(2, 3, 16, 16), torch.tensor([3, 4]), torch.tensor([-1, 2])
    for checkpointed in (False, True):
        captured.clear()
        unet.activation_checkpointing = checkpointed
        unet(x, t, labels).sum().backward()
        assert len(captured) == 1


def logged(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


# Traced as by the real compiler, and run as it was traced.
TRACED = (
    "from ddpm_cli.runtime.device import Compute\n"
    "Compute.compile = lambda self, module, **_: module.compile(backend='eager', fullgraph=True, dynamic=False)\n"
    "from ddpm_cli.train import main; main()"
)


@pytest.mark.parametrize("code", [TRACED, pytest.param(None, marks=pytest.mark.slow)], ids=["traced", "compiled"])
def test_a_compiled_run_computes_the_same_and_leaves_the_same_files(code: str | None, tmp_path: Path):
    options = [*TINY_RUN, "model.dropout=0.0", "trainer.accumulate=2", "data.num_classes=10", "trainer.preview_every=0"]
    options += ["model.channel_mults=[1]", "model.attention_resolutions=[16]"]  # compiled in half the time
    for name, compile in (("compiled", "true"), ("plain", "false")):
        done = train(*options, f"name={name}", f"trainer.compile={compile}", cwd=tmp_path, code=code, timeout=300)
        assert done.returncode == 0, done.stderr
        assert ("fp32, compiled" in done.stdout) == (name == "compiled")
    compiled, plain = (only(tmp_path / "outputs" / name) for name in ("compiled", "plain"))
    for line, other in zip(logged(compiled), logged(plain), strict=True):
        assert line["loss/mean"] == pytest.approx(other["loss/mean"], rel=1e-4)
        assert line["train/grad_norm"] == pytest.approx(other["train/grad_norm"], rel=1e-3)
    for file in ("ema", "training"):
        paths = (run / "checkpoints" / "step_00000004" / f"{file}.safetensors" for run in (compiled, plain))
        ours, theirs = (safe_open(path, "pt") for path in paths)
        assert list(ours.keys()) == list(theirs.keys())
        for name in list(ours.keys()):
            assert ours.get_slice(name).get_shape() == theirs.get_slice(name).get_shape()


@functools.cache
def plain_on_cuda() -> Tensor:
    return losses_of(device="cuda", precision="fp32", compile=False)


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("precision", "options"),
    [
        ("fp32", {"accumulate": 4}),
        ("fp32", {"compile": True}),
        ("bf16", {}),
        ("bf16", {"compile": True}),
        ("bf16", {"compile": "graphs"}),
        ("bf16", {"compile": True, "accumulate": 4, "activation_checkpointing": True}),
        ("bf16", {"compile": "graphs", "accumulate": 2}),
    ],
    ids=str,
)
def test_every_way_agrees_with_the_plain_loop_on_cuda(precision: str, options: dict):
    """All from the same draws, which are CUDA's own: so the plain loop is one on CUDA, in float32, too."""
    reference = plain_on_cuda()
    found = losses_of(device="cuda", precision=precision, **({"compile": False} | options))
    torch.testing.assert_close(found.mean(), reference.mean(), rtol=2 * BF16_ERROR, atol=0)
    torch.testing.assert_close(found, reference, rtol=0.1, atol=0.02)  # after 200 steps the two have drifted apart


def test_gradients_that_a_graph_leaves_in_its_own_memory_are_added_up():
    """A captured backward pass writes every part's gradients to the same place, over those of the part before."""
    plain, captured, overwritten = (make_trainer(accumulate=4, batch_size=16) for _ in range(3))
    for trainer in (captured, overwritten):
        for parameter in trainer.ddpm.parameters():
            place = torch.empty_like(parameter)
            parameter.register_hook(lambda gradient, place=place: place.copy_(gradient).detach())
    captured.config = replace(captured.config, compile="graphs")
    losses = run(plain)
    assert run(captured) == losses
    assert_same_state(captured, plain)
    assert run(overwritten) != losses, "without graphs the trainer takes no such care"


def test_losses_are_those_of_the_plain_loop_when_the_host_looks_late(plain: Tensor):
    steps = len(plain)
    trainer = make_trainer(steps=steps, batch_size=16, log_every=steps)
    trainer.defers_finite_check = True
    (progress,) = [progress for progress in trainer.run() if progress is not None]
    assert torch.equal(progress.losses.view(steps, 16).mean(1), plain)


@pytest.mark.slow
def test_bf16_trains_as_float32_does_within_its_error(plain: Tensor):
    losses = losses_of(len(plain), precision="bf16")
    torch.testing.assert_close(losses.mean(), plain.mean(), rtol=BF16_ERROR, atol=0)
    torch.testing.assert_close(losses, plain, rtol=0.1, atol=0.02)  # after 200 steps the two have drifted apart
    assert ((losses - plain) / plain).abs().median() < 4 * BF16_ERROR
    assert not torch.equal(losses, plain)


def test_compile_is_on_by_itself_only_where_it_pays():
    def compiles(device: str, **options) -> bool:
        return make_trainer(**options).config.compiles(device)

    assert compiles("cuda", steps=5000)
    assert not compiles("cuda", steps=4999)
    assert not compiles("cpu", steps=800_000)
    assert compiles("cpu", steps=1, compile=True)


def test_graphs_are_refused_on_a_cpu(tmp_path: Path):
    done = train(*TINY_RUN, "trainer.compile=graphs", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "ddpm-train: trainer: compile=graphs has an effect only on CUDA, not on cpu, fp32\n"


@contextlib.contextmanager
def deterministic(device: str) -> Iterator[None]:
    """The same bits every time; without this, kernels of CUDA add in any order. What stays on is switched off again."""
    Compute(torch.device(device), "fp32").make_deterministic()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# On the device -------------------------------------------------------------------------------------------------------


def test_images_on_the_device_are_those_that_would_be_sent(device: str):
    with deterministic(device):
        sent, pixels_on_device = (make_trainer(device=device, dropout=0.2) for _ in range(2))
        pixels = torch.from_numpy(np.asarray(pixels_on_device.batches.images.pixels)).to(device)
        pixels_on_device.pixels_on_device = pixels
        assert run(sent) == run(pixels_on_device)
        assert_same_state(sent, pixels_on_device)


@pytest.mark.cuda
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"compile": True}, {"warmup_steps": 3}], ids=str)
def test_a_step_does_not_wait_for_cuda(options: dict):
    trainer = make_trainer(device="cuda", precision="bf16", steps=8, **({"compile": False} | options))
    assert trainer.defers_finite_check
    batches = [trainer.batches.batch(step).pin_memory() for step in range(6)]
    for batch in batches[:3]:
        trainer.train_step(batch)  # what is set up once may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[3:]:
            trainer.train_step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    trainer.check_finite()


@pytest.mark.cuda
def test_a_sampler_does_not_wait_for_cuda():
    trainer = make_trainer(device="cuda")
    noise = ImageNoise(0, range(4), (1, 8, 8), "cuda")
    ddpm, ddim = trainer.ddpm, DDIM()
    times = ddim.times(ddpm.schedule)
    states = ddpm.reverse_process(ddim.solve(ddpm.denoiser(), ddpm.schedule, times, noise(), noise))
    next(states)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in states:
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_what_is_not_finite_on_cuda_is_undone():
    trainer = make_trainer(device="cuda", precision="bf16", steps=8, log_every=8, compile=False)
    before = make_trainer(device="cuda", precision="bf16", steps=8, log_every=8, compile=False)
    bias = trainer.ddpm.model.get_parameter("conv_out.bias")
    bias.register_hook(lambda grad: grad * (float("inf") if trainer.step == 5 else 1.0))
    with pytest.raises(NonFiniteError, match=r"gradient at step 5 is not finite.*conv_out\.bias"):
        run(trainer)
    steps = before.run()
    for _ in range(5):
        next(steps)
    before.check_finite()
    for ours, theirs in zip(trainer.ddpm.parameters(), before.ddpm.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.cuda
def test_a_run_on_cuda_resumes_bit_for_bit():
    def trainer() -> Trainer:
        return make_trainer(device="cuda", precision="bf16", steps=6, dropout=0.2, compile=False)

    with deterministic("cuda"):
        straight, stopped, resumed = trainer(), trainer(), trainer()
        losses = run(straight)
        steps = stopped.run()
        for _ in range(3):
            next(steps)
        steps.close()
        state = {name: value.clone() for name, value in capture(stopped).items()}
        restore(resumed, state, copy.deepcopy(stopped.ema.model.state_dict()))
        assert run(resumed) == losses[3:]
        assert_same_state(straight, resumed)


@pytest.mark.cuda
def test_float16_trains_on_cuda():
    trainer = make_trainer(device="cuda", precision="fp16", steps=200, batch_size=16, log_every=200, compile=False)
    assert not trainer.defers_finite_check
    (progress,) = [progress for progress in trainer.run() if progress is not None]
    assert progress.losses[-160:].mean() < 0.5


# What fits -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_finds_what_fits_and_goes_on_with_it(tmp_path: Path):
    """In a process that may take half a GiB more than it has when it begins to look."""
    code = (
        "import resource, ddpm_cli.training.run\n"
        "from ddpm_cli.training import batch_size_finder\n"
        "def limited(*arguments, whole=batch_size_finder.smallest_accumulate):\n"
        "    pages = int(open('/proc/self/statm').read().split()[0])\n"
        "    most = pages * resource.getpagesize() + 2**29\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))\n"
        "    parts = whole(*arguments)\n"
        "    most += 2**29\n"  # what is imported later takes addresses
        "    resource.setrlimit(resource.RLIMIT_AS, (most, most))\n"
        "    return parts\n"
        "batch_size_finder.smallest_accumulate = limited\n"
        "from ddpm_cli.train import main; main()"
    )
    options = [*TINY_RUN, "trainer.batch_size=4096", "trainer.accumulate=auto", "trainer.steps=1"]
    done = train(*options, "trainer.preview_every=0", "name=x", cwd=tmp_path, code=code)
    assert done.returncode == 0, done.stderr
    found = re.search(r"steps    1 of batch 4096 in (\d+) parts", done.stdout)
    assert found is not None, done.stdout
    assert int(found[1]) > 1
    directory = only(tmp_path / "outputs" / "x")
    assert yaml.safe_load((directory / "config.yaml").read_text())["trainer"]["accumulate"] == int(found[1])
    again = train(*options, "trainer.preview_every=0", "name=x", "trainer.steps=2", cwd=tmp_path)  # with all the memory
    assert f"in {found[1]} parts" in again.stdout, again.stderr


def test_a_batch_size_of_auto_is_the_recipes_in_parts_that_fit(tmp_path: Path):
    shown = train("trainer.batch_size=auto", "--cfg", "job", cwd=tmp_path)
    trainer = yaml.safe_load(shown.stdout)["trainer"]
    assert (trainer["batch_size"], trainer["accumulate"]) == (32, "auto")


@pytest.mark.parametrize("most", [1, 3, 4, 16, 100])
def test_the_batch_is_cut_into_as_few_parts_as_fit(most: int, device: str):
    """As if there were memory for `most` images."""
    trainer = make_trainer(device=device)
    before = {name: value.clone() for name, value in trainer.ddpm.state_dict().items()}
    forward = trainer.ddpm.model.forward

    def greedy(x: Tensor, t: Tensor) -> Tensor:
        if len(x) > most:
            raise torch.OutOfMemoryError
        return forward(x, t)

    trainer.ddpm.model.forward = greedy
    found = smallest_accumulate(trainer.ddpm, trainer.compute, (1, 8, 8), 16)
    assert found == next(parts for parts in (1, 2, 4, 8, 16) if 16 // parts <= most)
    assert all(torch.equal(value, before[name]) for name, value in trainer.ddpm.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.ddpm.parameters())
    del trainer.ddpm.model.forward


def test_where_not_one_image_fits_that_is_said(device: str):
    trainer = make_trainer(device=device)

    def greedy(x: Tensor, t: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    trainer.ddpm.model.forward = greedy
    with pytest.raises(ValueError, match="not even one image fits"):
        smallest_accumulate(trainer.ddpm, trainer.compute, (1, 8, 8), 16)
