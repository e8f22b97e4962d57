"""How torch's CPU threads, which are OpenMP's, share the CPU. Settings are read once, when torch is loaded.

Threads of OpenMP wait for each other in busy loops. Where another process has taken the core of one of them, the others
burn theirs until it comes back: a run is many times slower than its share of the machine would make it.
"""

import os

from ddpm_cli.runtime.cgroup import cpus, processors

# How often a thread looks before it sleeps; GNU's OpenMP takes 300,000 by itself. Fewer cost a run that is alone more
# than a twentieth of its speed, more cost one in company its share: "Beside other processes" in
# docs/explanation/performance.md.
SPIN_COUNT = 10_000
_OF_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def prepare(*, wait_passively: bool = False) -> None:
    """Set OpenMP's environment variables, unless the user has; call this before torch is imported.

    Args:
        wait_passively: not in loops at all: for jobs that are started to share the same cores.
    """
    if not any(name in os.environ for name in _OF_WAITING):
        name, value = ("OMP_WAIT_POLICY", "passive") if wait_passively else ("GOMP_SPINCOUNT", str(SPIN_COUNT))
        os.environ[name] = value
    if cpus() < processors():  # torch knows of the CPUs, and not of a container's share of their time
        os.environ.setdefault("OMP_NUM_THREADS", str(cpus()))
