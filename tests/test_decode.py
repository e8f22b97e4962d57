"""One image file at a time: every mode and format decoded, and what is wrong with a file said."""

import errno
import io
import os
import re
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures import smooth
from PIL import ExifTags, Image, ImageOps

from ddpm_cli.data import decode, decoding_memory, reading
from ddpm_cli.data.decoding_memory import LargeImageError

LEFT, RIGHT, WHITE = (200, 30, 40), (10, 220, 100), (255, 255, 255)


def halves(mode: str, left, right) -> Image.Image:
    """16 x 16, the left half in one colour and the right half in another."""
    image = Image.new(mode, (16, 16), left)
    image.paste(right, (8, 0, 16, 16))
    return image


def sixteen_bit(left: int, right: int) -> Image.Image:
    return Image.fromarray(np.repeat([[left, right]], 8, axis=1).repeat(16, axis=0).astype(np.uint16))


def palette(*, transparency: int | None) -> Image.Image:
    image = halves("P", 0, 1)
    image.putpalette([*LEFT, *RIGHT])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


@pytest.mark.parametrize(
    ("name", "image", "options", "left", "right", "tolerance"),
    [
        ("1.png", halves("1", 0, 1), {}, (0, 0, 0), WHITE, 0),
        ("L.png", halves("L", 10, 200), {}, (10, 10, 10), (200, 200, 200), 0),
        ("L.jpg", halves("L", 10, 200), {}, (10, 10, 10), (200, 200, 200), 3),
        ("LA.png", halves("LA", (10, 255), (200, 0)), {}, (10, 10, 10), WHITE, 0),
        ("P.png", palette(transparency=None), {}, LEFT, RIGHT, 0),
        ("P.bmp", palette(transparency=None), {}, LEFT, RIGHT, 0),
        ("P-transparent.png", palette(transparency=1), {}, LEFT, WHITE, 0),
        ("RGB.png", halves("RGB", LEFT, RIGHT), {}, LEFT, RIGHT, 0),
        ("RGB.bmp", halves("RGB", LEFT, RIGHT), {}, LEFT, RIGHT, 0),
        ("RGB.webp", halves("RGB", LEFT, RIGHT), {"lossless": True}, LEFT, RIGHT, 0),
        ("RGB-key.png", halves("RGB", LEFT, RIGHT), {"transparency": RIGHT}, LEFT, WHITE, 0),
        ("RGBA.png", halves("RGBA", (*LEFT, 255), (*RIGHT, 51)), {}, LEFT, (206, 248, 224), 1),  # 0.2 c + 0.8 * 255
        ("RGBA.webp", halves("RGBA", (*LEFT, 255), (*RIGHT, 0)), {"lossless": True}, LEFT, WHITE, 0),
        ("CMYK.jpg", halves("CMYK", (0, 255, 255, 0), (255, 0, 255, 51)), {}, (255, 0, 0), (0, 204, 0), 4),
        ("YCbCr.jpg", halves("YCbCr", (76, 85, 255), (150, 44, 21)), {}, (255, 0, 0), (0, 255, 0), 5),
        ("16.png", sixteen_bit(257 * 100, 1000), {}, (100, 100, 100), (4, 4, 4), 0),  # 1000 / 257 = 3.9
        ("I.tiff", halves("I", 65535, 128), {}, WHITE, (0, 0, 0), 0),
    ],
)
def test_every_mode_becomes_rgb_and_grey(name, image, options, left, right, tolerance, tmp_path):
    image.save(tmp_path / name, **options)
    pixels = decode.decode(tmp_path / name, (16, 16), 3).astype(int)
    expected = np.empty((3, 16, 16), int)
    expected[:, :, :8] = np.array(left)[:, None, None]
    expected[:, :, 8:] = np.array(right)[:, None, None]
    assert np.abs(pixels - expected)[:, :, [0, 1, 14, 15]].max() <= tolerance
    if tolerance == 0:
        np.testing.assert_array_equal(pixels, expected)
    grey = decode.decode(tmp_path / name, (16, 16), 1)
    assert (grey.shape, grey.dtype) == ((1, 16, 16), np.uint8)
    luma = np.tensordot([0.299, 0.587, 0.114], pixels, axes=1)
    assert np.abs(grey[0] - luma).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation, tmp_path, rng):
    upright = np.asarray(smooth(rng, 24, 40))
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),  # "turn clockwise to view": it was stored turned counter-clockwise
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(decode.decode(tmp_path / "x.png", (24, 40), 3), upright.transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_big_jpeg_decoded_at_reduced_size_is_the_same_picture(orientation, tmp_path, rng):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    smooth(rng, 805, 1209).save(tmp_path / "x.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "x.jpg") as image:
        oracle = ImageOps.fit(ImageOps.exif_transpose(image), (48, 40))
    difference = np.abs(
        decode.decode(tmp_path / "x.jpg", (40, 48), 3) - np.asarray(oracle).transpose(2, 0, 1).astype(int)
    )
    assert difference.max() <= 3


def test_the_centre_is_kept_and_the_rest_cropped(tmp_path):
    strip = Image.new("RGB", (60, 20), "red")
    strip.paste("lime", (20, 0, 40, 20))
    strip.paste("blue", (40, 0, 60, 20))
    green = np.broadcast_to(np.array([0, 255, 0])[:, None, None], (3, 20, 20))
    for image in (strip, strip.transpose(Image.Transpose.ROTATE_90)):
        image.save(tmp_path / "x.png")
        np.testing.assert_array_equal(decode.decode(tmp_path / "x.png", (20, 20), 3), green)
        np.testing.assert_array_equal(decode.decode(tmp_path / "x.png", (10, 10), 3)[:, 2:-2, 2:-2], green[:, :6, :6])


@pytest.mark.parametrize(("size", "source"), [((8, 16), (40, 37)), ((31, 7), (97, 33)), ((64, 64), (13, 29))])
def test_cover_and_crop_agree_with_pil(size, source, tmp_path, rng):
    image = Image.fromarray(rng.integers(0, 256, (*source, 3), dtype=np.uint8))
    image.save(tmp_path / "x.png")
    oracle = np.asarray(ImageOps.fit(image, size[::-1])).transpose(2, 0, 1)
    assert np.abs(decode.decode(tmp_path / "x.png", size, 3) - oracle.astype(int)).max() <= 1


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*further: bytes, width: int = 64, height: int = 64) -> bytes:
    """A grey PNG with further chunks before the pixels, of which there are 64 x 64, whatever size it claims."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *further, chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"".join(parts)


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "JPEG")
    return file.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
TEXT_BOMB = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 2**26))  # 64 MiB in 64 KiB


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.png", b"", "^the file is empty$"),
        ("text.png", b"no image at all", "^not in a known image format$"),
        ("program.png", EPS, "^not in a known image format$"),
        ("truncated.png", png()[:1500], "truncated"),
        ("truncated.jpg", jpeg()[:1000], "truncated"),
        ("bomb.png", png(width=20_000, height=20_000), "decompression bomb"),
        ("text-bomb.png", png(TEXT_BOMB), "[Dd]ecompressed data too large"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        decode.decode(tmp_path / name, (8, 8), 3)


def test_large_is_no_bomb(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(png())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    assert decode.decode(tmp_path / "x.png", (8, 8), 3).shape == (3, 8, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2 - 1)
    with pytest.raises(ValueError, match="decompression bomb"):
        decode.decode(tmp_path / "x.png", (8, 8), 3)


def test_a_fifo_and_a_device_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    for path in (tmp_path / "fifo.png", "/dev/zero"):
        with pytest.raises(ValueError, match="not a regular file"):
            decode.decode(path, (8, 8), 3)


@pytest.mark.parametrize(("mode", "value", "reason"), [("F", 0.5, "floating-point"), ("I", 70000, "16 bits")])
def test_pixels_of_unknown_range_are_refused(mode, value, reason, tmp_path):
    Image.new(mode, (8, 8), value).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match=reason):
        decode.decode(tmp_path / "x.tiff", (8, 8), 3)


@pytest.mark.parametrize("exif", [b"Exif\0\0rubbish", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_broken_metadata_leave_a_picture_as_it_is(exif, suffix, tmp_path, rng):
    picture = smooth(rng, 12, 12)
    picture.save(tmp_path / f"plain.{suffix}")
    picture.save(tmp_path / f"broken.{suffix}", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        broken, plain = (decode.decode(tmp_path / f"{name}.{suffix}", (8, 8), 3) for name in ("broken", "plain"))
    np.testing.assert_array_equal(broken, plain)


def test_misnamed_pictures_are_read_by_their_content(tmp_path, rng):
    picture = smooth(rng, 12, 12)
    for format in ("PNG", "BMP", "GIF", "TIFF", "WEBP"):
        picture.save(tmp_path / "x.jpg", format)
        assert decode.decode(tmp_path / "x.jpg", (12, 12), 3).shape == (3, 12, 12)


def test_decoding_into_a_file_skips_what_cannot_be_read(tmp_path):
    for name, colour in (("a.png", 10), ("d.png", 30)):
        Image.new("L", (4, 4), colour).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"broken")
    (tmp_path / "pixels").write_bytes(b"\xff" * 100)
    names = ["a.png", "b.png", "gone.png", "d.png"]
    written = decode.decode_into(tmp_path / "pixels", str(tmp_path), (2, 2), 1, 5, names)
    assert written.checksums == [zlib.crc32(b"\n" * 4), 0, 0, zlib.crc32(b"\x1e" * 4)]
    assert written.bad == [
        ("b.png", "not in a known image format", True),
        ("gone.png", "No such file or directory", False),  # and that may change
    ]
    assert (tmp_path / "pixels").read_bytes() == b"\xff" * 5 + b"\n" * 4 + b"\xff" * 8 + b"\x1e" * 4 + b"\xff" * 79


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")])
def test_running_out_of_memory_is_no_fault_of_an_image(error, tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise error

    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "open", fail)
    (tmp_path / "pixels").write_bytes(b"")
    with pytest.raises(decode.DecodingError, match=r"x\.png"):
        decode.decode_into(tmp_path / "pixels", str(tmp_path), (2, 2), 1, 0, ["x.png"])


@pytest.mark.parametrize("module", ["decode", "tar_reader", "index_cache"])
def test_workers_need_not_import_torch(module):
    """Each is where a function is that a worker pool calls."""
    code = f"import ddpm_cli.data.{module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# How much memory it takes ---------------------------------------------------------------------------------------------


def one_after_the_other(path: Path) -> None:
    """Make of a grey JPEG one that says it has three components, of which the first scan holds one."""
    content = path.read_bytes()
    frame = content.index(b"\xff\xc0")
    length = 8 + 3 * 3
    header = content[frame + 4 : frame + 9] + bytes([3, 1, 0x22, 0, 2, 0x11, 0, 3, 0x11, 0])
    after = frame + 2 + int.from_bytes(content[frame + 2 : frame + 4], "big")
    path.write_bytes(content[:frame] + b"\xff\xc0" + length.to_bytes(2, "big") + header + content[after:])


def needed(path: Path, channels: int = 3) -> int:
    with pytest.raises(LargeImageError) as caught:
        decode.decode(path, (8, 8), channels, 0 if path.stat().st_size == 0 else path.stat().st_size)
    return caught.value.needed


@pytest.mark.parametrize(
    ("name", "mode", "options", "least"),
    [
        ("x.png", "RGB", {}, 4),  # as PIL keeps it
        ("x.png", "L", {}, 1 + 4),
        ("x.png", "P", {}, 1 + 4),
        ("x.png", "RGBA", {}, 4 + 4),
        ("x.png", "I;16", {}, 2 + 1 + 4),
        ("x.tiff", "CMYK", {}, 4 + 4),
        ("x.tiff", "F", {}, 4 + 4),
        ("x.webp", "RGB", {}, 4),
        ("x.jpg", "RGB", {"progressive": True}, 3),  # coefficients of 16 bits, colours at half the size
        ("x.jpg", "RGB", {"progressive": True, "subsampling": 0}, 6),
        ("x.jpg", "CMYK", {"progressive": True}, 8),
    ],
)
def test_what_decoding_takes_is_told_from_the_header(name, mode, options, least, tmp_path):
    Image.new(mode, (800, 800)).save(tmp_path / name, **options)
    assert 800 * 800 * least <= needed(tmp_path / name) < 800 * 800 * (least + 20)


def test_a_jpeg_takes_what_is_left_of_it_when_it_is_drafted(tmp_path):
    Image.new("RGB", (800, 800)).save(tmp_path / "x.jpg")
    assert decode.decode(tmp_path / "x.jpg", (8, 8), 3, 100 * 100 * 4).shape == (3, 8, 8)
    Image.new("L", (800, 800)).save(tmp_path / "x.jpg")
    one_after_the_other(tmp_path / "x.jpg")
    assert needed(tmp_path / "x.jpg") >= 800 * 800 * 3


def test_an_image_that_takes_too_much_is_a_bad_one_and_a_large_one_is_left_for_later(tmp_path, monkeypatch):
    for name, side in (("a.png", 100), ("b.png", 20), ("c.png", 50)):
        Image.new("RGB", (side, side), "red").save(tmp_path / name)
    (tmp_path / "pixels").write_bytes(bytes(3 * 12))
    monkeypatch.setattr(decoding_memory, "MOST", 20_000)
    monkeypatch.setattr(decode, "MOST", 20_000)
    names = ["a.png", "b.png", "c.png"]
    written = decode.decode_into(tmp_path / "pixels", str(tmp_path), (2, 2), 3, 0, names, most=5_000)
    assert [image.name for image in written.bad] == ["a.png"]
    assert re.match("too large: decoding it would take 0 MiB of memory", written.bad[0].reason)
    assert written.bad[0].lasting
    assert written.large == [2]
    assert (tmp_path / "pixels").read_bytes() == bytes(12) + b"\xff" * 4 + bytes(8) + bytes(12)


def test_photographs_of_100_megapixels_are_decoded(monkeypatch):
    """From their headers: the numbers are those of a progressive JPEG and of a PNG with an alpha channel."""
    monkeypatch.setattr(decoding_memory, "_coefficients", lambda _: 10_000 * 10_000 * 2 * 3)
    for format, mode, size in (("JPEG", "RGB", (1250, 1250)), ("PNG", "RGBA", (10_000, 10_000))):
        image = Image.new(mode, (1, 1))
        image.format, image._size = format, size
        decoding_memory.check_decoding(image, io.BytesIO(), "RGB", decoding_memory.MOST)


def test_processes_share_the_memory(monkeypatch):
    monkeypatch.setattr(decoding_memory, "_memory", lambda: 2**33)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert [decoding_memory.most_at_a_time(workers) for workers in (0, 1, 2, 8)] == [2**30, 2**30, 2**30, 2**28]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert decoding_memory.most_at_a_time(8) == 2**26


def test_tiles_make_no_seams(tmp_path, monkeypatch, rng):
    pixels = rng.integers(0, 256, (40, 56, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    Image.fromarray(pixels[..., :2].copy().view(np.uint16)[..., 0]).save(tmp_path / "16.png")
    for name in ("rgba.png", "16.png"):
        whole = decode.decode(tmp_path / name, (20, 30), 3)
        with monkeypatch.context() as patch:
            patch.setattr(reading, "_TILE", 16)
            np.testing.assert_array_equal(decode.decode(tmp_path / name, (20, 30), 3), whole)


def test_a_file_with_holes_is_not_read(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    os.truncate(tmp_path / "x.png", 2**40)
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(ValueError, match="1,099,511,627,776 bytes: too large for an image"):
        decode.decode(tmp_path / "x.png", (8, 8), 3)
