"""The tables, as lines of Markdown."""

from collections.abc import Iterable, Iterator

from scaling import extras as measured
from scaling.arithmetic import FAST, FLOAT, SLOW, Assumptions, Fabric, Step, step
from scaling.networks import Network, networks

GIVEN = Assumptions()
GPUS = (8, 64, 512)
BATCHES = (128, 1024, 8192)
# Decoding an image in one thread. The first three of 64 x 64 pixels, measured on one AVX2 core: explanation/scaling.md.
DECODE = {"PNG, PIL": 219e-6, "JPEG, PIL": 129e-6, "JPEG, torchvision.io": 47e-6}
JPEG_BYTES = 23_000  # as in tests/shards_speed.py, of about 256 x 256


def assumptions() -> list[str]:
    given, between = GIVEN, f"{_us(GIVEN.hop_between)} per hop"
    rows = {
        "peak rate of a GPU, bf16, dense": f"{given.peak / 1e12:.0f} TFLOP/s (data sheet of the H100 SXM)",
        "fraction of it reached in training": f"{given.fraction:.0%} (this project's target)",
        "launching a kernel, uncompiled": f"{given.launch * 1e6:.0f} us of the host's time",
        "GPUs per machine": f"{given.gpus_per_machine}",
        "ring inside a machine": f"{given.inside / 1e9:.0f} GB/s (80 % of NVLink 4), {_us(given.hop_inside)} per hop",
        f"ring between machines, {FAST.name}": f"{FAST.between / 1e9:.0f} GB/s (80 %), {between}",
        f"ring between machines, {SLOW.name}": f"{SLOW.between / 1e9:.0f} GB/s (80 %), {between}",
        "gradient bucket": f"{given.bucket / 2**20:.0f} MiB (DistributedDataParallel's default)",
        "message between two hosts, gloo": f"{_us(given.hop_hosts)}",
        "random number generation": f"{given.noise / 1e12:.0f} TB/s",
    }
    return _table(["assumed", "value"], rows.items())


def counted() -> list[str]:
    rows = []
    for network in networks():
        whole = step(network, network.batch_per_gpu, 1, FAST, GIVEN)
        rows.append([
            f"{network.name}, {network.image_size} x {network.image_size}",
            f"{network.parameters:,}",
            f"{FLOAT * network.parameters / 1e6:.0f} MB",
            f"{network.forward / 1e9:.1f}, {network.training / 1e9:.1f} GFLOP",
            f"{network.kernels:,}: {_ms(whole.launching)}",
            f"{network.batch_per_gpu}: {_ms(whole.compute)}",
        ])  # fmt: skip
    header = ["network", "parameters", "gradients", "forward, training (per image)", "kernels: launch time"]
    return _table([*header, "images per step: compute time"], rows)


def communication() -> list[str]:
    rows = []
    for network in networks():
        for gpus, fabric in _clusters():
            reduced, sharded = (_weak(network, gpus, fabric, shard=shard) for shard in (False, True))
            backward = reduced.compute * (1 - network.forward / network.training)
            rows.append([
                *(network.name, str(gpus), _between(gpus, fabric)),
                *(_ms(reduced.communication), _ms(backward), _ms(reduced.exposed)),
                *(_ms(sharded.communication), _ms(sharded.exposed)),
            ])  # fmt: skip
    header = ["network", "GPUs", "between machines", "all-reduce", "backward pass", "all-reduce not hidden"]
    return _table([*header, "fsdp=true", "fsdp=true not hidden"], rows)


def weak() -> list[str]:
    rows = []
    for network in networks():
        one = _weak(network, 1, FAST)
        rows.append([network.name, "1", "", f"{network.batch_per_gpu}", *_speed(one, network.batch_per_gpu), "100 %"])
        for gpus, fabric in _clusters():
            found, batch = _weak(network, gpus, fabric), network.batch_per_gpu * gpus
            efficiency = f"{one.seconds / found.seconds:.0%}".replace("%", " %")
            rows.append(
                [network.name, str(gpus), _between(gpus, fabric), f"{batch:,}", *_speed(found, batch), efficiency]
            )
    header = ["network", "GPUs", "between machines", "batch", "step time", "images/s", "scaling efficiency"]
    return _table(header, rows)


