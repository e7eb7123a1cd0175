"""Runs a function in several gloo processes that form the mesh of a layout."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing

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
