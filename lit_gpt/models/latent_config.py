"""`MLAConfig`: the sizes of multi-head latent attention."""

from dataclasses import dataclass

from lit_gpt.checks import check_types
from lit_gpt.errors import UserError


@dataclass(frozen=True)
class MLAConfig:
    """Keys and values of all heads are unfolded from one small latent a token, which is all that a cache holds.

    Field names are those of Hugging Face's DeepseekV3Config. Source: DeepSeek-V2, arXiv:2405.04434, section 2.1.

    Raises:
        UserError: If a value is out of bounds.
    """

    kv_lora_rank: int = 512
    """Width of the latent that keys and values are unfolded from."""
    q_lora_rank: int | None = 1536
    """Width of the queries' latent; None = queries straight from the residual stream."""
    qk_nope_head_dim: int = 128
    """The part of a head's query and key without positions."""
    qk_rope_head_dim: int = 64
    """The part that is rotated; its key is shared by all heads."""
    v_head_dim: int = 128
    """Width of a head's value."""

    def __post_init__(self) -> None:
        check_types(self, "mla.")
        for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"mla.{name} is {getattr(self, name)}, it must be at least 1")
        if self.q_lora_rank is not None and self.q_lora_rank < 1:
            raise UserError(f"mla.q_lora_rank is {self.q_lora_rank}, it must be at least 1, or null for none")
        if self.qk_rope_head_dim % 2:
            raise UserError(f"RoPE rotates pairs, so mla.qk_rope_head_dim {self.qk_rope_head_dim} must be even")

    @property
    def qk_head_dim(self) -> int:
        """Width of a head's query and key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim
