"""Short rows side by side in rows of T tokens: best-fit decreasing.

Krell et al. 2021 ("Efficient Sequence Packing without Cross-contamination", arXiv:2107.02027) pack the longest first,
each into the fullest bin that still has room. Free room is a small integer, so the bins with a given room are one
list, and which rooms are taken is one Python integer of T + 1 bits: the best fit is its lowest set bit from the
wanted size on. A million rows take seconds.
"""

import numpy as np

from lit_gpt.data.sampler import permute


def pack(lengths: np.ndarray, capacity: int, key: int = 0) -> list[np.ndarray]:
    """Puts rows into bins.

    Args:
        lengths: (n,) int64 tokens of each row, at least 1 and at most `capacity`.
        capacity: T, tokens of a bin.
        key: Shuffles rows of equal length, so that neighbours in a file are not packed together.

    Returns:
        For each bin the rows in it, (k,) int64; every row is in exactly one.
    """
    if len(lengths) == 0:
        return []
    assert lengths.min() >= 1
    assert lengths.max() <= capacity
    shuffled = permute(np.arange(len(lengths)), len(lengths), key)
    order = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    bins: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r: some bin has room r
    for row, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            place = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
            bins[place].append(row)
        else:
            room, place = capacity, len(bins)
            bins.append([row])
        left = room - length
        if left:
            with_room[left].append(place)
            rooms |= 1 << left
    return [np.array(rows, dtype=np.int64) for rows in bins]
