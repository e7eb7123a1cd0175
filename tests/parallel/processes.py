"""Runs a function in several gloo processes that form the mesh of a layout."""

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.utils._python_dispatch import TorchDispatchMode

from lit_gpt.parallel import Layout


def spawn(work: Callable[..., None], layout: Layout, *arguments: object) -> None:
    """Call `work(mesh, *arguments)` in each process of a layout; a failure of any is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_run, (work, layout, str(Path(folder, "store")), arguments), nprocs=layout.world_size)


def _run(rank: int, work: Callable[..., None], layout: Layout, store: str, arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=layout.world_size)
    work(layout.build_mesh("cpu"), *arguments)
    dist.barrier()  # gloo aborts a process whose peer leaves while it still talks
    dist.destroy_process_group()


class Collectives(TorchDispatchMode):
    """Counts collectives by name, such as `all_reduce`, within a `with` block.

    (torch's CommDebugMode counts the same, but fails where a model runs several times.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional") and not func.__name__.startswith(("wait", "_wrap")):
            self.counts[NAMES.get(func.__name__.split(".")[0], func.__name__.split(".")[0])] += 1
        return func(*args, **(kwargs or {}))


NAMES = {
    "allreduce_": "all_reduce",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor": "reduce_scatter",
    "all_to_all_single": "all_to_all",
}
"""Names of torch's operations, of both of its interfaces."""
