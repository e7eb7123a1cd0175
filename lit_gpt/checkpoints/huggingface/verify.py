"""Verify an exported folder: load it with `AutoModelForCausalLM` and compare its logits with the model's."""

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
"""Largest difference relative to the largest logit: both compute in float32, but in another order."""


def check_memory(config: GPTConfig) -> None:
    """Raise, before anything is written, if memory is too small for the comparison.

    Raises:
        UserError: If two copies in float32 need more than is free.
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
    """Compare an exported folder's logits in `transformers` with those of the model that it was written from.

    Both models compute two rows of random tokens, longer than a sliding window of up to 500 tokens, in float32 with the
    weights as they were written.

    Args:
        folder: What `export_hf` wrote.
        config: The model's shape.
        state_dict: Its whole weights under our names.
        dtype: What they were converted to on export; None: not converted.

    Returns:
        The largest absolute difference of logits.

    Raises:
        UserError: If they differ, or transformers does not open the folder.
    """
    window = config.sliding_window or 0
    length = min(config.block_size, max(_TOKENS, min(window + 8, _MOST_TOKENS)))
    ids = torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    local = _local_logits(config, state_dict, dtype, ids)
    exported = _hf_logits(folder, ids)
    difference = float((local - exported).abs().max())
    largest = float(local.abs().max())
    if not difference <= _TOLERANCE * max(1.0, largest):  # also when the difference is NaN
        raise UserError(
            f"the exported model does not compute what this one does: transformers' logits differ by {difference:.3g} "
            f"where the largest is {largest:.3g}; nothing was written. This is a fault of the export: please report it "
            "with the model's config.json (--check false writes the folder all the same)"
        )
    return difference


def _local_logits(
    config: GPTConfig, state_dict: Mapping[str, Tensor], dtype: torch.dtype | None, ids: Tensor
) -> Tensor:
    weights = {name: converted(name, state_dict[name].detach().cpu(), dtype).float() for name in state_dict}
    with torch.inference_mode():
        logits: Tensor = finished_model(config, weights)(ids)
    return logits


def _hf_logits(folder: Path, ids: Tensor) -> Tensor:
    import transformers

    if find_spec("torchao") is not None:  # import it first, quietly: transformers would print its warnings
        need_torchao("transformers.quantizers.auto")
    transformers.utils.logging.disable_progress_bar()
    try:
        # eager: the only attention that computes soft-caps and sinks in every family
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
