"""A command that srun or mpirun has started several times: refused once, with the line that starts it as one run."""

from pathlib import Path

import pytest
from commands import assert_one_message, run_ranks, sample, train

SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        (SRUN, "srun --ntasks-per-node=1 torchrun --nproc_per_node=4 -m ddpm_cli.train name=x seed=1"),
        (
            SRUN | {"SLURM_STEP_NUM_NODES": "2"},
            "srun --ntasks-per-node=1 torchrun --nproc_per_node=2 --nnodes=2 --rdzv_backend=c10d"
            ' --rdzv_id=$SLURM_JOB_ID --rdzv_endpoint=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
            ":29500 -m ddpm_cli.train name=x seed=1",
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "torchrun --nproc_per_node=2 -m ddpm_cli.train name=x seed=1"),
        ({"PMI_SIZE": "3", "PMI_RANK": "0"}, "torchrun --nproc_per_node=3 -m ddpm_cli.train name=x seed=1"),
        # A torchrun for each of them, which makes a world of one.
        (
            SRUN | {"WORLD_SIZE": "1", "RANK": "0", "TORCHELASTIC_RUN_ID": "none"},
            "srun --ntasks-per-node=1 torchrun --nproc_per_node=4 -m ddpm_cli.train name=x seed=1",
        ),
    ],
)
def test_copies_of_a_run_are_refused_with_the_line_to_use(environment: dict, line: str, tmp_path: Path):
    done = train("name=x", "seed=1", cwd=tmp_path, fresh="TORCHELASTIC_RUN_ID" in environment, **environment)
    assert_one_message(done, "train", "processes .*train the same run; to have them work together, use torchrun")
    assert done.stderr.splitlines()[1].strip() == line
    assert list(tmp_path.iterdir()) == []


def test_the_first_process_speaks_for_the_others(tmp_path: Path):
    done = sample("ckpt=x", cwd=tmp_path, **SRUN | {"SLURM_PROCID": "3"})
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    assert_one_message(sample("ckpt=x", cwd=tmp_path, **SRUN), "sample", "4 processes.*sample the same images")
    done = train("-m", "seed=1,2", cwd=tmp_path, **SRUN)
    assert_one_message(done, "train", "-m: srun has started 4 processes.*run the whole sweep; start it once")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("program", ["train", "sample"])
def test_a_sweep_by_torchrun_is_refused_before_anything_is_written(program: str, tmp_path: Path):
    done = run_ranks(program, "-m", "ckpt=x" if program == "sample" else "name=x", "seed=1,2", cwd=tmp_path)
    assert_one_message(done, program, "-m: torchrun has started 2 processes .*, or its runs one by one with it")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a script of sbatch, which starts the command itself
        {"SLURM_STEP_NUM_TASKS": "1"},  # as submitit starts a job
        SRUN | {"WORLD_SIZE": "1"},
    ],
)
def test_one_process_is_not_refused(environment: dict, tmp_path: Path):
    """It gets as far as to look for its checkpoint."""
    done = sample("ckpt=nowhere", cwd=tmp_path, **environment)
    assert_one_message(done, "sample", "ckpt: nowhere does not exist")
