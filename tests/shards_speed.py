"""Images per second out of tar files of JPEGs, beside the webdataset package's own pipeline; in turn, medians.

PYTHONPATH=tests .venv/bin/python -m shards_speed [images] [rounds]
"""

import io
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from PIL import Image

from ddpm_cli.data.decode import decode_bytes
from ddpm_cli.data.loader import BatchLoader
from ddpm_cli.data.webdataset import webdataset

SIZE, BATCH = 64, 64


def write(place: Path, images: int) -> None:
    """Noisy JPEGs of about 256 x 256, 23 kB each, in eight shards."""
    rng = np.random.default_rng(0)
    with wds.ShardWriter(f"{place}/speed-%02d.tar", maxcount=-(-images // 8), verbose=0) as sink:
        for index in range(images):
            height, width = rng.integers(230, 290, 2)
            coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).resize((width, height))
            noisy = np.asarray(coarse).astype(int) + rng.integers(-8, 9, (height, width, 3))
            jpg = io.BytesIO()
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(jpg, "JPEG", quality=90)
            sink.write({"__key__": f"{index:06d}", "jpg": jpg.getvalue(), "cls": index % 10})


def ours(place: Path, workers: int, images: int) -> Callable[[], None]:
    """Batches in training order, ready to be trained on; the processes are running."""
    data = webdataset(str(place), image_size=SIZE, workers=workers, cache_dir=f"{place}/cache")
    batches = BatchLoader(data, BATCH, seed=0)
    batches.batch(0)

    def read() -> None:
        for step in range(images // BATCH):
            batches.batch(step)

    return read


def theirs(place: Path, decode: Callable) -> Callable[[], None]:
    """The package's pipeline in one process: shards in turn, a shuffle buffer, decoding."""
    shards = sorted(map(str, place.glob("*.tar")))

    def read() -> None:
        for _ in decode(wds.WebDataset(shards, shardshuffle=False).shuffle(1000)):
            pass

    return read


def with_pil(dataset: wds.WebDataset) -> wds.WebDataset:
    """As its documentation does it: the whole picture by PIL, then scaled and cropped."""

    def scaled(image: Image.Image) -> np.ndarray:
        ratio = SIZE / min(image.size)
        image = image.resize((round(image.width * ratio), round(image.height * ratio)), Image.Resampling.BICUBIC)
        left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
        return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))

    return dataset.decode("pil").to_tuple("jpg", "cls").map_tuple(scaled)


def with_our_decoder(dataset: wds.WebDataset) -> wds.WebDataset:
    return dataset.to_tuple("jpg", "cls").map_tuple(lambda jpg: decode_bytes(jpg, (SIZE, SIZE), 3, name=""), int)


def operations_beside(read: Callable[[], None] | None, seconds: float = 3) -> float:
    """Tiny operations of torch per second, as a loop that feeds a GPU issues them, while a thread reads batches."""
    done = threading.Event()

    def keep_reading() -> None:
        while read is not None and not done.is_set():
            read()

    x, count = torch.zeros(64), 0
    with ThreadPoolExecutor(1) as thread:
        thread.submit(keep_reading)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for _ in range(100):
                x.add_(1.0)
            count += 100
        done.set()
    return count / seconds


def main() -> None:
    torch.set_num_threads(1)
    images, rounds = map(int, (sys.argv[1:] + ["4000", "5"][len(sys.argv) - 1 :])[:2])
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write(place, images)
        began = time.perf_counter()
        webdataset(str(place), workers=0, cache_dir=f"{place}/cache")
        print(f"indexing took {(time.perf_counter() - began) / images * 1e6:.0f} us an image")
        readers = {f"ours, workers={workers}": ours(place, workers, images) for workers in (0, 1, 2)}
        readers["webdataset, PIL"] = theirs(place, with_pil)
        readers["webdataset, our decoder"] = theirs(place, with_our_decoder)
        rates: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(rounds):
            for name, read in readers.items():
                began = time.perf_counter()
                read()
                rates[name].append(images / (time.perf_counter() - began))
        base = statistics.median(rates["webdataset, PIL"])
        for name, found in rates.items():
            middle = statistics.median(found)
            print(f"{name:24} {middle:7,.0f} images/s ({min(found):,.0f} to {max(found):,.0f}), {middle / base:.2f} x")
        alone = operations_beside(None)
        for where, workers in (("a thread", 0), ("a process", 1)):
            share = operations_beside(ours(place, workers, BATCH)) / alone
            print(f"a loop of tiny torch operations runs at {share:.0%} of its speed beside {where} that decodes")


if __name__ == "__main__":
    main()
