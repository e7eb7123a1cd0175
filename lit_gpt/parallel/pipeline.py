"""Pipeline parallelism: the blocks of a model are divided among stages, through which micro-batches flow.

**Stages.** The blocks are divided into contiguous stages of nearly equal cost (`split_layers`). The first stage has the
embeddings, the last one the final norm, the head and the multi-token-prediction blocks. A stage is a GPT without the
parts of the other stages, so its parameters have the names that they have in the whole model: initial weights,
optimizer state and checkpoints are the same on every layout.

**Schedules** (`torch.distributed.pipelining`). A training batch already is the list of micro-batches of one optimizer
step, which is what a schedule takes; it also runs the backward passes.

| schedule | order | stages per rank |
|---|---|---|
| `1f1b` | one forward, one backward (PipeDream-Flush, arXiv:2006.09503) | 1 |
| `interleaved` | 1F1B over several stages per rank, for a smaller bubble (arXiv:2104.04473) | 2 or more |
| `zero_bubble` | ZB1P: gradients of weights fill the bubble (arXiv:2401.10241) | 1 or more |

**What each rank computes itself.** All ranks of a pipeline load the same batch. Each computes masks and rotations of
its blocks; only hidden states (B, T, C) and their gradients are sent. The loss is computed within the last stage, by
the same method of the module as without a pipeline. Losses of other stages (balance losses of experts) enter the graph
where they arise, by `add_loss`.

**A weight on two stages.** The head of a model with tied embeddings, and multi-token prediction, need the embedding on
the last stage, too. Both copies start from the same values and get the sum of both gradients, so they stay identical.

B batch, T time, C model width.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B
from torch.distributed.pipelining.schedules import ScheduleInterleavedZeroBubble
from torch.distributed.tensor import DTensor

from lit_gpt.checks import check_at_least, check_one_of
from lit_gpt.errors import UserError
from lit_gpt.models.config import GPTConfig
from lit_gpt.models.counts import head_flops, layer_flops, multi_token_flops
from lit_gpt.models.gpt import GPT
from lit_gpt.parallel.gradients import total_norm

ScheduleName = Literal["1f1b", "interleaved", "zero_bubble"]
SCHEDULES: dict[str, type] = {
    "1f1b": Schedule1F1B,
    "interleaved": ScheduleInterleaved1F1B,
    "zero_bubble": ScheduleInterleavedZeroBubble,
}

EMBEDDING_FLOPS = 3600
"""Cost of the embedding per token and channel, in FLOPs that take as long as its memory traffic: a lookup, a gradient
read and a gradient written are 12 bytes, and an H100 computes about 300 FLOPs while it moves a byte (989 TFLOP/s over
3.35 TB/s)."""

Forward = Callable[[GPT, Any, Tensor | None], Any]
"""`forward(part, micro_batch, hidden)` runs a stage: `hidden` is None on the first one. It returns the hidden states
that enter the next stage, or on the last one the loss."""


def check_pipeline(config: GPTConfig, size: int, schedule: str = "1f1b", stages_per_rank: int | None = None) -> None:
    """Raise if a model cannot be divided into the stages of a pipeline.

    Args:
        config: The model's architecture.
        size: Number of ranks of the pipeline.
        schedule: Name of the schedule.
        stages_per_rank: Number of stages on each rank; None = the schedule's usual number.

    Raises:
        UserError: With the argument to change.
    """
    check_one_of("schedule", schedule, SCHEDULES)
    check_at_least("stages_per_rank", stages_per_rank, 1)
    if size == 1:
        return
    per_rank = usual_stages_per_rank(schedule) if stages_per_rank is None else stages_per_rank
    if schedule == "1f1b" and per_rank != 1:
        raise UserError(f"stages_per_rank is {per_rank}, but schedule 1f1b has 1 per rank; set schedule to interleaved")
    if schedule == "interleaved" and per_rank == 1:
        raise UserError("stages_per_rank is 1, but schedule interleaved needs at least 2; set schedule to 1f1b")
    if size * per_rank > config.n_layer:
        raise UserError(
            f"pipeline {size} x {per_rank} stage(s) per rank = {size * per_rank} stages are more than n_layer "
            f"{config.n_layer}; lower pipeline" + (" or stages_per_rank" if per_rank > 1 else "")
        )
    if schedule == "zero_bubble" and config.multi_token and config.tie_embeddings:
        # Torch separates the gradients of weights by the paths to them, which meet in the embedding of the last stage.
        raise UserError(
            f"schedule is zero_bubble, which torch cannot apply to multi_token {config.multi_token} with tied "
            "embeddings; set schedule to interleaved, or tie_embeddings to false"
        )


def check_micro_batches(count: int, size: int, schedule: str) -> None:
    """Raise if an optimizer step has too few micro-batches for a schedule.

    Raises:
        UserError: With the settings to change.
    """
    if count < size or (schedule != "1f1b" and count % size):
        rule = "at least as many as" if schedule == "1f1b" else "a multiple of"
        raise UserError(
            f"an optimizer step has {count} micro-batch(es) per data-parallel rank, but schedule {schedule} needs "
            f"{rule} the {size} ranks of the pipeline; lower micro_batch_size or raise global_batch_size of the "
            "DataModule, or lower pipeline"
        )


def usual_stages_per_rank(schedule: str) -> int:
    """Return the default number of stages per rank of a schedule."""
    return 2 if schedule == "interleaved" else 1


def split_layers(config: GPTConfig, num_stages: int) -> list[range]:
    """Divide the blocks into contiguous stages so that the most expensive stage is as cheap as possible.

    The cost is the time per token: training FLOPs of each block, of the head and of multi-token prediction, which
    belong to the last stage, and the memory traffic of the embedding, which belongs to the first.

    Args:
        config: The model's architecture.
        num_stages: Number of stages, at most n_layer; each gets at least one block.

    Returns:
        The layers of each stage.
    """
    L = config.n_layer
    costs = [layer_flops(config, layer, config.block_size, causal=True) for layer in range(L)]
    costs[0] += EMBEDDING_FLOPS * config.n_embd
    costs[-1] += head_flops(config) + multi_token_flops(config, config.block_size, causal=True)
    sums = [0, *accumulate(costs)]
    # best[end]: the smallest (largest cost, sum of squared costs) of the stages so far over the first `end` layers, and
    # where these stages start. The squares even out the stages that are not the most expensive one.
    best: list[tuple[int, int, tuple[int, ...]] | None] = [(0, 0, ())] + [None] * L
    for _ in range(num_stages):
        longer: list[tuple[int, int, tuple[int, ...]] | None] = [None] * (L + 1)
        for end in range(1, L + 1):
            found = []
            for start in range(end):
                before = best[start]
                if before is not None:
                    cost = sums[end] - sums[start]
                    found.append((max(before[0], cost), before[1] + cost * cost, (*before[2], start)))
            longer[end] = min(found, default=None)
        best = longer
    chosen = best[L]
    assert chosen is not None, "more stages than layers"
    return [range(start, end) for start, end in zip(chosen[2], (*chosen[2][1:], L), strict=True)]


def add_loss(x: Tensor, loss: Tensor) -> Tensor:
    """Return x so that its backward pass also backpropagates `loss` with gradient 1.

    Args:
        x: Hidden states that leave a stage.
        loss: () loss that arises within the stage.
    """
    return _WithLoss.apply(x, loss)


class _WithLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.dtype = loss.dtype
        return x.clone()  # not x itself: the schedules detach what they send in place, which a view does not support

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, torch.ones((), dtype=ctx.dtype, device=grad.device)


class Stage(nn.Module):
    """A stage of the pipeline, as the schedules call it; the root of its FSDP2 groups.

    Args:
        part: The GPT without the parts of the other stages.
        model: The GPT with all stages of this rank.
        index: Index of the stage, from 0.
    """

    def __init__(self, part: GPT, model: GPT, index: int) -> None:
        super().__init__()
        self.part = part
        self.index = index
        self._model = [model]  # in a list, so that it does not become a submodule
        self.run: Callable[[Tensor | None, int], Any] | None = None
        """`run(hidden, micro_batch)`, set for each optimizer step."""

        self.index_of_micro_batch = 0

    def forward(self, *hidden: Tensor) -> Any:
        """Run the stage on the micro-batch `index_of_micro_batch`.

        Args:
            hidden: (B, T, C) hidden states of the previous stage; none on the first stage.
        """
        assert self.run is not None
        # The part's submodules belong to the model, too, and follow its mode; the part itself does not.
        self.part.training = self._model[0].training
        return self.run(hidden[0] if hidden else None, self.index_of_micro_batch)


class _ScheduledStage(PipelineStage):
    """A stage that receives micro-batches of different shapes: each rank knows all shapes, since it has the batch.

    A buffer exists from the receipt to the use of what it receives; torch keeps those of all micro-batches of a step.
    """

    shapes: Sequence[tuple[int, ...]] = ()
    """(B, T, C) of each micro-batch of the step."""

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """Tell the stage which micro-batch it runs: the schedule has no batches, since it could not split a list."""
        self.submod.index_of_micro_batch = fwd_chunk_id  # type: ignore[assignment]
        output = super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)
        self._release(self.args_recv_info[fwd_chunk_id])
        return output

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass of a micro-batch."""
        super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)
        if not self.is_last:
            self._release(self.grad_recv_info[bwd_chunk_id])

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Receive hidden states of the micro-batch's shape."""
        self._fit(self.args_recv_info[fwd_chunk_id], fwd_chunk_id)
        return super().get_fwd_recv_ops(fwd_chunk_id)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Receive gradients of the micro-batch's shape."""
        if not self.is_last:
            self._fit(self.grad_recv_info[bwd_chunk_id], bwd_chunk_id)
        return super().get_bwd_recv_ops(bwd_chunk_id)

    def _fit(self, received: Iterable[Any], chunk: int) -> None:
        for info in received:
            if info.buffer is not None and tuple(info.buffer.shape) != self.shapes[chunk]:
                info.buffer = info.buffer.new_empty(self.shapes[chunk])

    def _release(self, received: Iterable[Any]) -> None:
        for info in received:
            if info.buffer is not None:
                info.buffer = info.buffer.new_empty(0)


