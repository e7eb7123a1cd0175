"""Load the model and tokenizer of `--model`, ready to generate."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lit_gpt.checkpoints.bundle import torch_dtype
from lit_gpt.checkpoints.resolve import ModelSource, built_model, language_model_weights, resolve_model
from lit_gpt.data.chat import ChatRenderer, load_chat_template, template_of
from lit_gpt.data.chat.template import has_template
from lit_gpt.data.tokenizers import Tokenizer, load_tokenizer
from lit_gpt.errors import UserError
from lit_gpt.generation.cache import can_truncate
from lit_gpt.generation.speculative import MultiTokenDrafts, PromptLookup, Speculation
from lit_gpt.models import GPT
from lit_gpt.models.kernel_choice import where_kept
from lit_gpt.models.multi_token import MultiTokenBlock
from lit_gpt.models.packed import prepare_for_inference


def resolve_for_generation(model: str, device: str = "auto", adapter: str | None = None) -> ModelSource:
    """Find a model; a device that is missing is refused before the model is downloaded or read.

    Arguments as for `load_for_generation`.

    Raises:
        UserError: If there is no such model or device.
    """
    choose_device(device)
    return resolve_model(model, adapter=adapter)


def load_for_generation(
    model: str | ModelSource,
    device: str = "auto",
    adapter: str | None = None,
    weights: str = "plain",
    tokens: int = 1,
    dtype: str = "keep",
) -> tuple[GPT, Tokenizer]:
    """Load a model, in eval mode, and its tokenizer.

    Args:
        model: A run's folder, a checkpoint, a bundle, a Hugging Face folder, a GGUF file, or a Hub name; or what
            `resolve_for_generation` found.
        device: Device of the model; auto uses the accelerator if there is one.
        adapter: A run, checkpoint or folder with an adapter that was trained on the model, where `model` is a name.
        weights: Form of the weights on a CPU (`lit_gpt.models.packed`); except for `plain`, the model can only generate
            and score from then on.
        tokens: Number of sequences that will decode at the same time; packed kernels are chosen for it.
        dtype: Dtype of the weights; keep: as they are stored.

    Raises:
        UserError: If there is no such model or device, or the model is damaged or has no tokenizer.
    """
    source = resolve_for_generation(model, device, adapter) if isinstance(model, str) else model
    network, tokenizer = load_source(source, device)
    if dtype != "keep":
        network = network.to(torch_dtype(dtype))
    prepare_weights(network, weights, tokens)
    return network, tokenizer


def load_speculation(
    model: GPT,
    tokenizer: Tokenizer,
    source: ModelSource,
    draft_model: str | None,
    draft_tokens: int | None,
    device: str = "auto",
    dtype: str = "keep",
    compile: bool = False,
) -> Speculation | None:
    """Return the speculation of `--draft_model` and `--draft_tokens`; without either, the default one.

    The default is prompt lookup for a single sequence on a CPU, while it is right often enough to be faster. A given
    number of tokens is proposed by the draft model; else, for a single sequence, by the model's own
    multi-token-prediction block if it has one; else by prompt lookup.

    Args:
        model: The model that verifies.
        tokenizer: Its tokenizer.
        source: What the model was loaded from.
        draft_model: A smaller model with the same tokenizer, or None.
        draft_tokens: Number of tokens to propose at a time; 0 = none, None = by default.
        device: Device of the draft model.
        dtype: Dtype of the draft model's weights.
        compile: Whether the model is compiled, which verification is not.

    Raises:
        UserError: If there is no such draft model, it has another tokenizer or a recurrent layer, or the number of
            tokens is out of bounds.
    """
    if draft_model is not None:
        return Speculation.of(tokenizer, draft_tokens or 4, load_for_generation(draft_model, device, dtype=dtype))
    if draft_tokens is None:
        if compile or model.wte.weight.device.type != "cpu" or not can_truncate(model):
            return None
        return Speculation(PromptLookup(shortest=2, adaptive=True), num_tokens=8, most_rows=1)
    if draft_tokens == 0:
        return None
    # Compiled decoding returns no hidden states; and the block proposes for one sequence after another.
    block = None if compile else load_multi_token(model, source)
    if block is None:
        return Speculation(PromptLookup(), draft_tokens)
    return Speculation(MultiTokenDrafts(model, block), draft_tokens, most_rows=1)


def load_multi_token(model: GPT, source: ModelSource) -> MultiTokenBlock | None:
    """Return the first multi-token-prediction block of a model, on its device; None if there is none that fits.

    Args:
        model: The model as loaded for generation, which has no such blocks.
        source: Where its weights are: of a run or checkpoint, since exports leave these blocks out.
    """
    if not source.config.multi_token or source.quantized is not None:
        return None
    weights = {
        name.removeprefix("multi_token.0."): tensor
        for name, tensor in source.load_state_dict().items()
        if name.startswith("multi_token.0.")
    }
    with torch.device("meta"):
        block = MultiTokenBlock(replace(source.config, dropout=0.0), 1).eval().requires_grad_(False)
    own = {name: tensor.shape for name, tensor in block.state_dict().items()}
    if own != {name: tensor.shape for name, tensor in weights.items()}:  # of a module that builds its own parts
        return None
    block.load_state_dict(weights, assign=True)
    return block.to(model.wte.weight.device, model.state_dtype or model.wte.weight.dtype)


def load_source(
    source: ModelSource, device: str = "auto", weights: str = "plain", tokens: int = 1
) -> tuple[GPT, Tokenizer]:
    """Load a resolved model, in eval mode, and its tokenizer.

    Args:
        source: Result of `resolve_model`; skipped checkpoints are reported on standard error.
        device: Device of the model; auto uses the accelerator if there is one.
        weights: As in `load_for_generation`.
        tokens: As in `load_for_generation`.

    Raises:
        UserError: If the model is damaged, is not a language model, or has no tokenizer.
    """
    place = choose_device(device)
    for problem in source.damaged:
        print(f"skipped: {problem}", file=sys.stderr)
    tokenizer = source_tokenizer(source)
    if tokenizer is None:
        raise UserError(f"{source.path} has no tokenizer, so it cannot read a prompt")
    if source.quantized is not None:
        tensors: Mapping[str, Tensor] = source.quantized.load_weights(place)
    else:
        tensors = language_model_weights(source)
    network = built_model(source, tensors).to(place)
    prepare_weights(network, weights, tokens)
    return network, tokenizer


def prepare_weights(network: GPT, weights: str, tokens: int = 1) -> None:
    """Convert a loaded model's weights to the form that decodes fastest on this machine, and print which that is.

    Args:
        network: Frozen model in eval mode, on its device.
        weights: As in `load_for_generation`.
        tokens: As in `load_for_generation`.

    Raises:
        UserError: If the requested form is not possible on this machine.
    """
    done = prepare_for_inference(network, weights, tokens)
    if done is not None:
        print(f"weights: {done} (measured once, {where_kept()}; --weights chooses another form)", file=sys.stderr)


def source_tokenizer(source: ModelSource) -> Tokenizer | None:
    """Return a model's tokenizer, which adds the same special tokens as in training; None = the model has none."""
    if source.tokenizer_path is None:
        return None
    tokenizer = load_tokenizer(source.tokenizer_path)
    if "imported_from" in (source.lineage or {}):
        tokenizer.as_published(source.carried.eos_token_ids)
    return tokenizer


