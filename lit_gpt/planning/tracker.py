"""Record the memory and the work of training steps as they are executed, on real or on fake tensors.

A dispatch mode observes every operation:

- **memory**: when a storage is created and when the last tensor that uses it is freed (by weak references), by kind of
  use. This follows `torch.distributed._tools.mem_tracker`, which itself is not used because its snapshots of each
  module take minutes for a dozen layers.
- **FLOPs** by operation, from torch's table (`torch.utils.flop_counter`); causal attention counts half, because kernels
  skip masked blocks.
- **bytes** read and written by all other operations, which are bound by memory bandwidth and not by arithmetic.
- **collectives**: the bytes that each sends, and the number of processes.
"""

import contextlib
import functools
import math
import sys
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

from lit_gpt.parallel import Layout
from lit_gpt.planning.allocators import process_memory
from lit_gpt.planning.heap import Event, HeapObjects

KINDS = ("parameters", "gradients", "optimizer", "buffers", "activations", "temporaries", "collectives")
"""Kinds of memory. Activations are allocated in the forward pass and kept for the backward pass; temporaries are
allocated in the backward pass; collectives are the buffers that hold gathered parameters and gradients to be sent."""


@dataclass(frozen=True)
class Collective:
    """All calls of one collective in a step.

    Attributes:
        name: `all_gather`, `reduce_scatter`, `all_reduce`, `broadcast`, ...
        num_ranks: Number of participating processes.
        num_calls: Number of calls per step.
        num_bytes: Total size of the gathered or reduced tensors of all calls.
        stride: Ranks between two neighbours in the group, which tells how many of them share a node.
        waits: Whether a layer waits for it, as for those of tensor and context parallelism.
    """

    name: str
    num_ranks: int
    num_calls: int
    num_bytes: int
    stride: int = 1
    waits: bool = False

    @property
    def sent_bytes(self) -> float:
        """Bytes that each process sends in a ring algorithm: (n - 1) / n of the tensor, twice that for an all-reduce.

        Source: Thakur et al. 2005, "Optimization of Collective Communication Operations in MPICH", section 4.
        """
        if self.name == "send":  # from one stage of a pipeline to the next
            return self.num_bytes
        share = (self.num_ranks - 1) / self.num_ranks
        return self.num_bytes * share * (2 if self.name == "all_reduce" else 1)


@dataclass(frozen=True)
class Product:
    """A kind of matrix product or attention, by its sizes.

    Attributes:
        kind: `linear`, `experts` or `attention`.
        dtype: torch's name of the operands' dtype.
        shape: (batch, rows, inner, columns) of products; (B, H, T, D) of attention's queries.
        backward: Whether it is the backward pass of attention.
        causal: Whether it is attention that skips what lies behind the diagonal; else it reads a mask.
    """

    kind: str
    dtype: str
    shape: tuple[int, int, int, int]
    backward: bool = False
    causal: bool = False


@dataclass
class Work:
    """Work of one process in an optimizer step.

    Attributes:
        flops: Floating-point operations by kind: `linear`, `attention`, `experts`.
        moved_bytes: Bytes that operations without matrix products read and write.
        num_operations: Number of operations that launch a kernel.
        collectives: Communication, one entry per collective and number of processes.
        products: FLOPs of each kind of product, from which the speed on a CPU is measured.
        idle_share: Time that a pipeline's process waits for the others, relative to that of its own work.
    """

    flops: dict[str, float] = field(default_factory=dict)
    moved_bytes: float = 0.0
    num_operations: int = 0
    collectives: list[Collective] = field(default_factory=list)
    products: dict[Product, float] = field(default_factory=dict)
    idle_share: float = 0.0

    def plus(self, other: "Work", times: float = 1.0) -> "Work":
        """Return the sum of this work and `times` the other."""
        kinds = self.flops.keys() | other.flops.keys()
        counts: dict[tuple[str, int, int, bool], list[float]] = {}
        for factor, work in ((1.0, self), (times, other)):
            for c in work.collectives:
                entry = counts.setdefault((c.name, c.num_ranks, c.stride, c.waits), [0, 0])
                entry[0] += factor * c.num_calls
                entry[1] += factor * c.num_bytes
        return Work(
            {kind: self.flops.get(kind, 0.0) + times * other.flops.get(kind, 0.0) for kind in sorted(kinds)},
            self.moved_bytes + times * other.moved_bytes,
            round(self.num_operations + times * other.num_operations),
            [
                Collective(name, ranks, round(calls), round(size), stride, waits)
                for (name, ranks, stride, waits), (calls, size) in sorted(counts.items())
            ],
            {
                product: self.products.get(product, 0.0) + times * other.products.get(product, 0.0)
                for product in {**self.products, **other.products}
            },
        )


