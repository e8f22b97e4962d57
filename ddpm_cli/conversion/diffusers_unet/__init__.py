"""diffusers' UNet2DModel and our UNet, each in the other's terms: options and tensors of DDPM's network."""

from ddpm_cli.conversion.diffusers_unet.options import CLASS, CONFIG_FILE, from_options, to_options
from ddpm_cli.conversion.diffusers_unet.tensors import tensor_names, to_diffusers, to_ours, with_null_label

__all__ = [
    "CLASS",
    "CONFIG_FILE",
    "from_options",
    "tensor_names",
    "to_diffusers",
    "to_options",
    "to_ours",
    "with_null_label",
]
