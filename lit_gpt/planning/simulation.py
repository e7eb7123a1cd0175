"""Simulate one optimizer step without data: its memory, FLOPs, memory traffic and communication.

The real module trains for two steps on fake tensors, which have shapes but no data, in a fake process group of any
size. So the step of a model for a thousand devices can be simulated on one CPU in seconds, without allocating its
memory. Nothing is estimated from the model's configuration: the run's module, adapter, objective and optimizer are
executed.

A dispatch mode observes every operation:

- **memory**: when a storage is created and when the last tensor that uses it is freed (by weak references), by kind of
  use. This follows `torch.distributed._tools.mem_tracker`, which itself is not used because its snapshots of each
  module take minutes for a dozen layers.
- **FLOPs** by operation, from torch's table (`torch.utils.flop_counter`); causal attention counts half, because kernels
  skip masked blocks.
- **bytes** read and written by all other operations, which are bound by memory bandwidth and not by arithmetic.
- **collectives**: the bytes that each sends, and the number of processes.

The second step is reported, because the optimizer's state exists only from then on.
"""

import contextlib
import math
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining._utils import InferenceMode
from torch.distributed.pipelining.schedules import _PipelineSchedule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.flop_counter import flop_registry

from lit_gpt.data_info import DataInfo
from lit_gpt.errors import UserError
from lit_gpt.models import masks
from lit_gpt.objectives import cross_entropy
from lit_gpt.parallel import Layout, context, parallelize
from lit_gpt.parallel.gradients import accumulated_locally, clip_gradients, sum_partial_gradients
from lit_gpt.parallel.pipeline import Pipeline, ScheduleName
from lit_gpt.planning.allocators import Event, upper_bound

KINDS = ("parameters", "gradients", "optimizer", "buffers", "activations", "temporaries", "collectives")
"""Kinds of memory. Activations are allocated in the forward pass and kept for the backward pass; temporaries are
allocated in the backward pass; collectives are the buffers that hold gathered parameters and gradients to be sent."""

