"""Bring a Hugging Face model into the project."""

from typing import Literal


def import_(model: str, out: str, dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep") -> None:
    """Turn a Hugging Face folder or hub name into a bundle, ready for `init_from`, `generate` and `export`.

    Weights are read and written one at a time, so a model larger than memory can be imported. Tokenizer, chat
    template, special tokens and generation_config.json come along as they are.

    Args:
        model: a folder with `config.json` and weights, or a name on the Hugging Face hub.
        out: the bundle's folder; it must not exist.
        dtype: of the weights; keep: as they are stored.
    """
    from lit_gpt.checkpoints.bundle import save_bundle
    from lit_gpt.checkpoints.huggingface import LazyWeights
    from lit_gpt.checkpoints.resolve import resolve_model
    from lit_gpt.errors import UserError

    source = resolve_model(model)
    if source.kind != "hugging_face":
        raise UserError(f"{model} is a {source.kind} of lit_gpt already; to write a bundle of it, use `export`")
    weights = source.load_state_dict()
    bundle = save_bundle(
        out,
        source.config,
        weights,
        source.tokenizer_path,
        source.lineage,
        None if dtype == "keep" else dtype,
        carried=source.carried,
    )
    print(f"{source.config.num_parameters():,} parameters of {model} -> {bundle}")
    if isinstance(weights, LazyWeights) and weights.left_out:
        print(f"left out {len(weights.left_out)} tensors that are not the language model's: {weights.left_out[0]}, ...")
    if source.tokenizer_path is None:
        print(f"{model} has no tokenizer beside it, so the bundle has none")
    else:
        print(f'next: python -m lit_gpt generate --model {bundle} --prompt "..."')
