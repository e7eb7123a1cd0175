"""`MoEConfig`: how the MLPs of a mixture of experts are shaped and routed."""

from dataclasses import dataclass
from typing import Literal

from lit_gpt.checks import check_types
from lit_gpt.errors import UserError

RouterScores = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class MoEConfig:
    """A router sends every token to `num_experts_per_tok` of `num_experts` small MLPs (arXiv:1701.06538).

    No expert has a capacity, so no token is ever dropped. The experts' activation is the model's `mlp`, their biases
    its `mlp_bias`. Field names are those of Hugging Face's configs where those agree.

    Raises:
        UserError: If a value is out of bounds or two of them disagree; the message names value, bound and remedy.
    """

    num_experts: int = 8
    """Routed experts."""
    num_experts_per_tok: int = 2
    """Experts that a token goes to."""
    intermediate_size: int | None = None
    """Width F inside one expert; None = the model's intermediate_size."""
    shared_intermediate_size: int = 0
    """Width of the expert that every token passes, beside the routed ones (DeepSeekMoE, arXiv:2401.06066); 0 = none."""
    layers: tuple[bool, ...] | None = None
    """Which layers are mixtures: a pattern that repeats over the layers; None = all. The others have the plain MLP."""
    scores: RouterScores = "softmax"
    """What the router's logits become: `softmax` over the experts, or each one's `sigmoid` (arXiv:2412.19437)."""
    norm_topk_prob: bool = True
    """Divide the chosen experts' weights by their sum (after softmax: the same as a softmax over the chosen ones)."""
    routed_scaling_factor: float = 1.0
    """What the routed experts' weights are multiplied by at last."""
    n_group: int = 1
    """Groups of experts; a token first chooses groups by the sum of their two best scores (arXiv:2412.19437)."""
    topk_group: int = 1
    """Groups that a token may choose experts from."""
    router_bias: bool = False
    """A bias in the router's linear layer (GPT-OSS)."""
    selection_bias: bool = False
    """A bias an expert that moves only the choice, not the weights: balance without a loss (arXiv:2408.15664)."""
    bias_update_rate: float = 0.0
    """How far a step of training moves each selection bias towards balance; DeepSeek-V3 has 0.001."""
    balance_loss_weight: float = 0.0
    """Weight of the load-balancing loss, computed over each sequence, so that accumulation changes nothing."""
    z_loss_weight: float = 0.0
    """Weight of the router z-loss, the mean of logsumexp(logits)² (ST-MoE, arXiv:2202.08906)."""

    def __post_init__(self) -> None:
        check_types(self, "moe.")
        for name in ("num_experts", "num_experts_per_tok", "n_group", "topk_group"):
            if getattr(self, name) < 1:
                raise UserError(f"moe.{name} is {getattr(self, name)}, it must be at least 1")
        if self.intermediate_size is not None and self.intermediate_size < 1:
            raise UserError(f"moe.intermediate_size is {self.intermediate_size}, it must be at least 1, or null")
        for name in ("shared_intermediate_size", "bias_update_rate", "balance_loss_weight", "z_loss_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"moe.{name} is {getattr(self, name)}, it must be at least 0")
        if self.routed_scaling_factor <= 0:
            raise UserError(f"moe.routed_scaling_factor is {self.routed_scaling_factor}, it must be greater than 0")
        if self.num_experts_per_tok > self.num_experts:
            raise UserError(
                f"moe.num_experts_per_tok {self.num_experts_per_tok} is more than the num_experts {self.num_experts}; "
                "lower it or add experts"
            )
        if self.num_experts % self.n_group:
            raise UserError(
                f"moe.num_experts {self.num_experts} is not divisible by n_group {self.n_group}; change one of them"
            )
        per_group = self.num_experts // self.n_group
        if self.topk_group > self.n_group or self.topk_group * per_group < self.num_experts_per_tok:
            raise UserError(
                f"moe.topk_group {self.topk_group} of {self.n_group} groups with {per_group} experts each cannot give "
                f"{self.num_experts_per_tok} experts a token; choose topk_group between 1 and n_group, large enough"
            )
        if self.n_group > 1 and per_group < 2:
            raise UserError(f"moe.n_group {self.n_group} leaves {per_group} expert a group; a group needs at least 2")
        if self.bias_update_rate and not self.selection_bias:
            raise UserError("moe.bias_update_rate moves selection biases; set selection_bias: true")
