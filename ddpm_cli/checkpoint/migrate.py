"""Configurations of earlier checkpoint formats, brought up to date.

They may come from anywhere and hold any JSON: all that is done is to add and rename keys of known nodes, and the result
is checked like any other.
"""

# By group: what its nodes whose `_target_` begins so have got since format 1, with the values that change nothing.
_SINCE_1: dict[str, tuple[str, dict[str, object]]] = {
    "schedule": ("ddpm_cli.diffusion.schedule.", {"zero_terminal_snr": False}),
    "model": ("ddpm_cli.models.unet.UNet", {"num_classes": None, "learn_variance": False}),
    "sampler": ("ddpm_cli.diffusion.samplers.", {"spacing": "linspace"}),
    "ema": ("ddpm_cli.ema.ema.EMA", {"posthoc": []}),
    "trainer": ("ddpm_cli.training.trainer_config.TrainerConfig", {"label_dropout": None}),
    "data": ("ddpm_cli.data.", {"num_classes": None}),
}


def upgrade_1(config: dict) -> dict:
    """A configuration of format 1 (version 0.1) in the terms of format 2, computing what it computed; a new dict."""
    found = dict(config)
    for group, (target, since) in _SINCE_1.items():
        node = found.get(group)
        if isinstance(node, dict) and str(node.get("_target_")).startswith(target):
            found[group] = since | _several_decays(node) if group == "ema" else since | node
    if "trainer" in found:
        loss = {"_target_": "ddpm_cli.diffusion.loss.Simple"}
        timesteps = {"_target_": "ddpm_cli.training.timestep_samplers.Uniform", "_partial_": True}
        found = {"loss": loss, "timestep_sampler": timesteps} | found
    return found


def _several_decays(node: dict) -> dict:
    return {"decays" if key == "decay" else key: [value] if key == "decay" else value for key, value in node.items()}