PRECISIONS: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "32-true": (torch.float32, None),
    "64-true": (torch.float64, None),
    "bf16-true": (torch.bfloat16, None),
    "16-true": (torch.float16, None),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "16-mixed": (torch.float32, torch.float16),
}
"""Precision as named in Lightning → dtype of the weights, and dtype of autocast (None: no autocast)."""


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
        upper_bytes: Upper bound on the memory of the process in bytes, including fragmentation of its allocator.
        resting_bytes: Bytes allocated between two steps: parameters, optimizer state and anything else that is kept.
        work: Work of the step.
        num_parameters: Number of parameters on this device.
        num_trained: Number of trained parameters on this device.
    """

    memory: dict[str, int]
    upper_bytes: int
    resting_bytes: int
    work: Work
    num_parameters: int
    num_trained: int

    @property
    def peak_bytes(self) -> int:
        """Bytes of all tensors at the peak."""
        return sum(self.memory.values())


def simulate_step(
    module: Any,
    batches: Sequence[Mapping[str, Any]],
    precision: str = "32-true",
    layout: Layout | None = None,
    clips: bool = True,
    accelerator: str = "cpu",
    max_steps: int = 1,
    all_gather_dtype: str = "float32",
    reshard_after_forward: bool = True,
    sync_micro_batches: bool = False,
    schedule: ScheduleName = "1f1b",
    stages_per_rank: int | None = None,
    stage: int = 0,
) -> SimulatedStep:
    """Run a module for two optimizer steps without data, and return the memory and work of the second one.

    Args:
        module: A LightningModule that has no weights yet: its `configure_model`, `configure_optimizers`,
            `on_train_start` and `training_step` are called. It cannot be used afterwards.
        batches: Micro-batches of one step on one device; only their shapes matter.
        precision: Precision as named in Lightning, such as `bf16-mixed`.
        layout: Number of processes and how the model is distributed over them; None: one process. Replicas of a model
            that is not sharded are those of DDP.
        clips: Whether gradients are clipped.
        accelerator: Kind of device to simulate, `cpu` or `cuda`; kernels and allocators differ.
        max_steps: Number of optimizer steps of the run, for the learning rate schedule.
        all_gather_dtype: As in `ParallelStrategy`.
        reshard_after_forward: As in `ParallelStrategy`.
        sync_micro_batches: As in `ParallelStrategy`.
        schedule: As in `ParallelStrategy`.
        stages_per_rank: As in `ParallelStrategy`.
        stage: Position in the pipeline of the process that is simulated.

    Raises:
        UserError: If the precision is unknown, or the step depends on values, which fake tensors do not have.
    """
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    layout = layout or Layout()
    tokens = sum(batch["input_ids"].numel() for batch in batches) * layout.num_batch_ranks
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision} is not simulated; set one of {', '.join(PRECISIONS)}")
    weights, autocast = PRECISIONS[precision]
    chunk_bytes = cross_entropy.CHUNK_BYTES if accelerator == "cpu" else cross_entropy.CHUNK_BYTES_GPU
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with (
            _fake_processes(layout, stage) as mesh,
            mock.patch.object(cross_entropy, "CHUNK_BYTES", chunk_bytes),
            _masks_of(module, layout, accelerator),
        ):
            if layout.context > 1:
                batches = context.cut_batch(list(batches), mesh["context"])
            module.trainer = _Trainer(layout, mesh, max_steps, tokens)
            strategy = module.trainer.strategy

            def divide(model: Any) -> Any:
                if layout.pipeline > 1:
                    strategy.pipeline = Pipeline(model, mesh.get_group("pipeline"), schedule, stages_per_rank)
                dtype = getattr(torch, all_gather_dtype)
                return parallelize(model, mesh, dtype, strategy.pipeline, reshard_after_forward, layout.expert)

            strategy.parallelize = divide
            strategy.block_backward_sync = lambda: accumulated_locally(
                module, sync_micro_batches, reshard_after_forward
            )
            module._device_mesh = mesh
            module.to("meta")
            _configure_model(module, weights)
            with fake:
                for owner in _models(module):
                    _to_fake_cpu(owner)
                module.train()
                optimizer = _optimizer(module.configure_optimizers())
                module.trainer.optimizers = [optimizer]
                module.on_train_start()
                tracker = Tracker(module, optimizer, mesh)
                step = [_fake_batch(batch) for batch in batches]
                # Not told by their group: where each process has all samples, FSDP2 divides over the context's.
                waits = {name: tracker.awaited(getattr(context, name)) for name in ("_all_gather", "_reduce_scatter")}
                with tracker, mock.patch.multiple(context, **waits):
                    tracker.hold("activations", step)
                    for _ in range(2):
                        tracker.begin_step()
                        _train(module, optimizer, step, autocast, clips)
                return tracker.result(layout, accelerator)
    except DataDependentOutputException as error:
        raise UserError(
            f"{type(module).__name__} cannot be simulated: its step depends on values ({error.func}), and a plan has "
            "only shapes"
        ) from error


def _train(module: Any, optimizer: Optimizer, batches: Any, autocast: torch.dtype | None, clips: bool) -> None:
    """Run one optimizer step in the same order as Lightning."""
    # As Lightning's autocast: without the cache, in which the copies of all weights would live until the step's end.
    cast = contextlib.nullcontext() if autocast is None else torch.autocast("cpu", autocast, cache_enabled=False)
    with cast:
        loss = module.training_step(batches, 0)
    loss = loss["loss"] if isinstance(loss, Mapping) else loss
    loss.backward()
    if clips:
        sum_partial_gradients(module.parameters())
        clip_gradients(module.parameters(), 1.0)
    optimizer.step()
    # Modules of this project clear gradients at the start of their step themselves; others leave it to Lightning.
    optimizer.zero_grad()


def _fake_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
    sequence = batch.get("sequence")
    fake = tree_map_only(Tensor, _like, dict(batch))
    return fake if sequence is None else fake | {"sequence": sequence.map(_like)}


def _masks_of(module: Any, layout: Layout, accelerator: str) -> contextlib.AbstractContextManager[Any]:
    """Leave out the dense masks of divided rows where FlexAttention serves, which has none in memory."""
    biased = getattr(getattr(module, "config", None), "positions", None) == "alibi"
    if accelerator == "cpu" or layout.context == 1 or biased:
        return contextlib.nullcontext()
    return mock.patch.object(masks, "dense_mask", return_value=None)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")


class _Trainer(SimpleNamespace):
    """The attributes of a Trainer that a module reads during a step, for one process of a simulated run."""

    def __init__(self, layout: Layout, mesh: Any, max_steps: int, tokens_per_step: int) -> None:
        strategy = SimpleNamespace(
            backward=lambda loss, optimizer: loss.backward(),
            distributed_sampler_kwargs={"rank": 0, "num_replicas": layout.num_batch_ranks},
            layout=layout,
            pipeline=None,
            device_mesh=mesh,
            loss_group=None if mesh is None else mesh.get_group("loss"),
            barrier=lambda *_: None,
            broadcast=lambda value, *_: value,
        )
        super().__init__(
            strategy=strategy,
            optimizers=[],
            datamodule=SimpleNamespace(data_info=DataInfo(tokens_per_step=tokens_per_step)),
            ckpt_path=None,
            training=True,
            validating=False,
            testing=False,
            sanity_checking=False,
            should_stop=False,
            is_global_zero=False,
            world_size=layout.world_size,
            global_step=0,
            current_epoch=0,
            max_steps=max_steps,
            max_epochs=-1,
            estimated_stepping_batches=max_steps,
            accumulate_grad_batches=1,
            log_every_n_steps=0,
            loggers=[],
            callbacks=[],
        )


@contextlib.contextmanager
def _fake_processes(layout: Layout, stage: int) -> Iterator[Any]:
    """Yield the device mesh of a fake process group, in which only this process exists; None if no mesh is needed."""
    if layout.world_size == 1:
        yield None
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise UserError("a process group is in use: plan a run in a separate process, not in one that trains")
    rank = stage * (layout.world_size // layout.pipeline)  # the pipeline is the mesh's outermost axis
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.world_size)
    try:
        with mock.patch.object(_PipelineSchedule, "_warmup_p2p", _agree):
            yield layout.build_mesh("cpu") if layout.cuts_model else None
    finally:
        dist.destroy_process_group()


def _agree(schedule: Any, stages: list[Any], *_: Any) -> None:
    """Choose the shapes of a pipeline's messages without the vote of its processes, whose result is a value."""
    for stage in stages:
        stage._inference_mode = InferenceMode.STATIC


