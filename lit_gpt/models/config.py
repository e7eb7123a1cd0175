"""`GPTConfig`, the complete model architecture as an immutable dataclass, and its nested configs.

Frozen dataclasses that fully specify a GPT architecture and validate themselves, so that a model, its preset, its
checkpoint and its export all mean the same thing. The defaults are GPT-2's 124M; each later idea adds a field.
Sizes left at None are derived from others (`head_size` from `n_embd // n_head`) and stay None in the dataclass, so
that overriding one field of a preset also changes what depends on it; read derived sizes through the properties.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, get_type_hints

from lit_gpt.checks import check_types
from lit_gpt.errors import UserError
from lit_gpt.models import counts, mixers
from lit_gpt.models.choices import Activation, Norm, NormPlacement, Positions, QKNorm
from lit_gpt.models.config_checks import check
from lit_gpt.models.families.registry import check_family, get_preset
from lit_gpt.suggest import nearest

ScalingKind = Literal["linear", "dynamic", "yarn", "llama3", "longrope"]
FIELDS_OF_KIND: dict[ScalingKind, tuple[str, ...]] = {
    "yarn": ("beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim", "attention_factor"),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factors", "long_factors", "attention_factor"),
}
"""The fields that only some kinds of RoPE scaling read."""


@dataclass(frozen=True)
class RopeScaling:
    """RoPE scaling to a longer context, by one of five published methods; each kind reads only its own fields.

    - `linear`: every frequency is divided by `factor` (Chen et al. 2023, arXiv:2306.15595).
    - `dynamic`: beyond `original_block_size` the base grows with the context ("NTK-aware", as in `transformers`).
    - `yarn`: high frequencies are unchanged, low ones divided by `factor`, with a linear ramp in between, and the
      attention distribution is sharpened (Peng et al. 2023, arXiv:2309.00071).
    - `llama3`: the same idea with the ramp over wavelengths (Llama 3.1, arXiv:2407.21783).
    - `longrope`: each pair has its own divisor, in two sets: up to `original_block_size` and beyond it
      (Ding et al. 2024, arXiv:2402.13753).

    `dynamic` and `longrope` depend on the context length, which is that of each text in the batch
    (`rope_frequencies.context_lengths`), so that packed documents and rows of a batch do not affect each other.

    Raises:
        UserError: If a value is out of bounds; the message names value, bound and remedy.
    """

    kind: ScalingKind = "llama3"
    factor: float = 8.0
    """Factor by which the context is extended."""
    original_block_size: int = 8192
    """Context length, in tokens, of the original training."""
    low_freq_factor: float = 1.0
    """llama3: frequencies with wavelengths above `original_block_size / low_freq_factor` tokens are divided by
    `factor`."""
    high_freq_factor: float = 4.0
    """llama3: frequencies with wavelengths below `original_block_size / high_freq_factor` tokens are unchanged."""
    beta_fast: float = 32.0
    """yarn: pairs that make more turns than this in the original context are unchanged."""
    beta_slow: float = 1.0
    """yarn: the frequencies of pairs that make fewer turns than this are divided by `factor`."""
    truncate: bool = True
    """yarn: round the ends of the ramp to integer pair indices."""
    mscale: float | None = None
    """yarn (DeepSeek): with `mscale_all_dim`, cos and sin are scaled by the ratio of the two attention factors."""
    mscale_all_dim: float | None = None
    """yarn (DeepSeek): latent attention multiplies its scores by the square of this attention factor."""
    short_factors: tuple[float, ...] | None = None
    """longrope: divisor of each pair's frequency for contexts up to `original_block_size`."""
    long_factors: tuple[float, ...] | None = None
    """longrope: divisor of each pair's frequency for longer contexts."""
    attention_factor: float | None = None
    """yarn and longrope: multiplier of cos and sin; None = the paper's value."""
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
            raise UserError("rope_scaling.kind longrope needs short_factors and long_factors, with one number per pair")
        for name in ("short_factors", "long_factors"):
            if any(divisor <= 0 for divisor in getattr(self, name) or ()):
                raise UserError(f"rope_scaling.{name} are divisors of frequencies, so each must be greater than 0")
        if self.attention_factor is not None and self.attention_factor <= 0:
            raise UserError(
                f"rope_scaling.attention_factor is {self.attention_factor}, it must be greater than 0, or null for the "
                "paper's value"
            )
        for name in ("mscale", "mscale_all_dim", "query_scale_beta"):
            if (getattr(self, name) or 0.0) < 0:
                raise UserError(f"rope_scaling.{name} is {getattr(self, name)}, it must be at least 0")

    def _check_fields_of_kind(self) -> None:
        """Reject a field that this kind does not read: it would have no effect."""
        for one in fields(self):
            readers = [kind for kind, names in FIELDS_OF_KIND.items() if one.name in names]
            if readers and self.kind not in readers and getattr(self, one.name) != one.default:
                raise UserError(
                    f"rope_scaling.{one.name} {getattr(self, one.name)} belongs to kind {' or '.join(readers)}, "
                    f"got kind: {self.kind}; leave it out"
                )

    @property
    def follows_length(self) -> bool:
        """Whether the frequencies depend on the current context length and not only on the config."""
        return self.kind in ("dynamic", "longrope")

    @property
    def rotation_scale(self) -> float:
        """The multiplier of cos and sin: the attention factor of YaRN or LongRoPE, else 1."""
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
        """Return YaRN's attention factor, 0.1 · mscale · ln(factor) + 1 (arXiv:2309.00071, equation 22)."""
        return 0.1 * mscale * math.log(self.factor) + 1.0


