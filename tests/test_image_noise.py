"""The noise that images are made of: Philox's words, normal numbers of them, and who gets which."""

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, fake_cuda
from scipy import stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_cli.runtime.philox import WORD, box_muller, philox
from ddpm_cli.runtime.seeds import ImageNoise, derive_seed

Shape = tuple[int, int, int]

# Random123's tests/kat_vectors, philox4x32 10: counter, key, words.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
# SHA-256 of 196,608 numbers as little-endian float32. It takes another `IMAGE_NOISE` to change it.
DIGEST = "0229472e55db782f51d9663129ead525c19eebbdf936c9a14acbedd5a92264ac"


def drawn() -> Tensor:
    """What DIGEST is of."""
    noise = ImageNoise(0, range(2**32 - 8, 2**32 + 8), (3, 32, 64))
    return torch.stack([noise(), noise()])


def digest(x: Tensor) -> str:
    return hashlib.sha256(x.numpy().astype("<f4").tobytes()).hexdigest()


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def plain_philox(counter: list[int], key: list[int]) -> list[int]:
    """One block in integers that have no end, as the paper's section 3.3 has it."""
    (r0, l0, r1, l1), (k0, k1) = counter, key
    for number in range(10):
        of_0 = (k0 + number * 0x9E3779B9) % 2**32
        of_1 = (k1 + number * 0xBB67AE85) % 2**32
        (high_0, low_0), (high_1, low_1) = divmod(r0 * 0xD2511F53, 2**32), divmod(r1 * 0xCD9E8D57, 2**32)
        r0, l0, r1, l1 = high_1 ^ l0 ^ of_0, low_1, high_0 ^ l1 ^ of_1, low_0
    return [r0, l0, r1, l1]


