"""`ParallelStrategy`: a model over many devices along any axes, with atomic checkpoints.

Why a strategy and not a CheckpointIO: with sharded weights every process writes, so Lightning's strategy bypasses the
CheckpointIO and writes its shards directly into the final folder; a process killed meanwhile leaves an incomplete
checkpoint under the final name. Here:

1. All processes write their shards into a temporary folder next to the target, with `torch.distributed.checkpoint`.
2. When all are done, process 0 adds `state.pt` (everything that is not a tensor), hashes all files into
   `manifest.json`, fsyncs, and renames the folder: this single, atomic operation makes the checkpoint exist.
3. A failure on any process (such as a full disk) is raised on all, and the temporary folder is removed.

With `async_checkpoint` the tensors are copied to host memory first, and the rest happens in a thread of each process
while training goes on; these threads talk to one another in a process group of their own.

Process 0 verifies checkpoints before loading. Loading reads shards, or a complete checkpoint of any other strategy,
into the model's current sharding, so a run may continue on another number of devices.

Optimizer state is stored by parameter name, not by index as in PyTorch, because the order of parameters in groups may
differ between strategies. Tied parameters are stored once, with their other names in `state.pt`.
"""

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed.checkpoint as dcp
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from lit_gpt.adapters import AdapterConfig
from lit_gpt.atomic import publish, raise_if_disk_full, remove_atomically, remove_leftovers, temporary_path
from lit_gpt.checkpoints.provenance import verify, write_manifest
from lit_gpt.checkpoints.step import (
    OPTIMIZER,
    PREFIX,
    SHARDS,
    STATE,
    TIED,
    WEIGHTS,
    by_index,
    by_name,
    is_sharded,
    join_optimizers,
    join_parameters,
    load_into,
    read_averages,
    read_state,
    read_weights,
    retie,
    save_state,
    saved_tensors,
    select_parameters,
    to_plain,
)
from lit_gpt.checks import check_one_of, local_path
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.parallel import Layout, Pipeline, check_model, parallelize
from lit_gpt.parallel.context import cut_batch
from lit_gpt.parallel.gradients import accumulated_locally, sum_partial_gradients
from lit_gpt.parallel.layout import flat_mesh
from lit_gpt.parallel.pipeline import ScheduleName, check_pipeline
from lit_gpt.plugins.background import BackgroundWriter, finish
from lit_gpt.plugins.checkpoint_io import AtomicCheckpointIO

NOT_ON_SHARDS = (torch.optim.Adafactor, torch.optim.Rprop)
"""Optimizers whose in-place operations DTensor does not support (torch 2.13)."""


