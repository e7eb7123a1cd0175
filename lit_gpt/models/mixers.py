"""The protocol of a layer's token mixer, what each forward hands to it, and the registry that other packages add to.

A block has two halves. The *token mixer* lets tokens exchange information (attention, latent attention, a recurrent
layer of another package); the *channel mixer* works on each token alone (an MLP, a mixture of experts). A
`GPTConfig` lists the kinds of its layers in `layer_types`; `register_token_mixer` adds a kind.

B batch, T time, C model width.
"""

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


class Context(NamedTuple):
    """The inputs that all layers of one forward share; computed once by `GPT.forward`."""

    position_ids: "Tensor | None" = None
    """(B, T) or (T,) int64: the position of each token in its own document; None only where no layer needs it."""
    document_ids: "Tensor | None" = None
    """(B, T) int64, -1 on padding: tokens must not be influenced by other documents; None = a row is one document."""
    rotations: "Rotations | None" = None
    """RoPE's tables; None where the model does not rotate."""
    masks: "LayerMasks | None" = None
    """Who attends to whom in training; in decoding each layer's state knows."""
    routing: "Routing | None" = None
    """Where mixtures of experts record their choices; None = nowhere."""
    prepared: bool = False
    """Decoding by an engine, which has laid out the weights for it and checked this iteration that they still are."""

    def rotation(self, slides: bool) -> "Rotation | None":
        """Return RoPE's tables for layers that see a window (`slides`) or the whole context."""
        if self.rotations is None:
            return None
        return self.rotations.sliding if slides else self.rotations.full

    def mask(self, slides: bool) -> "Mask":
        """Return the training mask of layers that see a window (`slides`) or the whole context."""
        if self.masks is None:
            return None
        return self.masks.sliding if slides else self.masks.full


class TokenMixer(nn.Module):
    """Base class of token mixers; a subclass takes `(config, layer)` and implements `forward` and `new_state`.

    Args:
        config: The model's shape; options of a registered kind are `config.mixer_options_of(layer)`.
        layer: Which block this is, from 0.
    """

    def forward(self, x: Tensor, context: Context, state: "StepState | None" = None) -> Tensor:
        """Mix tokens.

        In training (`state` None) `x` holds B rows of T tokens, and a token may depend on earlier tokens of its own
        document alone (`context.document_ids`). In decoding, `x` is (1, N, C): tokens of several sequences, which
        `state.map` hands to a function part by part, together with the rows they continue.

        Args:
            x: (B, T, C).
            context: Shared by all layers of this forward.
            state: The states of the sequences that are continued; None = training.

        Returns:
            (B, T, C).
        """
        raise NotImplementedError

    def new_state(
        self, num_rows: int, capacity: int, margin: int, dtype: torch.dtype, device: torch.device
    ) -> "LayerState":
        """Return an empty decoding state.

        Args:
            num_rows: Sequences that it holds.
            capacity: Tokens of one sequence, at most.
            margin: Tokens at the end of a sequence that may be taken back (speculative decoding).
            dtype: Of the layer's activations.
            device: Where the model runs.
        """
        raise NotImplementedError

    def initial_value(self, name: str, shape: torch.Size) -> Tensor | None:
        """Return the initial value of a parameter that has a rule of its own; None = the model's rule.

        It must not depend on anything but the config: every process computes the whole value.

        Args:
            name: Of the parameter within this module, such as `decay`.
            shape: Of the whole parameter.
        """
        return None

    @classmethod
    def flops_per_token(cls, config: "GPTConfig", layer: int, context: int) -> int:
        """Return the training FLOPs of one token beyond 6 for each parameter (see `counts.flops_per_token`).

        Args:
            config: The model's shape.
            layer: Which layer.
            context: Tokens in the window.
        """
        return 0


@dataclass(frozen=True)
class MixerKind:
    """A registered kind of token mixer."""

    build: type[TokenMixer]
    options: type | None = None
    """A dataclass of what `GPTConfig.mixer_options` may say about this kind; None = it has no options."""


BUILT_IN = ("attention", "sliding", "latent")
"""Kinds that every installation has: attention over the whole context, over a window, and over latents."""
_KINDS: dict[str, MixerKind] = {}


def register_token_mixer(name: str, mixer: type[TokenMixer], options: type | None = None) -> None:
    """Add a kind of token mixer that `GPTConfig.layer_types` may name.

    Call it in a module that is an entry point of the group `lit_gpt.extensions` (see `lit_gpt.extensions`), so that
    the command line finds it wherever a model with such layers is loaded.

    Args:
        name: In configs, checkpoints and exports.
        mixer: A subclass of `TokenMixer`, called with the config and the layer's number.
        options: A dataclass for the layer's own settings; its `__post_init__` checks them.

    Raises:
        UserError: If the name is taken by another mixer.

    Example:
        >>> register_token_mixer("gated_linear", GatedLinear, GatedLinearOptions)  # doctest: +SKIP
        >>> GPTConfig(layer_types=("gated_linear", "attention"))  # doctest: +SKIP
    """
    known = _KINDS.get(name)
    if known is not None and known.build is not mixer:
        raise UserError(f"token mixer {name!r} is registered already, by {known.build!r}; choose another name")
    _KINDS[name] = MixerKind(mixer, options)


def mixer_names() -> list[str]:
    """Return the names of all kinds, those of installed extensions included."""
    load_extensions()
    return sorted({*BUILT_IN, *_KINDS})


def mixer_kind(name: str) -> MixerKind:
    """Return a registered kind.

    Raises:
        UserError: If nobody has registered it; names the nearest ones.
    """
    if name not in _KINDS:
        load_extensions()
    if name not in _KINDS:
        raise UserError(
            f"layer_types names the token mixer {name!r}, which no installed package registers; "
            f"nearest: {nearest(name, mixer_names())}"
        )
    return _KINDS[name]


def mixer_options(name: str, values: Any) -> Any:
    """Return the checked options of a kind: an instance of its dataclass, or None where it has none.

    Raises:
        UserError: If an option is unknown or refused.
    """
    options = mixer_kind(name).options
    if options is None:
        if values:
            raise UserError(f"mixer_options.{name}: token mixer {name!r} has no options; leave it out")
        return None
    names = [field.name for field in fields(options)]
    for key in values or {}:
        if key not in names:
            raise UserError(f"mixer_options.{name} has no option {key!r}; nearest: {nearest(key, names)}")
    return options(**(values or {}))
