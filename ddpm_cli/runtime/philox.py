"""Random numbers as functions of a counter, from elementary operations of torch: the same on every device.

Integers are int64: of the product of two words of 32 bits it keeps all 64. Floats are float32, and only added,
subtracted, multiplied and divided, an operation at a time. What each of these rounds to is said by IEEE 754; what a
logarithm, a cosine or two fused operations round to is up to the library. So is a root: torch's on a CPU is MKL's,
which on Intel's processors is off by a bit in one number of seven.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDS = 10
WORD = 2**32 - 1
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85  # fractions of the golden ratio and of sqrt(3)
_BITS_OF_SQRT_HALF = 0x3F3504F3  # as float32
_EXPONENT_AT = 23  # in the bits of a float32
# Taylor's coefficients, from the highest power down.
_FOUR_ATANH = 4 / 7, 4 / 5, 4 / 3, 4.0  # 4 atanh(s) / s in s^2; for |s| < 0.172 the rest is less than 9e-8 of it
_SIN = 1 / 362880, -1 / 5040, 1 / 120, -1 / 6, 1.0  # sin(h) / h in h^2; for |h| <= pi / 4 the rest is below 3e-9
_COS = -1 / 3628800, 1 / 40320, -1 / 720, 1 / 24, -1 / 2, 1.0  # cos(h) in h^2; there the rest is below 2e-10
_HALF_OF_BIAS = 0x1FBB4F2E  # what turns half the bits of a float32 into its root, within 3.5 %


def philox(counter: Sequence[Tensor], key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): four words of each counter.

    Args:
        counter: its four words, int64 in [0, 2^32) of shapes that broadcast.
        key: in [0, 2^64).

    Returns:
        int64 in [0, 2^32), of the common shape.
    """
    a, b, c, d = counter
    low, high = key & WORD, key >> 32
    for _ in range(ROUNDS):
        p, q = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a = ((q >> 32) ^ b).bitwise_xor_(low).bitwise_and_(WORD)
        c = ((p >> 32) ^ d).bitwise_xor_(high).bitwise_and_(WORD)
        b, d = q, p  # of which only the low word counts
        low, high = (low + _KEY_STEPS[0]) & WORD, (high + _KEY_STEPS[1]) & WORD
    return a, b & WORD, c, d & WORD


def box_muller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normal numbers of two uniform words (Box and Muller 1958): r cos(phi), r sin(phi).

    r is sqrt(-2 log u) with u = (a + 1) / 2^32, so up to 6.66. The low 31 bits of b say where phi lies between -pi / 2
    and pi / 2, and its first bit whether the point goes to the other side of 0.

    Args:
        a, b: int64 in [0, 2^32).

    Returns:
        float32 of the same shape, within 2e-6 of what real numbers would give, and 1e-7 in the root mean square.
    """
    # With n = 2^32 u, and 2^k the power of two nearest to it by ratio, log u = (k - 32) log 2 + 2 atanh(s).
    n = a + 1
    k = ((n.float().view(torch.int32) - _BITS_OF_SQRT_HALF) >> _EXPONENT_AT).long()
    power = 1 << k
    s = (n - power).float() / (n + power).float()
    r = _root((32 - k) * (2 * math.log(2)) - _polynomial(_FOUR_ATANH, s * s) * s)
    r = torch.copysign(r, b - 2**31)
    h = ((b & (2**31 - 1)) - 2**30).float() * (math.pi / 2**32)  # phi / 2
    sin, cos = _polynomial(_SIN, h * h) * h, _polynomial(_COS, h * h)
    return r * ((cos - sin) * (cos + sin)), r * (sin * cos * 2)


def _root(x: Tensor) -> Tensor:
    """The square root of float32 that is 0 or normal, by Heron's method; of 0 it is 1e-20."""
    root = ((x.view(torch.int32) >> 1) + _HALF_OF_BIAS).view(torch.float32)
    for _ in range(2):  # each squares the relative error, and halves it: 6e-4, 2e-7
        root = (root + x / root) * 0.5
    return (x / root + root) * 0.5


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """The polynomial at x, by Horner's rule."""
    value = x * coefficients[0]
    for coefficient in coefficients[1:-1]:
        value.add_(coefficient).mul_(x)
    return value.add_(coefficients[-1])
