"""Differences between Hydra's launchers, which run a sweep one run after another, or several in other processes."""

import multiprocessing
import os
import signal

from omegaconf import DictConfig, OmegaConf, read_write

from ddpm_cli.cli.gpu_lock import visible_gpus
from ddpm_cli.runtime.cgroup import cpus

# As Hydra's configuration names them.
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
SLURM = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
SUBMITIT = (SLURM, "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher")


def runs_in_parallel(launcher: str) -> bool:
    """Whether a launcher may run several jobs at a time."""
    return launcher != BASIC


def device_is_auto(cfg: DictConfig) -> bool:
    """Whether a run uses any GPU that it finds: `trainer.device=auto`, or `device=auto` of ddpm-sample."""
    return OmegaConf.select(cfg, "trainer.device", default=cfg.get("device")) == "auto"


def prepare(config: DictConfig) -> None:
    """Let joblib run as many jobs at a time as this process has CPUs, but no more than it has GPUs."""
    if config.hydra.launcher._target_ != JOBLIB:
        return
    os.environ.setdefault("LOKY_MAX_CPU_COUNT", str(cpus()))
    if device_is_auto(config):
        _one_job_per_gpu(config)


def _one_job_per_gpu(config: DictConfig) -> None:
    """More at a time would only wait for one of them."""
    gpus, launcher = len(visible_gpus()), config.hydra.launcher
    if gpus > 0 and (launcher.n_jobs < 0 or launcher.n_jobs > gpus):
        with read_write(config):
            launcher.n_jobs = gpus


def stop_workers(at_once: bool) -> bool:
    """Ask joblib's job processes of this process to stop, or end them at once; returns whether there are any."""
    workers = [process for process in multiprocessing.active_children() if "loky" in type(process).__module__]
    for worker in workers:
        if worker.pid is not None:
            os.kill(worker.pid, signal.SIGKILL if at_once else signal.SIGTERM)
    return bool(workers)
