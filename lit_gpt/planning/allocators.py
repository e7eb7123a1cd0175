"""Estimate the memory that a process uses for its tensors, which is more than the sum of their sizes.

An allocator rounds sizes up, keeps freed memory for reuse, and cannot use holes that are too small. How much that is
depends on the order of the step's allocations, so they are repeated: on a CPU by this machine's malloc (`heap.py`), for
CUDA by a model of torch's caching allocator.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import torch

from lit_gpt.planning.heap import Event, heap_peaks, live_peak

MIB = 1024**2
CUDA_CONTEXT = 600 * MIB
"""Memory of a process on a CUDA device in addition to tensors: context, kernels, cuBLAS workspaces (nvidia-smi shows
0.4 to 0.6 GB on A100 and H100)."""
SPREAD = 1.25
"""Upper bound over expected memory on a CPU. How a heap is fragmented depends on details that differ from process to
process (documentation page "Plan a run")."""
UNKNOWN_HOLES = 2.2
"""Upper bound over tensors where malloc is not glibc's, so that nothing can be replayed: what glibc leaves at most."""


COPIES_OF_COLLECTIVES = 8
"""Memory of gloo's threads relative to a tensor that they gather or scatter. They copy such tensors, each in a heap of
its own (mallopt(3), `M_ARENA_MAX`), whose holes grow for some tens of steps: 5 to 9 tensors in runs of FSDP2 on two
processes."""


def process_memory(
    events: Sequence[Event], peak_bytes: int, accelerator: str, collective_bytes: int = 0
) -> tuple[int, int]:
    """Return the memory that a run is expected to take for its tensors, and an upper bound on it, in bytes.

    Args:
        events: Allocations and releases in the order of the step.
        peak_bytes: Peak of the total size of live tensors.
        accelerator: `cpu`: resident memory, with the buffers of matrix products. `cuda`: the expected memory is that of
            tensors (`torch.cuda.max_memory_allocated`), the bound is that reserved by torch plus the context.
        collective_bytes: Bytes of a tensor that processes on CPUs gather or scatter.
    """
    if accelerator != "cpu":
        return peak_bytes, max(reserved_cuda(events), peak_bytes) + CUDA_CONTEXT
    buffers = product_buffers(torch.get_num_threads()) + COPIES_OF_COLLECTIVES * collective_bytes
    peaks = heap_peaks(events)
    if peaks is None:
        return peak_bytes + buffers, int(UNKNOWN_HOLES * peak_bytes) + buffers
    unseen = max(0, peak_bytes - live_peak(events))  # what no event tells of, such as the buckets of DDP
    # The largest of the repeats: a run is longer than the steps that are repeated, and its heap never shrinks.
    expected = max(peak_bytes, max(peaks) + unseen) + buffers
    return expected, int(SPREAD * expected)


def bound_without_holes(peak_bytes: int) -> int:
    """Return an upper bound on a CPU where most tensors exceed 32 MiB, and so have pages of their own."""
    return int(SPREAD * (peak_bytes + product_buffers(torch.get_num_threads())))


def product_buffers(num_threads: int) -> int:
    """Return the bytes that MKL keeps for reordered operands: about 8 MiB, and 6 MiB for each thread (traced)."""
    return (8 + 6 * num_threads) * MIB


class _Arena:
    """Free blocks of a memory pool: allocation takes the smallest that fits, and adjacent free blocks are merged."""

    def __init__(self) -> None:
        self._by_size: list[tuple[int, int]] = []  # (size, start), ascending
        self._sizes: dict[int, int] = {}  # start → size
        self._ends: dict[int, int] = {}  # end → start

    def take(self, size: int) -> tuple[int, int] | None:
        """Remove the smallest block of at least `size` and return (start, its size); None if there is none."""
        place = bisect_left(self._by_size, (size, 0))
        if place == len(self._by_size):
            return None
        found, start = self._by_size[place]
        self._remove(start)
        return start, found

    def put(self, start: int, size: int) -> None:
        """Add a free block and merge it with adjacent ones."""
        if start in self._ends:
            before = self._ends[start]
            size += self._sizes[before]
            self._remove(before)
            start = before
        if start + size in self._sizes:
            after = start + size
            size += self._sizes[after]
            self._remove(after)
        self._sizes[start], self._ends[start + size] = size, start
        insort(self._by_size, (size, start))

    def _remove(self, start: int) -> None:
        size = self._sizes.pop(start)
        del self._ends[start + size]
        del self._by_size[bisect_left(self._by_size, (size, start))]


def reserved_cuda(events: Sequence[Event]) -> int:
    """Return the bytes that torch's caching allocator reserves for these tensors on a CUDA device.

    Sizes are rounded up to 512 bytes. Requests up to 1 MiB come from segments of 2 MiB, below 10 MiB from segments of
    20 MiB, larger ones from segments of their own size rounded up to 2 MiB. A block is split if at least 512 bytes
    (small) or more than 1 MiB (large) would remain; segments are never returned. Source:
    c10/cuda/CUDACachingAllocator.cpp, for one stream without expandable segments.
    """
    pools = {True: _Arena(), False: _Arena()}  # small, large
    blocks: dict[int, tuple[int, int, bool]] = {}
    reserved = num_segments = 0
    for key, num_bytes in events:
        if key < 0:  # in host memory
            continue
        if not num_bytes:
            start, size, small = blocks.pop(key)
            pools[small].put(start, size)
            continue
        size = -(-num_bytes // 512) * 512
        small = size <= MIB
        free = pools[small].take(size)
        if free is None:
            segment = 2 * MIB if small else 20 * MIB if size < 10 * MIB else -(-size // (2 * MIB)) * 2 * MIB
            reserved += segment
            num_segments += 1
            # Address ranges that never touch, so that blocks of two segments are not merged.
            free = num_segments << 48, segment
        start, found = free
        if found - size >= (512 if small else MIB + 1):
            pools[small].put(start + size, found - size)
        else:
            size = found
        blocks[key] = start, size, small
    return reserved
