"""From `--model` to a model that writes."""

import sys
from dataclasses import replace

import torch

from lit_gpt.checkpoints.resolve import language_model_weights, resolve_model
from lit_gpt.data.tokenizers import Tokenizer, load_tokenizer
from lit_gpt.errors import UserError
from lit_gpt.models import GPT


def load_for_generation(model: str, device: str = "auto", adapter: str | None = None) -> tuple[GPT, Tokenizer]:
    """Load a model, in eval mode, and its tokenizer.

    Args:
        model: A run's folder, a checkpoint, a bundle, or a Hugging Face folder or hub name.
        device: Where to run; auto takes the accelerator if there is one.
        adapter: A run, checkpoint or folder with an adapter that was trained on the model.

    Raises:
        UserError: There is no such model, it is damaged, or has no tokenizer.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    source = resolve_model(model, adapter=adapter)
    for problem in source.damaged:
        print(f"passed over: {problem}", file=sys.stderr)
    if source.tokenizer_path is None:
        raise UserError(f"{source.path} has no tokenizer beside it, so it cannot read a prompt")
    tokenizer = load_tokenizer(source.tokenizer_path)
    if source.kind == "hugging_face" or "imported_from" in (source.lineage or {}):
        tokenizer.as_published(source.carried.eos_token_ids)
    with torch.device("meta"):
        network = GPT(replace(source.config, dropout=0.0))
    network.load_state_dict(language_model_weights(source), assign=True)
    return network.to(device).eval().requires_grad_(False), tokenizer
