"""Verify an exported folder: load it with `AutoModelForCausalLM` and compare its logits with the model's."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from lit_gpt.checkpoints.quantization.scheme import need_torchao
from lit_gpt.checkpoints.resolve import finished_model
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig
from lit_gpt.models.precision import converted
from lit_gpt.planning.free_memory import free_memory

_MIN_TOKENS = 64
_MAX_TOKENS = 512
_TOLERANCE = 1e-3
"""Largest allowed difference relative to the largest logit: both use float32, but a different order of operations."""


def check_memory(config: GPTConfig) -> None:
    """Check that there is enough free memory for the comparison, before anything is written.

    Raises:
        UserError: If two copies of the model in float32 do not fit in free memory.
    """
    needed, free = 2 * 4 * config.num_parameters(), free_memory()
    if needed > free:
        raise UserError(
            f"comparing the export with the model needs {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are "
            "free; --check false writes it one tensor at a time, without the comparison"
        )


def check_opens(
    folder: Path, config: GPTConfig, state_dict: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> float:
    """Compare the logits of an exported folder in `transformers` with those of the original model.

    Both models process two sequences of random tokens, longer than a sliding window of up to 500 tokens, in float32 and
    with the weights as they were exported.

    Args:
        folder: Folder written by `export_hf`.
        config: The model's configuration.
        state_dict: Its complete weights under lit_gpt's names.
        dtype: Dtype to which they were converted on export; None: not converted.

    Returns:
        The largest absolute difference of the logits.

    Raises:
        UserError: If the logits differ, or transformers cannot load the folder.
    """
    window = config.sliding_window or 0
    length = min(config.block_size, max(_MIN_TOKENS, min(window + 8, _MAX_TOKENS)))
    ids = torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    local = _local_logits(config, state_dict, dtype, ids)
    exported = _hf_logits(folder, ids)
    difference = float((local - exported).abs().max())
    largest = float(local.abs().max())
    if not difference <= _TOLERANCE * max(1.0, largest):  # also when the difference is NaN
        raise UserError(
            f"the exported model is not equivalent: transformers' logits differ by {difference:.3g}, where the largest "
            f"is {largest:.3g}; nothing was written. This is a bug in the export: please report it with the model's "
            "config.json (--check false writes the folder anyway)"
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

    if find_spec("torchao") is not None:  # import it silently first; transformers would print its warnings
        need_torchao("transformers.quantizers.auto")
    transformers.utils.logging.disable_progress_bar()
    try:
        # eager: the only attention implementation with soft-caps and sinks in every family
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"transformers cannot load the exported folder: {reason}; nothing was written") from error
    finally:
        transformers.utils.logging.enable_progress_bar()
    with torch.inference_mode():
        logits: Tensor = model.eval()(ids).logits.float()
    return logits
