"""Rows that are identical bit for bit, found by hashing whole blocks of rows at once.

A row's 64-bit words x, two values each, are hashed to sum_j c_j (x_j xor x_j / 2^32) modulo 2^64 with random c_j
(multilinear hashing: J. L. Carter and M. N. Wegman, Universal classes of hash functions, 1979). Folding the upper half
onto the lower lets the highest bit, the sign of a value, change more than the highest bit of the sum. Rows of one hash
are compared value by value, so a collision costs time and never a row.

Axes: m row, n row of a block, p parameter, h pair of parameters.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int64, UInt64

from weightspace.progress import progress_bar

BLOCK_VALUES = 2**18
"""Values hashed at a time: few enough to stay in the cache of a core."""

Read = Callable[[Int64[np.ndarray, " n"]], Float[np.ndarray, "n p"]]


def first_of_identical(read: Read, count: int, parameters: int) -> Int64[np.ndarray, " m"]:
    """For each row the position of the first row that is equal to it, often its own.

    Args:
        read: Gives the float32 rows at some positions.
        count: Number of rows.
        parameters: Length of a row.

    >>> rows = np.array([[0, 1], [np.nan, 1], [0, 1], [-0.0, 1], [np.nan, 1]], dtype=np.float32)
    >>> first_of_identical(lambda places: rows[places], 5, 2)
    array([0, 1, 0, 3, 1])
    """
    size = max(1, BLOCK_VALUES // max(1, parameters))
    first = np.arange(count)
    hashes = np.empty(count, dtype=np.uint64)
    coefficients = np.random.default_rng(0).integers(0, 2**64, -(-parameters // 2), dtype=np.uint64)
    with progress_bar("hashing weights", count) as advance:
        for places in _blocks(first, size):
            words = _words(read(places))
            hashes[places] = (words ^ (words >> np.uint64(32))) @ coefficients
            advance(len(places))
    order = np.argsort(hashes, kind="stable")
    begins = np.concatenate([[True], np.diff(hashes[order]) != 0]) if count else np.empty(0, dtype=bool)
    heads = np.empty(count, dtype=np.int64)
    heads[order] = order[np.maximum.accumulate(np.where(begins, np.arange(count), 0))]
    for places in _blocks(np.flatnonzero(heads != first), size):
        equal = (_words(read(places)) == _words(read(heads[places]))).all(axis=1)
        first[places[equal]] = heads[places[equal]]
    return first


def _blocks(places: Int64[np.ndarray, " m"], size: int) -> list[np.ndarray]:
    return [places[i : i + size] for i in range(0, len(places), size)]


def _words(rows: Float[np.ndarray, "n p"]) -> UInt64[np.ndarray, "n h"]:
    if rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    return rows.view(np.uint64)
