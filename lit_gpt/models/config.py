"""`GPTConfig`: a model as a value, after its nested parts `RopeScaling`, `MLAConfig` and `MoEConfig`.

Frozen dataclasses that say everything about a GPT's shape and check themselves, so that a model, its preset, its
checkpoint and its export all mean the same thing. The defaults are GPT-2's 124M; every later idea is a
further field. Sizes left at None follow from others (`head_size` from `n_embd // n_head`), and stay None in the
value itself, so that overriding one field of a preset moves what depends on it; read them through the properties.
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
    packed documents and rows of a batch stay isolated.

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
        for one in fields(self):
            readers = [kind for kind, names in FIELDS_OF_KIND.items() if one.name in names]
            if readers and self.kind not in readers and getattr(self, one.name) != one.default:
                raise UserError(
                    f"rope_scaling.{one.name} {getattr(self, one.name)} belongs to kind {' or '.join(readers)}, "
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
    """Width of the shared expert, which every token passes (DeepSeekMoE, arXiv:2401.06066); 0 = none."""
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
    norm_offset: bool = False
    """RMSNorm stores its gain less one, so that it starts and decays towards 1 (Gemma)."""
    norm_placement: NormPlacement = "pre"
    """Where a branch f is normed: `pre` x + f(n(x)); `post` n(x + f(x)) (arXiv:1706.03762); `output` x + n(f(x))
    (OLMo 2, arXiv:2501.00656); `sandwich` x + n(f(n(x))) (Gemma 2, arXiv:2408.00118)."""
    parallel_residual: bool = False
    """Attention and MLP both read the block's input and are added together (GPT-J, GPT-NeoX, arXiv:2204.06745)."""
    positions: Positions = "learned"
    """`learned` or `sinusoidal` vectors added to the embedding (arXiv:1706.03762), rotary queries and keys (`rope`,
    arXiv:2104.09864), scores that fall with distance (`alibi`, arXiv:2108.12409), or `none` (arXiv:2305.19466)."""
    rope_theta: float = 10000.0
    """RoPE's base."""
    rope_local_theta: float | None = None
    """RoPE's base in layers that slide, which are then not stretched by rope_scaling; None = as in all others."""
    rope_fraction: float = 1.0
    """The part of each head that is rotated, from its front (GPT-NeoX has 0.25)."""
    rope_layers: tuple[bool, ...] | None = None
    """Which layers rotate: a pattern that repeats over the layers; None = all (SmolLM3 leaves out every fourth)."""
    rope_scaling: RopeScaling | None = None
    """RoPE's stretch to a longer context; None = none."""
    mlp: Activation = "gelu"
    """`gelu` (exact), `gelu_tanh` (GPT-2's approximation), `relu2` (arXiv:2109.08668); gated: `swiglu`, `geglu`,
    `geglu_tanh` (arXiv:2002.05202), `swiglu_clamped` (GPT-OSS, arXiv:2508.10925)."""
    intermediate_size: int | None = None
    """Width inside the MLP; None = 4 * n_embd."""
    attention_bias: bool | None = None
    """Biases of the q, k and v projections; None = bias."""
    attention_out_bias: bool | None = None
    """Bias of the o projection; None = as attention_bias."""
    mlp_bias: bool | None = None
    """Biases of the MLP's projections; None = bias."""
    qk_norm: QKNorm | None = None
    """Norm of queries and keys before positions are rotated in (arXiv:2302.05442): of each `head`, or of the whole
    `projection` (OLMo 2)."""
    attention_scale: float | None = None
    """What scores are multiplied by before the softmax; None = 1 / √(head size)."""
    attention_softcap: float | None = None
    """Scores s become cap · tanh(s / cap) (Gemma 2, arXiv:2408.00118); None = they do not."""
    attention_sinks: bool = False
    """A learned logit a head joins each softmax, so that a head may attend to nothing (GPT-OSS)."""
    mla: MLAConfig | None = None
    """Multi-head latent attention and its sizes (arXiv:2405.04434) in place of q, k and v projections."""
    sliding_window: int | None = None
    """In layers that slide, a token sees itself and the `sliding_window - 1` before it; None = all before it."""
    chunked_window: bool = False
    """The windows are fixed chunks: a token sees those before it in its own chunk of `sliding_window` (Llama 4)."""
    layer_windows: tuple[bool, ...] | None = None
    """Which layers slide: a pattern of bools that repeats over the layers; None = all when `sliding_window` is set."""
    layer_types: tuple[str, ...] | None = None
    """The token mixer of each layer, a pattern that repeats over the layers: `attention`, `sliding`, `latent`, or one
    that another package registers (`register_token_mixer`); None = what `mla` and the windows say."""
    mixer_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Settings of registered token mixers, by their names in `layer_types`."""
    moe: MoEConfig | None = None
    """A mixture of experts in place of MLPs, and its routing."""
    embedding_scale: float | Literal["sqrt_width"] = 1.0
    """What token embeddings are multiplied by; `sqrt_width` is √n_embd, whatever n_embd becomes (Gemma)."""
    residual_scale: float = 1.0
    """What each branch is multiplied by before it joins the residual stream (Granite)."""
    logit_scale: float = 1.0
    """What logits are multiplied by (Granite divides them by 8, say: 0.125)."""
    logit_softcap: float | None = None
    """Logits z become cap · tanh(z / cap); None = they do not."""
    tie_embeddings: bool = True
    """The LM head reuses the token embedding's matrix (arXiv:1608.05859)."""
    multi_token: int = 0
    """How many tokens beyond the next one are predicted too in training, by one more block each (DeepSeek-V3,
    arXiv:2412.19437, section 2.2); generation and exports leave these blocks out."""
    init_std: float = 0.02
    """Standard deviation of initial weights."""
    scale_residual_init: bool = True
    """Projections into the residual stream start with init_std / sqrt(2 n_layer) (GPT-2)."""
    family: str = "gpt2"
    """Whose weight names and config an export to Hugging Face uses (`families.family_names()`); the model itself never
    looks at it."""

    def __post_init__(self) -> None:
        check(self)
        check_family(self.family)

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
    def has_attention_out_bias(self) -> bool:
        """Whether the o projection has a bias."""
        return self.has_attention_bias if self.attention_out_bias is None else self.attention_out_bias

    @property
    def has_mlp_bias(self) -> bool:
        """Whether the MLP's projections have biases."""
        return self.bias if self.mlp_bias is None else self.mlp_bias

    @property
    def rope_size(self) -> int:
        """How many coordinates of a head are rotated."""
        return self.mla.qk_rope_head_dim if self.mla is not None else int(self.head_dim * self.rope_fraction)

    @property
    def embedding_multiplier(self) -> float:
        """What token embeddings are multiplied by, as a number."""
        return math.sqrt(self.n_embd) if self.embedding_scale == "sqrt_width" else self.embedding_scale

    @property
    def score_scale(self) -> float:
        """What scores are multiplied by before the softmax."""
        if self.attention_scale is not None:
            return self.attention_scale
        if self.mla is None:
            return self.head_dim**-0.5
        scaling = self.rope_scaling
        temperature = scaling.temperature(scaling.mscale_all_dim) if scaling and scaling.mscale_all_dim else 1.0
        return self.mla.qk_head_dim**-0.5 * temperature**2  # DeepSeek's code, model.py

    def token_mixer(self, layer: int) -> str:
        """Return the kind of token mixer of layer number `layer`, as `layer_types` names it."""
        if self.layer_types is not None:
            return self.layer_types[layer % len(self.layer_types)]
        if self.mla is not None:
            return "latent"
        return "sliding" if self.slides(layer) else "attention"

    def mixer_options_of(self, layer: int) -> Any:
        """Return the options of a registered token mixer: its own dataclass, from `mixer_options`."""
        name = self.token_mixer(layer)
        return mixers.mixer_options(name, self.mixer_options.get(name))

    def slides(self, layer: int) -> bool:
        """Whether layer number `layer` sees a window only."""
        if self.layer_types is not None:
            return self.token_mixer(layer) == "sliding"
        return self.sliding_window is not None and (_in_pattern(self.layer_windows, layer))

    def rotates(self, layer: int) -> bool:
        """Whether layer number `layer` rotates its queries and keys."""
        return self.positions == "rope" and (_in_pattern(self.rope_layers, layer))

    def is_moe(self, layer: int) -> bool:
        """Whether layer number `layer` is a mixture of experts."""
        return self.moe is not None and (_in_pattern(self.moe.layers, layer))

    @property
    def expert_size(self) -> int:
        """Width inside one routed expert."""
        assert self.moe is not None
        return self.mlp_size if self.moe.intermediate_size is None else self.moe.intermediate_size

    def window(self, layer: int) -> int | None:
        """The sliding window of layer number `layer`, in tokens; None where it sees the whole context."""
        return self.sliding_window if self.slides(layer) else None

    def num_parameters(self, embeddings: bool = True, active: bool = False) -> int:
        """Parameters of the model, counted without building it; a tied matrix counts once.

        Args:
            embeddings: If False, leave out what is only looked up: positions, and the token embedding unless it is
                also the head.
            active: If True, count of a mixture of experts only the experts that one token goes to.
        """
        return counts.num_parameters(self, embeddings, active)

    def flops_per_token(self, context: int | None = None, causal: bool = False) -> int:
        """Floating-point operations of forward and backward for one token of training.

        Args:
            context: Tokens in the window; None = block_size.
            causal: Count only the half of attention that the causal mask leaves.
        """
        return counts.flops_per_token(self, self.block_size if context is None else context, causal)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only (numbers, strings, lists, dicts), ready for JSON."""
        values: dict[str, Any] = _plain(dataclasses.asdict(self))
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
        return get_preset(name).overridden(overrides)

    def overridden(self, overrides: Mapping[str, Any]) -> "GPTConfig":
        """This config with some fields changed; of a nested part (`moe`, `mla`, `rope_scaling`) only what is named.

        Another kind of `rope_scaling` takes over factor and original context, not what the new kind does not read.

        Raises:
            UserError: If a field is unknown (the nearest names are given) or a value is refused.
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
    """Return a TypedDict with the fields of a dataclass, each of them optional; nested parts are TypedDicts too.

    A parser (jsonargparse) reads the names and types of a YAML's `overrides:` from it. Being derived from the
    dataclass, it cannot disagree with it.
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
    GPTConfigOverrides.__doc__ = "The fields of `GPTConfig`, each of them optional: what a YAML changes in a preset."


def _parsed(values: dict[str, Any]) -> dict[str, Any]:
    """Values as the dataclass wants them: known keys, nested parts, tuples."""
    _known(values, GPTConfig)
    values = dict(values)
    for name, part in _NESTED.items():
        if isinstance(values.get(name), Mapping):
            _known(values[name], part)
            values[name] = part(**_tuples(values[name]))
    return _tuples(values)


def _in_pattern(pattern: tuple[bool, ...] | None, layer: int) -> bool:
    """A pattern repeats over the layers, so that one serves any depth; without one, every layer is meant."""
    return pattern is None or pattern[layer % len(pattern)]


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _plain(value: Any) -> Any:
    """Tuples as lists, at any depth."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _known(values: Mapping[str, Any], owner: type) -> None:
    fields = [field.name for field in dataclasses.fields(owner)]
    for key in values:
        if key not in fields:
            raise UserError(f"{owner.__name__} has no field {key!r}; nearest: {nearest(key, fields)}")
