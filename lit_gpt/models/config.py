"""`GPTConfig`: a model as a value.

A frozen dataclass that says everything about a GPT's shape and checks itself, so that a model, its preset, its
checkpoint and its export all speak about the same thing. The defaults are GPT-2's 124M; every later idea is a
field beside them. Sizes left at None follow from others (`head_size` from `n_embd // n_head`), and stay None in the
value itself, so that overriding one field of a preset moves what depends on it; read them through the properties.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

from lit_gpt.errors import UserError
from lit_gpt.models import counts
from lit_gpt.models.nearest import nearest

Norm = Literal["layernorm", "rmsnorm"]
Positions = Literal["learned", "rope"]
Activation = Literal["gelu", "gelu_tanh", "relu2", "swiglu"]
Family = Literal["gpt2", "llama", "qwen3"]


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE's frequencies are stretched to a context longer than the one trained on.

    `linear` divides every frequency by `factor` (Chen et al. 2023, arXiv:2306.15595). `llama3` leaves the fast ones
    alone, divides the slow ones by `factor` and blends in between (Llama 3.1, arXiv:2407.21783).
    """

    kind: Literal["linear", "llama3"] = "llama3"
    factor: float = 8.0
    low_freq_factor: float = 1.0
    """Wavelengths above `original_block_size / low_freq_factor` tokens are divided by the whole factor."""
    high_freq_factor: float = 4.0
    """Wavelengths below `original_block_size / high_freq_factor` tokens are left alone."""
    original_block_size: int = 8192
    """The context, in tokens, that the model was first trained with."""

    def __post_init__(self) -> None:
        _one_of("rope_scaling.kind", self.kind, ("linear", "llama3"))
        if self.factor < 1:
            raise UserError(f"rope_scaling.factor is {self.factor}, it must be at least 1 (1 changes nothing)")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise UserError(
                f"rope_scaling needs 0 < low_freq_factor < high_freq_factor, got {self.low_freq_factor} and "
                f"{self.high_freq_factor}; Llama 3 has 1.0 and 4.0"
            )


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a decoder-only transformer.

    Raises:
        UserError: If a value is out of bounds or two of them disagree; the message names value, bound and remedy.
    """

    n_layer: int = 12
    """Number of blocks."""
    n_head: int = 12
    """Number of query heads."""
    n_kv_head: int | None = None
    """Number of key/value heads: None = n_head, fewer = grouped queries (arXiv:2305.13245), 1 = multi-query."""
    n_embd: int = 768
    """Width of the residual stream."""
    head_size: int | None = None
    """Width of one head; None = n_embd // n_head."""
    block_size: int = 1024
    """The longest context, in tokens, that the model accepts."""
    vocab_size: int = 50257
    """Number of rows of the token embedding and of logits."""
    dropout: float = 0.0
    """Probability of dropping an activation: embeddings, attention weights, both residual branches."""
    bias: bool = True
    """Biases in linear layers and LayerNorms; `attention_bias` and `mlp_bias` override it in their part."""
    norm: Norm = "layernorm"
    """LayerNorm (arXiv:1607.06450) or RMSNorm (arXiv:1910.07467)."""
    norm_eps: float = 1e-5
    """Added to the variance or mean square before the root."""
    positions: Positions = "learned"
    """A learned vector a position, or rotary embeddings of queries and keys (RoPE, arXiv:2104.09864)."""
    rope_theta: float = 10000.0
    """RoPE's base."""
    rope_scaling: RopeScaling | None = None
    """RoPE's stretch to a longer context; None = none."""
    mlp: Activation = "gelu"
    """`gelu` (exact), `gelu_tanh` (GPT-2's approximation), `relu2` (arXiv:2109.08668), `swiglu` (arXiv:2002.05202)."""
    intermediate_size: int | None = None
    """Width inside the MLP; None = 4 * n_embd."""
    attention_bias: bool | None = None
    """Biases of the q, k, v and o projections; None = bias."""
    mlp_bias: bool | None = None
    """Biases of the MLP's projections; None = bias."""
    qk_norm: bool = False
    """Normalise each head's queries and keys before positions are rotated in (arXiv:2302.05442)."""
    sliding_window: int | None = None
    """In layers that slide, a token sees itself and the `sliding_window - 1` before it; None = all before it."""
    layer_windows: tuple[bool, ...] | None = None
    """Which layers slide, one bool a layer; None = all of them when `sliding_window` is set."""
    tie_embeddings: bool = True
    """The LM head reuses the token embedding's matrix (arXiv:1608.05859)."""
    init_std: float = 0.02
    """Standard deviation of initial weights; projections into the residual stream get it / sqrt(2 n_layer)."""
    family: Family = "gpt2"
    """Whose weight names and config an export to Hugging Face uses; the model itself never looks at it."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads K."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def head_dim(self) -> int:
        """Width D of one head."""
        return self.n_embd // self.n_head if self.head_size is None else self.head_size

    @property
    def mlp_size(self) -> int:
        """Width inside the MLP."""
        return 4 * self.n_embd if self.intermediate_size is None else self.intermediate_size

    @property
    def has_attention_bias(self) -> bool:
        """Whether the q, k, v and o projections have biases."""
        return self.bias if self.attention_bias is None else self.attention_bias

    @property
    def has_mlp_bias(self) -> bool:
        """Whether the MLP's projections have biases."""
        return self.bias if self.mlp_bias is None else self.mlp_bias

    def window(self, layer: int) -> int | None:
        """The sliding window of layer number `layer`, in tokens; None where it sees the whole context."""
        slides = self.layer_windows is None or self.layer_windows[layer]
        return self.sliding_window if slides else None

    def num_parameters(self, embeddings: bool = True) -> int:
        """Parameters of the model, counted without building it; a tied matrix counts once.

        Args:
            embeddings: If False, leave out what is only looked up: positions, and the token embedding unless it is
                also the head.
        """
        return counts.num_parameters(self, embeddings)

    def flops_per_token(self, context: int | None = None, causal: bool = False) -> int:
        """Floating-point operations of forward and backward for one token of training.

        Args:
            context: Tokens in the window; None = block_size.
            causal: Count only the half of attention that the causal mask leaves.
        """
        return counts.flops_per_token(self, self.block_size if context is None else context, causal)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only (numbers, strings, lists, dicts), ready for JSON."""
        values = dataclasses.asdict(self)
        if self.layer_windows is not None:
            values["layer_windows"] = list(self.layer_windows)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GPTConfig":
        """The inverse of `to_dict`.

        Raises:
            UserError: If a key is unknown (the nearest ones are named) or a value is refused.
        """
        return cls(**_parsed(values))

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "GPTConfig":
        """A preset with some fields changed, e.g. `from_preset("gpt2", n_layer=6)`.

        Raises:
            UserError: If the preset or a field is unknown (the nearest names are given) or a value is refused.
        """
        from lit_gpt.models.presets import get_preset

        return dataclasses.replace(get_preset(name), **_parsed(overrides))


class GPTConfigOverrides(TypedDict, total=False):
    """The fields of `GPTConfig`, each of them optional: what a YAML changes in a preset."""

    n_layer: int
    n_head: int
    n_kv_head: int | None
    n_embd: int
    head_size: int | None
    block_size: int
    vocab_size: int
    dropout: float
    bias: bool
    norm: Norm
    norm_eps: float
    positions: Positions
    rope_theta: float
    rope_scaling: RopeScaling | None
    mlp: Activation
    intermediate_size: int | None
    attention_bias: bool | None
    mlp_bias: bool | None
    qk_norm: bool
    sliding_window: int | None
    layer_windows: tuple[bool, ...] | None
    tie_embeddings: bool
    init_std: float
    family: Family


def _parsed(values: dict[str, Any]) -> dict[str, Any]:
    """Values as the dataclass wants them: known keys, a nested RopeScaling, a tuple of windows."""
    _known(values, GPTConfig)
    values = dict(values)
    if isinstance(values.get("rope_scaling"), dict):
        _known(values["rope_scaling"], RopeScaling)
        values["rope_scaling"] = RopeScaling(**values["rope_scaling"])
    if values.get("layer_windows") is not None:
        values["layer_windows"] = tuple(values["layer_windows"])
    return values


def _known(values: dict[str, Any], owner: type) -> None:
    fields = [field.name for field in dataclasses.fields(owner)]
    for key in values:
        if key not in fields:
            raise UserError(f"{owner.__name__} has no field {key!r}; nearest: {nearest(key, fields)}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} is {value!r}, it must be one of {', '.join(allowed)}")


def _check(config: GPTConfig) -> None:
    for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}, it must be at least 1")
    for name in ("n_kv_head", "head_size", "intermediate_size", "sliding_window"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}, it must be at least 1, or null for its default")
    _one_of("norm", config.norm, get_args(Norm))
    _one_of("positions", config.positions, get_args(Positions))
    _one_of("mlp", config.mlp, get_args(Activation))
    _one_of("family", config.family, get_args(Family))
    if not 0 <= config.dropout < 1:
        raise UserError(f"dropout is {config.dropout}, it must be at least 0 and less than 1")
    for name in ("norm_eps", "rope_theta", "init_std"):
        if not getattr(config, name) > 0:
            raise UserError(f"{name} is {getattr(config, name)}, it must be greater than 0")
    if config.head_size is None and config.n_embd % config.n_head:
        raise UserError(
            f"n_embd {config.n_embd} is not divisible by n_head {config.n_head}; change one of them or set head_size"
        )
    if config.n_head % config.num_kv_heads:
        raise UserError(
            f"n_head {config.n_head} is not divisible by n_kv_head {config.num_kv_heads}; "
            "each key/value head serves the same number of query heads"
        )
    if config.positions == "rope" and config.head_dim % 2:
        raise UserError(f"RoPE rotates pairs, so the head size {config.head_dim} must be even; set head_size")
    if config.rope_scaling is not None and not isinstance(config.rope_scaling, RopeScaling):
        raise UserError(f"rope_scaling is {config.rope_scaling!r}, not a RopeScaling; GPTConfig.from_dict makes one")
    if config.rope_scaling is not None and config.positions != "rope":
        raise UserError(f"rope_scaling needs positions: rope, got positions: {config.positions}")
    if config.layer_windows is not None:
        if config.sliding_window is None:
            raise UserError("layer_windows says which layers slide but sliding_window is null; set it in tokens")
        if len(config.layer_windows) != config.n_layer:
            raise UserError(
                f"layer_windows has {len(config.layer_windows)} entries for n_layer {config.n_layer}; give one a layer"
            )