@dataclass(frozen=True)
class SimulatedStep:
    """Memory and work of one optimizer step on one device.

    Attributes:
        memory: Bytes at the peak, by kind (`KINDS`).
        events: Allocations and releases, in order.
        accelerator: Kind of device, `cpu` or `cuda`.
        resting_bytes: Bytes allocated between two steps: parameters, optimizer state and anything else that is kept.
        work: Work of the step.
        num_parameters: Number of parameters on this device.
        num_trained: Number of trained parameters on this device.
    """

    memory: dict[str, int]
    events: Sequence[Event]
    accelerator: str
    resting_bytes: int
    work: Work
    num_parameters: int
    num_trained: int

    @property
    def peak_bytes(self) -> int:
        """Bytes of all tensors at the peak."""
        return sum(self.memory.values())

    @property
    def process_bytes(self) -> int:
        """Bytes that the process is expected to take for its tensors.

        On a CPU with the holes of its heap, on CUDA those of tensors alone, as torch reports them.
        """
        return self._process_memory[0]

    @property
    def upper_bytes(self) -> int:
        """Upper bound on the bytes of the process, including fragmentation of its allocator."""
        return self._process_memory[1]

    @functools.cached_property
    def _process_memory(self) -> tuple[int, int]:
        copied = [c for c in self.work.collectives if c.name in ("all_gather", "reduce_scatter")]
        collective_bytes = max((c.num_bytes // c.num_calls for c in copied), default=0)
        return process_memory(self.events, self.peak_bytes, self.accelerator, collective_bytes)


def models_of(module: Any) -> list[nn.Module]:
    """Return the module, and models that it references outside its submodules (a frozen reference, a teacher)."""
    found: list[nn.Module] = [module]
    known = {id(part) for part in module.modules()}  # not `in`: comparing with a torchmetrics.Metric makes a Metric
    for value in vars(module).values():
        for candidate in (value, getattr(value, "model", None)):
            if isinstance(candidate, nn.Module) and id(candidate) not in known:
                known.add(id(candidate))
                found.append(candidate)
    return found


_ATEN = torch.ops.aten
_ATTENTION = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ATEN._scaled_dot_product_flash_attention],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ATEN._scaled_dot_product_flash_attention_backward
    ],
}
_IN_PLACE = {_ATEN.addmm_: _ATEN.addmm, _ATEN.baddbmm_: _ATEN.baddbmm}
"""Matrix products that torch's FLOP table lists under another name."""