class ParallelStrategy(ModelParallelStrategy):
    """A run on many devices, with atomic, verified, data-only checkpoints; see `lit_gpt.parallel.layout` for the axes.

    Args:
        data: number of shards of the model (FSDP2), each on a process with samples of its own; auto: the processes
            that the other axes leave.
        replicate: number of copies of the sharded model (HSDP): gradients are reduced within a copy, then summed over
            copies, so that only the sum crosses slow links.
        tensor: number of parts of each layer.
        context: number of parts of each sequence, for contexts whose activations do not fit on one device; rows are
            padded to a multiple of twice this number. See `lit_gpt.parallel.context`.
        pipeline: number of processes among which the layers are divided; see `lit_gpt.parallel.pipeline`. The
            micro-batches of an optimizer step flow through them, so there must be at least as many.
        schedule: order in which a pipeline runs the micro-batches: `1f1b`, `interleaved` (several stages on each
            process, for a smaller bubble) or `zero_bubble` (gradients of weights fill the bubble).
        stages_per_rank: number of stages of the pipeline on each process; None: 2 with `interleaved`, else 1.
        expert: number of parts of the experts of a mixture; it takes its processes from `data`, whose tokens they
            exchange, and must divide it.
        save_distributed_checkpoint: each process writes its shard (fast, any size). False: the weights are gathered
            on process 0 and written like a single device's checkpoint.
        async_checkpoint: write checkpoints in the background: training pauses only while they are copied to host
            memory. The next save and the end of the run wait for the one in flight; its error ends the run at the next
            step.
        sync_micro_batches: reduce-scatter the gradients after each micro-batch: they stay sharded, which saves the
            memory of a whole gradient. False: once an optimizer step, as DDP does.
        reshard_after_forward: free the gathered parameters of a block after its forward pass and gather them again for
            its backward pass. False: gather once an optimizer step, whatever its number of micro-batches, in exchange
            for the memory of all parameters.
        all_gather_dtype: dtype in which FSDP2 gathers parameters. `bfloat16`, for `precision: bf16-mixed` alone, halves
            what is sent and held; then embeddings, norms and the residual stream are computed in bfloat16, too, where
            `bf16-mixed` on DDP has float32. Gradients are reduced in float32 either way.
        process_group_backend: backend of torch.distributed; None: nccl on GPUs, gloo on CPUs.
        timeout: how long a collective may take.

    Raises:
        UserError: `async_checkpoint` is set without `save_distributed_checkpoint`.
    """

    def __init__(
        self,
        data: int | Literal["auto"] = "auto",
        replicate: int = 1,
        tensor: int = 1,
        context: int = 1,
        pipeline: int = 1,
        schedule: ScheduleName = "1f1b",
        stages_per_rank: int | None = None,
        expert: int = 1,
        save_distributed_checkpoint: bool = True,
        async_checkpoint: bool = False,
        sync_micro_batches: bool = False,
        reshard_after_forward: bool = True,
        all_gather_dtype: Literal["float32", "bfloat16"] = "float32",
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self._sizes: dict[str, Any] = {"data": data, "replicate": replicate, "tensor": tensor, "context": context}
        self._sizes |= {"pipeline": pipeline, "expert": expert}
        self.schedule: ScheduleName = schedule
        self.stages_per_rank = stages_per_rank
        self.pipeline: Pipeline | None = None
        """The stages of this process, once the model has been divided; None: no pipeline."""
        self.layout = Layout()
        """Sizes of all axes; complete after `setup_environment`."""
        check_one_of("all_gather_dtype", all_gather_dtype, ("float32", "bfloat16"))
        if async_checkpoint and not save_distributed_checkpoint:
            raise UserError(
                "async_checkpoint is true and save_distributed_checkpoint is false; set one of them to its default"
            )
        self._writer = BackgroundWriter() if async_checkpoint else None
        self._writer_group: Any = None
        self._vote_group: Any = None
        self._vote: tuple[Any, Tensor] | None = None
        self.sync_micro_batches = sync_micro_batches
        self.reshard_after_forward = reshard_after_forward
        self._accumulates = False
        self.all_gather_dtype = all_gather_dtype

    # ---- processes and their groups ---------------------------------------------------------------------------

    def setup_environment(self) -> None:
        """Create the process groups of all axes, after checking that the axes suit the run.

        Raises:
            UserError: the axes do not multiply to the number of processes, or do not divide the model. It is raised
                on every process, before any process group exists in which one could wait for another.
        """
        self.layout = Layout.resolve(self.num_nodes * self.num_processes, **self._sizes)
        assert self.lightning_module is not None
        module = self.lightning_module
        config = getattr(module, "config", None)
        if isinstance(config, GPTConfig):
            check_model(config, self.layout)
            check_pipeline(config, self.layout.pipeline, self.schedule, self.stages_per_rank)
        if self.layout.context > 1 and not getattr(module, "loss_sums_tokens", False):
            raise UserError(
                f"context {self.layout.context} divides rows over processes, for which the loss must be a sum of "
                f"terms, one per token, and that of {type(module).__name__} is not declared to be one; "
                "set context: 1 and shard over data instead, or loss_sums_tokens = True in the class if it is"
            )
        _check_adapter(getattr(module, "adapter", None))
        if self.layout.pipeline > 1:
            self._check_run_of_pipeline(module)
        self._setup_distributed()
        self._device_mesh = self.layout.build_mesh(self.root_device.type)
        module._device_mesh = self._device_mesh
        if self._writer is not None:
            # Groups of their own: collectives of two threads in one group would meet in any order.
            self._writer_group = torch.distributed.new_group(backend="gloo", timeout=self._timeout)
            self._vote_group = torch.distributed.new_group(backend="gloo", timeout=self._timeout)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Rank of this process among those that load different samples, and their number."""
        batch = flat_mesh(self.device_mesh, "batch")
        return {"num_replicas": batch.size(), "rank": batch.get_local_rank()}

    @property
    def loss_group(self) -> Any:
        """Process group of the ranks that hold different tokens."""
        return self.device_mesh.get_group("loss")

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Move a batch to the device: of each row only this process's tokens, if rows are divided."""
        if self.layout.context > 1:
            batch = cut_batch(batch, self.device_mesh["context"])
        return super().batch_to_device(batch, device, dataloader_idx)

    @property
    def stage_group(self) -> Any:
        """Process group of the ranks that hold the stages of a pipeline; None: no pipeline."""
        return self.device_mesh.get_group("pipeline") if self.layout.pipeline > 1 else None

    def parallelize(self, model: GPT) -> GPT:
        """Shard a model in place, on the meta device, along all axes."""
        if self.layout.pipeline > 1:
            self.pipeline = Pipeline(model, self.stage_group, self.schedule, self.stages_per_rank)
        dtype = getattr(torch, self.all_gather_dtype)
        reshard, expert = self.reshard_after_forward, self.layout.expert
        return parallelize(model, self.device_mesh, dtype, self.pipeline, reshard, expert)

    def _check_run_of_pipeline(self, module: Any) -> None:
        """Reject what a pipeline does not support.

        Raises:
            UserError: a setting of the strategy, the Trainer or the module does not work with a pipeline.
        """
        name, size = type(module).__name__, self.layout.pipeline
        if not getattr(module, "loss_sums_tokens", False):
            raise UserError(
                f"pipeline {size} divides the model's layers over processes, for which the loss must run the model "
                f"once, on its batch, and sum over tokens; that of {name} is not declared to do so; set pipeline: 1 "
                "and shard over data instead, or loss_sums_tokens = True in the class if it does"
            )
        if getattr(module, "builder", None) is not None:
            raise UserError(f"{name} builds a model of its own, which a pipeline cannot divide; set pipeline: 1")
        if module.trainer.state.fn == TrainerFn.PREDICTING:
            raise UserError(f"predict does not support pipeline {size}; set pipeline: 1 and shard over data instead")
        if self.schedule == "zero_bubble" and getattr(module, "compile_model", False):
            raise UserError(
                "schedule is zero_bubble and compile is true, but a compiled block cannot compute the gradients of "
                "inputs and of weights separately; set schedule to 1f1b or interleaved, or compile to false"
            )
        if not self.saves_shards:
            raise UserError(
                f"save_distributed_checkpoint is false, but with pipeline {size} no process can gather the weights of "
                "all stages; leave it out, and use the export command for a single file"
            )
        if self.sync_micro_batches:
            raise UserError(
                f"sync_micro_batches is true, but the schedules of a pipeline sum gradients once an optimizer step; "
                f"leave it out, or set pipeline {size} to 1"
            )
        if "16-mixed" in str(module.trainer.precision) and module.trainer.precision != "bf16-mixed":
            raise UserError(
                f"precision is {module.trainer.precision}, whose scaled loss the schedules of a pipeline do not "
                "support; set precision to bf16-mixed"
            )

    def setup(self, trainer: Trainer) -> None:
        """Set up model and optimizers, after rejecting what torch's sharded tensors do not support.

        Raises:
            UserError: a setting of the Trainer, or the optimizer, does not work with sharded parameters.
        """
        if self.all_gather_dtype == "bfloat16" and trainer.precision != "bf16-mixed":
            raise UserError(
                f"all_gather_dtype is bfloat16 and precision is {trainer.precision}; set precision to bf16-mixed, or "
                "leave all_gather_dtype out"
            )
        if self.layout.tensor > 1:
            if trainer.gradient_clip_val and trainer.gradient_clip_algorithm == GradClipAlgorithmType.VALUE:
                raise UserError(
                    "gradient_clip_algorithm is value, which torch cannot apply under tensor parallelism; set it to "
                    "norm, or tensor to 1"
                )
            if trainer._detect_anomaly:
                raise UserError(
                    "detect_anomaly is true, which torch cannot apply under tensor parallelism; set tensor to 1 while "
                    "you look for the anomaly"
                )
        super().setup(trainer)
        if trainer.state.fn == TrainerFn.FITTING and self.world_size > 1:
            self._print_layout()

    def model_to_device(self) -> None:
        """Move the model to its device, unless all of it is there.

        After training, torch.compile refers to the parameters, and torch cannot exchange a DTensor that is referred to:
        a `test` after `fit` would fail.
        """
        assert self.model is not None
        devices = {self.model.device, *(x.device for x in (*self.model.parameters(), *self.model.buffers()))}
        if devices != {self.root_device}:
            super().model_to_device()

    def _print_layout(self) -> None:
        """Print on process 0 who holds what; every process calls it."""
        assert self.model is not None
        parameters = list(self.model.parameters())
        local = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters)
        counts = torch.tensor([local, -local], device=self.root_device)
        torch.distributed.all_reduce(counts, torch.distributed.ReduceOp.MAX)
        total = sum(p.numel() for p in parameters) if self.pipeline is None else self.pipeline.num_parameters
        most, least = counts.tolist()
        text = self.layout.describe(total, (-least, most), self.num_processes)
        if self.pipeline is not None:
            text = f"{text}\n{self.pipeline.describe()}"
        if self.is_global_zero:
            print(text)

    def setup_optimizers(self, trainer: Trainer) -> None:
        """Create the optimizers; see `setup`.

        Raises:
            UserError: the optimizer does not support sharded parameters.
        """
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            if isinstance(optimizer, NOT_ON_SHARDS):
                name = type(optimizer).__name__
                raise UserError(f"{name} of torch does not support sharded parameters; use AdamW or MuonAdamW, or DDP")

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Within it, backward passes add to the gradient on this device alone; the next one outside sums over devices.

        FSDP2 then keeps whole gradients (in float32) from one micro-batch to the next, and whole parameters, too, if
        they are not resharded after the forward pass.
        """
        assert self.model is not None
        with accumulated_locally(self.model, self.sync_micro_batches, self.reshard_after_forward):
            self._accumulates = True
            try:
                yield
            finally:
                self._accumulates = False

    def post_backward(self, closure_loss: Tensor) -> None:
        """After the last backward pass of a step, add up the gradients of which each process holds a summand."""
        super().post_backward(closure_loss)
        if not self._accumulates and self.layout.tensor > 1:
            assert self.model is not None
            sum_partial_gradients(self.model.parameters())

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """The plugin that writes non-distributed checkpoints: `AtomicCheckpointIO`, or the Trainer's plugin."""
        # Not in __init__: the Trainer rejects a strategy with a CheckpointIO if its plugins contain one too.
        if self._checkpoint_io is None:
            self._checkpoint_io = AtomicCheckpointIO()
        return self._checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, io: CheckpointIO | None) -> None:
        self._checkpoint_io = io

    @property
    def saves_shards(self) -> bool:
        """Whether a checkpoint may contain sharded tensors (if not, callbacks gather their own)."""
        return self._save_distributed_checkpoint

    # ---- saving -----------------------------------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return sharded weights or, if checkpoints are not distributed, complete ones on process 0."""
        assert self.model is not None
        weights = {_clean(name): tensor.detach() for name, tensor in self.model.state_dict().items()}
        if self.saves_shards:
            return weights
        tied = self._tied()
        return retie(self.gather({name: weights[name] for name in weights if name not in tied}), tied)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state by parameter name, sharded; or torch's own complete state on process 0."""
        optimizer = getattr(optimizer, "optimizer", optimizer)
        state = by_name(optimizer.state_dict(), self._names(optimizer))
        return state if self.saves_shards else by_index({**state, "state": self.gather(state["state"])})

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint folder; every process calls it.

        Raises:
            UserError: the disk is full on any process, or a value could not be loaded back safely.
        """
        if storage_options is not None:
            raise UserError(f"{type(self).__name__} writes to a local folder and does not support storage_options")
        path = local_path("default_root_dir", self.broadcast(str(filepath)))
        if not self.saves_shards:
            self._first_process(lambda: self.checkpoint_io.save_checkpoint(checkpoint, path))
            return
        self.wait()
        shards, rest = _split(checkpoint, self._tied())
        if self.pipeline is not None:
            self._join_stages(rest)
        temporary = Path(self.broadcast(str(temporary_path(path))))
        with self._removed_on_failure(temporary, path):
            self._first_process(lambda: _begin(temporary, path, rest))
            copied = {} if self._writer is None else self._writer.copy(shards)
        if self._writer is None:
            self._write_shards(shards, temporary, path)
        else:
            self._writer.start(path, lambda: self._write_shards(copied, temporary, path, self._writer_group))
            self._ask_for_failures()

    def _write_shards(self, shards: dict[str, Any], temporary: Path, path: Path, group: Any = None) -> None:
        """Write the tensors and publish the checkpoint; with the same result or error on every process."""
        with self._removed_on_failure(temporary, path):
            dcp.save(shards, storage_writer=dcp.FileSystemWriter(temporary / SHARDS), process_group=group)
            self._first_process(lambda: _finish(temporary, path), group)

    @contextmanager
    def _removed_on_failure(self, temporary: Path, path: Path) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if self.is_global_zero:
                shutil.rmtree(temporary, ignore_errors=True)
            causes = [cause for cause, _ in error.failures.values()] if isinstance(error, CheckpointException) else []
            for cause in [*causes, error]:
                raise_if_disk_full(cause, path)
            raise

    # ---- in the background ------------------------------------------------------------------------------------

    def when_saved(self, action: Callable[[], None]) -> None:
        """Run an action once the latest checkpoint is published: now, or in the background."""
        if self._writer is not None:
            self._writer.then(action)
        elif isinstance(self.checkpoint_io, AtomicCheckpointIO):
            self.checkpoint_io.when_saved(action)
        else:
            action()

    def remove_checkpoint(self, filepath: str | Path) -> None:
        """Delete a checkpoint once the latest one is published; process 0 does it."""
        if self.is_global_zero:
            self.when_saved(lambda: remove_atomically(Path(filepath)))

    def wait(self) -> None:
        """Wait for the checkpoint in flight; every process calls it.

        Raises:
            UserError: it could not be written.
        """
        if self._vote is not None:
            self._vote[0].wait()
            self._vote = None
        if self._writer is not None:
            self._writer.wait()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Raise the error of a save in the background, on all processes at the same step.

        A process that left alone would leave the others waiting in a collective of this step. So while a checkpoint is
        in flight, each step starts an all-reduce of two numbers, and reads that of the step before: no one waits.
        """
        if self._vote is None:
            return
        work, status = self._vote
        work.wait()
        is_running, has_failed = status.tolist()
        if has_failed or not is_running:
            self._vote = None
            self.wait()
            assert not has_failed, "all processes share the result of a save"
        else:
            self._ask_for_failures()

    def _ask_for_failures(self) -> None:
        assert self._writer is not None
        status = torch.tensor([self._writer.is_running, self._writer.has_failed], dtype=torch.int32)
        maximum = torch.distributed.ReduceOp.MAX
        self._vote = torch.distributed.all_reduce(status, maximum, group=self._vote_group, async_op=True), status

    def on_train_end(self) -> None:
        """Wait for the checkpoint in flight."""
        self.wait()

    def teardown(self) -> None:
        """Wait for the checkpoint in flight, also after an error."""
        if self._writer is not None:
            finish(self._writer)
        super().teardown()

    # ---- loading ----------------------------------------------------------------------------------------------

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Verify a checkpoint and load weights and optimizers from it; every process calls it.

        Returns:
            The rest of Lightning's checkpoint dict.

        Raises:
            UserError: one of its files is missing, truncated or damaged, or it contains another model.
        """
        self.wait()
        path = local_path("ckpt_path", self.broadcast(str(checkpoint_path)))
        if not path.is_dir():
            raise UserError(f"no checkpoint folder at {path}; name a step-*.ckpt folder, or `last`")
        self._first_process(lambda: verify(path))
        checkpoint = read_state(path, mmap=True)
        if is_sharded(path):
            tensors = self._read_shards(path / SHARDS)
            weights = tensors.pop("state_dict")
            tied = {alias: kept for alias, kept in checkpoint.pop(TIED, {}).items() if kept in weights}
            weights = retie(weights, tied)
            states = checkpoint.get("optimizer_states", [])
            names = [[name for group in state["param_groups"] for name in group["params"]] for state in states]
            optimizers = join_optimizers(tensors, states)
            checkpoint |= tensors
        else:
            weights = read_weights(path / WEIGHTS)
            checkpoint |= read_averages(path)
            optimizers = checkpoint.get("optimizer_states", [])
            names = checkpoint.get("lit_gpt", {}).get("optimizer_names", [])
        self._load_weights({name: weights[name] for name in weights if not self._is_elsewhere(name)}, path)
        for i, (optimizer, state) in enumerate(zip(self.optimizers, optimizers, strict=False)):
            own = select_parameters(state, names[i], self._names(optimizer)) if names else state
            optimizer.load_state_dict(self._shard_optimizer(optimizer, own))
        checkpoint.pop("optimizer_states", None)
        return checkpoint

    def _load_weights(self, weights: dict[str, Tensor], path: Path) -> None:
        assert self.model is not None
        assert self.lightning_module is not None
        current = self.model.state_dict()
        raw = {_clean(name): name for name in current}
        named = {raw.get(name, name): value for name, value in weights.items()}
        sharded = {name: _like(current[name], value) if name in current else value for name, value in named.items()}
        try:
            self.model.load_state_dict(sharded, strict=self.lightning_module.strict_loading)
        except RuntimeError as error:
            raise UserError(f"{path} contains another model: {' '.join(str(error).split())[:500]}") from error

    def _read_shards(self, shards: Path) -> dict[str, Any]:
        """Read each tensor in the sharding of the parameter it belongs to."""
        assert self.model is not None
        current = {_clean(name): tensor for name, tensor in self.model.state_dict().items()}
        state: dict[str, Any] = {}
        for (entry, name, *inner), (size, dtype) in saved_tensors(shards).items():
            if entry.startswith(OPTIMIZER) and not self.optimizers:
                continue  # validating or testing
            like = current.get(name)
            if self._is_elsewhere(name):
                continue
            if like is not None and like.shape == size:
                target = torch.empty_like(like, dtype=dtype)
            else:
                target = torch.empty(size, dtype=dtype)
            holder = state.setdefault(entry, {})
            for key in [name, *inner][:-1]:
                holder = holder.setdefault(key, {})
            holder[[name, *inner][-1]] = target
        load_into(state, shards)
        return state

    def _shard_optimizer(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """Shard the tensors of a complete optimizer state like the parameters they belong to."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        moments = {
            i: {key: _like(parameters[i], value) for key, value in item.items()} for i, item in state["state"].items()
        }
        return {**state, "state": moments}

    # ---- stages of a pipeline ---------------------------------------------------------------------------------

    def _is_elsewhere(self, name: str) -> bool:
        """Return whether a tensor of the model belongs to the stages of other processes alone."""
        if self.pipeline is None or not name.startswith(PREFIX):
            return False
        name = name.removeprefix(PREFIX)
        return name in self.pipeline.tensor_names and name not in self.pipeline.own_names

    def _join_stages(self, rest: dict[str, Any]) -> None:
        """Complete the plain data of a checkpoint by that of the other stages; every process calls it."""
        assert self.pipeline is not None
        everyone: list[Any] = [None] * self.pipeline.size
        torch.distributed.all_gather_object(
            everyone, (rest[TIED], rest.get("optimizer_states", [])), group=self.stage_group
        )
        rest[TIED] = {alias: kept for tied, _ in everyone for alias, kept in tied.items()}
        if "optimizer_states" in rest:
            order = {f"{PREFIX}{name}": position for position, name in enumerate(self.pipeline.tensor_names)}
            by_optimizer = zip(*(states for _, states in everyone), strict=True)
            rest["optimizer_states"] = [join_parameters(list(states), order) for states in by_optimizer]

    # ---- processes --------------------------------------------------------------------------------------------

    def _names(self, optimizer: Optimizer) -> list[str]:
        """Return the names of the optimizer's parameters, in the order of its groups."""
        assert self.model is not None
        names = {parameter: _clean(name) for name, parameter in self.model.named_parameters()}
        return [names[p] for group in optimizer.param_groups for p in group["params"]]

    def _tied(self) -> dict[str, str]:
        """Return the further names of tied parameters, each with the parameter's first name."""
        assert self.model is not None
        first: dict[int, str] = {}
        tied: dict[str, str] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            first_name = first.setdefault(id(parameter), _clean(name))
            if first_name != _clean(name):
                tied[_clean(name)] = first_name
        return tied

    def gather(self, tree: Any) -> Any:
        """Gather every sharded tensor of nested dicts on process 0's CPU (None elsewhere); all must call it."""
        if isinstance(tree, Mapping):
            return {key: self.gather(value) for key, value in tree.items()}
        if isinstance(tree, Tensor):
            whole = tree.full_tensor() if isinstance(tree, DTensor) else tree
            return whole.detach().cpu() if self.is_global_zero else None
        return tree

    def _first_process(self, work: Callable[[], Any], group: Any = None) -> None:
        """Run a function on process 0 while the others of a group wait; its exception is raised on all."""
        failure: tuple[str, bool] | None = None
        error: BaseException | None = None
        if self.is_global_zero:
            try:
                work()
            except Exception as caught:
                error, failure = caught, (str(caught), isinstance(caught, UserError))
        shared = [failure]
        torch.distributed.broadcast_object_list(shared, src=0, group=group)
        failure = shared[0]
        if error is not None:
            raise error
        if failure is not None:
            message, is_user_error = failure
            raise UserError(message) if is_user_error else RuntimeError(f"process 0 failed: {message}")


