"""Write a model that other projects open."""

from typing import Literal


def export(model: str, out: str, dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep") -> None:
    """Write a bundle: a Hugging Face folder (`AutoModelForCausalLM` opens it) with tokenizer and lineage.

    Args:
        model: a run's folder, a checkpoint or a bundle.
        out: the bundle's folder; it must not exist.
        dtype: of the weights; keep: as they were trained.
    """
    from lit_gpt.checkpoints.bundle import save_bundle
    from lit_gpt.checkpoints.resolve import resolve_model

    source = resolve_model(model)
    bundle = save_bundle(
        out,
        source.config,
        source.load_state_dict(),
        source.tokenizer_path,
        source.lineage,
        None if dtype == "keep" else dtype,
    )
    print(f"{source.path} -> {bundle}")
    print(f"next: transformers.AutoModelForCausalLM.from_pretrained({str(bundle)!r})")
