"""Write a model that other projects open."""

from typing import Literal


def export(
    model: str,
    out: str,
    format: Literal["hf", "gguf", "torch", "adapter"] = "hf",
    adapter: str | None = None,
    dtype: Literal["keep", "float32", "bfloat16", "float16", "q8_0"] = "keep",
    check: bool = True,
    allow_failed_gate: bool = False,
) -> None:
    """Write a model for transformers, vLLM, llama.cpp, torch.export or peft, checked, with a model card.

    A model that was imported keeps its chat template, special tokens and generation_config.json. An adapter is merged
    into its base, except by `--format adapter`. A model that has missed the gate of a plan is refused.

    Args:
        model: a run's folder, a checkpoint, a bundle, or a Hugging Face folder or hub name.
        out: the folder to write, or the file of gguf (`my-gpt.gguf`) and torch (`my-gpt.pt2`); it must not exist.
        format: hf: a Hugging Face folder, which is a bundle of ours as well; gguf: one file for llama.cpp; torch: a
            program of torch.export with free batch and length; adapter: the adapter alone (of `adapter`, or of a
            `model` that was trained as one), in peft's format.
        adapter: a run, checkpoint or peft folder with an adapter that was trained on the model.
        dtype: of the weights; keep: as they were trained; q8_0: 8 bits in blocks of 32, for gguf alone.
        check: open what was written (hf: in transformers, torch: as a program, gguf: tensor by tensor) and compare it
            with the model before it is called done; false for a model that does not fit into memory twice.
        allow_failed_gate: export a model that has missed its gate; its card says so.
    """
    from lit_gpt.evaluation.release import export_model

    for line in export_model(model, out, format, adapter, dtype, check, allow_failed_gate):
        print(line)
