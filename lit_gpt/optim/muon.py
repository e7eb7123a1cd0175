"""Muon for the matrices, AdamW for everything else, as one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum by the nearest
semi-orthogonal matrix, so that the update has the same size in every direction. It is meant for weights that
multiply hidden states; embeddings, the head, biases and norms use AdamW. One class contains both, because the Trainer
clips, scales and checkpoints a single optimizer.

Stages of a step: update each matrix's momentum → stack matrices of equal shape → run Newton-Schulz iterations on the
stack → scale the update to AdamW's size → run AdamW on the other groups.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from lit_gpt.checks import check_at_least, check_between
from lit_gpt.errors import UserError

SAFETY = 1.01
COEFFICIENTS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.875, -1.25, 0.375),
)
"""Coefficients a, b, c of each iteration: Polar Express (Amsel et al. 2025, arXiv:2505.16932, Algorithm 1). Each
polynomial is optimal for the interval of singular values after the previous ones; the last one is repeated. `SAFETY` is
the paper's factor against values that rounding pushed above 1."""


def orthogonalize(matrices: Tensor, num_iterations: int = 5) -> Tensor:
    r"""Approximate the orthogonal factor :math:`U V^\top` of each matrix by Newton-Schulz iteration.

    On accelerators the iteration runs in bfloat16, which is precise enough; on a CPU in float32, because bfloat16 is
    slower by two orders of magnitude on CPUs without bfloat16 units.

    Args:
        matrices: (..., m, n), any float dtype.
        num_iterations: number of iterations, of three matrix products each.

    Returns:
        (..., m, n) with singular values near 1, in the dtype of the iteration.
    """
    x = matrices.to(torch.float32 if matrices.device.type == "cpu" else torch.bfloat16)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    # The Frobenius norm bounds the largest singular value.
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
    for i in range(num_iterations):
        a, b, c = COEFFICIENTS[min(i, len(COEFFICIENTS) - 1)]
        if i < len(COEFFICIENTS) - 1:
            a, b, c = a / SAFETY, b / SAFETY**3, c / SAFETY**5
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def _whole_matrices(gradient: Tensor) -> Tensor:
    """Return the matrices that this process orthogonalizes, each complete, because orthogonality is a property of it.

    Processes among which a matrix is divided all gather it; processes that hold different experts keep their own.
    """
    if not isinstance(gradient, DTensor):
        return gradient
    return gradient.redistribute(placements=_by_matrix(gradient)).to_local()


def _by_matrix(tensor: DTensor) -> list[Placement]:
    """Return the placements of a tensor that is divided only along the dimensions before a matrix's two."""
    stacked = tensor.ndim - 2
    return [Replicate() if getattr(p, "dim", stacked) >= stacked else p for p in tensor.placements]


class MuonAdamW(Optimizer):
    """Muon for the group named `matrices`, AdamW for all other groups.

    The update of an (m, n) matrix is scaled by 0.2 sqrt(max(m, n)), so that its root mean square equals AdamW's and the
    same learning rate can be used for both (Liu et al. 2025, arXiv:2502.16982, section 2.2).

    Args:
        params: parameter groups from `lit_gpt.optim.parameter_groups`.
        lr: learning rate of the matrices.
        adamw_lr: learning rate of the other groups; None: same as `lr`.
        momentum: momentum of Muon.
        num_iterations: number of Newton-Schulz iterations.
        betas: betas of AdamW.
        eps: epsilon of AdamW.
        weight_decay: decoupled weight decay of the groups that decay.

    Raises:
        UserError: no parameter group is named `matrices`.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        adamw_lr: float | None = None,
        momentum: float = 0.95,
        num_iterations: int = 5,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        check_between("momentum", momentum, 0, 1, high_open=True)
        check_at_least("num_iterations", num_iterations, 1)
        check_at_least("lr", lr, 0)
        check_at_least("adamw_lr", adamw_lr, 0)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "num_iterations": num_iterations,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "fused": True,  # makes torch restore AdamW's step counts to the parameters' device
        }
        super().__init__(params, defaults)
        if "matrices" not in [group.get("name") for group in self.param_groups]:
            raise UserError(
                "MuonAdamW needs parameter groups with a group named 'matrices'; pass parameter_groups(model)"
            )
        if adamw_lr is not None:
            for group in self.param_groups:
                if group["name"] != "matrices":
                    group["lr"] = adamw_lr

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run one optimizer step; `closure` computes the loss and the gradients, as for any optimizer."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["name"] == "matrices":
                self._muon(group)
            else:
                self._adamw(group)
        return loss

    def _muon(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[parameter.shape].append(parameter)
        for shape, parameters in by_shape.items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            for p in parameters:
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            momenta = [self.state[p]["momentum"] for p in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            nesterov = torch._foreach_lerp(gradients, momenta, group["momentum"])
            # (experts are stacked along the first dimension: each is one matrix)
            whole = torch.stack([_whole_matrices(g) for g in nesterov])
            updates = orthogonalize(whole.reshape(-1, *shape[-2:]), group["num_iterations"])
            scale = 0.2 * max(shape[-2:]) ** 0.5
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            for p, update in zip(parameters, updates.reshape(whole.shape), strict=True):
                delta = update.to(p.dtype)
                if isinstance(p, DTensor):
                    delta = DTensor.from_local(
                        delta, p.device_mesh, _by_matrix(p), shape=p.shape, stride=p.stride()
                    ).redistribute(placements=p.placements)
                p.add_(delta, alpha=-group["lr"] * scale)

    def _adamw(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        for p in parameters:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=parameters[0].device.type in ("cpu", "cuda", "mps"),
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
