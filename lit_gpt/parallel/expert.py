"""Expert parallelism: the experts of a mixture spread over processes that hold different tokens.

As in GShard (arXiv:2006.16668), each process holds E/n of the experts of every mixture, and its tokens travel to their
experts and back:

1. Each process sorts its rows (a token once per chosen expert) by expert, as without this axis.
2. The processes tell each other how many rows are coming for each expert, then exchange the rows and their weights
   (all-to-all). There is no capacity limit: the counts differ, and may be 0.
3. Each process applies its experts to the rows that it received, with the same grouped products as one process.
4. The results travel back, and each token gets the sum of its experts' outputs.

So a mixture costs four exchanges forward (counts, rows, weights, results) and three backward.

The processes are those among which FSDP2 shards the other parameters (data x context); what the `expert` axis leaves of
them, `expert_data`, holds copies of each expert, which FSDP2 shards in turn. The gradient of an expert is complete on
its process: the backward pass brings the tokens of all n processes. FSDP2 averages gradients over the processes of its
mesh, n times fewer than hold tokens, so the gradient is divided by n here.

C model width, E experts, k experts per token, N tokens, S = N k rows, R rows received, n processes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed import _functional_collectives as funcol
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from lit_gpt.errors import UserError
from lit_gpt.models.config import GPTConfig
from lit_gpt.models.gpt import GPT
from lit_gpt.models.moe import Experts, sort_by_expert, sum_rows, take_rows
from lit_gpt.parallel.tensor import localize


def check_expert_parallel(config: GPTConfig, size: int) -> None:
    """Raise if the model's experts cannot be divided among this number of processes.

    Raises:
        UserError: With the number of experts, and the axis to change.
    """
    if config.moe is None:
        raise UserError(f"expert is {size}, but the model has no mixture of experts; set expert to 1, or choose moe")
    if config.moe.num_experts % size:
        raise UserError(
            f"num_experts {config.moe.num_experts} is not divisible by the {size} expert-parallel devices; set expert "
            "to a divisor of it"
        )


class _Exchange(torch.autograd.Function):
    """All-to-all of rows: the first `sent[0]` go to process 0, and so on; the backward pass returns the gradients."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return funcol.wait_tensor(funcol.all_to_all_single(rows.contiguous(), received, sent, group))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        grad = funcol.wait_tensor(funcol.all_to_all_single(grad.contiguous(), ctx.sent, ctx.received, ctx.group))
        return grad, None, None, None


class DispatchedExperts(Experts):
    """The experts of this process, applied to the tokens of all processes that chose them."""

    group: Any
    """torch process group of the expert axis."""

    @torch.compiler.disable  # the number of rows differs from step to step
    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Return each token's weighted sum of its experts' outputs.

        Args:
            x: (N, C).
            chosen: (N, k) int64, below E.
            weights: (N, k).

        Returns:
            (N, C).
        """
        n, held = self.group.size(), self.up_proj.shape[0]
        order = sort_by_expert(chosen, n * held)
        going = order.ends.diff(prepend=order.ends.new_zeros(1)).long()  # (E,) rows for each expert
        coming = funcol.wait_tensor(
            funcol.all_to_all_single(going, None, None, self.group)
        )  # (n E/n,) from each process
        sent, received = self._sizes(going, coming, chosen.numel())
        dtype = x.dtype
        if torch.is_autocast_enabled(x.device.type):  # the products cast anyway: half the traffic
            x = x.to(torch.get_autocast_dtype(x.device.type))
        # Rows arrive by process, and from each by expert.
        experts = torch.arange(held, device=x.device).repeat(n).repeat_interleave(coming, output_size=sum(received))
        rows = self._exchange(take_rows(x, order), sent, received)  # (R, C)
        weight = self._exchange(weights.flatten().index_select(0, order.row).unsqueeze(1), sent, received)  # (R, 1)
        # One more row, of zeros: a process that received none still takes part, with gradients of 0.
        experts, rows, weight = F.pad(experts, (0, 1)), F.pad(rows, (0, 0, 0, 1)), F.pad(weight, (0, 0, 0, 1))
        y = super().forward(rows, experts.unsqueeze(1), weight)[:-1]
        return sum_rows(self._exchange(y, received, sent), order).to(dtype)

    def _exchange(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        return _Exchange.apply(rows, sent, received, self.group)

    def _sizes(self, going: Tensor, coming: Tensor, num_rows: int) -> tuple[list[int], list[int]]:
        """Return the number of rows for each process, and from each; on an accelerator, this synchronizes."""
        n, rank = self.group.size(), self.group.rank()
        if isinstance(going, FakeTensor):  # a plan's simulation has no values: even loads
            even = [num_rows // n + (i < num_rows % n) for i in range(n)]
            return even, [even[rank]] * n
        sent, received = torch.stack((going, coming)).view(2, n, -1).sum(2).tolist()
        return sent, received


def apply_expert_parallel(model: GPT, mesh: DeviceMesh, tensor: DeviceMesh | None = None) -> list[Experts]:
    """Spread the experts of a model over processes, in place.

    Args:
        model: A model that `check_expert_parallel` accepts, whose layers may have been split by tensor parallelism.
        mesh: The expert axis.
        tensor: The tensor axis, if it was applied.

    Returns:
        The experts of each layer, which FSDP2 must shard over the rest of the processes only.
    """
    found = [module for module in model.modules() if isinstance(module, Experts)]
    whole = mesh if tensor is None else DeviceMesh._concatenate([mesh, tensor])
    for experts in found:
        for name, parameter in list(experts.named_parameters(recurse=False)):
            inner = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            own = inner.detach().chunk(mesh.size())[mesh.get_local_rank()].clone()
            placements = [Shard(0), *(parameter.placements if isinstance(parameter, DTensor) else ())]
            value = DTensor.from_local(own, whole, placements, shape=parameter.shape, stride=parameter.stride())
            experts.register_parameter(name, nn.Parameter(value, requires_grad=parameter.requires_grad))
        experts.__class__ = DispatchedExperts
        localize(experts, factor=1 / mesh.size(), zeros=("down_bias",) if tensor and tensor.get_local_rank() else ())
        experts.group = mesh.get_group()  # type: ignore[assignment]
    return found
