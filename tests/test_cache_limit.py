"""What decoded images may take on the disk: the longest unused make room, those in use never."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pictures import smooth

from ddpm_cli.data.cache_limit import GIB
from ddpm_cli.data.folder import folder


@pytest.fixture
def read(tmp_path, rng):
    """`folder` of pictures of its own for each name; what it decodes to takes about three pages."""

    def read(name: str, gb: float, **options):
        root = tmp_path / name
        if not root.is_dir():
            root.mkdir()
            for i in range(4):
                smooth(rng, 32, 32).save(root / f"{i}.png")
        return folder(str(root), image_size=32, cache_dir=str(tmp_path / "cache"), cache_gb=gb, **options)

    return read


ONE = (4 * 3 * 32 * 32 + 1000) / GIB  # of the sets, and a little


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*.npy"))


def used_long_ago(path: Path, hours: int) -> None:
    then = path.stat().st_mtime - 3600 * hours
    os.utime(path, times=(then, then))


def test_the_longest_unused_are_removed_and_said_to_be(read, tmp_path, caplog):
    caches = {}
    for hours, name in ((1, "a"), (3, "b"), (2, "c")):
        before = set(kept(tmp_path))
        read(name, 1)
        (caches[name],) = set(kept(tmp_path)) - before
        used_long_ago(caches[name], hours)
    (tmp_path / "cache" / "somebody-elses.npy").write_bytes(bytes(10**6))
    read("d", 3 * ONE)
    assert not caches["b"].exists()
    assert caches["a"].exists()
    assert caches["c"].exists()
    (line,) = caplog.messages
    assert line.startswith(f"cache    removed {caches['b']} (1.2e-05 GiB), unused for longest: data.cache_gb=")
    used_long_ago(caches["a"], 9)
    read("a", 3 * ONE)  # which counts as use
    read("e", 2 * ONE)
    assert caches["a"].exists() + caches["c"].exists() == 1
    assert caches["a"].exists()
    assert (tmp_path / "cache" / "somebody-elses.npy").exists()


@pytest.mark.parametrize("memory_mb", [0, 2048])
def test_what_is_in_use_stays(memory_mb, read, tmp_path):
    """In this process, in memory or not, and in another one; a set of its own that is larger than all that may be."""
    held = read("a", 1, memory_mb=memory_mb)
    before = kept(tmp_path)
    read("b", 1)
    (of_b,) = set(kept(tmp_path)) - set(before)
    code = "import sys\nfrom pathlib import Path\nfrom ddpm_cli.data.stored_pixels import StoredPixels\n"
    code += f"images = StoredPixels(Path({str(of_b)!r}), (4, 3, 32, 32))\nprint(flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        images = read("c", 0)
        assert len(kept(tmp_path)) == 3
        assert other.stdin is not None
        other.stdin.close()
    read("c", 0)
    assert not of_b.exists()
    assert before[0].exists()
    np.testing.assert_array_equal(images.pixels[np.arange(4)].shape, held.pixels[np.arange(4)].shape)
    del held
    read("c", 0)
    assert len(kept(tmp_path)) == 1
