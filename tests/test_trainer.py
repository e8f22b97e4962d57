"""The loop: it learns, accumulates exactly, resumes exactly, and keeps what is not finite out of the weights."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from trainers import assert_same_state, make_trainer, run

from ddpm_cli import checkpoint
from ddpm_cli.checkpoint import Metadata
from ddpm_cli.data.datasets import digits
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.data.loader import BatchLoader
from ddpm_cli.diffusion.samplers import Ancestral
from ddpm_cli.ema.ema import EMA
from ddpm_cli.runtime.seeds import ImageNoise
from ddpm_cli.training import lr_schedule
from ddpm_cli.training.optimizers import adam, adamw
from ddpm_cli.training.train_state import capture, restore
from ddpm_cli.training.trainer import NonFiniteError, Trainer
from ddpm_cli.training.trainer_config import TrainerConfig

QUICK = {"steps": 100, "batch_size": 16, "warmup_steps": 5, "decay": 0.95}
THOROUGH = {"steps": 350, "batch_size": 64, "warmup_steps": 20}


@pytest.mark.parametrize("options", [QUICK, pytest.param(THOROUGH, marks=pytest.mark.slow)], ids=["quick", "long"])
def test_a_hundred_steps_on_digits_lower_the_loss_and_the_ema_draws_what_they_saw(options: dict):
    """One test, so that no two processes train for it."""
    trainer = make_trainer(**options)
    losses = run(trainer)
    assert np.mean(losses[:5]) > 0.8  # a network that says nothing has a loss of 1
    assert np.mean(losses[-len(losses) // 5 :]) < 0.27
    ddpm = trainer.ddpm.with_model(trainer.ema.model)
    noise, sampler = ImageNoise(0, range(128 if options is THOROUGH else 32), (1, 8, 8)), Ancestral()
    times = sampler.times(ddpm.schedule)
    *_, last = ddpm.reverse_process(sampler.solve(ddpm.denoiser(), ddpm.schedule, times, noise(), noise))
    data = torch.from_numpy(digits(image_size=8).pixels) / 127.5 - 1
    assert last.mean().item() == pytest.approx(data.mean().item(), abs=0.06)
    if options is THOROUGH:  # which takes the longest to learn
        assert last.std().item() == pytest.approx(data.std().item(), abs=0.06)
    # and pixel by pixel: digits are bright in the middle column and dark at the edges
    correlation = np.corrcoef(last.mean((0, 1)).flatten(), data.mean((0, 1)).flatten())[0, 1]
    assert correlation > 0.9


def test_same_seed_same_losses_bit_for_bit_and_another_seed_others():
    one, twin, other = (make_trainer(seed=seed, dropout=0.2) for seed in (3, 3, 4))
    losses = run(one)
    assert losses == run(twin)
    assert losses != run(other)
    assert_same_state(one, twin)


@pytest.mark.parametrize("optimizer", [adamw, adam])
def test_a_resumed_run_is_bit_equal_to_one_that_was_never_stopped(optimizer, tmp_path):
    options = {"dropout": 0.2, "warmup_steps": 4, "lr_decay": "cosine", "optimizer": optimizer}
    straight = make_trainer(**options)
    losses = run(straight)
    stopped = make_trainer(**options)
    steps = stopped.run()
    first = [progress.losses.mean().item() for progress in (next(steps) for _ in range(3)) if progress is not None]
    steps.close()
    description = Metadata(step=3, image_shape=(1, 8, 8), images=1797, config={}, versions={})
    ema, state = stopped.ema.model.state_dict(), capture(stopped)
    path = checkpoint.save(tmp_path, ema=ema, training=state, description=description)
    found = checkpoint.verify(path, *checkpoint.FILES)
    ema, state = checkpoint.load_ema(found), checkpoint.load_training(found)
    resumed = make_trainer(**options)
    torch.manual_seed(999)  # whatever state the process is in
    restore(resumed, state, ema)
    assert first + run(resumed) == losses
    assert_same_state(straight, resumed)


@pytest.mark.parametrize("accumulate", [2, 4, 16])
def test_accumulation_equals_the_large_batch(accumulate: int):
    whole, parts = make_trainer(), make_trainer(accumulate=accumulate)
    for one, other in zip(whole.run(), parts.run(), strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one.losses, other.losses, rtol=1e-4, atol=1e-5)
        assert torch.equal(one.t, other.t)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)


def test_one_step_is_the_step_written_out_by_hand():
    """AdamW's first step moves every weight by lr times the sign of its gradient; EMA follows by 1 - 1/10."""
    trainer = make_trainer(steps=1, grad_clip=None)
    before = {name: value.clone() for name, value in trainer.ddpm.model.state_dict().items()}
    run(trainer)
    for name, parameter in trainer.ddpm.model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None
        expected = before[name] - 2e-3 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-7, msg=name)
    for (name, average), parameter in zip(
        trainer.ema.model.named_parameters(), trainer.ddpm.model.parameters(), strict=True
    ):
        torch.testing.assert_close(average, 0.1 * before[name] + 0.9 * parameter.detach(), rtol=1e-5, atol=1e-7)


