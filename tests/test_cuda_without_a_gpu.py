"""Every option on a CUDA device that is not there (`fake_cuda`): no step meets two devices, or waits for one."""

import functools
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import hydra
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from fake_cuda import CUDA, FakeCuda, OnCuda, Wait, fake_cuda
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ddpm_cli.checkpoint.pretrained import Pretrained
from ddpm_cli.cli.resolvers import register_resolvers
from ddpm_cli.config.build_ddpm import build_ddpm
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.sample_options import SampleOptions
from ddpm_cli.config.shipped import configs_directory, groups, options
from ddpm_cli.config.train_options import TrainOptions
from ddpm_cli.data import datasets
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.noise_schedule import NoiseSchedule
from ddpm_cli.diffusion.schedule import linear
from ddpm_cli.diffusion.spacing import SPACINGS
from ddpm_cli.distributed.process_group import World
from ddpm_cli.ema.ema import EMA
from ddpm_cli.runtime.device import Compute
from ddpm_cli.sampling.build import build_loop
from ddpm_cli.sampling.loop import SamplingLoop
from ddpm_cli.training.build import build_training
from ddpm_cli.training.train_state import capture, restore
from ddpm_cli.training.trainer import NonFiniteError, Trainer

OPTIONS = options(configs_directory())
TINY = {
    "train": {
        "data.image_size": 8,
        "model.base_channels": 8,
        "model.channel_mults": [1],
        "model.num_res_blocks": 1,
        "model.attention_resolutions": [],
        "model.norm_groups": 4,
        "sampler.steps": 3,
        "trainer.steps": 100,
        "trainer.batch_size": 8,
        "trainer.log_every": 100,
        "trainer.precision": "fp32",
    },
    "sample": {"ckpt": "", "n": 2, "batch_size": 2, "precision": "fp32"},
}
TIMESTEPS = 20
SHAPE = (1, 8, 8)
STEPS = 3

Overrides = tuple[str, ...]


@pytest.fixture(autouse=True, scope="module")
def digits_once() -> Iterator[None]:
    """Reading them takes as long as a step."""
    with mock.patch.object(datasets, "digits", functools.cache(datasets.digits)):
        yield


@pytest.fixture(autouse=True)
def torchs_switches(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)


@functools.cache
def composed(command: str, *overrides: str) -> DictConfig:
    """What Hydra makes of a command."""
    register_resolvers()
    with hydra.initialize_config_dir(str(configs_directory()), version_base="1.3"):
        return hydra.compose(command, list(overrides))


def configured(command: str, *overrides: str) -> dict:
    """A small configuration with these options in place of the default ones, then these values.

    Hydra would take ten times as long as a step: it is asked only for what an option changes outside its group.
    """
    by_hydra = [override for override in overrides if override.startswith("mode=")]
    config = composed(command, *(["ckpt=''"] if command == "sample" else []), *by_hydra).copy()
    OmegaConf.set_struct(config, False)
    values = dict(TINY[command])
    for override in overrides:
        key, _, value = override.partition("=")
        if override in by_hydra:
            continue
        if key in OPTIONS:
            config[key] = OmegaConf.load(configs_directory() / key / f"{value}.yaml")
        else:
            values[key] = yaml.safe_load(value)
    if "timesteps" in config.get("schedule", {}):
        values.setdefault("schedule.timesteps", TIMESTEPS)
    for key, value in values.items():
        OmegaConf.update(config, key, value)
    made = OmegaConf.to_container(config, resolve=True)
    assert isinstance(made, dict)
    return made


# What there is to be tried -------------------------------------------------------------------------------------------