class Tracker(TorchDispatchMode):
    """Dispatch mode that records the memory and the work of all operations executed inside it.

    Args:
        module: Module whose step is simulated.
        optimizer: Optimizer of the module.
        mesh: Device mesh of the processes; None: there is one process, or the model is whole on each.
        accelerator: Kind of device that is simulated, `cpu` or `cuda`.
    """

    def __init__(self, module: Any, optimizer: Optimizer, mesh: Any = None, accelerator: str = "cpu") -> None:
        super().__init__()
        self.module, self.optimizer, self.accelerator = module, optimizer, accelerator
        self.work = Work()
        self.events: list[Event] = []
        self._keys: dict[int, int] = {}
        self._num_keys = 0
        self._sizes: dict[int, tuple[int, str]] = {}
        self._references: dict[int, weakref.ref[Any]] = {}
        self._objects = HeapObjects(self.events) if accelerator == "cpu" else None
        self._totals = dict.fromkeys(KINDS, 0)
        self._total = self._peak = 0
        self._at_peak: dict[str, int] = {}
        self._resting = 0
        self._in_optimizer = self._in_shape_inference = False
        self._collectives: Counter[tuple[str, int, int, bool, int]] = Counter()
        self._tensor_group = None if mesh is None else mesh.get_group("tensor").group_name
        self._is_awaited = False
        self._use_counts: tuple[int, int] | None = None
        self._handles: list[Any] = []
        self._resize = torch.UntypedStorage.resize_
        self._infer_shape = ShardingPropagator._propagate_tensor_meta_non_cached

    # ---- hooks

    def __enter__(self) -> "Tracker":
        for model in models_of(self.module):
            self.hold("parameters", list(model.parameters()))
            self.hold("buffers", list(model.buffers()))
        for parameter in self.module.parameters():
            if parameter.requires_grad:
                self._handles.append(parameter.register_post_accumulate_grad_hook(self._note_gradient))
        self._handles.append(self.optimizer.register_step_pre_hook(self._enter_optimizer))
        self._handles.append(self.optimizer.register_step_post_hook(self._leave_optimizer))
        resize, tracker = self._resize, self

        def resized(storage: torch.UntypedStorage, size: int) -> None:
            # FSDP2 frees and reallocates gathered parameters this way, which is not visible as an operation.
            resize(storage, size)
            tracker._allocate(storage, "collectives", keep=False)
            tracker._note_peak()

        infer_shape = self._infer_shape

        def inferred(propagator: ShardingPropagator, schema: Any) -> Any:
            # DTensor runs an operation once on fake tensors of the global shape, to learn the shape of its result. In a
            # real run that takes no memory: it would be a whole weight for each shard of it.
            tracker._in_shape_inference = True
            try:
                return infer_shape(propagator, schema)
            finally:
                tracker._in_shape_inference = False

        torch.UntypedStorage.resize_ = resized  # type: ignore[method-assign,assignment]
        ShardingPropagator._propagate_tensor_meta_non_cached = inferred  # type: ignore[method-assign,assignment]
        super().__enter__()
        self._learn_use_counts()
        return self

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        ShardingPropagator._propagate_tensor_meta_non_cached = self._infer_shape  # type: ignore[method-assign]
        for handle in self._handles:
            handle.remove()

    def hold(self, kind: str, tree: Any) -> None:
        """Count the tensors in nested containers as memory of one kind from now on."""
        for tensor in tree_flatten(tree)[0]:
            if isinstance(tensor, Tensor):
                for storage in _storages(tensor):
                    self._allocate(storage, kind, keep=False)
        self._note_peak()

    def awaited(self, collective: Any) -> Any:
        """Return a collective that is recorded as one that a layer waits for."""

        def recorded(*args: Any, **kwargs: Any) -> Any:
            self._is_awaited = True
            try:
                return collective(*args, **kwargs)
            finally:
                self._is_awaited = False

        return recorded

    def begin_step(self) -> None:
        """Reset the work and the peak at the start of a step."""
        self.work = Work()
        self._collectives.clear()
        self._resting, self._peak, self._at_peak = self._total, 0, {}

    def result(self, layout: Layout) -> SimulatedStep:
        """Return the memory and work of the last step."""
        memory = {kind: self._at_peak.get(kind, 0) for kind in KINDS}
        parameters = list(self.module.parameters())
        local = [p.to_local() if isinstance(p, DTensor) else p for p in parameters]
        trained = [p for p in local if p.requires_grad]
        collectives = Counter(self._collectives)
        if layout.replicate > 1 and not layout.cuts_model:
            # DDP copies gradients into buckets for the all-reduce (PyTorch Distributed, arXiv:2006.15704, section
            # 3.2.3). This happens below the dispatcher, so the dispatch mode does not see it.
            gradients = sum(p.numel() * p.element_size() for p in trained)
            memory["collectives"] += gradients
            num_buckets = max(1, math.ceil(gradients / (25 * 2**20)))
            collectives["all_reduce", layout.replicate, 1, False, gradients // num_buckets] += num_buckets
        calls: dict[tuple[str, int, int, bool], list[int]] = {}
        for (name, ranks, stride, waits, size), count in collectives.items():
            entry = calls.setdefault((name, ranks, stride, waits), [0, 0])
            entry[0] += count
            entry[1] += count * size
        self.work.collectives = [
            Collective(name, ranks, entry[0], entry[1], stride, waits)
            for (name, ranks, stride, waits), entry in sorted(calls.items())
        ]
        return SimulatedStep(
            memory=memory,
            events=self.events,
            accelerator=self.accelerator,
            resting_bytes=self._resting,
            work=self.work,
            num_parameters=sum(p.numel() for p in local),
            num_trained=sum(p.numel() for p in trained),
        )

    # ---- gradients that are added

    def _learn_use_counts(self) -> None:
        """Learn how many references there are to a gradient that only the autograd engine holds."""
        num_before = len(self.events)
        x = torch.ones(1, requires_grad=True)
        (x * 2 * (x * 3)).sum().backward()
        del x  # and with it, all else of this step
        del self.events[num_before:]

    def _adds_in_place(self, func: Any, args: Any) -> bool:
        """Return whether the autograd engine adds a gradient to one that nothing else holds.

        It then adds in place, but not while a dispatch mode is active (torch/csrc/autograd/input_buffer.cpp,
        `can_accumulate_inplace`), so the mode has to do it.
        """
        if func is not _ATEN.add.Tensor or torch._C._current_graph_task_id() == -1 or not hasattr(Tensor, "_use_count"):
            return False
        frame = sys._getframe(2)  # of who dispatches, without torch's wrappers around a mode
        while frame.f_back is not None and frame.f_code.co_filename.endswith(("_compile.py", "eval_frame.py")):
            frame = frame.f_back
        if not frame.f_code.co_filename.endswith("autograd/graph.py"):
            return False
        held, added = args[:2]
        counts = held._use_count(), torch._C._storage_Use_Count(held.untyped_storage()._cdata)
        if self._use_counts is None:
            self._use_counts = counts
        same = held.shape == added.shape and held.dtype == added.dtype
        return counts == self._use_counts and same and held.is_contiguous()

    # ---- memory

    def _allocate(self, storage: torch.UntypedStorage, kind: str, keep: bool = True) -> None:
        """Record a storage and its size; a known one keeps its kind if `keep`, and gets the new kind otherwise."""
        key, size = storage._cdata, storage.nbytes()
        if key in self._sizes:
            old_size, old_kind = self._sizes[key]
            kind = old_kind if keep else kind
            if (old_size, old_kind) == (size, kind):
                return
            self._add(old_kind, -old_size)
            if old_size and old_size != size:
                self.events.append((self._keys[key], 0))
        else:
            self._keys[key] = self._num_keys = self._num_keys + 1
            old_size = 0
            if self._objects is not None:
                self._objects.add_storage(key)
            self._references[key] = weakref.ref(storage, lambda _, key=key: self._free(key))  # type: ignore[misc]
        if size and size != old_size:
            self.events.append((self._keys[key], size))
        self._sizes[key] = size, kind
        self._add(kind, size)

    def _free(self, key: int) -> None:
        size, kind = self._sizes.pop(key)
        del self._references[key]
        if size:
            self.events.append((self._keys[key], 0))
        if self._objects is not None:
            self._objects.free_storage(key)
        self._add(kind, -size)

    def _add(self, kind: str, size: int) -> None:
        self._totals[kind] += size
        self._total += size

    def _note_peak(self) -> None:
        if self._total > self._peak:
            self._peak, self._at_peak = self._total, dict(self._totals)

    def _note_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.hold("gradients", parameter.grad)

    def _enter_optimizer(self, *_: Any) -> None:
        for parameter in self.module.parameters():  # FSDP2 sets gradients without the parameter's hooks
            self._note_gradient(parameter)
        self._in_optimizer = True
        if self._objects is not None:
            self._objects.free_graph()

    def _leave_optimizer(self, *_: Any) -> None:
        self._in_optimizer = False
        self.hold("optimizer", [list(state.values()) for state in self.optimizer.state.values()])

    # ---- operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # DTensor calls again with its local tensors
        kwargs = kwargs or {}
        if self._in_shape_inference:
            return func(*args, **kwargs)
        if func is torch.ops._c10d_functional.wait_tensor.default:
            return args[0]  # in a real run it makes no new tensor
        if self._adds_in_place(func, args):
            func = _ATEN.add_.Tensor
        if func is _ATEN._grouped_mm.default and args[0].dtype != torch.bfloat16:
            out = _grouped_product(args[0], args[1], args[2] if len(args) > 2 else kwargs["offs"])
        else:
            out = func(*args, **kwargs)
        name = func._schema.name
        outputs = [tensor for tensor in tree_flatten(out)[0] if isinstance(tensor, Tensor)]
        if name.startswith(("c10d::", "_c10d_functional::")):
            self._note_collective(name.split("::")[1], func, args, outputs)
            kind = "collectives"
        elif self._in_optimizer or torch._C._current_graph_task_id() != -1:
            kind = "temporaries"
        else:
            kind = "activations"
        inputs = [tensor for tensor in tree_flatten((args, kwargs))[0] if isinstance(tensor, Tensor)]
        storages = [storage for tensor in outputs for storage in _storages(tensor)]
        is_view = all(storage._cdata in self._sizes for storage in storages)
        has_node = False
        if self._objects is not None and not self._in_optimizer:
            has_node = self._objects.add_operation(func, args, inputs, is_view)
        for storage in storages:
            self._allocate(storage, kind)
        if self._objects is not None:
            for tensor in outputs:
                self._objects.add_tensor(tensor, is_view and func is not _ATEN.detach.default, has_node)
        self._note_peak()
        if not is_view or func._schema.is_mutable:
            self._note_work(func, args, kwargs, out, inputs, outputs)
        return out

    def _note_work(
        self, func: Any, args: Any, kwargs: Any, out: Any, inputs: list[Tensor], outputs: list[Tensor]
    ) -> None:
        packet = func._overloadpacket
        self.work.num_operations += 1
        kind, flops = None, 0.0
        if packet in _ATTENTION:
            kind, flops = "attention", _ATTENTION[packet](*args, **kwargs, out_val=out)
            if _is_causal(func, args, kwargs):
                # The last query attends to every key: half of the scores if there are as many queries as keys.
                q, k = args[1:3] if "backward" in func._schema.name else args[:2]
                flops *= 1 - q.shape[-2] / (2 * k.shape[-2])
        elif packet is _ATEN._grouped_mm:
            kind, flops = "experts", _grouped_flops(args[0], args[1])
        elif packet in flop_registry or packet in _IN_PLACE:
            packet = _IN_PLACE.get(packet, packet)
            kind, flops = "linear", float(flop_registry[packet](*args, **kwargs, out_val=out))
        if kind is not None:
            self.work.flops[kind] = self.work.flops.get(kind, 0.0) + flops
            product = _product(kind, func, args, kwargs)
            self.work.products[product] = self.work.products.get(product, 0.0) + flops
            return
        self.work.moved_bytes += sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, *outputs))

    def _note_collective(self, name: str, func: Any, args: Any, outputs: list[Tensor]) -> None:
        name = name.strip("_").replace("_base", "").replace("_into_tensor", "").replace("_tensor", "").rstrip("_")
        name = {"allgather": "all_gather", "allreduce": "all_reduce"}.get(name, name)
        group = next((group for value in reversed(args) if (group := _group(value)) is not None), dist.group.WORLD)
        assert group is not None
        ranks = dist.get_process_group_ranks(group)
        stride = ranks[1] - ranks[0] if len(ranks) > 1 else 1
        tensors = [tensor for tensor in tree_flatten(args)[0] if isinstance(tensor, Tensor)] + outputs
        size = max((tensor.numel() * tensor.element_size() for tensor in tensors), default=0)
        waits = self._is_awaited or name.startswith("all_to_all") or group.group_name == self._tensor_group
        if name != "recv":  # counted where it is sent
            self._collectives[name, len(ranks), stride, waits, size] += 1


