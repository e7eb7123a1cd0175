"""Simulate one optimizer step without data: its memory, FLOPs, memory traffic and communication.

The real module trains for two or three steps on fake tensors, which have shapes but no data, in a fake process group of
any size. So the step of a model for a thousand devices can be simulated on one CPU in seconds, without allocating its
memory. Nothing is estimated from the model's configuration: the run's module, adapter, objective and optimizer are
executed.

The last of two steps is reported, because the optimizer's state exists only from the second on; on a CPU that of three,
because its heap grows by holes until then.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining._utils import InferenceMode
from torch.distributed.pipelining.schedules import _PipelineSchedule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from lit_gpt.data_info import DataInfo
from lit_gpt.errors import UserError
from lit_gpt.models import masks
from lit_gpt.objectives import cross_entropy
from lit_gpt.parallel import Layout, context, parallelize
from lit_gpt.parallel.gradients import accumulated_locally, clip_gradients, sum_partial_gradients
from lit_gpt.parallel.pipeline import Pipeline, ScheduleName
from lit_gpt.planning.tracker import SimulatedStep, Tracker, models_of

PRECISIONS: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "32-true": (torch.float32, None),
    "64-true": (torch.float64, None),
    "bf16-true": (torch.bfloat16, None),
    "16-true": (torch.float16, None),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "16-mixed": (torch.float32, torch.float16),
}
"""Precision as named in Lightning → dtype of the weights, and dtype of autocast (None: no autocast)."""


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
    """Run a module for a few optimizer steps without data, and return the memory and work of the last one.

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
                for owner in models_of(module):
                    _to_fake_cpu(owner)
                module.train()
                optimizer = _optimizer(module.configure_optimizers())
                module.trainer.optimizers = [optimizer]
                module.on_train_start()
                tracker = Tracker(module, optimizer, mesh, accelerator)
                step = [_fake_batch(batch) for batch in batches]
                # Not told by their group: where each process has all samples, FSDP2 divides over the context's.
                waits = {name: tracker.awaited(getattr(context, name)) for name in ("_all_gather", "_reduce_scatter")}
                with tracker, mock.patch.multiple(context, **waits):
                    tracker.hold("activations", step)
                    for _ in range(3 if accelerator == "cpu" else 2):
                        tracker.begin_step()
                        _train(module, optimizer, step, autocast, clips)
                return tracker.result(layout)
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
