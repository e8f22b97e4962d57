"""The names that README promises to programs: schedules, the network's first weights, losses, single steps, samples."""

import torch

from ddpm_cli.diffusion import schedule as schedules
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.models.unet import UNet
from digests.hashing import of_tensors

NAME = "in_python"
NETWORKS = {
    "plain": {"in_channels": 1},
    "colour": {"in_channels": 3, "dropout": 0.1, "num_heads": 2},
    "labelled": {"in_channels": 1, "num_classes": 10},
    "learned": {"in_channels": 1, "learn_variance": True},
}
TABLES = (
    *("betas", "alphas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod"),
    *("sqrt_one_minus_alphas_cumprod", "sqrt_recip_alphas", "posterior_variance"),
)


def carry_out() -> dict[str, str]:
    """The digests of everything, by name. Leaves torch's global generator elsewhere."""
    digests = {}
    for name in ("linear", "scaled_linear", "cosine", "sigmoid"):
        for zero_terminal_snr in (False, True):
            schedule = getattr(schedules, name)(100, zero_terminal_snr=zero_terminal_snr)
            digests[f"schedule/{name}{'/zero_terminal_snr' * zero_terminal_snr}"] = of_tensors(_tables(schedule))
    digests["schedule/custom"] = of_tensors(_tables(schedules.custom([0.01, 0.02, 0.05])))
    for name, options in NETWORKS.items():
        digests[f"weights/{name}"] = of_tensors(_network(**options).state_dict())
    for name in ("plain", "labelled", "colour"):
        digests |= {f"{key}/{name}": of_tensors(found) for key, found in _diffusion(**NETWORKS[name]).items()}
    return digests


def _tables(schedule: schedules.NoiseSchedule) -> dict[str, torch.Tensor]:
    t = torch.arange(schedule.timesteps)
    gathered = schedule.get(schedule.alphas_cumprod, t, (schedule.timesteps, 1, 1, 1))
    return {name: getattr(schedule, name) for name in TABLES} | {"gathered": gathered}


def _network(**options) -> UNet:
    torch.manual_seed(0)
    return UNet(
        image_size=16,
        base_channels=8,
        channel_mults=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(8,),
        norm_groups=4,
        **options,
    )


def _diffusion(*, in_channels: int, **options) -> dict[str, dict[str, torch.Tensor]]:
    """What a network of a few steps of training computes; images are those of README's section."""
    ddpm = DDPM(model=_network(in_channels=in_channels, **options), schedule=schedules.cosine(timesteps=30))
    optimizer = torch.optim.AdamW(ddpm.parameters(), lr=1e-2)
    x_0 = torch.rand(16, in_channels, 16, 16) * 2 - 1
    labels = torch.arange(16) % 10 if "num_classes" in options else None
    losses = []
    for _ in range(5):
        loss = ddpm.training_loss(x_0, labels=labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    t = torch.arange(16) + 5
    x_t, noise = ddpm.q_sample(x_0, t)
    stepped = {str(clip): ddpm.p_sample(x_t, t, clip_denoised=clip) for clip in (True, False)}
    drawn = ddpm.sample(3, 16, channels=in_channels, show_progress=False)
    bound = ddpm.variational_bound(x_0[:4])
    return {
        "training_loss": {"losses": torch.stack(losses)},
        "q_sample": {"x_t": x_t, "noise": noise},
        "p_sample": stepped,
        "sample": {"images": drawn},
        "variational_bound": {"terms": bound.terms, "prior": bound.prior},
    }