@dataclass(frozen=True)
class MLAConfig:
    """Latent attention: keys and values of all heads are expanded from one small cached latent per token.

    Field names are those of Hugging Face's DeepseekV3Config. Source: DeepSeek-V2, arXiv:2405.04434, section 2.1.

    Raises:
        UserError: If a value is out of bounds.
    """

    kv_lora_rank: int = 512
    """Width of the latent from which keys and values are computed."""
    q_lora_rank: int | None = 1536
    """Width of the query latent; None = queries are computed directly from the residual stream."""
    qk_nope_head_dim: int = 128
    """Width of the part of each head's query and key without position encoding."""
    qk_rope_head_dim: int = 64
    """Width of the rotary part; its key is shared by all heads."""
    v_head_dim: int = 128
    """Width of each head's value."""

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


RouterScores = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class MoEConfig:
    """Mixture of experts: a router sends each token to a few of `num_experts` small MLPs (arXiv:1701.06538).

    Experts have no capacity limit, so no token is ever dropped. The experts use the model's `mlp` activation and
    `mlp_bias`. Field names follow Hugging Face's configs where those agree.

    Raises:
        UserError: If a value is out of bounds or two of them disagree; the message names value, bound and remedy.
    """

    num_experts: int = 8
    """Number of routed experts."""
    num_experts_per_tok: int = 2
    """Number of experts that each token is routed to."""
    intermediate_size: int | None = None
    """Width F inside one expert; None = the model's intermediate_size."""
    shared_intermediate_size: int = 0
    """Width of the shared expert, which processes every token (DeepSeekMoE, arXiv:2401.06066); 0 = none."""
    layers: tuple[bool, ...] | None = None
    """Which layers are mixtures: a pattern that repeats over the layers; None = all. The others have a plain MLP."""
    scores: RouterScores = "softmax"
    """How router logits become scores: `softmax` over the experts, or a `sigmoid` per expert (arXiv:2412.19437)."""
    norm_topk_prob: bool = True
    """Divide the chosen experts' weights by their sum (with softmax scores: a softmax over the chosen experts only)."""
    routed_scaling_factor: float = 1.0
    """Final multiplier of the routed experts' weights."""
    n_group: int = 1
    """Number of expert groups; groups are selected first, by the sum of their two best scores (arXiv:2412.19437)."""
    topk_group: int = 1
    """Number of groups that a token may choose experts from."""
    router_bias: bool = False
    """Whether the router's linear layer has a bias (GPT-OSS)."""
    selection_bias: bool = False
    """Per-expert bias added to the router scores for top-k selection only, not to the gate weights: load balancing
    without an auxiliary loss (arXiv:2408.15664)."""
    bias_update_rate: float = 0.0
    """Change of each selection bias per training step, towards balance; DeepSeek-V3 uses 0.001."""
    balance_loss_weight: float = 0.0
    """Weight of the load-balancing loss, computed per sequence, so that gradient accumulation does not change it."""
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
                f"{self.num_experts_per_tok} experts per token; choose topk_group between 1 and n_group, large enough"
            )
        if self.n_group > 1 and per_group < 2:
            raise UserError(f"moe.n_group {self.n_group} leaves {per_group} expert per group; a group needs at least 2")
        if self.bias_update_rate and not self.selection_bias:
            raise UserError("moe.bias_update_rate changes the selection biases; set selection_bias: true")