def _check_adapter(adapter: Any) -> None:
    """Reject an adapter that needs the whole weights of its base, which no process has."""
    if isinstance(adapter, AdapterConfig) and (adapter.quantize or adapter.dora):
        field, default = ("quantize", "null") if adapter.quantize else ("dora", "false")
        raise UserError(
            f"adapter.{field} is {getattr(adapter, field)}, which needs whole weights, and ParallelStrategy divides "
            f"them; set adapter.{field} to {default}, or trainer.strategy to ddp"
        )


def _begin(temporary: Path, target: Path, rest: dict[str, Any]) -> None:
    remove_leftovers(target)
    state = to_plain(rest)
    (temporary / SHARDS).mkdir(parents=True)
    save_state(state, temporary / STATE)


def _finish(temporary: Path, target: Path) -> None:
    write_manifest(temporary)
    publish(temporary, target)


def _split(checkpoint: dict[str, Any], tied: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a checkpoint into tensors for the shards and plain data for `state.pt`."""
    rest = {**checkpoint, TIED: tied}
    weights = rest.pop("state_dict")
    shards: dict[str, Any] = {"state_dict": {name: weights[name] for name in weights if name not in tied}}
    optimizers = rest.pop("optimizer_states", None)
    if optimizers is not None:
        rest["optimizer_states"] = []
        for i, optimizer in enumerate(optimizers):
            moments = {
                name: {key: value for key, value in item.items() if isinstance(value, Tensor)}
                for name, item in optimizer["state"].items()
            }
            plain = {
                name: {key: value for key, value in item.items() if not isinstance(value, Tensor)}
                for name, item in optimizer["state"].items()
            }
            shards[f"{OPTIMIZER}{i}"] = moments
            rest["optimizer_states"].append({**optimizer, "state": plain})
    for key, value in list(rest.items()):  # tensors that callbacks keep in the weights' sharding
        if isinstance(value, Mapping) and value and all(isinstance(item, Tensor) for item in value.values()):
            shards[key] = rest.pop(key)
    return shards, rest


def _like(current: Tensor, value: Any) -> Any:
    """Shard a complete tensor like `current`, on its device; tensors of other shapes (step counts) stay complete."""
    if not isinstance(value, Tensor) or isinstance(value, DTensor) or value.shape != current.shape:
        return value
    if isinstance(current, DTensor):
        # Each process takes its shard of the value that it has read, without communication.
        return distribute_tensor(value.to(current.device), current.device_mesh, current.placements, src_data_rank=None)
    return value


def _clean(name: str) -> str:
    """Remove the prefixes that torch.compile inserts into names."""
    return name.replace("_orig_mod.", "")


def unset_node_variables() -> list[str]:
    """Return which of the environment variables that tell a process its node are not set.

    To be called before `fit`: Lightning's launcher sets them all, as for the first node.
    """
    return [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]


def check_processes(trainer: Trainer, unset: list[str]) -> None:
    """Check that the Trainer's processes are those that a launcher started, before they wait for one another.

    Args:
        trainer: the Trainer.
        unset: what `unset_node_variables` returned before `fit`.

    Raises:
        UserError: the run has several nodes but nothing says which one this is, so that it would wait for the others
            until the timeout; or `torchrun` started processes that would each train the whole run.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment) and unset:
        if trainer.strategy.launcher is not None:  # in `fit` it has started this node's other processes
            trainer.strategy.launcher.kill(signal.SIGTERM)
        raise UserError(
            f"num_nodes is {trainer.num_nodes}, but this process was started by neither torchrun nor a scheduler such "
            f"as SLURM; start every node with `torchrun --nnodes {trainer.num_nodes} ...` or srun, or set "
            f"{', '.join(unset)} on each"
        )
    # Not WORLD_SIZE only: Lightning's own launcher leaves it in the environment of later runs.
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) != trainer.world_size:
        raise UserError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, but the Trainer uses {trainer.world_size}; set "
            "trainer.devices to the processes of a node, and trainer.num_nodes to the number of nodes"
        )
