"""`layer_types` in config.json: which layers slide, and what a window says that is no shorter than the context."""

from collections.abc import Sequence
from typing import Any

from lit_gpt.checkpoints.huggingface.rope import FULL, SLIDING
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig


def read_layers(types: Sequence[str], window: int | None, block_size: int, keep: bool = False) -> dict[str, Any]:
    """`sliding_window` and `layer_windows`, in their shortest form.

    Args:
        types: The kind of each layer.
        window: In tokens; None = no layer slides.
        block_size: The longest context: a window as long as that hides nothing, and is read as none.
        keep: Cut such a window to the context instead, because sliding layers differ in more than it (Gemma 3).

    Raises:
        UserError: If a layer is of another kind.
    """
    unknown = sorted(set(types) - {FULL, SLIDING})
    if unknown:
        raise UserError(f"config.json has layer_types {', '.join(unknown)}; lit_gpt computes {FULL} and {SLIDING}")
    slides = [kind == SLIDING for kind in types]
    if window is None or not any(slides) or (window >= block_size and not keep):
        return {"sliding_window": None, "layer_windows": None}
    pattern = shortest_pattern(slides)
    return {"sliding_window": min(window, block_size), "layer_windows": None if pattern == (True,) else pattern}


def write_layers(config: GPTConfig, needs_window: bool = False) -> dict[str, Any]:
    """The inverse: `sliding_window` and `layer_types`.

    Args:
        config: The model's shape.
        needs_window: Their class wants a number even where no layer slides; the context's length says nothing.
    """
    window = config.block_size if config.sliding_window is None and needs_window else config.sliding_window
    types = [SLIDING if config.slides(layer) else FULL for layer in range(config.n_layer)]
    return {"sliding_window": window, "layer_types": types}


def shortest_pattern(flags: Sequence[bool]) -> tuple[bool, ...]:
    """The shortest beginning that gives all of the flags when it is repeated over the layers."""
    for length in range(1, len(flags)):
        if all(flag == flags[i % length] for i, flag in enumerate(flags)):
            return tuple(flags[:length])
    return tuple(flags)
