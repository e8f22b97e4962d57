"""`ddpm-sample`: sample images from a trained model."""

from functools import partial

from ddpm_cli.cli.launch import launch
from ddpm_cli.config.sample_options import OPTIONS
from ddpm_cli.runtime.signals import Stop
from ddpm_cli.sampling.run import start


def main() -> None:
    """Run the command with the arguments in `sys.argv`; ends the process."""
    stop = Stop()
    stop.listen()
    launch("ddpm-sample", "sample", OPTIONS, partial(start, stop=stop), stop=stop)


if __name__ == "__main__":
    main()
