"""`ddpm-export`: write a trained model in the format of diffusers."""

from functools import partial

from ddpm_cli.cli.launch import launch
from ddpm_cli.config.export_options import OPTIONS
from ddpm_cli.conversion.export import start
from ddpm_cli.runtime.signals import Stop


def main() -> None:
    """Run the command with the arguments in `sys.argv`; ends the process."""
    stop = Stop()
    stop.listen()
    launch("ddpm-export", "export", OPTIONS, partial(start, stop=stop), stop=stop)


if __name__ == "__main__":
    main()
