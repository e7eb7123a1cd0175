"""Import a Hugging Face model or a GGUF file as a bundle."""

from typing import Literal


def import_(model: str, out: str, dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep") -> None:
    """Convert a Hugging Face model or a GGUF file to a bundle, ready for `init_from`, `generate` and `export`.

    Weights are read and written one at a time, so models larger than memory can be imported. Tokenizer, chat template,
    special tokens and generation_config.json are copied unchanged. Quantized weights of a GGUF file are dequantized.

    Args:
        model: folder with `config.json` and weights, GGUF file, or name on the Hugging Face Hub.
        out: output folder of the bundle; it must not exist.
        dtype: data type of the weights; keep: as they are stored, quantized ones as float32.
    """
    from lit_gpt.checkpoints.bundle import save_bundle
    from lit_gpt.checkpoints.huggingface import LazyWeights
    from lit_gpt.checkpoints.resolve import resolve_model
    from lit_gpt.errors import UserError
    from lit_gpt.generation.loading import first_command

    source = resolve_model(model)
    if source.kind not in ("hugging_face", "gguf"):
        raise UserError(f"{model} is already a lit_gpt {source.kind}; use `export` to write it as a bundle")
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
        print(f"skipped {len(weights.left_out)} tensors outside the language model: {weights.left_out[0]}, ...")
    if source.tokenizer_path is None:
        print(f"{model} has no tokenizer, so the bundle has none either")
    else:
        print(f"next: {first_command(bundle, source.tokenizer_path)}")