@dataclass(frozen=True)
class GPTConfig:
    """The architecture of a decoder-only transformer.

    Raises:
        UserError: If a value is out of bounds or two of them disagree; the message names value, bound and remedy.
    """

    n_layer: int = 12
    """Number of blocks."""
    n_head: int = 12
    """Number of query heads."""
    n_kv_head: int | None = None
    """Number of key/value heads: None = n_head, fewer = grouped-query (arXiv:2305.13245), 1 = multi-query."""
    n_embd: int = 768
    """Width of the residual stream."""
    head_size: int | None = None
    """Width of each head; None = n_embd // n_head."""
    block_size: int = 1024
    """Maximum context length, in tokens."""
    vocab_size: int = 50257
    """Number of tokens: rows of the token embedding and width of the logits."""
    dropout: float = 0.0
    """Dropout probability for embeddings, attention weights and both residual branches."""
    bias: bool = True
    """Whether linear layers and LayerNorms have biases; `attention_bias` and `mlp_bias` override it for their part."""
    norm: Norm = "layernorm"
    """LayerNorm (arXiv:1607.06450) or RMSNorm (arXiv:1910.07467)."""
    norm_eps: float = 1e-5
    """Added to the variance or mean square before the square root."""
    norm_offset: bool = False
    """RMSNorm stores `gain - 1`, so zero initialization and weight decay act around a gain of 1 (Gemma)."""
    norm_placement: NormPlacement = "pre"
    """Where a branch f is normed: `pre` x + f(n(x)); `post` n(x + f(x)) (arXiv:1706.03762); `output` x + n(f(x))
    (OLMo 2, arXiv:2501.00656); `sandwich` x + n(f(n(x))) (Gemma 2, arXiv:2408.00118)."""
    parallel_residual: bool = False
    """Attention and MLP both read the block's input and are added together (GPT-J, GPT-NeoX, arXiv:2204.06745)."""
    positions: Positions = "learned"
    """Position encoding: `learned` or `sinusoidal` vectors added to the embedding (arXiv:1706.03762), rotary queries
    and keys (`rope`, arXiv:2104.09864), scores that decrease with distance (`alibi`, arXiv:2108.12409), or `none`
    (arXiv:2305.19466)."""
    rope_theta: float = 10000.0
    """RoPE's base."""
    rope_local_theta: float | None = None
    """RoPE's base in sliding-window layers, which `rope_scaling` then does not affect; None = as in all others."""
    rope_fraction: float = 1.0
    """Fraction of each head's coordinates that is rotated, starting with the first (GPT-NeoX: 0.25)."""
    rope_layers: tuple[bool, ...] | None = None
    """Which layers use RoPE: a pattern that repeats over the layers; None = all (SmolLM3: all but every fourth)."""
    rope_scaling: RopeScaling | None = None
    """RoPE's scaling to a longer context; None = no scaling."""
    mlp: Activation = "gelu"
    """Activation: `gelu` (exact), `gelu_tanh` (GPT-2's approximation), `relu2` (arXiv:2109.08668); gated: `swiglu`,
    `geglu`, `geglu_tanh` (arXiv:2002.05202), `swiglu_clamped` (GPT-OSS, arXiv:2508.10925)."""
    intermediate_size: int | None = None
    """Width of the MLP's hidden layer; None = 4 * n_embd."""
    attention_bias: bool | None = None
    """Whether the q, k and v projections have biases; None = `bias`."""
    attention_out_bias: bool | None = None
    """Whether the o projection has a bias; None = `attention_bias`."""
    mlp_bias: bool | None = None
    """Whether the MLP's projections have biases; None = `bias`."""
    qk_norm: QKNorm | None = None
    """Norm of queries and keys before RoPE is applied (arXiv:2302.05442): per `head`, or over the whole `projection`
    (OLMo 2); None = no norm."""
    attention_scale: float | None = None
    """Multiplier of the attention scores before the softmax; None = 1 / √(head size)."""
    attention_softcap: float | None = None
    """Soft-cap of attention scores, cap · tanh(s / cap) (Gemma 2, arXiv:2408.00118); None = no cap."""
    attention_sinks: bool = False
    """Whether each head's softmax includes one more learned logit, so that a head can attend to nothing (GPT-OSS)."""
    mla: MLAConfig | None = None
    """Sizes of multi-head latent attention (arXiv:2405.04434), which replaces the q, k and v projections; None = not
    used."""
    sliding_window: int | None = None
    """Size of the window in sliding-window layers: a token attends to itself and the `sliding_window - 1` tokens before
    it; None = all tokens before it."""
    chunked_window: bool = False
    """Windows are fixed chunks of `sliding_window` tokens: a token attends only within its own chunk (Llama 4)."""
    layer_windows: tuple[bool, ...] | None = None
    """Which layers use the sliding window: a pattern of bools that repeats over the layers; None = all, if
    `sliding_window` is set."""
    layer_types: tuple[str, ...] | None = None
    """The token mixer of each layer, a pattern that repeats over the layers: `attention`, `sliding`, `latent`, or one
    registered by another package (`register_token_mixer`); None = derived from `mla` and the windows."""
    mixer_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Options of registered token mixers, keyed by their name in `layer_types`."""
    moe: MoEConfig | None = None
    """Mixture of experts that replaces the MLPs; None = plain MLPs."""
    embedding_scale: float | Literal["sqrt_width"] = 1.0
    """Multiplier of token embeddings; `sqrt_width` is √n_embd, also after n_embd is overridden (Gemma)."""
    residual_scale: float = 1.0
    """Multiplier of each branch before it is added to the residual stream (Granite)."""
    logit_scale: float = 1.0
    """Multiplier of the logits (for example 0.125 in Granite, which divides them by 8)."""
    logit_softcap: float | None = None
    """Soft-cap of logits, cap · tanh(z / cap); None = no cap."""
    tie_embeddings: bool = True
    """Whether the LM head shares the token embedding's matrix (arXiv:1608.05859)."""
    multi_token: int = 0
    """Number of further tokens, beyond the next one, that are predicted in training, with one more block each
    (DeepSeek-V3, arXiv:2412.19437, section 2.2); generation and exports ignore these blocks."""
    init_std: float = 0.02
    """Standard deviation of initial weights."""
    scale_residual_init: bool = True
    """Whether projections into the residual stream are initialized with init_std / sqrt(2 n_layer) (GPT-2)."""
    family: str = "gpt2"
    """Model family whose weight names and config an export to Hugging Face uses (`families.family_names()`); the model
    itself never reads it."""

    def __post_init__(self) -> None:
        check(self)
        check_family(self.family)

    @property
    def num_kv_heads(self) -> int:
        """Number of key/value heads, K."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def head_dim(self) -> int:
        """Width of each head, D."""
        return self.n_embd // self.n_head if self.head_size is None else self.head_size

    @property
    def mlp_size(self) -> int:
        """Width of the MLP's hidden layer."""
        return 4 * self.n_embd if self.intermediate_size is None else self.intermediate_size

    @property
    def has_attention_bias(self) -> bool:
        """Whether the q, k, v and o projections have biases."""
        return self.bias if self.attention_bias is None else self.attention_bias

    @property
    def has_attention_out_bias(self) -> bool:
        """Whether the o projection has a bias."""
        return self.has_attention_bias if self.attention_out_bias is None else self.attention_out_bias

    @property
    def has_mlp_bias(self) -> bool:
        """Whether the MLP's projections have biases."""
        return self.bias if self.mlp_bias is None else self.mlp_bias

    @property
    def rope_size(self) -> int:
        """Number of rotated coordinates per head."""
        return self.mla.qk_rope_head_dim if self.mla is not None else int(self.head_dim * self.rope_fraction)

    @property
    def embedding_multiplier(self) -> float:
        """The multiplier of token embeddings as a number."""
        return math.sqrt(self.n_embd) if self.embedding_scale == "sqrt_width" else self.embedding_scale

    @property
    def score_scale(self) -> float:
        """The multiplier of attention scores before the softmax."""
        if self.attention_scale is not None:
            return self.attention_scale
        if self.mla is None:
            return self.head_dim**-0.5
        scaling = self.rope_scaling
        temperature = scaling.temperature(scaling.mscale_all_dim) if scaling and scaling.mscale_all_dim else 1.0
        return self.mla.qk_head_dim**-0.5 * temperature**2  # as in DeepSeek's model.py

    def token_mixer(self, layer: int) -> str:
        """Return the token mixer of a layer, named as in `layer_types`."""
        if self.layer_types is not None:
            return self.layer_types[layer % len(self.layer_types)]
        if self.mla is not None:
            return "latent"
        return "sliding" if self.slides(layer) else "attention"

    def mixer_options_of(self, layer: int) -> Any:
        """Return the options of a layer's registered token mixer, as an instance of its dataclass."""
        name = self.token_mixer(layer)
        return mixers.mixer_options(name, self.mixer_options.get(name))

    def slides(self, layer: int) -> bool:
        """Return whether a layer uses a sliding window."""
        if self.layer_types is not None:
            return self.token_mixer(layer) == "sliding"
        return self.sliding_window is not None and (_in_pattern(self.layer_windows, layer))

    def rotates(self, layer: int) -> bool:
        """Return whether a layer applies RoPE to its queries and keys."""
        return self.positions == "rope" and (_in_pattern(self.rope_layers, layer))

    def is_moe(self, layer: int) -> bool:
        """Return whether a layer is a mixture of experts."""
        return self.moe is not None and (_in_pattern(self.moe.layers, layer))

    @property
    def expert_size(self) -> int:
        """Width of a routed expert's hidden layer."""
        assert self.moe is not None
        return self.mlp_size if self.moe.intermediate_size is None else self.moe.intermediate_size

    def window(self, layer: int) -> int | None:
        """Return the sliding window of a layer, in tokens; None if it sees the whole context."""
        return self.sliding_window if self.slides(layer) else None

    def num_parameters(self, embeddings: bool = True, active: bool = False) -> int:
        """Return the number of parameters, counted without building the model; a tied matrix counts once.

        Args:
            embeddings: If False, exclude lookup-only parameters: position embeddings, and the token embedding unless
                it is also the head.
            active: If True, count only those routed experts that are active for one token.
        """
        return counts.num_parameters(self, embeddings, active)

    def flops_per_token(self, context: int | None = None, causal: bool = False) -> int:
        """Return the floating-point operations of forward and backward per training token.

        Args:
            context: Context length in tokens; None = block_size.
            causal: Count only the half of the attention scores that the causal mask keeps.
        """
        return counts.flops_per_token(self, self.block_size if context is None else context, causal)

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain values (numbers, strings, lists, dicts), ready for JSON."""
        values: dict[str, Any] = _plain(dataclasses.asdict(self))
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GPTConfig":
        """Build a config from the values of `to_dict`.

        Raises:
            UserError: If a key is unknown (the nearest names are given) or a value is invalid.
        """
        return cls(**_parsed(values))

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "GPTConfig":
        """Return a preset with some fields changed, e.g. `from_preset("gpt2", n_layer=6)`.

        Raises:
            UserError: If the preset or a field is unknown (the nearest names are given) or a value is invalid.
        """
        return get_preset(name).overridden(overrides)

    def overridden(self, overrides: Mapping[str, Any]) -> "GPTConfig":
        """Return this config with some fields changed; nested parts (`moe`, `mla`, `rope_scaling`) are merged.

        If the `kind` of `rope_scaling` changes, factor and original context are kept, but not the fields that the new
        kind does not read.

        Raises:
            UserError: If a field is unknown (the nearest names are given) or a value is invalid.
        """
        values = dict(overrides)
        for name in _NESTED:
            mine = getattr(self, name, None)
            if isinstance(values.get(name), Mapping) and mine is not None:
                kept = dataclasses.asdict(mine)
                if isinstance(mine, RopeScaling):
                    lost = set(FIELDS_OF_KIND.get(mine.kind, ()))
                    lost -= set(FIELDS_OF_KIND.get(values[name].get("kind", mine.kind), ()))
                    kept = {key: value for key, value in kept.items() if key not in lost}
                values[name] = {**kept, **values[name]}
        return dataclasses.replace(self, **_parsed(values))


_NESTED: dict[str, type] = {"rope_scaling": RopeScaling, "mla": MLAConfig, "moe": MoEConfig}


def _overrides(config: type) -> Any:
    """Return a TypedDict with the fields of a dataclass, all optional; nested dataclasses become TypedDicts too.

    The parser (jsonargparse) reads the names and types of a YAML file's `overrides:` from it. Because it is derived
    from the dataclass, the two cannot disagree.
    """
    hints = get_type_hints(config)
    kinds = {field.name: hints[field.name] for field in dataclasses.fields(config)}
    if config is GPTConfig:
        kinds |= {name: _overrides(part) | None for name, part in _NESTED.items()}
    make: Any = TypedDict  # mypy accepts only a literal dict in a call of TypedDict itself
    overrides = make(f"{config.__name__}Overrides", kinds, total=False)
    overrides.__module__ = __name__
    return overrides


if TYPE_CHECKING:
    GPTConfigOverrides: TypeAlias = Mapping[str, Any]
else:
    GPTConfigOverrides = _overrides(GPTConfig)
    GPTConfigOverrides.__doc__ = (
        "The fields of `GPTConfig`, all optional: the changes that a YAML file makes to a preset."
    )


def _parsed(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values as the dataclass expects them: known keys, nested parts, tuples."""
    _known(values, GPTConfig)
    values = dict(values)
    for name, part in _NESTED.items():
        if isinstance(values.get(name), Mapping):
            _known(values[name], part)
            values[name] = part(**_tuples(values[name]))
    return _tuples(values)


def _in_pattern(pattern: tuple[bool, ...] | None, layer: int) -> bool:
    """Return a layer's entry of a pattern that repeats over the layers; True if there is no pattern."""
    return pattern is None or pattern[layer % len(pattern)]


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _plain(value: Any) -> Any:
    """Return a value with tuples replaced by lists, at any depth."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _known(values: Mapping[str, Any], owner: type) -> None:
    fields = [field.name for field in dataclasses.fields(owner)]
    for key in values:
        if key not in fields:
            raise UserError(f"{owner.__name__} has no field {key!r}; nearest: {nearest(key, fields)}")
