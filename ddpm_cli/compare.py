"""`ddpm-compare`: compare runs: what differs between them, and their results."""

import sys

from ddpm_cli.comparison.command import run
from ddpm_cli.runtime import console
from ddpm_cli.runtime.exit_codes import INTERRUPTED


def main() -> None:
    """Run the command with the arguments in `sys.argv`; ends the process."""
    console.install()
    try:
        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:
        print("ddpm-compare: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
