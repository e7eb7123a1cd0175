"""`GPTConfig`: a model as a value.

A frozen dataclass that says everything about a GPT's shape and checks itself, so that a model, its preset, its
checkpoint and its export all speak about the same thing. The defaults are GPT-2's 124M; every later idea is a
field beside them. Sizes left at None follow from others (`head_size` from `n_embd // n_head`), and stay None in the
value itself, so that overriding one field of a preset moves what depends on it; read them through the properties.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, get_type_hints

from lit_gpt.errors import UserError
from lit_gpt.models import counts, mixers
from lit_gpt.models.choices import Activation, Norm, NormPlacement, Positions, QKNorm
from lit_gpt.models.config_checks import check
from lit_gpt.models.experts_config import MoEConfig
from lit_gpt.models.families.registry import check_family, get_preset
from lit_gpt.models.latent_config import MLAConfig
from lit_gpt.models.rope_scaling import FIELDS_OF_KIND, RopeScaling
from lit_gpt.suggest import nearest


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

    def channel_mixer(self, layer: int) -> Literal["mlp", "moe"]:
        """Return the kind of channel mixer of layer number `layer`."""
        return "moe" if self.is_moe(layer) else "mlp"

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