def test_gradients_are_clipped_and_the_norm_is_logged_unclipped():
    clipped, free = make_trainer(steps=1, grad_clip=1e-3), make_trainer(steps=1, grad_clip=None)
    norms = []
    for trainer in (clipped, free):
        (progress,) = trainer.run()
        assert progress is not None
        norms.append(progress.grad_norm)
    assert norms[0] == pytest.approx(norms[1])
    total = torch.cat([p.grad.flatten() for p in clipped.ddpm.model.parameters() if p.grad is not None]).norm().item()
    assert total == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_before_it_reaches_anything(where: str):
    trainer = make_trainer(steps=4)
    steps = trainer.run()
    next(steps)
    next(steps)
    before = {name: value.clone() for name, value in capture(trainer).items()}
    average = {name: value.clone() for name, value in trainer.ema.model.state_dict().items()}
    if where == "loss":
        trainer.ddpm.weighting = lambda log_snr, log_scale: torch.full_like(log_snr, float("inf"))
    else:
        trainer.ddpm.model.get_parameter("conv_out.bias").register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(NonFiniteError) as raised:
        next(steps)
    (t, _), _ = trainer._draw(torch.Size((1, 8, 8)))
    images = trainer.batches.indices(2)
    seen = ", ".join(f"{a}/{b}" for a, b in zip(t[:8].tolist(), images[:8], strict=True))
    first = "time_mlp.0.weight" if where == "loss" else "conv_out.bias"
    assert str(raised.value) == (
        f"the {where} at step 2 is not finite; timesteps t / images: {seen} and 8 more; "
        f"first parameter whose gradient is affected: {first}"
    )
    for name, value in capture(trainer).items():
        assert torch.equal(value, before[name]), name
    for name, value in trainer.ema.model.state_dict().items():
        assert torch.equal(value, average[name]), name


