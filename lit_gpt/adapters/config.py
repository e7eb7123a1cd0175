"""`AdapterConfig`: the fields of `adapter:` in a YAML file."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from lit_gpt.checks import check_above, check_at_least, check_between, check_one_of
from lit_gpt.errors import UserError


@dataclass(frozen=True)
class AdapterConfig:
    r"""A low-rank update of linear layers: :math:`W x + \frac{\alpha}{r} B A x` (LoRA, Hu et al. 2021).

    Args:
        rank: Rank r, the number of rows of A.
        alpha: Scale of the update, which is multiplied by alpha / rank, or by alpha / sqrt(rank) with `rslora`.
        dropout: Dropout probability of the input of A.
        targets: Linear layers by the last part of their names (`q_proj`, `down_proj`), or `all-linear` for all linear
            layers in the blocks.
        dora: Train magnitude and direction of each output's weights separately (DoRA, Liu et al. 2024).
        rslora: Scale by alpha / sqrt(rank), so that a high rank learns as fast (rsLoRA, Kalajdzievski 2023).
        quantize: Keep the frozen linear layers in 4 bits (`nf4`, QLoRA, Dettmers et al. 2023; through bitsandbytes) or
            8 bits (`int8`, through torchao). Both run on CPU and on CUDA.
        train_embeddings: Also train the embedding and the head in full; null does so if there are new tokens. They
            are then part of the adapter, which is no longer small.

    Raises:
        UserError: if a number is out of bounds.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: list[str] | Literal["all-linear"] = "all-linear"
    dora: bool = False
    rslora: bool = False
    quantize: Literal["nf4", "int8"] | None = None
    train_embeddings: bool | None = None

    def __post_init__(self) -> None:
        check_at_least("adapter.rank", self.rank, 1, "8 to 64 are usual")
        check_above("adapter.alpha", self.alpha, 0, "twice the rank is usual")
        check_between("adapter.dropout", self.dropout, 0, 1, high_open=True)
        check_one_of("adapter.quantize", self.quantize, (None, "nf4", "int8"))
        if self.targets != "all-linear" and (isinstance(self.targets, str) or not self.targets):
            raise UserError(f"adapter.targets is {self.targets!r}; give a list such as [q_proj, v_proj], or all-linear")

    @property
    def scaling(self) -> float:
        """The multiplier of B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return fields | {"targets": self.targets if isinstance(self.targets, str) else list(self.targets)}