def choose_device(device: str) -> torch.device:
    """Return the named device; auto is the accelerator if there is one.

    Raises:
        UserError: This machine has no such device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, is_there in available.items() if is_there)
    if not available.get(device.partition(":")[0], True):
        raise UserError(
            f"device is {device}, which torch {torch.__version__} does not find here; use --device auto or --device "
            "cpu (`python -m lit_gpt doctor` lists the devices)"
        )
    return torch.device(device)


def first_command(model: str | Path, tokenizer_path: Path | None) -> str:
    """Return the command to try a model with: `chat` if its tokenizer has a chat template, otherwise `generate`."""
    name = shlex.quote(str(model))
    if tokenizer_path is not None and has_template(load_tokenizer(tokenizer_path)):
        return f"python -m lit_gpt chat --model {name}"
    return f'python -m lit_gpt generate --model {name} --prompt "..."'


def make_renderer(tokenizer: Tokenizer, chat_template: str | None) -> ChatRenderer | None:
    """Return the model's chat template with its tokenizer; None = it has none, and none is given.

    Args:
        tokenizer: The model's tokenizer.
        chat_template: A preset's name or a file, instead of the tokenizer's template.

    Raises:
        UserError: If the template does not fit the tokenizer.
    """
    if chat_template is None and not has_template(tokenizer):
        return None
    template = template_of(tokenizer) if chat_template is None else load_chat_template(chat_template)
    renderer = ChatRenderer(tokenizer, template)
    if chat_template is not None:
        renderer.check()
    renderer.stop_ids  # noqa: B018 (reject a template without an end of answer now, not at the first request)
    return renderer


def short_name(model: str) -> str:
    """Return a folder's last name (for a checkpoint, its run's), or a Hub name unchanged."""
    folder = Path(model).expanduser()
    if not folder.exists():
        return model
    folder = folder.resolve()
    if folder.suffix == ".ckpt" and folder.parent.name == "checkpoints":
        return folder.parent.parent.name
    return folder.name
