"""`ddpm-train`: train a denoising diffusion model."""

from functools import partial

from ddpm_cli.cli.launch import launch
from ddpm_cli.config.train_options import OPTIONS
from ddpm_cli.runtime.signals import Stop
from ddpm_cli.training.start import start


def main() -> None:
    """Run the command with the arguments in `sys.argv`; ends the process."""
    stop = Stop()
    stop.listen()
    launch("ddpm-train", "train", OPTIONS, partial(start, stop=stop), stop=stop)


if __name__ == "__main__":
    main()