def strong() -> list[str]:
    rows = []
    for network in networks():
        for batch in BATCHES:
            one = step(network, batch, 1, FAST, GIVEN)
            for gpus in GPUS:
                if batch % gpus != 0:
                    rows.append([network.name, f"{batch:,}", str(gpus), "refused: not divisible", "", "", ""])
                    continue
                found = step(network, batch, gpus, FAST, GIVEN)
                graphs = found.of_one_launch
                rows.append([
                    *(network.name, f"{batch:,}", str(gpus), f"{batch // gpus}"),
                    _ms(found.seconds) + (" (launching)" if found.host > found.device else ""),
                    f"{one.seconds / found.seconds:.1f}",
                    f"{_ms(graphs.seconds)}: {one.seconds / graphs.seconds:.1f}",
                ])  # fmt: skip
    header = ["network", "batch", "GPUs", "images per GPU", "step time", "speedup"]
    return _table([*header, "without launching (step time: speedup)"], rows)


def sharded() -> list[str]:
    """Memory of parameters, gradients, Adam's two moments and one average, and what a step takes."""
    rows = []
    for network in networks():
        state = 5 * FLOAT * network.parameters
        for gpus, fabric in ((1, FAST), *_clusters()):
            largest = FLOAT * max(network.layers)
            batch = network.batch_per_gpu * gpus
            whole, parts = (_weak(network, gpus, fabric, shard=shard) for shard in (False, True))
            of_parts = [_mb(state / gpus + 2 * largest), *_speed(parts, batch)] if gpus > 1 else ["", "", ""]
            rows.append(
                [network.name, str(gpus), _between(gpus, fabric), _mb(state), _speed(whole, batch)[1], *of_parts]
            )
    header = [
        "network",
        "GPUs",
        "between machines",
        "state, unsharded",
        "images/s",
        "state, fsdp=true",
        "step time",
        "images/s",
    ]
    return _table(header, rows)


def data() -> list[str]:
    rows = []
    for network in networks():
        rate = network.batch_per_gpu / _weak(network, 1, FAST).seconds * GIVEN.gpus_per_machine
        rows.append([
            network.name,
            f"{rate:,.0f}",
            f"{rate * network.pixels / 1e6:,.0f} MB/s",
            f"{rate * JPEG_BYTES / 1e6:,.0f} MB/s",
            *(f"{rate * seconds:.1f}" for seconds in DECODE.values()),
        ])  # fmt: skip
    header = ["network", "images/s", "as uint8 (cache)", f"as JPEGs of {JPEG_BYTES // 1000} kB"]
    return _table([*header, *(f"cores for {name}" for name in DECODE)], rows)


def extras() -> list[str]:
    rows = []
    for network in networks():
        for gpus in (2, *GPUS):
            found, batch = _weak(network, gpus, FAST), network.batch_per_gpu * gpus
            noise = FLOAT * batch * network.pixels
            rows.append([
                *(network.name, str(gpus), f"{batch:,}"),
                *(_us(found.flag), _us(found.gathering), f"{_us(found.noise)}, {_mb(noise)}", _ms(found.compute)),
            ])  # fmt: skip
    header = ["network", "GPUs", "batch", "flag (host)", "gathering losses", "noise of the whole batch"]
    return [*measured.table(), "", "Calculated:", "", *_table([*header, "computation"], rows)]


def _weak(network: Network, gpus: int, fabric: Fabric, *, shard: bool = False) -> Step:
    return step(network, network.batch_per_gpu * gpus, gpus, fabric, GIVEN, shard=shard)


def _clusters() -> Iterator[tuple[int, Fabric]]:
    for gpus in GPUS:
        for fabric in (FAST, SLOW) if gpus > GIVEN.gpus_per_machine else (FAST,):
            yield gpus, fabric


def _between(gpus: int, fabric: Fabric) -> str:
    return fabric.name if gpus > GIVEN.gpus_per_machine else ""


def _speed(found: Step, batch: int) -> list[str]:
    return [_ms(found.seconds), f"{batch / found.seconds:,.0f}"]


def _table(header: list[str], rows: Iterable[Iterable[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.{1 if seconds < 0.1 else 0}f} ms"


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} us"


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"