def faulty(*, late: bool, where: str, log_every: int = 4) -> Trainer:
    """Its step 5 of 8 is not finite; what follows would be."""
    trainer = make_trainer(steps=8, log_every=log_every, dropout=0.2)
    trainer.defers_finite_check = late
    if where == "loss":
        trainer.ddpm.weighting = lambda log_snr, _: torch.full_like(log_snr, float("nan") if trainer.step == 5 else 1.0)
    else:
        bias = trainer.ddpm.model.get_parameter("conv_out.bias")
        bias.register_hook(lambda grad: grad * (float("inf") if trainer.step == 5 else 1.0))
    return trainer


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_has_no_effect_where_the_host_looks_late(where: str):
    """As on a GPU: the host goes on for two steps more, and then comes back to the state that step 5 began with."""
    at_once, late = faulty(late=False, where=where), faulty(late=True, where=where)
    messages = []
    for trainer in (at_once, late):
        with pytest.raises(NonFiniteError) as raised:
            run(trainer)
        messages.append(str(raised.value))
        assert trainer.step == 5
        assert trainer.ema.updates == 5
    assert messages[0] == messages[1]
    assert f"the {where} at step 5 is not finite" in messages[1]
    ours, theirs = capture(late), capture(at_once)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    for ours, theirs in zip(late.ema.model.parameters(), at_once.ema.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_looking_late_changes_nothing_in_a_run_without_faults():
    one, other = make_trainer(dropout=0.2), make_trainer(dropout=0.2)
    other.defers_finite_check = True
    assert run(one) == run(other)
    assert capture(one).keys() == capture(other).keys()
    for name, value in capture(one).items():
        assert torch.equal(value, capture(other)[name]), name
    for ours, theirs in zip(one.ema.model.parameters(), other.ema.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_state_is_not_given_away_before_it_is_known_to_be_good():
    trainer = faulty(late=True, where="loss", log_every=100)
    steps = trainer.run()
    for _ in range(7):
        next(steps)
    with pytest.raises(NonFiniteError, match="the loss at step 5 is not finite"):
        capture(trainer)


def test_a_step_asks_nothing_of_the_device_where_the_host_looks_late():
    """Whatever turns a tensor into a number would make the host wait for a GPU."""
    trainer = make_trainer(steps=3)
    trainer.defers_finite_check = True
    batch = trainer.batches.batch(0)
    with Asked() as asked:
        trainer.train_step(batch)
    assert asked.seen == []
    with Asked() as asked:
        trainer.check_finite()
    assert asked.seen == ["_local_scalar_dense"]


class Asked(TorchDispatchMode):
    """Notes every operation that hands a number from a tensor to Python, or whose result's size depends on one."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_a_float16_overflow_is_skipped_and_counted():
    """The scaler is what CUDA uses; on a CPU it is switched on here to see that nothing moves, EMA included."""
    trainer = make_trainer(steps=2)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    trainer.ddpm.model.get_parameter("conv_out.bias").register_hook(lambda grad: grad * float("inf"))
    before = {name: value.clone() for name, value in trainer.ddpm.model.state_dict().items()}
    (*_, progress) = trainer.run()
    assert progress is not None
    assert progress.overflows == 2
    assert trainer.step == 2
    assert trainer.ema.updates == 0
    assert trainer.scaler.get_scale() == 1.0
    for name, value in trainer.ddpm.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    restored = make_trainer(steps=2)
    restored.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    restore(restored, capture(trainer), trainer.ema.model.state_dict())
    assert restored.scaler.get_scale() == 1.0
    assert restored.overflows == 2


def test_overflows_in_a_row_stop_the_run():
    trainer = make_trainer(steps=100)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    trainer.ddpm.model.get_parameter("conv_out.bias").register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(NonFiniteError, match=r"gradient at step 20 is not finite; .* affected: conv_out\.bias"):
        run(trainer)


def test_a_state_of_another_network_is_refused():
    trainer = make_trainer()
    with pytest.raises(ValueError, match="does not fit this configuration"):
        restore(trainer, {"model.x": torch.zeros(1)}, {})


def test_timesteps_are_uniform_and_noise_is_normal():
    trainer = make_trainer(steps=200)
    seen = []
    for trainer.step in range(200):  # what steps draw, without taking them
        (t, _), _ = trainer._draw(torch.Size((1, 8, 8)))
        seen.append(t)
    (first, *_) = (progress.t for progress in make_trainer(steps=1).run() if progress is not None)
    assert torch.equal(first, seen[0]), "a step takes what is drawn"
    t = torch.cat(seen)
    counts = torch.bincount(t, minlength=100).float()
    # chi-squared with 99 degrees of freedom: above 149 once in a thousand draws
    assert ((counts - 32).square() / 32).sum().item() < 149
    _, noise = trainer._draw(torch.Size((1, 8, 8)))
    assert noise.std().item() == pytest.approx(1, abs=0.1)


def test_progress_says_how_fast_and_how_long_it_waited():
    (*_, progress) = make_trainer(steps=4, log_every=2).run()
    assert progress is not None
    assert progress.step == 4
    assert len(progress.losses) == len(progress.t) == 2 * 16
    assert progress.images_per_second > 0
    assert 0 <= progress.data_fraction < 1


def test_ema_is_the_weighted_sum_written_out():
    model = nn.BatchNorm1d(2)
    ema = EMA(model, decays=[0.5])
    expected, values = model.weight.detach().clone(), [torch.full((2,), float(i)) for i in range(2, 8)]
    for n, value in enumerate(values):
        model.weight.data.copy_(value)
        model.running_mean = value * 10
        ema.update(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(ema.model.get_parameter("weight"), expected)
    assert torch.equal(ema.model.get_buffer("running_mean"), values[-1] * 10), "buffers are copied"
    assert not ema.model.training
    assert not any(p.requires_grad for p in ema.model.parameters())


def test_an_ema_of_decay_zero_is_the_network():
    trainer = make_trainer(decay=0.0, steps=2)
    run(trainer)
    for average, parameter in zip(trainer.ema.model.parameters(), trainer.ddpm.model.parameters(), strict=True):
        assert torch.equal(average, parameter)


def test_learning_rate_shapes():
    factor = partial(lr_schedule.factor, steps=110, warmup_steps=10)
    assert [factor(step, decay="constant") for step in (0, 4, 9, 10, 109)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    assert [factor(step, decay="linear") for step in (10, 60)] == [1.0, 0.5]
    assert [factor(step, decay="cosine") for step in (10, 60)] == pytest.approx([1.0, 0.5])
    assert factor(109, decay="cosine") == pytest.approx(0.000247, rel=0.01)
    assert lr_schedule.factor(0, steps=5, warmup_steps=0, decay="linear") == 1.0


def test_the_learning_rate_reaches_the_optimizer():
    trainer = make_trainer(steps=4, warmup_steps=2, lr_decay="linear")
    rates = [progress.learning_rate for progress in trainer.run() if progress is not None]
    assert rates == pytest.approx([1e-3, 2e-3, 2e-3, 1e-3])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 10, "accumulate": 3}, "accumulate 3 does not divide batch_size 10"),
        ({"grad_clip": 0.0}, "grad_clip must be positive"),
        ({"preview_every": -1}, "preview_every must not be negative"),
        ({"accumulate": "some"}, "accumulate must be a number or auto, got 'some'"),
        ({"compile": "yes"}, "compile must be true, false, auto or graphs, got 'yes'"),
        ({"fsdp": True, "compile": True}, "with fsdp=true choose compile=false or auto"),
        ({"fsdp": True, "accumulate": "auto"}, "with fsdp=true set the number"),
        ({"keep_last": 0}, "keep_last must be at least 1"),
        ({"keep_every": 300, "checkpoint_every": 200}, "keep_every 300 must be a multiple of checkpoint_every 200"),
        ({"lr_decay": "cosin"}, "lr_decay must be one of constant, cosine, linear, got 'cosin'"),
    ],
)
def test_impossible_settings_are_refused(change: dict, says: str):
    with pytest.raises(ValueError, match=says):
        TrainerConfig(**({"steps": 1, "batch_size": 1} | change))


def test_an_impossible_decay_is_refused():
    with pytest.raises(ValueError, match=r"decays must lie in \[0, 1\), got 1"):
        EMA(nn.Linear(1, 1), decays=[1.0])


def test_a_set_smaller_than_a_batch_trains(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8)
    trainer = make_trainer(steps=2)
    trainer.batches = BatchLoader(ImageSet(pixels, "tiny", flip="horizontal"), 16, seed=0)
    assert len(run(trainer)) == 2


@pytest.mark.slow
def test_one_image_is_learned_by_heart():
    """A single bright square: after a short run the samples are that image, whatever the noise."""
    image = np.zeros((1, 1, 8, 8), dtype=np.uint8)
    image[..., 2:6, 2:6] = 255
    trainer = make_trainer(steps=400, batch_size=32, decay=0.9)
    trainer.batches = BatchLoader(ImageSet(image, "square", flip="none"), 32, seed=0)
    run(trainer)
    x: Tensor = trainer.ddpm.with_model(trainer.ema.model).sample(8, 8, 1, show_progress=False)
    assert (x - (torch.from_numpy(image) / 127.5 - 1)).abs().mean().item() < 0.1
