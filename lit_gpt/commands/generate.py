"""Continue a prompt with a trained model."""

from typing import Literal


def generate(
    model: str,
    prompt: str = "",
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = 0.95,
    num_samples: int = 1,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> None:
    """Continue a prompt with a trained model, printed as it is written.

    Args:
        model: a run's folder, a checkpoint, a bundle, or a Hugging Face folder or hub name.
        prompt: text to go on from; empty: the start of a document.
        max_new_tokens: tokens to write at most; the end-of-text token ends it sooner.
        temperature: of the softmax; 0 takes the likeliest token each time.
        top_k: sample among the k likeliest tokens.
        top_p: sample among the likeliest tokens that together have this probability.
        num_samples: continuations to write, each after a line that numbers it.
        seed: of the sampling.
        device: where to run; auto takes the accelerator if there is one.
    """
    import sys

    import torch

    from lit_gpt.checkpoints.resolve import resolve_model
    from lit_gpt.data.tokenizers import load_tokenizer
    from lit_gpt.errors import UserError
    from lit_gpt.generation import stream_text
    from lit_gpt.models import GPT

    if num_samples < 1:
        raise UserError(f"num_samples must be at least 1; got {num_samples}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    source = resolve_model(model)
    for problem in source.damaged:
        print(f"passed over: {problem}", file=sys.stderr)
    if source.tokenizer_path is None:
        raise UserError(f"{source.path} has no tokenizer beside it, so it cannot read a prompt")
    tokenizer = load_tokenizer(source.tokenizer_path)
    with torch.device("meta"):
        network = GPT(source.config)
    network.load_state_dict(source.load_state_dict(), assign=True)
    network = network.to(device).eval()
    for sample in range(num_samples):
        if num_samples > 1:
            print(f"--- sample {sample + 1} of {num_samples}")
        print(prompt, end="", flush=True)
        for piece in stream_text(
            network,
            tokenizer,
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed + sample,
        ):
            print(piece, end="", flush=True)
        print()