class Pipeline:
    """The stages of this rank, and the schedule that runs them. Cuts the model in place.

    Args:
        model: The whole GPT, on the meta device; afterwards it has only the parts of this rank.
        group: Process group of the pipeline's ranks, in the order of its stages.
        schedule: Name of the schedule.
        stages_per_rank: Number of stages on each rank; None = the schedule's usual number. Rank r has the stages r,
            r + size, r + 2 size, ...

    Raises:
        UserError: If the model cannot be divided into this many stages.
    """

    def __init__(
        self,
        model: GPT,
        group: dist.ProcessGroup,
        schedule: ScheduleName = "1f1b",
        stages_per_rank: int | None = None,
    ) -> None:
        self.group = group
        self.rank, self.size = group.rank(), group.size()
        check_pipeline(model.config, self.size, schedule, stages_per_rank)
        self.schedule = schedule
        per_rank = usual_stages_per_rank(schedule) if stages_per_rank is None else stages_per_rank
        self.num_stages = self.size * per_rank
        self.layers = split_layers(model.config, self.num_stages)
        self.tensor_names = dict.fromkeys(model.state_dict())
        """Names of all weights and buffers of the whole model, in its order."""
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        self.indices = range(self.rank, self.num_stages, self.size)
        """Indices of this rank's stages."""
        _keep_only(model, [self._part(model, index) for index in self.indices])
        self.model = model
        self.own_names = set(model.state_dict())
        """Names of the weights and buffers of this rank."""
        self.stages: list[Stage] = []
        self.width = model.config.n_embd
        self.sequence_parts = 1
        """Number of tensor-parallel processes among which the sequence of hidden states is split between layers."""
        self.hidden_dtype: torch.dtype | None = None
        """Dtype of the hidden states that are sent; None = that of the weights."""
        self._schedules: dict[int, tuple[Any, list[_ScheduledStage]]] = {}
        self._sends: list[tuple[Any, Tensor]] = []

    # ---- stages -------------------------------------------------------------------------------------------------

    def build_stages(self) -> list[Stage]:
        """Create the stages from the model's parts, which must not be replaced any more."""
        parts = [self.model] if len(self.indices) == 1 else [self._part(self.model, index) for index in self.indices]
        self.stages = [Stage(part, self.model, index) for part, index in zip(parts, self.indices, strict=True)]
        return self.stages

    @property
    def has_last_stage(self) -> bool:
        """Whether this rank computes the loss."""
        return self.rank == self.size - 1

    def is_last(self, stage: Stage) -> bool:
        """Return whether a stage computes the loss."""
        return stage.index == self.num_stages - 1

    def copies(self) -> list[Tensor]:
        """Return this rank's parameters of which the other end of the pipeline has a copy."""
        config = self.model.config
        if self.rank not in (0, self.size - 1):
            return []
        shared = [self.model.wte] if config.tie_embeddings or config.multi_token else []
        shared += [self.model.wpe] if config.multi_token and self.model.wpe is not None else []
        return [module.weight for module in shared]

    def _part(self, model: GPT, index: int) -> GPT:
        """Return a shallow copy of the model with the parts of one stage."""
        first, last = index == 0, index == self.num_stages - 1
        part = copy.copy(model)
        part._modules = dict(model._modules)
        blocks = nn.ModuleList()
        # The keys are the indices of the layers, so that names do not change; iteration skips missing layers.
        blocks._modules = {str(layer): model.blocks._modules[str(layer)] for layer in self.layers[index]}
        part._modules["blocks"] = blocks
        embeds = first or (last and model.multi_token is not None)
        missing = {
            "wte": not (embeds or (last and model.config.tie_embeddings)),
            "wpe": not embeds,
            "ln_f": not last,
            "lm_head": not last,
            "multi_token": not last,
        }
        for name, is_missing in missing.items():
            if is_missing and name in part._modules:
                part._modules[name] = None
        return part

    def describe(self) -> str:
        """Return which stages each rank has, in words."""
        lines = []
        for rank in range(self.size):
            held = []
            for index in range(rank, self.num_stages, self.size):
                layers = self.layers[index]
                held += ["embedding"] if index == 0 else []
                held += [f"blocks {layers[0]}-{layers[-1]}" if len(layers) > 1 else f"block {layers[0]}"]
                held += ["head"] if index == self.num_stages - 1 else []
            lines.append(f"pipeline rank {rank}: {', '.join(held)}")
        return "\n".join(lines)

    # ---- training -----------------------------------------------------------------------------------------------

    def step(self, micro_batches: Sequence[Any], forward: Forward) -> Tensor | None:
        """Run forward and backward passes of one optimizer step; gradients are added to `grad` of the parameters.

        Args:
            micro_batches: The micro-batches of the step, the same on all ranks of the pipeline.
            forward: Runs a stage.

        Returns:
            () the sum of the losses, detached, on the rank with the last stage; None on the others.

        Raises:
            UserError: If there are too few micro-batches for the schedule.
        """
        self._wait()
        count = len(micro_batches)
        schedule, scheduled = self._schedule_of(count)
        shapes = [self._sent_shape(micro_batch) for micro_batch in micro_batches]
        for stage, in_schedule in zip(self.stages, scheduled, strict=True):
            in_schedule.shapes = shapes
            stage.run = self._runner(stage, micro_batches, forward)
        losses: list[Tensor] | None = [] if self.has_last_stage else None
        try:
            schedule.step(target=torch.empty(count), losses=losses, return_outputs=False)  # only its length counts
        except RuntimeError as error:
            if isinstance(error.__cause__, UserError):  # the schedule wraps it, with all arguments
                raise error.__cause__ from None
            raise
        self._add_gradients_of_copies()
        return torch.stack([loss.detach() for loss in losses]).sum() if losses else None

    def _runner(
        self, stage: Stage, micro_batches: Sequence[Any], forward: Forward
    ) -> Callable[[Tensor | None, int], Any]:
        last = self.is_last(stage)

        def run(hidden: Tensor | None, index: int) -> Any:
            result = forward(stage.part, micro_batches[index], hidden)
            return result if last else result.to(self._sent_dtype(stage))

        return run

    def _sent_shape(self, batch: Any) -> tuple[int, int, int]:
        B, T = batch["input_ids"].shape
        return B, -(-T // self.sequence_parts), self.width

    def _sent_dtype(self, stage: Stage) -> torch.dtype:
        return self.hidden_dtype or next(stage.part.parameters()).dtype

    def _schedule_of(self, count: int) -> tuple[Any, list[_ScheduledStage]]:
        """Return the schedule for a number of micro-batches and its stages; created once per number."""
        if count not in self._schedules:
            check_micro_batches(count, self.size, self.schedule)
            scheduled = []
            for stage in self.stages:
                device = next(stage.part.parameters()).device
                # Shapes are set for each step, by `_fit`; what counts here is the dtype, and that gradients are sent.
                hidden = torch.empty(1, 1, self.width, dtype=self._sent_dtype(stage), device=device, requires_grad=True)
                first = stage.index == 0
                scheduled.append(
                    _ScheduledStage(
                        stage,
                        stage.index,
                        self.num_stages,
                        device,
                        input_args=() if first else (hidden,),
                        output_args=(hidden,),
                        group=self.group,
                    )
                )
            # The loss is computed within the last stage. Losses are sums, so gradients are not divided by their number.
            arguments = {"n_microbatches": count, "loss_fn": _loss_of_stage, "scale_grads": False}
            stages = scheduled[0] if self.schedule == "1f1b" else scheduled
            self._schedules[count] = SCHEDULES[self.schedule](stages, **arguments), scheduled
        return self._schedules[count]

    def _add_gradients_of_copies(self) -> None:
        """Sum the gradients of the parameters that the first and the last stage both have."""
        for parameter in self.copies():
            if parameter.grad is None:
                continue
            own = parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else parameter.grad
            own = own.contiguous()
            other = torch.empty_like(own)
            peer = dist.get_global_rank(self.group, self.size - 1 - self.rank)
            exchange = [dist.P2POp(dist.isend, own, peer, self.group), dist.P2POp(dist.irecv, other, peer, self.group)]
            for work in dist.batch_isend_irecv(exchange):
                work.wait()
            # a + b and b + a are the same bits, so both copies of the weight stay identical.
            own.add_(other)

    # ---- evaluation ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, batch: Any, forward: Forward) -> Any:
        """Run the forward pass of one batch through all stages.

        A rank goes on to its next batch while the following ranks still compute this one.

        Args:
            batch: The same on all ranks of the pipeline.
            forward: Runs a stage.

        Returns:
            The result of `forward` on the last stage; None on the ranks that do not have it.
        """
        self._wait()
        result = None
        for stage in self.stages:
            stage.run = self._runner(stage, [batch], forward)
            hidden = []
            if stage.index > 0:
                device = next(stage.part.parameters()).device
                hidden = [torch.empty(self._sent_shape(batch), dtype=self._sent_dtype(stage), device=device)]
                dist.recv(hidden[0], self._peer(-1), self.group)
            stage.index_of_micro_batch = 0
            result = stage(*hidden)
            _reshard(stage)
            if not self.is_last(stage):
                x = result.contiguous()
                self._sends.append((dist.isend(x, self._peer(1), self.group), x))
                result = None
        return result

    def _peer(self, offset: int) -> int:
        return dist.get_global_rank(self.group, (self.rank + offset) % self.size)

    def _wait(self) -> None:
        """Wait until the hidden states of the previous batch have been received."""
        for work, _ in self._sends:
            work.wait()
        self._sends.clear()

    # ---- over all stages ----------------------------------------------------------------------------------------

    def union(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values of all stages by name; all ranks must call it."""
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, values, group=self.group)
        return {name: value for found in everyone for name, value in found.items()}

    def gradient_norm(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Return the norm of the gradients of all stages; all ranks must call it.

        Args:
            parameters: Parameters of this rank.
        """
        # A weight with two copies counts once, on the first stage.
        twice = {id(parameter) for parameter in self.copies()} if self.has_last_stage else set()
        square = total_norm([p for p in parameters if id(p) not in twice]).square()
        dist.all_reduce(square, group=self.group)
        return square.sqrt()


def _keep_only(model: GPT, parts: Sequence[GPT]) -> None:
    """Remove from a model what none of its parts has."""
    kept = [str(layer) for part in parts for layer in part.blocks._modules]
    model.blocks._modules = {layer: model.blocks._modules[layer] for layer in kept}
    for name in ("wte", "wpe", "ln_f", "lm_head", "multi_token"):
        if all(getattr(part, name) is None for part in parts) and name in model._modules:
            model._modules[name] = None


def _loss_of_stage(output: Tensor, _: Tensor) -> Tensor:
    return output


def _reshard(stage: Stage) -> None:
    """Free gathered parameters, which would become stale if the weights were replaced by their averages."""
    from torch.distributed.fsdp import FSDPModule

    for module in stage.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
