"""How long a step takes on N GPUs, from `Assumptions`. Times in seconds, sizes in bytes, rates in bytes per second."""

import math
from dataclasses import dataclass, replace

from scaling.networks import Network

FLOAT = 4  # parameters and gradients are float32, also under autocast


@dataclass(frozen=True)
class Fabric:
    """What joins the GPUs of a cluster: rates are those of a ring through all of them ("bus bandwidth")."""

    name: str
    between: float  # machines


@dataclass(frozen=True)
class Assumptions:
    """None of these has been measured by this project."""

    gpus_per_machine: int = 8
    peak: float = 989e12  # dense bf16 operations per second of an H100 SXM, by its data sheet
    fraction: float = 0.4  # of that, in training: the project's own target
    launch: float = 5e-6  # of a kernel by the host, where neither compilation nor a CUDA graph saves it
    inside: float = 360e9  # 80 % of NVLink 4's 450 GB/s in each direction
    hop_inside: float = 2e-6  # latency from GPU to GPU of one machine
    hop_between: float = 10e-6  # from machine to machine
    bucket: int = 25 * 2**20  # DistributedDataParallel's, in bytes
    hop_hosts: float = 50e-6  # latency of TCP between hosts, for gloo
    noise: float = 1e12  # bytes of random numbers a GPU draws in a second


FAST = Fabric("8 x 400 Gb/s", 8 * 0.8 * 50e9)  # a network card for each GPU, 80 % of its rate
SLOW = Fabric("1 x 100 Gb/s", 0.8 * 12.5e9)  # one for the machine


@dataclass(frozen=True)
class Step:
    """A step, taken apart. What the host does is hidden by what the GPU does, or the other way round."""

    compute: float
    communication: float  # all of it
    exposed: float  # what of it does not fit behind the passes
    gathering: float  # of the losses
    noise: float
    launching: float  # host
    flag: float  # host: whether any process has had a signal

    @property
    def of_one_launch(self) -> "Step":
        """The same where a CUDA graph launches all kernels at once."""
        return replace(self, launching=0.0)

    @property
    def device(self) -> float:
        return self.compute + self.exposed + self.gathering + self.noise

    @property
    def host(self) -> float:
        return self.launching + self.flag

    @property
    def seconds(self) -> float:
        return max(self.device, self.host)


def step(network: Network, batch: int, gpus: int, fabric: Fabric, given: Assumptions, *, shard: bool = False) -> Step:
    """A step of `batch` images over all GPUs, by DistributedDataParallel, or sharded."""
    compute = network.training * batch / gpus / (given.peak * given.fraction)
    forward = compute * network.forward / network.training
    cost = _sharded if shard else _reduced
    communication, exposed = cost(network, forward, compute - forward, gpus, fabric, given) if gpus > 1 else (0.0, 0.0)
    return Step(
        compute=compute,
        communication=communication,
        exposed=exposed,
        gathering=_ring(FLOAT * batch, gpus, fabric, given),
        noise=FLOAT * batch * network.pixels / given.noise,  # every GPU draws that of the whole batch
        launching=network.kernels * given.launch,
        flag=2 * math.log2(gpus) * given.hop_hosts,
    )


def _reduced(
    network: Network, forward: float, backward: float, gpus: int, fabric: Fabric, given: Assumptions
) -> tuple[float, float]:
    """All-reduce of the gradients, bucket by bucket while the backward pass goes on; only the last has nothing left."""
    size = FLOAT * network.parameters
    buckets = math.ceil(size / given.bucket)
    latency = min(2 * _latency(gpus, given), 2 * _depth(gpus, given))  # of a ring or a tree: NCCL takes the better one
    total = 2 * _share(gpus) * size / _rate(gpus, fabric, given) + buckets * latency
    return total, max(total - backward, total / buckets)


def _sharded(
    network: Network, forward: float, backward: float, gpus: int, fabric: Fabric, given: Assumptions
) -> tuple[float, float]:
    """Each layer gathered for the forward and again for the backward pass, its gradients reduced to their parts.

    The next layer is gathered while one is computed: what has nothing to hide behind is the first and the last.
    """
    times = [_ring(FLOAT * size, gpus, fabric, given) for size in network.layers]
    once = sum(times)
    return 3 * once, max(once - forward, times[0]) + max(2 * once - backward, times[0])


def _ring(size: float, gpus: int, fabric: Fabric, given: Assumptions) -> float:
    """All-gather or reduce-scatter of `size` bytes in all: half of an all-reduce."""
    return _share(gpus) * size / _rate(gpus, fabric, given) + _latency(gpus, given)


def _share(gpus: int) -> float:
    return (gpus - 1) / gpus


def _rate(gpus: int, fabric: Fabric, given: Assumptions) -> float:
    return given.inside if gpus <= given.gpus_per_machine else min(given.inside, fabric.between)


def _latency(gpus: int, given: Assumptions) -> float:
    """Once around a ring of all GPUs."""
    between = math.ceil(gpus / given.gpus_per_machine) - 1
    return (gpus - 1 - between) * given.hop_inside + between * given.hop_between


def _depth(gpus: int, given: Assumptions) -> float:
    """Up a tree of the machines, in each of which the GPUs stand in a row."""
    machines = math.ceil(gpus / given.gpus_per_machine)
    return (min(gpus, given.gpus_per_machine) - 1) * given.hop_inside + math.log2(machines) * given.hop_between
