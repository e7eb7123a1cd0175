"""`Family`: everything about a published architecture that a `GPTConfig` does not say, as data.

How its config.json maps to a `GPTConfig` and back, which tensors of its files are which of ours (`weights.py`), and
which of llama.cpp's architectures it is. Behaviour never depends on a family's name: what differs is a field here.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lit_gpt.models.families.weights import Entry

if TYPE_CHECKING:
    from lit_gpt.models.config import GPTConfig

ANY: Final = object()
"""In a table of required values: every value is accepted."""
GIVEN: Final = object()
"""In a table of required values: every value but None is accepted."""

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
    """One of llama.cpp's architectures: how its files differ from ours, and what its graph computes.

    A file that llama.cpp opens but computes differently would be worse than none, so whatever a `GPTConfig` asks for
    beyond these fields is refused by name on export (`checkpoints/gguf/architecture.py`).
    """

    name: str
    """`general.architecture`."""
    interleaved: bool = False
    """RoPE rotates neighbours (0, 1), (2, 3), ... of a head where ours rotates its halves: rows of q and k move."""
    fused_qkv: bool = False
    """q, k and v are one matrix, end to end."""
    fused_gate_up: bool = False
    """Gate and up are one matrix, end to end."""
    own_head: bool = False
    """The file has an LM head even where it is tied to the embedding."""
    own_width: bool = True
    """Heads may have a size other than `n_embd / n_head`."""
    demands: Mapping[str, Any] = field(default_factory=dict)
    """Fields or properties of the config (also "moe.layers") and the only value that is computed, or `ANY`, `GIVEN`."""
    scalings: tuple[str, ...] = ("linear", "yarn")
    """Kinds of `rope_scaling` that are computed."""
    full_every: int | None = None
    """Every layer but each n-th slides; None: as `attention.sliding_window_pattern` in the file says."""
    unrotated_every: int | None = None
    """Every layer but each n-th rotates, counted from 1; None: `rope_layers` is not looked at."""
    width_scaled_depth: int | None = None
    """The number of layers at which scores are scaled by n_embd / n_head (Gemma's 27B), not by the head's size; None:
    `attention_scale` is not looked at."""
    settings: Callable[["GPTConfig"], dict[str, MetadataValue]] = _no_settings
    """Further metadata, without the prefix of the architecture's name."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the config that all models of this architecture have and no metadata says, where they are not Llama's
    (RMSNorm before each branch, SwiGLU, no biases)."""
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = _no_fields
    """Further fields of the config, from the metadata without the prefix; the inverse of `settings`."""


@dataclass(frozen=True)
class Family:
    """A published architecture: its config.json in both directions, its weight table, its place in llama.cpp.

    Another package makes one and calls `register_family`; nothing here is edited.
    """

    name: str
    """As in `GPTConfig.family`."""
    model_type: str
    """As in config.json."""
    architecture: str
    """The transformers class with an LM head, written to config.json's `architectures`."""
    read_config: Callable[[dict[str, Any]], "GPTConfig"]
    """Turn a parsed config.json into a `GPTConfig`; raises `UserError` for what a `GPTConfig` cannot express."""
    write_config: Callable[["GPTConfig"], dict[str, Any]]
    """Return config.json's keys (`config_to_hf` adds those that all have); raises `UserError` for what it cannot
    express."""
    entries: Callable[["GPTConfig"], list[Entry]]
    """Return the weight table: every tensor of the checkpoint; a tied head has none of its own."""
    base_prefix: str = "model."
    """What names start with, except in files saved from the model without its head."""
    head: str = "lm_head.weight"
    """The LM head's name in files."""
    buffers: tuple[str, ...] = ()
    """Suffixes of names that old files have and that are not parameters."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Prefixes of names that some files have, and what they are in the table."""
    left_out: Callable[["GPTConfig", Mapping[str, Any], Collection[str]], tuple[str, ...]] = _nothing
    """Return prefixes of what is not part of the language model (multi-token prediction, say), from the config,
    config.json and the names in the folder."""
    text_part_of: tuple[str, ...] = ()
    """`model_type`s of multimodal models whose `text_config` belongs to this family unless it names another."""
    token_mixers: tuple[str, ...] = ("attention", "sliding", "latent")
    """Kinds of layers (`GPTConfig.token_mixer`) that config.json can express."""
    gguf: GGUFArchitecture | None = None
    """llama.cpp's architecture; None: not written as GGUF."""