# What an option cannot be without.
ALSO: dict[str, Overrides] = {
    "variance=learned_range": ("loss=hybrid",),
    "loss=hybrid": ("variance=learned_range",),
    "loss=vlb": ("weighting=uniform",),
    "schedule=custom": (f"schedule.betas={[0.05] * TIMESTEPS}",),
    "model=adm_64": ("model.head_channels=4",),
}
OF_A_STEP = (
    *("schedule", "model", "prediction", "loss", "variance", "weighting", "timestep_sampler", "optimizer", "ema"),
)
# Groups of ddpm-train that a step knows nothing of: whatever the data, what arrives is uint8; previews are samplings.
NOT_OF_A_STEP = {"data", "debug", "experiment", "logger", "sampler", "trainer"}
CHOSEN: list[Overrides] = [
    (f"{group}={option}", *ALSO.get(f"{group}={option}", ()))
    for group in OF_A_STEP
    for option in OPTIONS[group]
    if option != groups("train")[group] or group == "ema"  # which is chosen by the recipe of the data
]
LABELS = "data.num_classes=10"
VALUES: list[Overrides] = [
    (),
    ("trainer.precision=bf16",),
    ("trainer.precision=fp16",),
    ("trainer.accumulate=auto",),
    ("trainer.accumulate=2", "model.dropout=0.1"),
    ("trainer.accumulate=2", "trainer.compile=graphs"),
    ("trainer.activation_checkpointing=true",),
    ("trainer.grad_clip=null",),
    ("trainer.warmup_steps=2", "trainer.lr_decay=linear"),
    ("trainer.label_dropout=0.5", LABELS),
    ("data.flip=horizontal", "model.channel_mults=[1,2]", "model.attention_resolutions=[4]", "model.num_heads=2"),
    ("model.null_label=false", LABELS, "model.scale_shift_norm=true", "model.resblock_updown=true"),
    (
        "model.downsample_padding=symmetric",
        "model.time_cos_first=true",
        "model.time_freq_shift=0",
        "model.time_scale=2",
    ),
    ("model.head_channels=4", "model.norm_eps=1.0e-5"),
    ("ema.decays=[0.999,0.9,0.0]", "ema.posthoc=[0.05,0.1]"),
    ("schedule.zero_terminal_snr=true", "prediction=v", "weighting=uniform", "optimizer.weight_decay=0.1"),
    ("timestep_sampler=loss_second_moment", "timestep_sampler.history=1", "schedule.timesteps=2", "sampler.steps=1"),
    (
        *("variance=learned_range", "loss=hybrid", "prediction=v", "weighting=min_snr", "timestep_sampler=stratified"),
        *("optimizer=adam", "ema=posthoc", "trainer.precision=bf16", "trainer.accumulate=2", "model.dropout=0.1"),
        *(LABELS, "data.flip=horizontal", "trainer.activation_checkpointing=true"),
    ),
]
# Values of `trainer` that say when something is done, or how often, or that are not for one GPU without a compiler.
NOT_IN_A_STEP = {"steps", "batch_size", "log_every", "preview_every", "preview_images", "checkpoint_every", "keep_last"}
NOT_IN_A_STEP |= {"keep_every", "fsdp", "device", "deterministic", "eval_every", "eval_images", "keep_best"}
NOT_IN_A_STEP |= {"overfit_batches", "profile_steps"}

# Where the host looks at the device in every step, as `Trainer.defers_finite_check` says that it must.
FINITE = {"Trainer._update", "Trainer._take_step"}
LOOKS = {
    "timestep_sampler=loss_second_moment": FINITE | {"LossSecondMoment.draw", "LossSecondMoment.update"},
    "trainer.precision=fp16": FINITE,
}


def test_no_option_is_left_out():
    """Those of a group are found by themselves; groups and single values have to be thought of."""
    assert set(groups("train")) == set(OF_A_STEP) | NOT_OF_A_STEP
    assert set(groups("sample")) == {"sampler", "variance", "guidance", "threshold", "mode"}
    assert set(MODES) == set(OPTIONS["mode"])
    taken = {override.partition("=")[0] for overrides in (*VALUES, *DRAWN) for override in overrides}
    taken |= {override.partition("=")[0] for override in LOOKS}
    for group, apart in (("trainer", NOT_IN_A_STEP), ("guidance", {"guide", "weights"}), ("sampler", {"variance"})):
        keys = {key for option in OPTIONS[group] for key in yaml.safe_load(_text(group, option))}
        assert {key for key in keys if not key.startswith("_") and f"{group}.{key}" not in taken} == apart


def _text(group: str, option: str) -> str:
    return (configs_directory() / group / f"{option}.yaml").read_text(encoding="utf-8")


# The machinery --------------------------------------------------------------------------------------------------------


