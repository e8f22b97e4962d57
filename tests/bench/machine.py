"""What this machine is, and what its arithmetic can do at best."""

import os
import platform
from pathlib import Path

import torch
from torch import nn

from bench.clock import Contestant, Turn
from bench.peers import version

PACKAGES = ("torch", "diffusers", "accelerate", "denoising-diffusion-pytorch", "torch-fidelity")
MATRIX = {"cpu": 2048, "cuda": 8192}
CONVOLUTION = {"cpu": (8, 128, 32), "cuda": (256, 256, 32)}  # images, channels in and out, side in pixels
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def describe(device: str) -> dict:
    versions = {package: version(package) for package in PACKAGES}
    return {
        "device": _gpu() if device == "cuda" else _cpu(),
        "threads": torch.get_num_threads(),
        "versions": versions | {"python": platform.python_version(), "torch": torch.__version__},
    }


def _cpu() -> str:
    model = platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} CPU cores ({torch.backends.cpu.get_cpu_capability()})"


def _gpu() -> str:
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"


def products(device: str, precision: str) -> list[Contestant]:
    """A matrix product and a convolution, both large; counted in FLOPs."""
    n = MATRIX[device]
    images, channels, side = CONVOLUTION[device]
    return [
        Contestant("matrix product", 2 * n**3, lambda: _matrix_product(n, device, precision)),
        Contestant(
            "convolution",
            2 * images * side**2 * channels**2 * 9,
            lambda: _convolution(images, channels, side, device, precision),
            cudnn_benchmark=True,
        ),
    ]


def _matrix_product(n: int, device: str, precision: str) -> Turn:
    a, b = torch.randn(2, n, n, device=device, dtype=DTYPES[precision]).unbind()
    out = torch.empty_like(a)

    def turn(repetitions: int) -> None:
        for _ in range(repetitions):
            torch.mm(a, b, out=out)

    return turn


def _convolution(images: int, channels: int, side: int, device: str, precision: str) -> Turn:
    convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    convolution.to(device, DTYPES[precision], memory_format=torch.channels_last)
    x = torch.randn(images, channels, side, side, device=device, dtype=DTYPES[precision])
    x = x.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def turn(repetitions: int) -> None:
        for _ in range(repetitions):
            convolution(x)

    return turn
