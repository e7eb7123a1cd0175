"""`Family`: everything about a published architecture that a `GPTConfig` does not contain, as data.

That is: how its config.json maps to a `GPTConfig` and back, which tensors of its files correspond to ours
(`weights.py`), and its architecture in llama.cpp. Behavior never depends on a family's name; differences are fields.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lit_gpt.models.families.weights import Entry

if TYPE_CHECKING:
    from lit_gpt.models.config import GPTConfig

ANY: Final = object()
"""In a table of required values: any value is accepted."""
GIVEN: Final = object()
"""In a table of required values: any value except None is accepted."""

MetadataValue = str | int | float | bool | list[Any]
"""A value of GGUF's metadata; an int is written as uint32, a float as float32."""


def _no_settings(config: "GPTConfig") -> dict[str, MetadataValue]:
    return {}


def _no_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _nothing(config: "GPTConfig", values: Mapping[str, Any], names: Collection[str]) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class GGUFArchitecture:
    """One of llama.cpp's architectures: how its files differ from ours, and what llama.cpp computes.

    A file that llama.cpp opens but computes differently would be worse than none, so an export rejects any config field
    that is not covered by these fields (`checkpoints/gguf/architecture.py`).
    """

    name: str
    """Value of `general.architecture`."""
    interleaved: bool = False
    """Whether RoPE rotates neighbors (0, 1), (2, 3), ... of a head instead of its halves; q and k rows are permuted."""
    fused_qkv: bool = False
    """Whether q, k and v are one concatenated matrix."""
    fused_gate_up: bool = False
    """Whether gate and up are one concatenated matrix."""
    own_head: bool = False
    """Whether the file has an LM head even if it is tied to the embedding."""
    own_width: bool = True
    """Whether the head size may differ from `n_embd / n_head`."""
    demands: Mapping[str, Any] = field(default_factory=dict)
    """Required values of fields or properties of the config (also "moe.layers"), or `ANY`, `GIVEN`."""
    scalings: tuple[str, ...] = ("linear", "yarn")
    """Supported kinds of `rope_scaling`."""
    full_every: int | None = None
    """Every n-th layer has full attention; None: as `attention.sliding_window_pattern` in the file specifies."""
    unrotated_every: int | None = None
    """Every n-th layer, counted from 1, has no RoPE; None: `rope_layers` is ignored."""
    width_scaled_depth: int | None = None
    """Number of layers at which scores are scaled by n_embd / n_head (Gemma's 27B) instead of the head size; None:
    `attention_scale` is ignored."""
    settings: Callable[["GPTConfig"], dict[str, MetadataValue]] = _no_settings
    """Returns further metadata, without the prefix of the architecture's name."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the config that all models of this architecture share and that the metadata does not contain, if they
    differ from Llama's (RMSNorm before each branch, SwiGLU, no biases)."""
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = _no_fields
    """Returns further fields of the config from the metadata without the prefix; the inverse of `settings`."""


@dataclass(frozen=True)
class Family:
    """A published architecture: its config.json in both directions, its weight table, its architecture in llama.cpp.

    Another package creates one and calls `register_family`; nothing in this package needs to be edited.
    """

    name: str
    """Name in `GPTConfig.family`."""
    model_type: str
    """`model_type` in config.json."""
    architecture: str
    """The transformers class with an LM head, written to config.json's `architectures`."""
    read_config: Callable[[dict[str, Any]], "GPTConfig"]
    """Converts a parsed config.json to a `GPTConfig`; raises `UserError` for what a `GPTConfig` cannot express."""
    write_config: Callable[["GPTConfig"], dict[str, Any]]
    """Returns config.json's keys (`config_to_hf` adds those that all families share); raises `UserError` for what it
    cannot express."""
    entries: Callable[["GPTConfig"], list[Entry]]
    """Returns the weight table: all tensors of the checkpoint; a tied head has no entry."""
    base_prefix: str = "model."
    """Prefix of names, which is missing in files saved from the model without its head."""
    head: str = "lm_head.weight"
    """Name of the LM head in files."""
    buffers: tuple[str, ...] = ()
    """Suffixes of non-parameter tensors in old files."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Name prefixes of some files and their replacements in the table."""
    left_out: Callable[["GPTConfig", Mapping[str, Any], Collection[str]], tuple[str, ...]] = _nothing
    """Returns the name prefixes of tensors that are not part of the language model (for example multi-token
    prediction), from the config, config.json and the names in the folder."""
    text_part_of: tuple[str, ...] = ()
    """`model_type`s of multimodal models whose `text_config` belongs to this family unless it names another one."""
    token_mixers: tuple[str, ...] = ("attention", "sliding", "latent")
    """Kinds of token mixers (`GPTConfig.token_mixer`) that config.json can express."""
    gguf: GGUFArchitecture | None = None
    """llama.cpp's architecture; None: GGUF export is not supported."""
