"""An exported folder, opened as whoever gets it will: `AutoModelForCausalLM`, its logits against ours."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch
from torch import Tensor

from lit_gpt.checkpoints.quantization.scheme import need_torchao
from lit_gpt.checkpoints.resolve import finished_model
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig
from lit_gpt.models.precision import converted

_TOKENS = 64
_MOST_TOKENS = 512
_TOLERANCE = 1e-3
"""Largest difference, as a share of the largest logit: both compute in float32, in another order."""


def check_memory(config: GPTConfig) -> None:
    """Refuse, before anything is written, a comparison that the memory is too small for.

    Raises:
        UserError: two copies in float32 need more than is free.
    """
    needed, free = 2 * 4 * config.num_parameters(), psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"comparing the export with the model needs {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are "
            "free; --check false writes it one tensor at a time, without the comparison"
        )


def check_opens(
    folder: Path, config: GPTConfig, state_dict: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> float:
    """Compare the logits of an exported folder in `transformers` with those of the model that it was written from.

    Two rows of random tokens, long enough to leave a sliding window of up to 500; both models compute in float32, with
    the weights as they were written.

    Args:
        folder: What `export_hf` wrote.
        config: The model's.
        state_dict: Its whole weights under our names.
        dtype: That they were converted to; None: none.

    Returns:
        The largest difference of logits.

    Raises:
        UserError: they differ, or transformers does not open the folder.
    """
    window = config.sliding_window or 0
    length = min(config.block_size, max(_TOKENS, min(window + 8, _MOST_TOKENS)))
    ids = torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    ours = _logits_of_ours(config, state_dict, dtype, ids)
    theirs = _logits_of_theirs(folder, ids)
    difference = float((ours - theirs).abs().max())
    largest = float(ours.abs().max())
    if not difference <= _TOLERANCE * max(1.0, largest):  # not a number is no agreement either
        raise UserError(
            f"the exported model does not compute what this one does: transformers' logits differ by {difference:.3g} "
            f"where the largest is {largest:.3g}; nothing was written. This is a fault of the export: please report it "
            "with the model's config.json (--check false writes the folder all the same)"
        )
    return difference


def _logits_of_ours(
    config: GPTConfig, state_dict: Mapping[str, Tensor], dtype: torch.dtype | None, ids: Tensor
) -> Tensor:
    weights = {name: converted(name, state_dict[name].detach().cpu(), dtype).float() for name in state_dict}
    with torch.inference_mode():
        logits: Tensor = finished_model(config, weights)(ids)
    return logits


def _logits_of_theirs(folder: Path, ids: Tensor) -> Tensor:
    import transformers

    if find_spec("torchao") is not None:  # which transformers would import less quietly
        need_torchao("transformers.quantizers.auto")
    transformers.utils.logging.disable_progress_bar()
    try:
        # eager: the only attention that computes soft-caps and sinks for every family
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"transformers does not open the exported folder: {reason}; nothing was written") from error
    finally:
        transformers.utils.logging.enable_progress_bar()
    with torch.inference_mode():
        logits: Tensor = model.eval()(ids).logits.float()
    return logits
