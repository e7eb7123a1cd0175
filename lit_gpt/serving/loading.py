"""From `--model` to a model that is served."""

from lit_gpt.checkpoints.bundle import DTYPES
from lit_gpt.generation import Engine, Speculation
from lit_gpt.generation.loading import load_for_generation, make_renderer, short_name
from lit_gpt.serving.model import ServedModel

DRAFT_TOKENS = 4
"""That a draft model proposes at a time, where nothing else is said."""


def load_served(
    model: str,
    adapter: str | None = None,
    name: str | None = None,
    chat_template: str | None = None,
    device: str = "auto",
    dtype: str = "keep",
    max_batch_size: int = 16,
    cache_tokens: int | None = None,
    prefill_chunk: int = 512,
    compile: bool = False,
    draft_model: str | None = None,
    draft_tokens: int = 0,
) -> ServedModel:
    """Load a model, verified by its manifest, and start its engine.

    Args:
        model: A run's folder, a checkpoint, a bundle, or a Hugging Face folder or hub name.
        adapter: A folder with an adapter to put on it.
        name: That requests name it by; None: its folder's name.
        chat_template: A preset's name or a file, instead of the tokenizer's own.
        device: Where to run; auto takes the accelerator if there is one.
        dtype: Of the weights; keep: as they are.
        max_batch_size: Sequences that run at once.
        cache_tokens: Room of the key/value cache; None: a full context for each of them.
        prefill_chunk: Prompt tokens read in one step.
        compile: Decode through torch.compile with fixed shapes.
        draft_model: A smaller model with the same tokenizer that proposes tokens for this one to verify.
        draft_tokens: To propose at a time; without a draft model they are looked up in the text so far; 0: none.

    Raises:
        UserError: There is no such model, it is damaged, has no tokenizer, or a setting does not fit it.
    """
    network, tokenizer = load_for_generation(model, device, adapter)
    if dtype != "keep":
        network = network.to(DTYPES[dtype])
    renderer = make_renderer(tokenizer, chat_template)
    speculation = None
    if draft_model is not None or draft_tokens:
        draft = None if draft_model is None else load_for_generation(draft_model, device)
        speculation = Speculation.of(tokenizer, draft_tokens or DRAFT_TOKENS, draft)
    engine = Engine(
        network,
        tokenizer,
        max_batch_size,
        cache_tokens,
        prefill_chunk,
        compile=compile,
        speculation=speculation,
    )
    return ServedModel.of(name or short_name(model), network, tokenizer, engine, renderer)
