"""The stream of batches: order, flips, prefetching."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from ddpm_cli.data import loader
from ddpm_cli.data.image_set import Flip, ImageSet
from ddpm_cli.data.loader import BatchLoader, augment


def numbered(count: int, *, flip: Flip = "none") -> ImageSet:
    """Images 1 x 2 x 3 whose pixels all say which image it is."""
    values = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return ImageSet(np.broadcast_to(values, (count, 1, 2, 3)).copy(), "numbered", flip=flip)


def labelled(count: int) -> ImageSet:
    """As `numbered`; the label is what the number leaves on division by 7."""
    images = numbered(count, flip="horizontal")
    names = tuple(f"class {label}" for label in range(7))
    return replace(images, labels=np.arange(count, dtype=np.int64) % 7, class_names=names)


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (10, 5), (7, 1), (3, 10), (1, 5), (2, 7)])
def test_stream_is_one_permutation_after_another(count, batch_size):
    stream = BatchLoader(numbered(count), batch_size, seed=3)
    steps = 4 * count
    in_order = [stream.indices(step) for step in range(steps)]
    assert all(part.shape == (batch_size,) and part.dtype == np.int64 for part in in_order)
    epochs = np.concatenate(in_order).reshape(-1, count)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(count), (len(epochs), 1)))
    # Resuming anywhere, and going backwards, meet the same batches.
    resumed = BatchLoader(numbered(count), batch_size, seed=3)
    for step in [steps - 1, *reversed(range(steps)), steps // 2]:
        np.testing.assert_array_equal(resumed.indices(step), in_order[step])


def test_epochs_and_seeds_differ_in_order():
    one, other = (np.stack([BatchLoader(numbered(50), 50, seed=s).indices(e) for e in range(5)]) for s in (1, 2))
    orders = np.concatenate([one, other])
    assert len(np.unique(orders, axis=0)) == 10


def test_order_does_not_depend_on_the_batch_size():
    streams = [
        np.concatenate([BatchLoader(numbered(9), size, seed=0).indices(i) for i in range(36 // size)])
        for size in (4, 6)
    ]
    np.testing.assert_array_equal(streams[0], streams[1])


def test_a_batch_gathers_the_images_of_the_step():
    stream = BatchLoader(numbered(20), 8, seed=0)
    pixels = stream.batch(5).pixels
    assert pixels is not None
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (8, 1, 2, 3))
    np.testing.assert_array_equal(pixels[:, 0, 1, 2].numpy(), stream.indices(5))


@pytest.mark.parametrize(("flip", "ways"), [("none", 0), ("horizontal", 1), ("both", 2)])
def test_flips_are_fair_coins_of_seed_and_step(flip, ways):
    stream = BatchLoader(numbered(10, flip=flip), 500, seed=0)
    flips = torch.stack([stream.flips(step) for step in range(20)])
    assert (flips.dtype, flips.shape) == (torch.bool, (20, 500, ways))
    assert torch.equal(BatchLoader(numbered(10, flip=flip), 500, seed=0).flips(13), flips[13])
    for way in range(ways):
        assert 0.47 < flips[..., way].float().mean() < 0.53  # 6 standard deviations
        assert len(flips[..., way].unique(dim=0)) == 20
        assert not torch.equal(BatchLoader(numbered(10, flip=flip), 500, seed=1).flips(13)[:, way], flips[13, :, way])
    if ways == 2:
        assert 0.22 < flips.all(-1).float().mean() < 0.28, "one coin says nothing of the other"
        assert torch.equal(flips[..., :1], torch.stack([sideways(500).flips(step) for step in range(20)]))


def sideways(batch_size: int) -> BatchLoader:
    return BatchLoader(numbered(10, flip="horizontal"), batch_size, seed=0)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_size_below_one_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size .*{batch_size}"):
        BatchLoader(numbered(3), batch_size, seed=0)


@pytest.mark.parametrize("ways", [0, 1, 2])
def test_augment_mirrors_and_scales_exactly(ways):
    pixels = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 4, 16)
    flips = torch.tensor([[False, False], [True, False], [False, True], [True, True]])[:, :ways]
    images = augment(pixels, flips)
    expected = pixels.numpy().astype(np.float64)
    for image, of_it in zip(expected, flips.tolist(), strict=True):
        for flipped, axis in zip(of_it, (-1, -2), strict=False):
            image[:] = np.flip(image, axis) if flipped else image
    assert images.dtype == torch.float32
    np.testing.assert_allclose(images.numpy(), expected / 127.5 - 1, atol=6e-8)
    assert (images.min(), images.max()) == (-1, 1)
    assert torch.equal(((augment(pixels, flips[:, :0]) + 1) * 127.5).round().byte(), pixels)


def batch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_prefetch_gives_every_step_in_turn_and_its_thread_ends():
    stream = BatchLoader(numbered(10, flip="horizontal"), 4, seed=0)
    ahead = stream.prefetch(7)
    for step in range(7, 17):
        batch = next(ahead)
        assert batch.pixels is not None
        assert torch.equal(batch.pixels[:, 0, 0, 0], torch.from_numpy(stream.indices(step)))
        assert torch.equal(batch.flips, stream.flips(step))
        assert batch.labels is None
    assert len(batch_threads()) == 1
    ahead.close()
    assert batch_threads() == []


@pytest.mark.parametrize("world_size", [1, 3])
def test_labels_stay_with_their_images_across_ranks_and_epochs(world_size):
    """A set smaller than a batch: each holds parts of several epochs."""
    parts = [BatchLoader(labelled(10), 12, seed=1, rank=rank, world_size=world_size) for rank in range(world_size)]
    streams = [part.prefetch(3) for part in parts]
    for step in range(3, 9):
        batches = [next(stream) for stream in streams]
        for batch in batches:
            assert batch.labels is not None
            assert batch.pixels is not None
            assert (batch.labels.dtype, batch.labels.shape) == (torch.int64, (12 // world_size,))
            assert torch.equal(batch.labels, batch.pixels[:, 0, 0, 0].long() % 7)
        labels = torch.cat([batch.labels for batch in batches])
        np.testing.assert_array_equal(labels, parts[0].indices(step) % 7)
    for stream in streams:
        stream.close()


def test_labels_change_neither_order_nor_flips():
    plain, with_labels = (BatchLoader(images, 4, seed=5) for images in (numbered(10, flip="horizontal"), labelled(10)))
    for step in (0, 2, 7):
        batch, labelled_batch = plain.batch(step), with_labels.batch(step)
        assert batch.labels is None
        assert torch.equal(batch.pixels, labelled_batch.pixels)
        assert torch.equal(batch.flips, labelled_batch.flips)


@pytest.mark.parametrize("images", [numbered(10), labelled(10)], ids=["plain", "labelled"])
def test_prefetch_pins_every_tensor_of_a_batch(images, monkeypatch):
    """Pinning needs a GPU: a copy that is marked stands in for it."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.clone()) or pinned[-1])
    ahead = BatchLoader(images, 4, seed=0).prefetch(0, pin_memory=True)
    for tensor in next(ahead):
        assert tensor is None or any(tensor is copy for copy in pinned)
    ahead.close()


