"""The token mixer interface, the inputs that each forward passes to it, and the registry for third-party mixers.

A block has two halves. The *token mixer* exchanges information between tokens (attention, latent attention, a recurrent
layer of another package); the *channel mixer* processes each token separately (an MLP, a mixture of experts). A
`GPTConfig` lists the kinds of its token mixers in `layer_types`; `register_token_mixer` adds a kind.

B batch, T time, C model width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_gpt.errors import UserError
from lit_gpt.extensions import load_extensions
from lit_gpt.suggest import nearest

if TYPE_CHECKING:
    from lit_gpt.models.cache import LayerState, StepState
    from lit_gpt.models.config import GPTConfig
    from lit_gpt.models.masks import LayerMasks, Mask
    from lit_gpt.models.moe import Routing
    from lit_gpt.models.positions import Rotation, Rotations


State = tuple[Tensor, ...]
"""What a recurrent layer knows of a span of tokens; each tensor is (B, ...)."""


class SequencePart(ABC):
    """The tokens that this process holds, if each row is divided over several processes (context parallelism).

    Everything that processes tokens separately needs no change: it sees t tokens of each row instead of T. A token
    mixer gets what it needs of the others through this object: attention gathers keys and values, a recurrent layer
    passes its state on. `lit_gpt.parallel.context` implements it.
    """

    rank: int
    """Of this process among those that share the rows; process 0 counts what is counted once per row."""
    size: int
    """Number of processes that share the rows."""
    num_tokens: int
    """T, the length of the whole rows."""
    num_read: int
    """Tokens of a whole row without the padding that makes it divisible."""
    chunks: tuple[slice, ...]
    """The contiguous spans of the row that this process holds, in the order of its t tokens; all equally long."""
    index: Tensor
    """(t,) int64, ascending within each chunk: the place of each token of this process in the whole row."""
    input_ids: Tensor
    """(B, T) int64: the whole rows, which every process has read."""
    position_ids: Tensor
    """(B, T) int64."""
    labels: Tensor | None
    """(B, T) int64."""
    document_ids: Tensor | None
    """(B, T) int64."""

    def own(self, rows: Tensor) -> Tensor:
        """Return this process's tokens of whole rows: (B, T, ...) → (B, t, ...)."""
        return rows.index_select(1, self.index)

    @abstractmethod
    def gather(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Return the whole rows of tensors of one dtype: each (B, t, ...) → (B, T, ...).

        One all-gather for all of them; its backward is one reduce-scatter, which sums the gradients of all processes.
        """

    @abstractmethod
    def before(self, summaries: Sequence[State], compose: Callable[[State, State], State]) -> list[State | None]:
        """Return what a recurrent layer knows of everything before each chunk of this process.

        For a linear recurrence, whose effect on its state over a span of tokens can be computed without the state: for
        instance S ↦ a S + b, summarized by (a, b). All processes work at the same time, and exchange one summary a
        chunk, with gradients.

        Args:
            summaries: One per chunk of this process, of that chunk alone.
            compose: Function of the summaries of two adjacent spans, the earlier one first; returns that of both.

        Returns:
            For each chunk of this process, the summary of all tokens before it; None for the first chunk of the row.
        """

    @abstractmethod
    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over the processes that share the rows, without gradient."""


class Context(NamedTuple):
    """The inputs shared by all layers of one forward; computed once by `GPT.forward`."""

    position_ids: "Tensor | None" = None
    """(B, T) or (T,) int64: the position of each token in its own document; None only if no layer needs it."""
    document_ids: "Tensor | None" = None
    """(B, T) int64, -1 on padding; tokens must not depend on other documents. None = each row is one document."""
    rotations: "Rotations | None" = None
    """RoPE's tables; None if the model does not use RoPE."""
    masks: "LayerMasks | None" = None
    """Attention masks in training; in decoding each layer's state builds its own."""
    routing: "Routing | None" = None
    """Where mixture-of-experts layers record their routing decisions; None = not recorded."""
    sequence: SequencePart | None = None
    """The part of the rows that this process holds; None = whole rows."""
    prepared: bool = False
    """Whether an engine has laid out the weights for decoding and checked in this iteration that they are unchanged."""

    def rotation(self, slides: bool) -> "Rotation | None":
        """Return RoPE's tables for sliding-window (`slides`) or full-attention layers."""
        if self.rotations is None:
            return None
        return self.rotations.sliding if slides else self.rotations.full

    def mask(self, slides: bool) -> "Mask":
        """Return the training mask for sliding-window (`slides`) or full-attention layers."""
        if self.masks is None:
            return None
        return self.masks.sliding if slides else self.masks.full


class TokenMixer(nn.Module):
    """Base class of token mixers; a subclass takes `(config, layer)` and implements `forward` and `new_state`.

    Args:
        config: The model's architecture; options of a registered kind are `config.mixer_options_of(layer)`.
        layer: Index of the block, from 0.
    """

    divides_rows = False
    """Whether training supports rows that are divided over processes (`context.sequence`). A class with a `forward` of
    its own says so for itself."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Do not assume of a new `forward` what its base class promises of its own."""
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls) and "divides_rows" not in vars(cls):
            cls.divides_rows = False

    def forward(self, x: Tensor, context: Context, state: "StepState | None" = None) -> Tensor:
        """Mix tokens.

        In training (`state` None) `x` holds B rows of T tokens, and a token may depend only on earlier tokens of its
        own document (`context.document_ids`). If rows are divided over processes, `x` holds only the tokens of
        `context.sequence`, which gives access to the others. In decoding, `x` is (1, N, C), the tokens of several
        sequences; `state.map` passes them to a function part by part, together with the rows that they continue.

        Args:
            x: (B, T, C).
            context: Inputs shared by all layers of this forward.
            state: In decoding, the states of the sequences being continued; None = training.

        Returns:
            (B, T, C).
        """
        raise NotImplementedError

    def new_state(
        self, num_rows: int, capacity: int, margin: int, dtype: torch.dtype, device: torch.device
    ) -> "LayerState":
        """Return an empty decoding state.

        Args:
            num_rows: Number of sequences.
            capacity: Maximum number of tokens per sequence.
            margin: Maximum number of tokens that may be removed from the end of a sequence (speculative decoding).
            dtype: Type of the layer's activations.
            device: Device of the model.
        """
        raise NotImplementedError

    def initial_value(self, name: str, shape: torch.Size) -> Tensor | None:
        """Return the initial value of a parameter with a special initialization; None = the model's default rule.

        It must depend only on the config, because every process computes the complete value.

        Args:
            name: Name of the parameter within this module, such as `decay`.
            shape: Shape of the complete (unsharded) parameter.
        """
        return None

    @classmethod
    def flops_per_token(cls, config: "GPTConfig", layer: int, context: int) -> int:
        """Return the training FLOPs per token beyond 6 per parameter (see `counts.flops_per_token`).

        Args:
            config: The model's architecture.
            layer: Index of the layer.
            context: Context length in tokens.
        """
        return 0