def _models(module: Any) -> list[nn.Module]:
    """Return the module, and models that it references outside its submodules (a frozen reference, a teacher)."""
    found: list[nn.Module] = [module]
    known = {id(part) for part in module.modules()}  # not `in`: comparing with a torchmetrics.Metric makes a Metric
    for value in vars(module).values():
        for candidate in (value, getattr(value, "model", None)):
            if isinstance(candidate, nn.Module) and id(candidate) not in known:
                known.add(id(candidate))
                found.append(candidate)
    return found


def _configure_model(module: Any, weights: torch.dtype) -> None:
    """Build the model of a module with parameters of a dtype, as Lightning's precision plugin would."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(weights)
    try:
        module.configure_model()
    finally:
        torch.set_default_dtype(default)


def _to_fake_cpu(model: nn.Module) -> None:
    """Replace the meta parameters and buffers of a model by fake CPU tensors; tied ones stay tied."""
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        tied: dict[int, list[tuple[nn.Module, str]]] = {}
        for owner in model.modules():
            for name, parameter in owner._parameters.items():
                if parameter is not None:
                    tied.setdefault(id(parameter), []).append((owner, name))
        model.to_empty(device="cpu")  # FSDP2 supports no other way
        for uses in tied.values():
            first, first_name = uses[0]
            for owner, name in uses[1:]:
                setattr(owner, name, getattr(first, first_name))
        return
    new: dict[int, tuple[Tensor, Tensor]] = {}
    for owner in model.modules():
        tables: list[Any] = [owner._parameters, owner._buffers]
        for tensors in tables:
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in new:
                    empty = torch.empty_like(tensor.detach(), device="cpu")
                    if isinstance(tensor, nn.Parameter):
                        empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
                    new[id(tensor)] = tensor, empty  # the old one too: its id must not be given to another
                tensors[name] = new[id(tensor)][1]
    if hasattr(model, "_device"):
        model._device = torch.device("cpu")  # type: ignore[assignment]  # Lightning's


def _optimizer(configured: Any) -> Optimizer:
    """Return the optimizer from whatever `configure_optimizers` may return.

    Raises:
        UserError: If there is not exactly one optimizer.
    """
    if isinstance(configured, tuple | list) and configured:
        configured = configured[0]
    if isinstance(configured, list) and len(configured) == 1:
        configured = configured[0]
    if isinstance(configured, Mapping):
        configured = configured["optimizer"]
    if not isinstance(configured, Optimizer):
        raise UserError(
            "plan simulates modules with one optimizer; configure_optimizers of this one returns none or several"
        )
    return configured


# ---- the dispatch mode --------------------------------------------------------------------------------------------

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
    """

    def __init__(self, module: Any, optimizer: Optimizer, mesh: Any = None) -> None:
        super().__init__()
        self.module, self.optimizer = module, optimizer
        self.work = Work()
        self.events: list[Event] = []
        self._keys: dict[int, int] = {}
        self._num_keys = 0
        self._sizes: dict[int, tuple[int, str]] = {}
        self._references: dict[int, weakref.ref[Any]] = {}
        self._totals = dict.fromkeys(KINDS, 0)
        self._total = self._peak = 0
        self._at_peak: dict[str, int] = {}
        self._resting = 0
        self._in_optimizer = self._in_shape_inference = False
        self._collectives: Counter[tuple[str, int, int, bool, int]] = Counter()
        self._tensor_group = None if mesh is None else mesh.get_group("tensor").group_name
        self._is_awaited = False
        self._handles: list[Any] = []
        self._resize = torch.UntypedStorage.resize_
        self._infer_shape = ShardingPropagator._propagate_tensor_meta_non_cached

    # ---- hooks

    def __enter__(self) -> "Tracker":
        for model in _models(self.module):
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
        return super().__enter__()

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

    def result(self, layout: Layout, accelerator: str) -> SimulatedStep:
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
            upper_bytes=upper_bound(self.events, sum(memory.values()), accelerator),
            resting_bytes=self._resting,
            work=self.work,
            num_parameters=sum(p.numel() for p in local),
            num_trained=sum(p.numel() for p in trained),
        )

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
        fresh = False
        for tensor in outputs:
            for storage in _storages(tensor):
                fresh |= storage._cdata not in self._sizes
                self._allocate(storage, kind)
        self._note_peak()
        if fresh or func._schema.is_mutable:  # else a view
            self._note_work(func, args, kwargs, out, outputs)
        return out

    def _note_work(self, func: Any, args: Any, kwargs: Any, out: Any, outputs: list[Tensor]) -> None:
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
        inputs = [tensor for tensor in tree_flatten((args, kwargs))[0] if isinstance(tensor, Tensor)]
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
