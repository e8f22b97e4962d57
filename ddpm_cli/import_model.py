"""`ddpm-import`: turn a model that another program trained into a run of ddpm-cli."""

from functools import partial

from ddpm_cli.cli.launch import launch
from ddpm_cli.config.import_options import OPTIONS
from ddpm_cli.conversion.run import start
from ddpm_cli.runtime.signals import Stop


def main() -> None:
    """Run the command with the arguments in `sys.argv`; ends the process."""
    stop = Stop()
    stop.listen()
    launch("ddpm-import", "import", OPTIONS, partial(start, stop=stop), stop=stop)


if __name__ == "__main__":
    main()