def test_prefetch_prepares_two_batches_while_one_trains(monkeypatch):
    stream = BatchLoader(numbered(10), 4, seed=0)
    original, loaded = stream.batch, []
    monkeypatch.setattr(stream, "batch", lambda step, *, pixels: loaded.append(step) or original(step, pixels=pixels))
    ahead = stream.prefetch(0)
    next(ahead)
    deadline = time.monotonic() + 5
    while len(loaded) < 1 + loader.PREFETCHED and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert loaded == [0, 1, 2]
    ahead.close()


def test_what_a_batch_holds_is_found_once(monkeypatch):
    stream = BatchLoader(labelled(10), 4, seed=0, rank=1, world_size=2)
    original, found = stream.indices, []
    monkeypatch.setattr(stream, "indices", lambda step: found.append(step) or original(step))
    batch = stream.batch(3)
    assert found == [3]
    np.testing.assert_array_equal(batch.indices, original(3)[2:])


def test_prefetch_raises_what_its_thread_raised(monkeypatch):
    stream = BatchLoader(numbered(10), 4, seed=0)
    original = stream.batch

    def failing(step: int, *, pixels: bool) -> loader.Batch:
        if step == 3:
            raise OSError("the disk is gone")
        return original(step, pixels=pixels)

    monkeypatch.setattr(stream, "batch", failing)
    ahead = stream.prefetch(1)
    for _ in range(2):
        next(ahead)
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
    assert batch_threads() == []
