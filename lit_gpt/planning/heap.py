"""How large the heap of a process becomes that trains on a CPU: repeat its allocations with this machine's malloc.

Resident memory on a CPU is 1.1 to 2.1 times that of the tensors, depending on the model. Once a block of up to 32 MiB
was freed, glibc takes blocks of up to its size from the heap (mallopt(3), `M_MMAP_THRESHOLD`), and there
`posix_memalign` cannot reuse the space of a freed tensor for another of the same size, because it looks for the size
plus the alignment. Freed neighbours would make a space large enough, but torch's small objects lie between tensors:
those of a storage, of the tensors that use it, and of the autograd graph, which lives until the end of the backward
pass. So these are recorded too (`HeapObjects`), and everything is replayed in a fresh process (`heap_peaks`).
"""

import array
import subprocess
import sys
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Event = tuple[int, int]
"""(key of a block, its size in bytes); a size of 0 means that it is freed. The key of a tensor's storage is positive,
that of a small object of the C++ library negative."""

STORAGE = 96
TENSOR = (176, 24)
VIEW, GRADIENT = 312, 184
NODE = 536
"""Sizes in bytes of torch's objects: `StorageImpl`; `TensorImpl` and its handle; what autograd keeps with a view, or
with another tensor that has a gradient; and a node of its graph (312 to 736). Traced in torch 2.13 by a malloc that
logs."""
EDGE = 16
"""Size of a node's reference to one of its inputs; their list grows by powers of two."""
REPEATS = 9


class HeapObjects:
    """Records the small objects that torch allocates in addition to tensors, in the order in which it does.

    Args:
        events: List to which allocations and releases are appended.
    """

    def __init__(self, events: list[Event]) -> None:
        self._events = events
        self._num_keys = 0
        self._of_storages: dict[int, list[int]] = {}
        self._tensors: dict[int, weakref.ref[Tensor]] = {}
        self._graph: list[int] = []
        self._recomputed: list[int] = []
        self._was_backward = False

    def add_storage(self, key: int) -> None:
        """Record the object of a storage, before its data."""
        self._of_storages[key] = self._allocate([STORAGE])

    def free_storage(self, key: int) -> None:
        """Free the object of a storage, after its data."""
        self._free(self._of_storages.pop(key))

    def add_operation(self, func: Any, args: Sequence[Any], inputs: Sequence[Tensor], is_view: bool) -> bool:
        """Record an operation's node in the autograd graph, before its results; return whether it has one.

        Args:
            func: Operation, as a dispatch mode sees it: below autograd, so its results do not know their node yet.
            args: Positional arguments.
            inputs: All tensors among its arguments.
            is_view: Whether its results share the memory of its inputs.
        """
        is_backward = torch._C._current_graph_task_id() != -1
        if self._was_backward and not is_backward:
            self.free_graph()
        self._was_backward = is_backward
        if is_backward and not torch.is_grad_enabled():
            self._free(self._recomputed)  # by activation checkpointing, for the nodes that work now
            self._recomputed = []
        if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in inputs):
            return False
        if func.namespace != "aten" or func._overloadpacket is torch.ops.aten.detach:
            return False  # no operation on data, or one that cuts the graph
        # Numbers count where the operation takes a tensor: they are made one.
        num_operands = sum(str(argument.type) == "Tensor" for argument in func._schema.arguments[: len(args)])
        sizes = [NODE, EDGE * 2 ** (max(1, num_operands) - 1).bit_length()]
        if is_view:
            sizes.append(8 * inputs[0].dim())  # the shape to return to
        graph = self._recomputed if is_backward else self._graph
        graph += self._allocate(sizes)
        return True

    def add_tensor(self, tensor: Tensor, is_view: bool, has_gradient: bool) -> None:
        """Record the objects of a tensor, after its data, until it is freed; a known one has them already."""
        place = id(tensor)
        if place in self._tensors:
            return
        keys = self._allocate([*TENSOR, *([VIEW] if is_view else [GRADIENT] if has_gradient else [])])

        def freed(_: Any) -> None:
            del self._tensors[place]
            self._free(keys)

        self._tensors[place] = weakref.ref(tensor, freed)

    def free_graph(self) -> None:
        """Free the autograd graph, at the end of its backward pass."""
        self._free(self._graph)
        self._graph = []

    def _allocate(self, sizes: Iterable[int]) -> list[int]:
        keys = []
        for size in sizes:
            self._num_keys -= 1
            keys.append(self._num_keys)
            self._events.append((self._num_keys, size))
        return keys

    def _free(self, keys: Iterable[int]) -> None:
        self._events += [(key, 0) for key in keys]


def heap_peaks(events: Sequence[Event]) -> list[int] | None:
    """Return the largest size of the heap in bytes when this machine's malloc repeats the events, several times.

    Settings in the environment, such as `MALLOC_MMAP_THRESHOLD_`, count.

    Returns:
        One size for each repeat, which differ in what was in the heap before; None: malloc is not glibc's (macOS, musl,
        jemalloc), or refused so much memory.
    """
    if not sys.platform.startswith("linux"):
        return None
    numbers = array.array("q", (number for event in events for number in event))
    command = [sys.executable, "-I", str(Path(__file__).with_name("heap_replay.py")), str(REPEATS)]
    result = subprocess.run(command, input=numbers.tobytes(), capture_output=True)
    return [int(line) for line in result.stdout.split()] if result.returncode == 0 else None


def live_peak(events: Iterable[Event]) -> int:
    """Return the peak of the total size of live tensors in bytes."""
    sizes: dict[int, int] = {}
    total = peak = 0
    for key, size in events:
        if key > 0:
            total += size - sizes.get(key, 0)
            sizes[key] = size
            peak = max(peak, total)
    return peak