def _storages(tensor: Tensor) -> list[torch.UntypedStorage]:
    from torch.distributed._tools.common_utils import get_untyped_storages

    return list(get_untyped_storages(tensor))


def _group(value: Any) -> dist.ProcessGroup | None:
    """Return a process group that is given by name or as an object; None if the value is not one."""
    if isinstance(value, str):
        with contextlib.suppress(Exception):
            return dist.distributed_c10d._resolve_process_group(value)  # type: ignore[arg-type]
    if isinstance(value, torch.ScriptObject):
        with contextlib.suppress(Exception):
            return dist.ProcessGroup.unbox(value)
    return None


def _product(kind: str, func: Any, args: Any, kwargs: Any) -> Product:
    """Return the kind of product that an operation is, from its operands."""
    operands = [tensor for tensor in args if isinstance(tensor, Tensor) and tensor.dim() >= 2]
    backward = kind == "attention" and "backward" in func._schema.name
    query = operands[1 if backward else 0]  # backward takes the gradient first, and float32 statistics last
    dtype = str(query.dtype).removeprefix("torch.")
    if kind == "attention":
        return Product(kind, dtype, tuple(query.shape), backward, _is_causal(func, args, kwargs))  # type: ignore[arg-type]
    if func._overloadpacket is _ATEN._grouped_mm:
        rows, columns = operands[0].shape[-2], operands[1].shape[-1]
        return Product(kind, dtype, (1, rows, operands[0].shape[-1], columns))
    a, b = operands[-2:]
    return Product(kind, dtype, (a.shape[0] if a.dim() == 3 else 1, a.shape[-2], a.shape[-1], b.shape[-1]))


def _is_causal(func: Any, args: Any, kwargs: Any) -> bool:
    names = [argument.name for argument in func._schema.arguments]
    index = names.index("is_causal")
    return bool(kwargs.get("is_causal", args[index] if index < len(args) else False))


def _grouped_product(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """Return an empty result of `grouped_mm`, whose shape function in torch supports only bfloat16."""
    if a.dim() == 2 and b.dim() == 2:
        return a.new_empty(ends.numel(), a.shape[0], b.shape[1])
    return a.new_empty(*a.shape[:-1], b.shape[-1])


def _grouped_flops(a: Tensor, b: Tensor) -> float:
    """Return the FLOPs of a grouped product, (S, I) × (E, I, O), or of its weight gradient, (O, S) × (S, I)."""
    if a.dim() == 2 and b.dim() == 3:
        return 2.0 * a.shape[0] * a.shape[1] * b.shape[2]
    if a.dim() == 2:
        return 2.0 * a.shape[0] * a.shape[1] * b.shape[1]
    return 2.0 * math.prod(a.shape) * b.shape[-1]
