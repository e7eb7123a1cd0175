"""`RopeScaling`: how rotary frequencies are stretched to a context longer than the one trained on."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from lit_gpt.checks import check_types
from lit_gpt.errors import UserError

ScalingKind = Literal["linear", "dynamic", "yarn", "llama3", "longrope"]
FIELDS_OF_KIND: dict[ScalingKind, tuple[str, ...]] = {
    "yarn": ("beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim", "attention_factor"),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factors", "long_factors", "attention_factor"),
}
"""Fields that not every kind reads."""


@dataclass(frozen=True)
class RopeScaling:
    """One of five published ways, each with the fields that it reads.

    - `linear`: every frequency is divided by `factor` (Chen et al. 2023, arXiv:2306.15595).
    - `dynamic`: beyond `original_block_size` the base grows with the context ("NTK-aware", as `transformers` has it).
    - `yarn`: fast pairs are left alone, slow ones divided by `factor`, with a linear ramp in between, and attention
      becomes sharper (Peng et al. 2023, arXiv:2309.00071).
    - `llama3`: the same idea with the ramp over wavelengths (Llama 3.1, arXiv:2407.21783).
    - `longrope`: every pair has a divisor of its own, one set up to `original_block_size` and one beyond
      (Ding et al. 2024, arXiv:2402.13753).

    The context that `dynamic` and `longrope` look at is each text's own (`rope_frequencies.context_lengths`), so that
    packed documents and rows of a batch stay apart.

    Raises:
        UserError: If a value is out of bounds; the message names value, bound and remedy.
    """

    kind: ScalingKind = "llama3"
    factor: float = 8.0
    """How many times longer the context becomes."""
    original_block_size: int = 8192
    """The context, in tokens, that the model was first trained with."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths above `original_block_size / low_freq_factor` tokens are divided by the whole factor."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below `original_block_size / high_freq_factor` tokens are left alone."""
    beta_fast: float = 32.0
    """yarn: pairs that turn more often than this in the original context are left alone."""
    beta_slow: float = 1.0
    """yarn: pairs that turn less often are divided by the whole factor."""
    truncate: bool = True
    """yarn: round the ramp's ends to whole pairs."""
    mscale: float | None = None
    """yarn, DeepSeek's: with `mscale_all_dim`, cos and sin are scaled by the ratio of their two temperatures."""
    mscale_all_dim: float | None = None
    """yarn, DeepSeek's: latent attention multiplies its scores by the square of this one's temperature."""
    short_factors: tuple[float, ...] | None = None
    """longrope: the divisor of each pair up to `original_block_size`."""
    long_factors: tuple[float, ...] | None = None
    """longrope: the divisor of each pair beyond it."""
    attention_factor: float | None = None
    """yarn and longrope: what cos and sin are multiplied by; None = the paper's value."""
    query_scale_beta: float = 0.0
    """Queries are multiplied by 1 + beta · ln(1 + floor(position / original_block_size)) (Llama 4, Ministral 3)."""

    def __post_init__(self) -> None:
        check_types(self, "rope_scaling.")
        self._check_fields_of_kind()
        if self.factor < 1:
            raise UserError(f"rope_scaling.factor is {self.factor}, it must be at least 1 (1 changes nothing)")
        if self.original_block_size < 1:
            raise UserError(f"rope_scaling.original_block_size is {self.original_block_size}, it must be at least 1")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise UserError(
                f"rope_scaling needs 0 < low_freq_factor < high_freq_factor, got {self.low_freq_factor} and "
                f"{self.high_freq_factor}; Llama 3 has 1.0 and 4.0"
            )
        if not 0 < self.beta_slow < self.beta_fast:
            raise UserError(
                f"rope_scaling needs 0 < beta_slow < beta_fast, got {self.beta_slow} and {self.beta_fast}; "
                "YaRN has 1 and 32"
            )
        if self.kind == "longrope" and (not self.short_factors or not self.long_factors):
            raise UserError("rope_scaling.kind longrope needs short_factors and long_factors, a number for each pair")
        for name in ("short_factors", "long_factors"):
            if any(divisor <= 0 for divisor in getattr(self, name) or ()):
                raise UserError(f"rope_scaling.{name} are divisors of frequencies, so each must be greater than 0")
        if self.attention_factor is not None and self.attention_factor <= 0:
            raise UserError(
                f"rope_scaling.attention_factor is {self.attention_factor}, it must be greater than 0, or null for the "
                "paper's"
            )
        for name in ("mscale", "mscale_all_dim", "query_scale_beta"):
            if (getattr(self, name) or 0.0) < 0:
                raise UserError(f"rope_scaling.{name} is {getattr(self, name)}, it must be at least 0")

    def _check_fields_of_kind(self) -> None:
        """Refuse a field that this kind does not read: it would change nothing."""
        for field in fields(self):
            readers = [kind for kind, names in FIELDS_OF_KIND.items() if field.name in names]
            if readers and self.kind not in readers and getattr(self, field.name) != field.default:
                raise UserError(
                    f"rope_scaling.{field.name} {getattr(self, field.name)} belongs to kind {' or '.join(readers)}, "
                    f"got kind: {self.kind}; leave it out"
                )

    @property
    def follows_length(self) -> bool:
        """Whether frequencies depend on how long the context in hand is, not on the config alone."""
        return self.kind in ("dynamic", "longrope")

    @property
    def rotation_scale(self) -> float:
        """What cos and sin are multiplied by: YaRN's and LongRoPE's attention factor, else 1."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.kind == "yarn":
            if self.mscale and self.mscale_all_dim:
                return self.temperature(self.mscale) / self.temperature(self.mscale_all_dim)
            return self.temperature(1.0)
        if self.kind == "longrope" and self.factor > 1:
            return math.sqrt(1 + math.log(self.factor) / math.log(self.original_block_size))
        return 1.0

    def temperature(self, mscale: float) -> float:
        """YaRN's 0.1 · mscale · ln(factor) + 1 (arXiv:2309.00071, equation 22)."""
        return 0.1 * mscale * math.log(self.factor) + 1.0