# Of x on "cuda" [4] and c on the CPU [4].
READS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "item": lambda x, c: x.sum().item(),
    "bool": lambda x, c: bool(x.any()),
    "float": lambda x, c: float(x[0]),
    "tolist": lambda x, c: x.tolist(),
    "cpu": lambda x, c: x.cpu(),
    "copied to the CPU": lambda x, c: c.copy_(x),
    "synchronize": lambda x, c: torch.cuda.synchronize(),
    "equal": lambda x, c: torch.equal(x, x),
    "masked": lambda x, c: x[x > 0],
    "nonzero": lambda x, c: x.nonzero(),
    "tensor": lambda x, c: torch.tensor([1.0], device=CUDA),
    "to": lambda x, c: c.to(CUDA),
    "copied from the CPU": lambda x, c: x.copy_(c),
    "where": lambda x, c: torch.where(x > 0, x, torch.tensor(1.0)),
    "indexed by the CPU": lambda x, c: x[torch.tensor([0, 1])],
}
QUIET: dict[str, Callable[[Tensor, Tensor], object]] = {
    "to": lambda x, c: c.to(CUDA, non_blocking=True),
    "a number": lambda x, c: torch.where(x > 0, x * 2 + torch.tensor(1.0), 0.0).clamp(max=3),
    "filled": lambda x, c: torch.full((3,), 2.0, device=CUDA) + torch.arange(3, device=CUDA),
    "indexed": lambda x, c: x[torch.zeros(2, dtype=torch.int64, device=CUDA)],
    "drawn": lambda x, c: torch.randn(3, device=CUDA, generator=torch.Generator(CUDA)),
    "of the CPU": lambda x, c: (c.sum().item(), c.tolist(), c[c > 0], torch.randn(3, generator=torch.Generator())),
    "shape": lambda x, c: (len(x), x.shape, x.device, x.quantile(0.5, dim=0).shape),
}
MEETINGS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "add": lambda x, c: x + c,
    "in place": lambda x, c: c.add_(x),
    "cat": lambda x, c: torch.cat([x, c]),
    "gather": lambda x, c: x.gather(0, torch.tensor([1])),
    "index": lambda x, c: c[torch.zeros(2, dtype=torch.int64, device=CUDA)],
    "linear": lambda x, c: F.linear(x, torch.zeros(2, 4), torch.zeros(2, device=CUDA)),
    "where": lambda x, c: torch.where(c > 0, x, x),
    "foreach": lambda x, c: torch._foreach_add_([x, x], [x, c]),
}
DRAWS: dict[str, Callable[[], object]] = {
    "by the CPU": lambda: torch.randn(3, device=CUDA, generator=torch.Generator()),
    "for the CPU": lambda: torch.randn(3, generator=torch.Generator("cuda")),
}


@pytest.mark.parametrize("way", READS)
def test_a_look_at_the_device_is_seen(way: str):
    with fake_cuda() as cuda:
        x, c = torch.ones(4, device=CUDA), torch.ones(4)
        READS[way](x, c)
    assert [wait.where for wait in cuda.waits] == ["<lambda>"]


@pytest.mark.parametrize("way", QUIET)
def test_what_is_no_look_is_none(way: str):
    with fake_cuda() as cuda:
        QUIET[way](torch.ones(4, device=CUDA), torch.ones(4))
    assert cuda.waits == []


@pytest.mark.parametrize("way", MEETINGS)
def test_devices_that_meet_are_seen_as_torchs_own_fakes_see_them(way: str):
    with fake_cuda(), pytest.raises(RuntimeError, match="same device"):
        MEETINGS[way](torch.ones(4, device=CUDA), torch.ones(4))
    if way not in ("index", "foreach"):  # where torch's own see nothing
        with FakeTensorMode(), pytest.raises(RuntimeError, match="device"):
            MEETINGS[way](torch.ones(4, device=CUDA), torch.ones(4))


@pytest.mark.parametrize("way", DRAWS)
def test_a_generator_of_the_other_device_is_seen(way: str):
    with fake_cuda(), pytest.raises(RuntimeError, match="device type for generator"):
        DRAWS[way]()


def test_numbers_are_those_of_a_cpu():
    with fake_cuda():
        network = nn.Linear(4, 4).to(CUDA)
        drawn = torch.randn(4, 4, device=CUDA, generator=torch.Generator("cuda").manual_seed(0))
        assert isinstance(drawn, OnCuda)
        assert drawn.device == network.weight.device == CUDA
        found = network(drawn).relu_().t().contiguous().cpu()
        with Compute(CUDA, "bf16").autocast():
            assert network(drawn).dtype == torch.bfloat16
        (network.weight.sum() * 2).backward()
        assert network.weight.grad is not None
        assert network.bias.grad is None, "of which the loss knows nothing"
        same = nn.Linear(4, 4)
        same.load_state_dict({name: value.cpu() for name, value in network.state_dict().items()})
    expected = same(torch.randn(4, 4, generator=torch.Generator().manual_seed(0))).relu_().t()
    assert torch.equal(found, expected)


# Training -------------------------------------------------------------------------------------------------------------


def train(*overrides: str) -> Trainer:
    return build_training(TrainOptions(**configured("train", *overrides)), World()).trainer


def waits_of_steps(trainer: Trainer, cuda: FakeCuda) -> list[Wait]:
    """What is waited for in a few steps, none of which is logged."""
    cuda.waits.clear()
    run = trainer.run()
    progress = [next(run) for _ in range(STEPS)]
    waits = list(cuda.waits)
    run.close()
    assert progress == [None] * STEPS
    return waits


def assert_trained(trainer: Trainer) -> None:
    """On the device, all of it, and what was computed there was finite."""
    tensors = [*trainer.ddpm.model.parameters(), *trainer.ddpm.buffers(), *trainer.ema.model.state_dict().values()]
    tensors += trainer.ema.state_dict().values()
    tensors += [tensor for moments in trainer.optimizer.state.values() for tensor in moments.values()]
    tensors += [tensor for result in trainer.pending for tensor in (result.losses, result.t, result.grad_norm)]
    assert {tensor.device for tensor in tensors} == {CUDA}
    trainer.check_finite()
    assert trainer.step == trainer.ema.updates == len(trainer.pending) == STEPS


@pytest.mark.parametrize("overrides", [*CHOSEN, *VALUES], ids=lambda overrides: " ".join(overrides) or "as it comes")
def test_no_step_of_a_training_waits(overrides: Overrides):
    with fake_cuda() as cuda:
        trainer = train(*overrides)
        waits = waits_of_steps(trainer, cuda)
        assert_trained(trainer)
    looks = [where for override, where in LOOKS.items() if override in overrides]
    assert trainer.defers_finite_check == (not looks)
    assert {wait.where for wait in waits} == set().union(*looks)


@pytest.mark.parametrize(("free_bytes", "there"), [(2**33, True), (0, False)])
def test_images_may_be_on_the_device_or_be_sent(free_bytes: int, there: bool):
    with fake_cuda(free_bytes=free_bytes) as cuda:
        trainer = train()
        assert (trainer.pixels_on_device is not None) == there
        assert waits_of_steps(trainer, cuda) == []


def test_what_is_logged_and_kept_comes_from_the_device_and_goes_back():
    chosen = ("trainer.log_every=2", "ema=posthoc", "timestep_sampler=loss_second_moment", LABELS)
    with fake_cuda():
        trainer, other = train(*chosen), train(*chosen)
        run = trainer.run()
        _, progress, _ = (next(run) for _ in range(3))
        assert progress is not None
        assert np.isfinite(progress.loss)
        kept = {name: value.cpu().clone() for name, value in capture(trainer).items()}
        average = {name: value.cpu().clone() for name, value in trainer.ema.model.state_dict().items()}
        run.close()
        restore(other, kept, average)
        again = capture(other)
        assert {name for name, value in kept.items() if not torch.equal(value, again[name].cpu())} == set()
        next(other.run())


def test_what_is_not_finite_is_found_when_it_is_looked_for():
    with fake_cuda() as cuda:
        trainer = train()
        with torch.no_grad():
            next(iter(trainer.ddpm.model.parameters())).fill_(float("nan"))
        assert waits_of_steps(trainer, cuda) == []
        with pytest.raises(NonFiniteError, match="the loss at step 0 is not finite"):
            trainer.check_finite()
        assert trainer.step == 0


