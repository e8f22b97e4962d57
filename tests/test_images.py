"""Pictures: rounding, grids, enlargement, animation; devices; seeds."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from ddpm_cli.io.images import BETWEEN, grid, save_gif, save_png, to_uint8
from ddpm_cli.runtime.device import choose_compute
from ddpm_cli.runtime.seeds import derive_seed, generator


def test_to_uint8_is_the_inverse_of_the_scaling_and_rounds():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(levels / 127.5 - 1), levels)
    assert to_uint8(torch.tensor([-3.0, -1 + 1.9 / 255, 0.0, 0.999, 7.0])).tolist() == [0, 1, 128, 255, 255]


def test_grid_puts_every_image_where_it_belongs():
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 64, 128).contiguous() + 10
    picture = grid(images, columns=2, padding=2)
    assert picture.shape == (3, 3 * 66 + 2, 2 * 130 + 2)
    for i in range(5):
        top, left = i // 2 * 66 + 2, i % 2 * 130 + 2
        assert (picture[:, top : top + 64, left : left + 128] == 10 + i).all()
    assert (picture[:, 134:198, 132:260] == BETWEEN).all(), "the sixth place is empty"
    assert (picture[:, 0] == BETWEEN).all()


def test_tiny_images_are_enlarged_without_smoothing():
    image = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8)[None, None]
    picture = grid(image, padding=0)
    assert picture.shape == (1, 64, 64)
    assert sorted(set(picture.flatten().tolist())) == [0, 255]
    assert (picture[0, :32, 32:] == 255).all()


def test_png_and_gif_hold_what_was_drawn(tmp_path: Path):
    grey = torch.randint(0, 256, (1, 9, 7), dtype=torch.uint8)
    colour = torch.randint(0, 256, (3, 9, 7), dtype=torch.uint8)
    for image in (grey, colour):
        save_png(image, tmp_path / "x.png")
        with Image.open(tmp_path / "x.png") as picture:
            assert picture.size == (7, 9)
            assert list(picture.tobytes()) == image.permute(1, 2, 0).flatten().tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    save_gif([torch.full((1, 4, 4), value, dtype=torch.uint8) for value in (0, 100, 200)], tmp_path / "x.gif")
    with Image.open(tmp_path / "x.gif") as film:
        assert film.n_frames == 3
        film.seek(2)
        assert film.convert("L").getpixel((0, 0)) == 200
        assert film.info["duration"] > 1000, "it rests on the finished image"


def test_seeds_of_different_purposes_are_unrelated():
    keys = [(seed, purpose, n) for seed in range(20) for purpose in ("order", "flip") for n in range(50)]
    seeds = {derive_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert len({seed & 0xFFFFFFFF for seed in seeds}) == len(keys), "torch's CPU generator sees the low 32 bits only"
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert torch.equal(torch.rand(3, generator=generator(1, "a")), torch.rand(3, generator=generator(1, "a")))


def test_auto_is_fp32_on_a_cpu():
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        assert choose_compute().device.type != "cpu"
    assert choose_compute("cpu").precision == "fp32"
    assert not choose_compute("cpu").grad_scaler().is_enabled()
    assert choose_compute("cpu", "fp16").grad_scaler().is_enabled()


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_computes_in_the_precision_asked_for(precision: str, dtype: torch.dtype):
    with choose_compute("cpu", precision).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize(
    ("device", "precision", "says"),
    [
        ("tpu", "auto", "device must be auto, cpu, cuda, cuda:N or mps, got 'tpu'"),
        ("cpu:x", "auto", "device must be"),
        ("cpu", "fp8", "precision must be auto, fp32, bf16 or fp16, got 'fp8'"),
        pytest.param(
            "cuda",
            "auto",
            "no usable CUDA device here; use auto or cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_what_this_machine_cannot_do_is_refused(device: str, precision: str, says: str):
    with pytest.raises(ValueError, match=says):
        choose_compute(device, precision)
