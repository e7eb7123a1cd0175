"""Export a model to the formats of other projects."""

from typing import Literal


def export(
    model: str,
    out: str,
    format: Literal["hf", "gguf", "torch", "adapter"] = "hf",
    adapter: str | None = None,
    dtype: Literal["keep", "float32", "bfloat16", "float16", "q8_0"] = "keep",
    check: bool = True,
    allow_failed_gate: bool = False,
    brief: str | None = None,
) -> None:
    """Export a model for transformers, vLLM, llama.cpp, torch.export or peft, verified and with a model card.

    An imported model keeps its chat template, special tokens and generation_config.json. An adapter is merged into its
    base model, except with `--format adapter`. A model that failed an evaluation gate is rejected.

    Args:
        model: run folder, checkpoint, bundle, Hugging Face folder, GGUF file, or Hub name.
        out: output folder, or output file for gguf (`my-gpt.gguf`) and torch (`my-gpt.pt2`); it must not exist.
        format: hf: a Hugging Face folder, which is also a lit_gpt bundle; gguf: one file for llama.cpp; torch: a
            torch.export program with dynamic batch size and length; adapter: only the adapter (the one given by
            `adapter`, or `model` itself if it was trained as one), in peft's format.
        adapter: run, checkpoint or peft folder with an adapter trained on the model.
        dtype: data type of the weights; keep: as they were trained; q8_0: 8 bits in blocks of 32, gguf only.
        check: reload the exported files and compare them with the model before reporting success (hf: logits in
            transformers; torch: logits of the program; gguf: every tensor); false if two copies do not fit in memory.
        allow_failed_gate: export a model that failed its gate; the model card then says so.
        brief: project brief of `plan init`: its use and languages go into the model card; where it says that a wrong
            answer is costly, a model that passed no gate is rejected.
    """
    from lit_gpt.evaluation.release import export_model

    for line in export_model(model, out, format, adapter, dtype, check, allow_failed_gate, brief):
        print(line)