def plain_normals(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In float64, of words as int64."""
    low = (a + 1.0) / 2**32
    r = np.sqrt(-2 * np.where(low < 0.5, np.log(low), np.log1p((a + 1 - 2**32) / 2**32)))
    phi = math.pi * ((b % 2**31 - 2**30) / 2**31 + (b < 2**31))
    return r * np.cos(phi), r * np.sin(phi)


# Words ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_words_are_those_that_random123_publishes(counter: str, key: str, expected: str):
    assert plain_philox(words(counter), words(key)) == words(expected)
    low, high = words(key)
    found = philox([torch.tensor([word]) for word in words(counter)], low | high << 32)
    assert [word.item() for word in found] == words(expected)


def test_words_are_those_of_integers_without_end(rng: np.random.Generator):
    counters = rng.integers(0, 2**32, (4, 200))
    key = rng.integers(0, 2**32, 2).tolist()
    found = torch.stack(philox(torch.from_numpy(counters).unbind(), key[0] | key[1] << 32), dim=1)
    assert found.dtype == torch.int64
    assert found.tolist() == [plain_philox(counter, key) for counter in counters.T.tolist()]


# Normal numbers -------------------------------------------------------------------------------------------------------


def test_normal_numbers_are_those_of_real_numbers_nearly(rng: np.random.Generator):
    a, b = rng.integers(0, 2**32, (2, 1_000_000))
    errors = _errors(a, b)
    assert np.abs(errors).max() < 2e-6
    assert np.sqrt((errors**2).mean()) < 1.2e-7


def test_so_they_are_at_the_ends_and_wherever_a_formula_changes(rng: np.random.Generator):
    near = np.arange(-300, 300)
    places = [2**k for k in range(33)] + [round(2 ** (k + 0.5)) for k in range(32)]
    a = np.unique(np.clip(np.add.outer(places, near), 0, WORD))
    b = np.unique(np.clip(np.add.outer([n * 2**29 for n in range(9)], near), 0, WORD))
    errors = _errors(np.repeat(a, 4), rng.choice(b, 4 * len(a)))
    assert np.abs(errors).max() < 2e-6
    # Where the cosine is 1, r keeps its digits however small it is.
    r, _ = box_muller(torch.from_numpy(a), torch.full((len(a),), 2**30))
    expected, _ = plain_normals(a, np.full(len(a), 2**30))
    assert r.double().numpy() == pytest.approx(expected, rel=3e-7, abs=1e-19)
    assert expected[-1] == 0 == a[-1] - WORD


def _errors(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    found = torch.stack(box_muller(torch.from_numpy(a), torch.from_numpy(b)))
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    return found.double().numpy() - np.stack(plain_normals(a, b))


def test_the_tails_are_as_long_as_32_bits_make_them():
    smallest = torch.arange(1000)
    r = torch.linalg.vector_norm(torch.stack(box_muller(smallest, torch.zeros_like(smallest))), dim=0)
    assert r.max().item() == r[0].item() == pytest.approx(math.sqrt(64 * math.log(2)), rel=1e-6)
    # P(r > x) = exp(-x^2 / 2): n of 2^32 are at least as far out as the n-th.
    assert (2**32 * (-r.double().square() / 2).exp()).numpy() == pytest.approx(np.arange(1, 1001), rel=1e-5)


def test_they_are_distributed_normally():
    z = ImageNoise(1, range(1000), (4, 32, 32))().double().flatten().numpy()
    n = len(z)
    for power, moment, deviation in ((1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)):
        assert (z**power).mean() == pytest.approx(moment, abs=4 * deviation / n**0.5)
    assert stats.kstest(z, "norm").pvalue > 1e-3
    cells = np.bincount((256 * stats.norm.cdf(z)).astype(int), minlength=256)
    assert stats.chisquare(cells).pvalue > 1e-3
    far = (np.abs(z) > 4).sum()
    assert far == pytest.approx(n * 2 * stats.norm.sf(4), abs=4 * (n * 2 * stats.norm.sf(4)) ** 0.5)


# Images ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 1), (1, 4, 4), (3, 2, 3)], ids=str)
@pytest.mark.parametrize("first", [0, 2**32 - 1, 3 * 2**32 + 7])
def test_a_number_is_a_function_of_seed_image_draw_and_place(first: int, shape: Shape):
    seed, size, key = 5, math.prod(shape), derive_seed(5, "image")
    noise, blocks = ImageNoise(seed, range(first, first + 2), shape), math.ceil(math.prod(shape) / 4)
    for draw in range(3):
        z = noise()
        assert (z.shape, z.dtype, z.is_contiguous()) == ((2, *shape), torch.float32, True)
        for image, of_image in enumerate(z.flatten(1).tolist(), start=first):
            counters = [[block, draw, image % 2**32, image >> 32] for block in range(blocks)]
            a, b, c, d = np.array([plain_philox(counter, [key % 2**32, key >> 32]) for counter in counters]).T
            (cos_1, sin_1), (cos_2, sin_2) = plain_normals(a, b), plain_normals(c, d)
            assert of_image == pytest.approx(np.concatenate([cos_1, cos_2, sin_1, sin_2])[:size], abs=2e-6)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 7)], ids=str)
def test_an_image_has_the_same_noise_in_every_batch(shape: Shape):
    whole = ImageNoise(5, range(10), shape)
    parts = [ImageNoise(5, indices, shape) for indices in (range(1), range(1, 7), range(7, 7), range(7, 10))]
    backwards, every_third = ImageNoise(5, range(9, -1, -1), shape), ImageNoise(5, range(0, 10, 3), shape)
    for _ in range(3):
        z = whole()
        assert torch.equal(z, torch.cat([part() for part in parts]))
        assert torch.equal(z, backwards().flip(0))
        assert torch.equal(z[::3], every_third())


def test_no_two_seeds_images_draws_or_parts_of_one_have_to_do_with_each_other():
    shape, rows = (4, 32, 32), []  # a block makes a number of each channel
    for seed in (0, 1, 2**40):
        for indices in (range(4), range(2**32, 2**32 + 4)):
            noise = ImageNoise(seed, indices, shape)
            rows += [channel for _ in range(4) for image in noise() for channel in image.flatten(1)]
    z = torch.stack(rows).double()
    assert len(z) == 3 * 2 * 4 * 4 * 4
    for part in (z, z.abs() - (2 / math.pi) ** 0.5, z.sign()):
        normed = part - part.mean(1, keepdim=True)
        normed /= torch.linalg.vector_norm(normed, dim=1, keepdim=True)
        assert (normed @ normed.T).fill_diagonal_(0).abs().max() < 5.5 / z.shape[1] ** 0.5
        neighbours = (part[:, 1:] * part[:, :-1]).mean() / part.square().mean()
        assert abs(neighbours) < 5 / z.numel() ** 0.5


# Devices --------------------------------------------------------------------------------------------------------------

# Those that IEEE 754 says the result of, or that move numbers without changing them.
EXACT = {"add", "add_", "sub", "rsub", "mul", "mul_", "div", "copysign", "arange", "cat", "stack", "slice"}
EXACT |= {"bitwise_and", "bitwise_and_", "bitwise_xor", "bitwise_xor_", "bitwise_left_shift", "__rshift__"}
EXACT |= {"_to_copy", "view", "clone", "unsqueeze", "expand", "detach", "zeros"}


class Watched(TorchDispatchMode):
    """Notes the names of operations, and the types of numbers that they make."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.dtypes: set[torch.dtype] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # what it would put around every call takes longer than most calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        if func.overloadpacket.__name__ in ("add", "add_"):
            assert not (kwargs or {}).get("alpha"), "a product and a sum are rounded once or twice"
        if func.overloadpacket.__name__ == "div":
            assert all(isinstance(part, Tensor) and part.ndim > 0 for part in args), "else a reciprocal may be taken"
        made = func(*args, **(kwargs or {}))
        self.dtypes.add(made.dtype)
        return made


def test_it_is_made_of_operations_that_round_alike_everywhere():
    with Watched() as watched:
        ImageNoise(0, range(3), (3, 5, 7))()
    assert watched.names <= EXACT
    assert watched.dtypes == {torch.int64, torch.int32, torch.float32}, "there is no float64 on MPS"


def test_its_bits_are_known():
    assert digest(drawn()) == DIGEST


@pytest.mark.slow
def test_without_vector_instructions_they_are_the_same():
    code = "from test_image_noise import digest, drawn; print(digest(drawn()))"
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests.parent)])
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == DIGEST


def test_a_gpu_draws_it_without_a_wait():
    expected = ImageNoise(3, range(2, 5), (3, 5, 7))
    with fake_cuda() as cuda:
        noise = ImageNoise(3, range(2, 5), (3, 5, 7), CUDA)
        found = [noise(), noise()]
        assert cuda.waits == []
        assert all(z.device == CUDA for z in found)
        found = [z.cpu() for z in found]
    for z in found:
        assert torch.equal(z, expected())


@pytest.mark.cuda
def test_cuda_draws_the_same_bits():
    noise = ImageNoise(0, range(2**32 - 8, 2**32 + 8), (3, 32, 64), "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = torch.stack([noise(), noise()])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert digest(found.cpu()) == DIGEST
