"""Randomness as a pure function of keys: no hidden state, so that any draw can be made again, anywhere, in any order.

`derive` turns names and numbers into a stream; the other functions turn a stream and counters (a view, a sample index,
a step) into numbers. Streams come from BLAKE2b, counters are mixed in one after the other by the finaliser of
SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014; Stafford's
variant 13). All arithmetic is on 64-bit integers, hence equal on every machine and with every version of numpy.

>>> stream = derive("crop", 7)
>>> float(uniform(stream, 3, 5)) == float(uniform(stream, np.arange(6), 5)[3])
True
"""

import hashlib
import operator
from typing import Any

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
_ONE = np.uint64(1)


def derive(*keys: int | str) -> int:
    """A 63-bit stream number for these keys. `1` and `"1"` differ, and so do `("ab",)` and `("a", "b")`.

    Raises TypeError for a key that is neither text nor a whole number.
    """
    digest = hashlib.blake2b(digest_size=8)
    for key in keys:
        text = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else str(operator.index(key)).encode()
        digest.update(b"%s%d:" % (b"s" if isinstance(key, str) else b"i", len(text)) + text)
    return int.from_bytes(digest.digest(), "big") >> 1


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> _SHIFTS[0])) * _MULTIPLIERS[0]
    state = (state ^ (state >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return state ^ (state >> _SHIFTS[2])


def bits(stream: int, *counters: Any) -> np.ndarray:
    """64 random bits, uint64, for each element of the broadcast `counters` (integers, taken modulo 2^64)."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is what is wanted
        state = _mix(np.asarray(np.uint64(stream & 0xFFFFFFFFFFFFFFFF) + _GOLDEN))
        for counter in counters:
            state = _mix(state + _GOLDEN * (np.asarray(counter).astype(np.uint64) + _ONE))
    return np.asarray(state)


def _unit(words: np.ndarray) -> np.ndarray:
    return (words >> np.uint64(11)) * 2.0**-53


def uniform(stream: int, *counters: Any) -> np.ndarray:
    """Uniform float64 in [0, 1), on a grid of 2^-53, of the broadcast shape of the counters."""
    return _unit(bits(stream, *counters))


def integers(stream: int, high: Any, *counters: Any) -> np.ndarray:
    """Uniform int64 in [0, high), `high` at most 2^32 (one number, or an array that broadcasts with the counters)."""
    return np.floor(uniform(stream, *counters) * high).astype(np.int64)


def normal(stream: int, *counters: Any) -> np.ndarray:
    """Standard normal float64 by the transform of Box and Muller, of the broadcast shape of the counters."""
    radius = np.sqrt(-2.0 * np.log1p(-uniform(stream, *counters, 0)))
    return radius * np.cos(2.0 * np.pi * uniform(stream, *counters, 1))


def permutation(stream: int, n: int) -> np.ndarray:
    """A permutation of 0..n-1, int64 `[n]`: the order of n keyed 64-bit values."""
    return np.argsort(bits(stream, np.arange(n)), kind="stable").astype(np.int64)
