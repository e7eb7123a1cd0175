"""Quantize a model's weights to 8 or 4 bits."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lit_gpt.checkpoints.quantization import Quantization
    from lit_gpt.checkpoints.resolve import ModelSource
    from lit_gpt.evaluation.language_modeling import ModelCost


def quantize(
    model: str,
    out: str,
    method: Literal["int8", "int4", "int8_dynamic", "fp8"] | None = None,
    group_size: int | None = None,
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep",
    files: list[str] | None = None,
    documents: int = 24,
    max_increase: float | None = None,
    measure: bool = True,
    measure_minutes: float = 2.0,
    adapter: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> None:
    """Write a bundle with linear layers in 8 or 4 bits, and report the change in size, quality and speed.

    `generate`, `chat`, `serve` and `evaluate` load the bundle like any model; training and export need the original.
    Size, bits per byte and decoding speed are printed for both models, loaded as those commands do (on a CPU, with
    `--weights auto`). The embedding, norms and experts of a
    mixture are not quantized.

    Args:
        model: run folder, checkpoint, bundle, Hugging Face folder, GGUF file, or Hub name.
        out: output folder of the bundle; it must not exist.
        method: int8: 8-bit weights; int4: 4-bit weights in groups; int8_dynamic: 8-bit weights, and activations
            quantized to 8 bits on the fly; fp8: weights and activations in 8-bit floats (Ada and Hopper GPUs); null:
            the method that the model was trained for (QuantizationAware), otherwise int8.
        group_size: number of a layer's inputs that share a scale, for int8 and int4; null: 32 for int4, otherwise all.
        dtype: data type of the tensors that are not quantized, and of the computation; keep: that of the weights.
        files: texts on which bits per byte is measured (files, folders, glob patterns); null: the documents of the
            standard library that a run with the default split holds out.
        documents: maximum number of documents to measure on, each up to about 3,000 characters.
        max_increase: largest allowed increase in bits per byte, beyond which nothing is written; null: no limit.
        measure: whether to measure bits per byte and decoding speed before and after; false skips the measurement and
            streams the model one tensor at a time.
        measure_minutes: time for all measurements, roughly; fewer documents and tokens are measured if these take
            longer.
        adapter: run, checkpoint or peft folder with an adapter to merge into the model first; null: none.
        device: device to quantize and measure on; auto uses the accelerator if there is one.
    """
    from lit_gpt.checkpoints.bundle import check_free, torch_dtype
    from lit_gpt.checkpoints.model_card import CardFacts
    from lit_gpt.checkpoints.provenance import write_manifest
    from lit_gpt.checkpoints.quantization import check_scheme, save_quantized_bundle
    from lit_gpt.checkpoints.resolve import exportable_weights, resolve_model, training_facts
    from lit_gpt.checks import check_above, check_at_least, local_path
    from lit_gpt.errors import UserError
    from lit_gpt.evaluation.language_modeling import measure_cost
    from lit_gpt.evaluation.progress import ProgressBars
    from lit_gpt.evaluation.texts import Texts
    from lit_gpt.generation.loading import choose_device, first_command, short_name

    if max_increase is not None and not measure:
        raise UserError("max_increase is set, so bits per byte must be measured; leave out --measure false")
    check_at_least("documents", documents, 1)
    check_above("measure_minutes", measure_minutes, 0, "--measure false skips the measurement")
    torch_device = choose_device(device)
    texts = Texts(files=files) if files else Texts(stdlib=True, split="val", name="held-out standard library")
    source = resolve_model(model, adapter=adapter)
    if source.quantized is not None:
        source.quantized.refuse_plain_weights()
    if measure and source.tokenizer_path is None:
        raise UserError(f"{model} has no tokenizer, so it cannot be measured; --measure false quantizes it anyway")
    scheme = _scheme(source, method, group_size)
    check_free(local_path("out", out))
    scheme.check_device(torch_device)
    scheme.torchao_config()
    check_scheme(source.config, scheme)
    compute_dtype = None if dtype == "keep" else torch_dtype(dtype)
    bars, before, after = ProgressBars(), None, None
    seconds = 60 * measure_minutes / 4  # documents and speed, of the original and of the result
    if measure:
        progress = bars.start("measuring the original")
        before = measure_cost(source, torch_device, texts, documents, compute_dtype, seconds, progress)

    def check(folder: Path) -> None:
        """Measure the bundle as loaded from disk, which also verifies that it can be loaded."""
        nonlocal after
        if before is None:
            return
        write_manifest(folder)
        progress = bars.start("measuring the quantized model")
        after = measure_cost(resolve_model(folder), torch_device, texts, len(before.documents), None, seconds, progress)
        _check_quality_loss(before, after, max_increase, scheme)

    try:
        sizes = save_quantized_bundle(
            out,
            source.config,
            exportable_weights(source),
            scheme,
            torch_device,
            short_name(model) if adapter is None else f"{short_name(model)} with {short_name(adapter)}",
            source.tokenizer_path,
            source.lineage,
            None if dtype == "keep" else dtype,
            source.carried,
            check,
            bars.start("quantizing"),
            CardFacts(Path(out).name, training_facts(source.path)),
        )
    finally:
        bars.close()
    print(f"{source.path} -> {out}, {scheme}")
    print(f"  weights     {_megabytes(sizes.before)} -> {_megabytes(sizes.after)} ({sizes.after / sizes.before:.0%})")
    print(f"  of which    {_megabytes(sizes.layers_before)} -> {_megabytes(sizes.layers_after)} in quantized layers")
    if before is not None and after is not None:
        _print_change(before, after, f"{texts.title}, on the beginning of each", torch_device.type)
    print(f"next: {first_command(out, source.tokenizer_path)}")


def _scheme(source: "ModelSource", method: Any, group_size: int | None) -> "Quantization":
    from lit_gpt.checkpoints.quantization import Quantization, trained_for

    if method is not None:
        return Quantization(method, group_size)
    trained = trained_for(source.path)
    if trained is None:
        return Quantization("int8", group_size)
    return trained if group_size is None else Quantization(trained.method, group_size)


def _check_quality_loss(
    before: "ModelCost", after: "ModelCost", max_increase: float | None, scheme: "Quantization"
) -> None:
    from lit_gpt.errors import UserError
    from lit_gpt.evaluation.language_modeling import increase

    first, second, _ = increase(before, after)
    rise = second.value - first.value
    if max_increase is not None and not rise <= max_increase:
        raise UserError(
            f"{scheme} raises bits per byte by {rise:.4f} ({first.value:.4f} to {second.value:.4f}), more than "
            f"max_increase {max_increase}; nothing is written. Choose int8, smaller groups, or train with the callback "
            "QuantizationAware"
        )


def _print_change(before: "ModelCost", after: "ModelCost", texts: str, device: str) -> None:
    from lit_gpt.evaluation.language_modeling import increase

    first, second, interval = increase(before, after)
    rise = second.value - first.value
    confidence = "" if interval is None else f", 95 % interval {interval.low:+.4f} to {interval.high:+.4f}"
    print(f"  bits/byte   {first.value:.4f} -> {second.value:.4f} ({rise:+.4f}{confidence})")
    print(f"              on {first.count} documents of {texts}")
    speeds = before.tokens_per_second, after.tokens_per_second
    print(f"  tokens/s    {speeds[0]:.1f} -> {speeds[1]:.1f} ({speeds[1] / speeds[0]:.2f} x; one sequence, {device})")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB"
