"""Write a model that other projects open."""

from typing import Literal


def export(
    model: str,
    out: str,
    adapter: str | None = None,
    adapter_only: bool = False,
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep",
) -> None:
    """Write a bundle: a Hugging Face folder (`AutoModelForCausalLM` opens it) with tokenizer and lineage.

    A model that was imported keeps its chat template, special tokens and generation_config.json. An adapter is merged
    into its base, or written alone in peft's format.

    Args:
        model: a run's folder, a checkpoint, a bundle, or a Hugging Face folder or hub name.
        out: the bundle's folder; it must not exist.
        adapter: a run, checkpoint or peft folder with an adapter that was trained on the model.
        adapter_only: write the adapter alone (of `adapter`, or of a `model` that was trained as one).
        dtype: of the weights; keep: as they were trained.
    """
    from lit_gpt.checkpoints.bundle import save_bundle
    from lit_gpt.checkpoints.resolve import language_model_weights, resolve_adapter, resolve_model

    if adapter_only:
        from lit_gpt.checkpoints.adapters import save_peft_folder

        saved = resolve_adapter(model if adapter is None else adapter)
        folder = save_peft_folder(out, saved)
        print(f"{saved.path} -> {folder}")
        print(f"next: python -m lit_gpt generate --model {saved.base} --adapter {folder}")
        return
    source = resolve_model(model, adapter=adapter)
    bundle = save_bundle(
        out,
        source.config,
        language_model_weights(source),
        source.tokenizer_path,
        source.lineage,
        None if dtype == "keep" else dtype,
        carried=source.carried,
    )
    print(f"{source.path} -> {bundle}")
    print(f"next: transformers.AutoModelForCausalLM.from_pretrained({str(bundle)!r})")
