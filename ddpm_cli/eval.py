"""`ddpm-eval`: measure how good a model's images are."""

from functools import partial

from ddpm_cli.cli.launch import launch
from ddpm_cli.config.eval_options import OPTIONS
from ddpm_cli.evaluation.run import start
from ddpm_cli.runtime.signals import Stop


def main() -> None:
    """Run the command with the arguments in `sys.argv`; ends the process."""
    stop = Stop()
    stop.listen()
    launch("ddpm-eval", "eval", OPTIONS, partial(start, stop=stop), stop=stop)


if __name__ == "__main__":
    main()