@dataclass(frozen=True)
class MixerKind:
    """A registered kind of token mixer."""

    build: type[TokenMixer]
    options: type | None = None
    """Dataclass of the options that `GPTConfig.mixer_options` may set for this kind; None = no options."""


BUILT_IN = ("attention", "sliding", "latent")
"""The built-in kinds: full attention, sliding-window attention and latent attention."""
_KINDS: dict[str, MixerKind] = {}


def register_token_mixer(name: str, mixer: type[TokenMixer], options: type | None = None) -> None:
    """Register a kind of token mixer for use in `GPTConfig.layer_types`.

    Call it in a module that is an entry point of the group `lit_gpt.extensions` (see `lit_gpt.extensions`), so that
    the command line finds it whenever a model with such layers is loaded.

    Args:
        name: Name of the kind in configs, checkpoints and exports.
        mixer: A subclass of `TokenMixer`, called with the config and the layer's index.
        options: A dataclass of the layer's options; its `__post_init__` validates them.

    Raises:
        UserError: If another mixer is registered under this name.

    Example:
        >>> register_token_mixer("gated_linear", GatedLinear, GatedLinearOptions)  # doctest: +SKIP
        >>> GPTConfig(layer_types=("gated_linear", "attention"))  # doctest: +SKIP
    """
    known = _KINDS.get(name)
    if known is not None and known.build is not mixer:
        raise UserError(f"token mixer {name!r} is already registered, by {known.build!r}; choose another name")
    _KINDS[name] = MixerKind(mixer, options)


def mixer_names() -> list[str]:
    """Return the names of all kinds, including those of installed extensions."""
    load_extensions()
    return sorted({*BUILT_IN, *_KINDS})


def mixer_kind(name: str) -> MixerKind:
    """Return the registered kind of a name.

    Raises:
        UserError: If no such kind is registered; the nearest names are given.
    """
    if name not in _KINDS:
        load_extensions()
    if name not in _KINDS:
        raise UserError(
            f"layer_types names the token mixer {name!r}, which no installed package registers; "
            f"nearest: {nearest(name, mixer_names())}"
        )
    return _KINDS[name]


def check_divisible_rows(layers: Sequence[tuple[str, Any]]) -> None:
    """Raise if a token mixer cannot work on rows that are divided over processes.

    Args:
        layers: Name and class or instance of each token mixer.

    Raises:
        UserError: With the kinds of layers that cannot.
    """
    names = sorted({name for name, mixer in layers if not getattr(mixer, "divides_rows", False)})
    if names:
        raise UserError(
            f"context parallelism divides rows, which layers of type {', '.join(names)} do not support; set "
            "context: 1, or let the layer use context.sequence and set its divides_rows"
        )


def mixer_options(name: str, values: Any) -> Any:
    """Return the validated options of a kind: an instance of its dataclass, or None if it has no options.

    Raises:
        UserError: If an option is unknown or invalid.
    """
    options = mixer_kind(name).options
    if options is None:
        if values:
            raise UserError(f"mixer_options.{name}: token mixer {name!r} has no options; remove the entry")
        return None
    names = [field.name for field in fields(options)]
    for key in values or {}:
        if key not in names:
            raise UserError(f"mixer_options.{name} has no option {key!r}; nearest: {nearest(key, names)}")
    return options(**(values or {}))
