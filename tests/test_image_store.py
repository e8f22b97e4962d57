"""Images that are being drawn, on the disk: what is done, what goes on, what is refused, and what is made of them."""

import io
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddpm_cli.sampling import batch_store
from ddpm_cli.sampling.image_store import FOLDER, ImageStore, begin, locked
from ddpm_cli.sampling.modes import Plan
from ddpm_cli.sampling.outputs import write

SHAPE = (10, 5, 4, 3)  # [N, H, W, C]
LAYOUT = {"batch_size": 4, "shape": SHAPE}
IDENTITY = {"n": 10, "seed": 0, "sampler": {"_target_": "a.ddim", "steps": 3}}
DRAWN_BY = "seed: 0\n"
PLAN = Plan(1, SHAPE[0], [7], lambda _, __: iter(()))


@pytest.fixture
def all_of_it() -> Tensor:
    """uint8 `[N, C, H, W]`"""
    return torch.randint(0, 256, (10, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def keep(store: ImageStore, pixels: Tensor, *batches: int) -> None:
    for number in batches:
        indices = range(10)[4 * number : 4 * number + 4]
        store.keep(indices, pixels[indices.start : indices.stop])


def test_a_batch_is_done_once_it_is_on_the_disk(tmp_path: Path, all_of_it: Tensor, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    with locked(tmp_path):
        begin(tmp_path, IDENTITY, **LAYOUT)
        with ImageStore(tmp_path, **LAYOUT) as store, ImageStore(tmp_path, **LAYOUT) as other:
            assert store.missing == [range(4), range(4, 8), range(8, 10)]
            keep(store, all_of_it, 2, 0)
            assert other.missing == store.missing == [range(4), range(4, 8), range(8, 10)]
            flushed.clear()
            store.flush()
            assert [Path(file).name for file in flushed] == ["pixels", "done"]
            assert other.missing == [range(4, 8)]
            assert (other.finished, store.finished) == (6, 6)
            keep(other, all_of_it, 1)
        assert torch.equal(kept_images(tmp_path), all_of_it)


def kept_images(directory: Path) -> Tensor:
    with ImageStore(directory, **LAYOUT) as store:
        assert store.missing == []
        return torch.cat([store.images(range(3)), store.images(range(3, 10))])


def test_what_is_kept_is_flushed_every_so_often_and_at_the_end(tmp_path: Path, all_of_it: Tensor, monkeypatch):
    with locked(tmp_path):
        begin(tmp_path, IDENTITY, **LAYOUT)
        with ImageStore(tmp_path, **LAYOUT) as store:
            monkeypatch.setattr(batch_store, "FLUSH_SECONDS", 0.0)
            keep(store, all_of_it, 0)
            assert store.finished == 4
            monkeypatch.setattr(batch_store, "FLUSH_SECONDS", 1e9)
            keep(store, all_of_it, 1)
            assert store.finished == 4
        with ImageStore(tmp_path, **LAYOUT) as store:
            assert store.finished == 8


def test_a_run_of_the_same_identity_goes_on_and_another_is_refused(tmp_path: Path, all_of_it: Tensor):
    with locked(tmp_path):
        begin(tmp_path, IDENTITY, **LAYOUT)
        with ImageStore(tmp_path, **LAYOUT) as store:
            keep(store, all_of_it, 1)
    assert (tmp_path / FOLDER).is_dir()
    for changes, says in [
        ({"seed": 1}, r"\n  seed: was 0, now 1\n  choose another directory"),
        ({"sampler": {"_target_": "a.ddim", "steps": 4}}, r"\n  sampler.steps: was 3, now 4\n"),
        ({"sampler": {"_target_": "a.ddpm"}}, r"\n  sampler: was 'ddim', now 'ddpm'\n"),
    ]:
        with locked(tmp_path), pytest.raises(ValueError, match=f"holds unfinished images of another config.*{says}"):
            begin(tmp_path, IDENTITY | changes, **LAYOUT)
    with locked(tmp_path):
        begin(tmp_path, IDENTITY, **LAYOUT)
        with ImageStore(tmp_path, **LAYOUT) as store:
            assert store.missing == [range(4), range(8, 10)]
            keep(store, all_of_it, 0, 2)
            store.flush()
            store.end()
        assert torch.equal(kept_images(tmp_path), all_of_it)
    assert not (tmp_path / FOLDER).exists()


def test_a_run_that_drew_nothing_leaves_nothing_and_binds_nobody(tmp_path: Path):
    with locked(tmp_path):
        begin(tmp_path, IDENTITY, **LAYOUT)
        (tmp_path / FOLDER / "new_images").mkdir()
    assert list(tmp_path.iterdir()) == []
    # Killed before its first batch, and in the middle of making its files.
    for left in (["pixels", "done", "identity.json"], ["pixels"], []):
        (tmp_path / FOLDER).mkdir()
        for name in left:
            (tmp_path / FOLDER / name).write_bytes(b"{}" if name == "identity.json" else b"\0")
        with locked(tmp_path):
            begin(tmp_path, IDENTITY | {"seed": 7}, **LAYOUT)
            with ImageStore(tmp_path, **LAYOUT) as store:
                assert len(store.missing) == 3


def test_finished_pictures_are_left_alone(tmp_path: Path):
    (tmp_path / "images").mkdir()
    with locked(tmp_path), pytest.raises(ValueError, match="already holds images; choose another directory"):
        begin(tmp_path, IDENTITY, **LAYOUT)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.slow
def test_only_one_process_draws_in_a_directory(tmp_path: Path):
    code = f"""
from pathlib import Path
from ddpm_cli.sampling.image_store import locked
try:
    with locked(Path({str(tmp_path)!r})): print("held")
except BlockingIOError as error: print(error)
"""

    def another() -> str:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    with locked(tmp_path):
        held = f"{tmp_path / FOLDER / 'lock'} is held by process {os.getpid()} on {socket.gethostname()}"
        says = f"{tmp_path}: another process is drawing there: {held}; if it no longer runs, remove the file\n"
        assert another() == says
        assert (tmp_path / FOLDER / "lock").exists()
    assert another() == "held\n"


SPOILT = ["cut", "gone", "not JSON", "another JSON", "deep JSON", "link", "linked folder"]
SPOILT += ["pipe", "pipe for a lock", "identity of a GiB", "done of a TiB", "lying trajectory", "pickled trajectory"]


@pytest.mark.parametrize("spoil", SPOILT)
def test_what_is_not_whole_or_not_ours_is_refused(spoil: str, tmp_path: Path, all_of_it: Tensor):
    with locked(tmp_path):
        begin(tmp_path, IDENTITY, **LAYOUT)
        with ImageStore(tmp_path, **LAYOUT) as store:
            keep(store, all_of_it, 0)
    folder = tmp_path / FOLDER
    match spoil:
        case "cut":
            os.truncate(folder / "pixels", 7)
        case "gone":
            (folder / "pixels").unlink()
        case "not JSON":
            (folder / "identity.json").write_text("{")
        case "another JSON":
            (folder / "identity.json").write_text("[]")
        case "link":
            (folder / "pixels").rename(tmp_path / "elsewhere")
            (folder / "pixels").symlink_to(tmp_path / "elsewhere")
        case "linked folder":
            folder.rename(tmp_path / "elsewhere")
            folder.symlink_to(tmp_path / "elsewhere")
        case "deep JSON":
            (folder / "identity.json").write_text("[" * 100_000)
        case "pipe" | "pipe for a lock":
            file = folder / ("identity.json" if spoil == "pipe" else "lock")
            file.unlink()
            os.mkfifo(file)
        case "identity of a GiB":
            os.truncate(folder / "identity.json", 2**30)
        case "done of a TiB":
            os.truncate(folder / "done", 2**40)
        case "lying trajectory":
            with (folder / "trajectory_000000.npy").open("wb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": (2**40, 1, 1, 1, 1, 1)}
                np.lib.format.write_array_header_1_0(file, header)
        case "pickled trajectory":
            np.save(folder / "trajectory_000000.npy", np.array([[[[[[print]]]]]]), allow_pickle=True)
    says = r"is incomplete; remove|is not of ddpm-cli|is a link|is not a plain file"
    with pytest.raises(ValueError, match=says) as refused, locked(tmp_path):
        begin(tmp_path, IDENTITY, **LAYOUT)
    assert len(str(refused.value)) < 1000
    assert folder.exists()


def test_room_is_looked_for_before_anything_is_drawn(tmp_path: Path):
    with locked(tmp_path), pytest.raises(OSError, match="MB are needed"):
        begin(tmp_path, IDENTITY, batch_size=500, shape=(10**12, 32, 32, 3))
    assert list(tmp_path.iterdir()) == []


# What is made of them ------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(tmp_path: Path, all_of_it: Tensor):
    with locked(tmp_path):
        begin(tmp_path, IDENTITY, **LAYOUT)
        with ImageStore(tmp_path, **LAYOUT) as store:
            trajectory = torch.stack([all_of_it // (2 - frame) for frame in (0, 1)])  # two frames, the last finished
            trajectory = torch.stack([trajectory, all_of_it.expand_as(trajectory)], dim=1)
            for number, indices in enumerate([range(4), range(4, 8), range(8, 10)]):
                part = trajectory[:, :, indices.start : min(indices.stop, 6)] if number < 2 else None
                store.keep(indices, all_of_it[indices.start : indices.stop], part)
            store.flush()
            yield store


def test_the_array_is_what_numpy_would_have_written(drawn: ImageStore, tmp_path: Path, all_of_it: Tensor, monkeypatch):
    monkeypatch.setattr("ddpm_cli.sampling.outputs.CHUNK_BYTES", 130)  # two images
    written = write(drawn, PLAN, save="npz", drawn_by=DRAWN_BY)
    assert [path.name for path in written] == ["samples.png", "samples.npz", "steps.png", "steps.gif"]
    expected = io.BytesIO()
    np.savez(expected, all_of_it.permute(0, 2, 3, 1).contiguous().numpy())
    assert (tmp_path / "samples.npz").read_bytes() == expected.getvalue()
    with Image.open(tmp_path / "steps.png") as strip, Image.open(tmp_path / "steps.gif") as film:
        size = (2 * 54 + 2, 2 * 6 * 67 + 2)
        assert strip.width > size[0], "5 x 4 images enlarged 13 times, and what they are: six of two frames"
        assert strip.height > size[1]
        pixels = np.asarray(strip)[-size[1] :, -size[0] :]
        for i, image in enumerate(all_of_it[:6]):
            for row, column, shown in ((0, 0, image // 2), (0, 1, image), (1, 0, image), (1, 1, image)):
                top, left = (2 * i + row) * 67 + 2, column * 54 + 2
                cell = pixels[top : top + 65 : 13, left : left + 52 : 13]
                assert np.array_equal(cell, shown.permute(1, 2, 0))
        assert film.n_frames == 2


def test_pictures_appear_only_whole_and_are_made_up_for(
    drawn: ImageStore, tmp_path: Path, all_of_it: Tensor, monkeypatch
):
    """Stopped at any of the renames, a second attempt makes what is missing and nothing twice."""
    rename, seen = os.rename, []

    def stopped_at(number: int):
        def instead(source: Path, target: Path) -> None:
            assert Path(source).parent == tmp_path / FOLDER
            if len(seen) == number:
                raise KeyboardInterrupt
            seen.append(target)
            rename(source, target)

        return instead

    for number, there in enumerate(
        [[], ["config.yaml"], ["config.yaml", "samples.png"], ["config.yaml", "images", "samples.png"]]
    ):
        monkeypatch.setattr(os, "rename", stopped_at(number))
        with pytest.raises(KeyboardInterrupt):
            write(drawn, PLAN, save="images", drawn_by=DRAWN_BY)
        assert sorted(path.name for path in tmp_path.iterdir() if path.name != FOLDER) == there
    monkeypatch.setattr(os, "rename", rename)
    write(drawn, PLAN, save="images", drawn_by=DRAWN_BY)
    for i, image in enumerate(all_of_it):
        with Image.open(tmp_path / "images" / f"{i:06d}.png") as picture:
            assert np.array_equal(np.asarray(picture), image.permute(1, 2, 0))
    assert len(list((tmp_path / "images").iterdir())) == 10
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == DRAWN_BY
    drawn.end()


def test_the_identity_is_kept_as_text_to_be_read(drawn: ImageStore):
    text = (drawn.folder / "identity.json").read_text()
    assert json.loads(text) == IDENTITY
    assert re.search(r'^  "seed": 0', text, re.MULTILINE)
