"""Bring a Hugging Face model into the project."""


def import_(model: str, out: str) -> None:
    """Turn a Hugging Face folder or hub name into a bundle, ready for `init_from`, `generate` and `export`.

    Args:
        model: a folder with `config.json` and weights, or a name on the Hugging Face hub.
        out: the bundle's folder; it must not exist.
    """
    from lit_gpt.checkpoints.bundle import save_bundle
    from lit_gpt.checkpoints.resolve import resolve_model
    from lit_gpt.errors import UserError

    source = resolve_model(model)
    if source.kind != "hugging_face":
        raise UserError(f"{model} is a {source.kind} of lit_gpt already; to write a bundle of it, use `export`")
    bundle = save_bundle(out, source.config, source.load_state_dict(), source.tokenizer_path, {"imported_from": model})
    print(f"{source.config.num_parameters():,} parameters of {model} -> {bundle}")
    print(f'next: python -m lit_gpt generate --model {bundle} --prompt "..."')