class Pointwise(nn.Module):
    """A network that is called as one, and no more."""

    def __init__(self, channels: int):
        super().__init__()
        self.layer = nn.Conv2d(1, channels, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("loss", OPTIONS["loss"])
def test_no_loss_of_whatever_is_predicted_waits(loss: str):
    parts = {
        name: [_node(name, option) for option in OPTIONS[name]] for name in ("prediction", "variance", "weighting")
    }
    tried = 0
    with fake_cuda() as cuda:
        x_0 = torch.randn(2, 1, 4, 4, device=CUDA)
        t = torch.arange(2, device=CUDA)
        for prediction, variance, weighting in product(*parts.values()):
            chosen = {
                "prediction": prediction,
                "variance": variance,
                "weighting": weighting,
                "loss": _node("loss", loss),
            }
            try:
                ddpm = DDPM(Pointwise(2 if variance.learned else 1), linear(TIMESTEPS), **chosen).to(CUDA)
            except ValueError:  # they do not go together
                continue
            cuda.waits.clear()
            ddpm.losses(x_0, t).sum().backward()
            assert cuda.waits == [], chosen
            tried += 1
    assert tried >= len(OPTIONS["prediction"])


def _node(group: str, option: str):
    node = OmegaConf.to_container(OmegaConf.create(_text(group, option)), resolve=True)
    assert isinstance(node, dict)
    return instantiate(node, group)


# Drawing --------------------------------------------------------------------------------------------------------------

MODES: dict[str, Overrides] = {
    "generate": ("sampler.steps=3",),
    "edit": ("image=picture.png", "strength=0.5", "sampler=ddim", "sampler.steps=3"),
    "inpaint": ("image=picture.png", "mask=mask.png", "sampler.steps=6", "mode.jump_length=2", "mode.resamplings=2"),
    "interpolate": ("sampler.steps=3", "n=3", "batch_size=3"),
    "reconstruct": ("image=picture.png", "sampler.steps=3", "n=1"),
}
GUIDED = ("classes=[1]", "guidance.scale=2", "guidance.interval=[3,15]", "guidance.rescale=0.5")
DRAWN: list[Overrides] = [
    *((f"mode={mode}", *values) for mode, values in MODES.items()),
    *((f"mode={mode}", *values, *GUIDED) for mode, values in MODES.items()),
    *((f"sampler={sampler}", "sampler.steps=3") for sampler in OPTIONS["sampler"]),
    *((f"sampler={sampler}", "sampler.steps=3", *GUIDED, "threshold=dynamic") for sampler in OPTIONS["sampler"]),
    *(("sampler=ddim", "sampler.steps=3", f"sampler.spacing={spacing}") for spacing in SPACINGS),
    *(("sampler.steps=[19,9,4]", f"variance={variance}") for variance in OPTIONS["variance"]),
    *(("sampler.steps=3", f"threshold={threshold}") for threshold in OPTIONS["threshold"]),
    ("sampler=ddim", "sampler.steps=3", "sampler.eta=0.5", "classes=all", "n=1", "batch_size=4"),
    ("sampler.steps=3", "classes=[1]", "guidance.scale=0"),
    ("sampler.steps=3", "classes=[1]", "guidance.scale=3"),
    ("sampler.steps=3", "precision=bf16"),
    ("sampler.steps=3", "precision=fp16"),
    ("sampler.steps=3", "compile=true"),
]
# What may wait before the network is called for the first time in a batch, when the device has nothing to do.
BEFORE = {"NoiseSchedule.points", "SamplingLoop._denoise", "_of_rows"}


class Drawing(NamedTuple):
    """A batch."""

    images: Tensor
    before: list[Wait]  # the first call of the network
    between: list[Wait]  # that and the last one
    after: list[Wait]


@functools.cache
def pretrained(device: torch.device, trained: Overrides) -> Pretrained:
    """One whose images are anything but flat, on the device."""
    config = configured("train", LABELS, *trained)
    torch.manual_seed(0)
    ddpm = build_ddpm(config).eval()
    for parameter in ddpm.parameters():  # some of them start at zero
        nn.init.normal_(parameter, std=0.1)
    Compute(device, "fp32").place(ddpm)
    return Pretrained(ddpm, SHAPE, 0, config)


def sampling(device: torch.device, trained: Overrides, overrides: Overrides) -> SamplingLoop:
    options = SampleOptions(**configured("sample", *overrides))
    loop = build_loop(pretrained(device, trained), Compute(device, options.precision), options, ())
    if loop.compiled is not None:
        loop.compile(SHAPE)
    return loop


def draw(loop: SamplingLoop, waits: list[Wait]) -> Iterator[Drawing]:
    """Batches of two, with the trajectory of the first image; what is waited for is taken from `waits`."""
    images, calls = [], []
    hook = loop.ddpm.model.register_forward_pre_hook(lambda *_: calls.append(len(waits)))
    for start in range(0, loop.plan.images, 2):
        waits.clear()
        calls.clear()
        indices = range(start, min(start + 2, loop.plan.images))
        loop.draw([indices], lambda _, drawn, trajectory: images.append(drawn), followed=1, show_progress=False)
        yield Drawing(images[-1], waits[: calls[0]], waits[calls[0] : calls[-1]], waits[calls[-1] :])
    hook.remove()


def assert_waits_at_the_ends(trained: Overrides, overrides: Overrides) -> None:
    with fake_cuda() as cuda:
        for batch in draw(sampling(CUDA, trained, overrides), cuda.waits):
            assert {wait.where for wait in batch.before} <= BEFORE
            assert batch.between == []
            assert {wait.where for wait in batch.after} == {"SamplingLoop._batch"}
            assert len(batch.images.unique()) > 1


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    left = np.zeros((8, 8), dtype=np.uint8)
    left[:, :4] = 255
    Image.fromarray(left).save("mask.png")
    Image.fromarray(np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)).save("picture.png")


LEARNED = ("variance=learned_range", "loss=hybrid")
TRAINED = [chosen for chosen in CHOSEN if chosen[0].startswith(("schedule=", "prediction="))]


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("overrides", DRAWN, ids=" ".join)
def test_no_step_of_a_sampling_waits(overrides: Overrides):
    inverted = any("mode=reconstruct" in override for override in overrides)
    assert_waits_at_the_ends((*LEARNED, "prediction=eps") if inverted else LEARNED, overrides)


@pytest.mark.usefixtures("pictures")
def test_the_inversion_of_x_0_is_waited_for_where_it_begins():
    """The host decides there, for each image, from which t on there is anything to invert: once, whatever the steps."""
    waits = []
    for steps in (3, 6):
        chosen = (f"sampler.steps={steps}", "mode=reconstruct", "image=picture.png", "n=1")
        with fake_cuda() as cuda:
            (batch,) = draw(sampling(CUDA, (*LEARNED, "prediction=x0"), chosen), cuda.waits)
        waits.append([wait.where for wait in batch.between])
    assert waits[0] == waits[1]
    assert len(waits[0]) == 4


@pytest.mark.parametrize("trained", TRAINED, ids=" ".join)
def test_nor_does_any_of_another_schedule_or_prediction(trained: Overrides):
    assert_waits_at_the_ends(trained, ("sampler.steps=3",))


@pytest.mark.parametrize("sampler", OPTIONS["sampler"])
def test_nor_does_any_from_pure_noise(sampler: str):
    trained = ("prediction=v", "schedule=linear", "schedule.zero_terminal_snr=true")
    assert_waits_at_the_ends(trained, (f"sampler={sampler}", "sampler.steps=3"))


def test_images_are_those_of_a_cpu_nearly():
    chosen = LEARNED, ("sampler.steps=4", *GUIDED)
    (there,) = draw(sampling(torch.device("cpu"), *chosen), [])
    with fake_cuda() as cuda:
        (here,) = draw(sampling(CUDA, *chosen), cuda.waits)
    assert (here.images.int() - there.images.int()).abs().max() <= 2


# Faults ---------------------------------------------------------------------------------------------------------------


def test_a_tensor_left_on_the_cpu_is_found_in_a_step():
    with fake_cuda() as cuda:
        trainer = train()
        trainer.ddpm.model.time_frequencies = torch.ones(4)
        with pytest.raises(RuntimeError, match="same device"):
            waits_of_steps(trainer, cuda)


def test_a_tensor_left_on_the_cpu_is_found_in_a_sampling(monkeypatch):
    alpha_sigma = NoiseSchedule.alpha_sigma
    monkeypatch.setattr(NoiseSchedule, "alpha_sigma", lambda *given: [a.cpu() for a in alpha_sigma(*given)])
    with pytest.raises(RuntimeError, match="same device"):
        assert_waits_at_the_ends(LEARNED, ("sampler.steps=3",))


def test_a_look_is_found_in_a_step(monkeypatch):
    def looking(self: EMA, model: nn.Module, **_: object) -> None:
        assert next(model.parameters()).sum().item() != 0

    monkeypatch.setattr(EMA, "update", looking)
    with fake_cuda() as cuda:
        waits = waits_of_steps(train(), cuda)
    assert len(waits) == STEPS
    assert {wait.where.rpartition(".")[2] for wait in waits} == {"looking"}


def test_a_look_is_found_in_a_sampling(monkeypatch):
    losing = DDPM._ask
    monkeypatch.setattr(DDPM, "_ask", lambda self, x, t, labels: losing(self, x, t, labels) if t.tolist() else None)
    with pytest.raises(AssertionError, match="Extra items"):
        assert_waits_at_the_ends(LEARNED, ("sampler.steps=3",))
