"""Prepare a corpus: raw documents to clean, deduplicated, decontaminated token shards and a data card."""

from typing import Any, Literal

from lit_gpt.data.pipeline.options import ExecutorOptions

_INLINE = ExecutorOptions()


def prepare(
    out: str | None = None,
    sources: list[dict[str, Any]] | None = None,
    steps: list[str | dict[str, Any]] | None = None,
    tokenizer: str | dict[str, Any] | None = {"vocab_size": 16384},  # noqa: B006 (read only)
    val_fraction: float = 0.0,
    test_fraction: float = 0.0,
    on_bad_input: Literal["error", "skip"] = "error",
    seed: int | None = None,
    keep_rejected: bool = False,
    shard_megabytes: float | None = None,
    expected_gigabytes: float | None = None,
    executor: ExecutorOptions = _INLINE,
    overwrite: bool = False,
    explain: str | None = None,
) -> None:
    """Clean and tokenize raw documents into token shards with a data card.

    Args:
        out: output folder: documents/, tokenizer/, tokens/, card.json, card.html. An interrupted run resumes there.
        sources: sources of documents: a list of mappings, each with one of files, html, warc, hub, code, stdlib,
            class_path, its options, and what you declare about it (name, license, language); see `--explain sources`.
        steps: filters and transforms to apply, in order: a list of `name: {options}`. `--explain steps` lists them,
            `--explain near_duplicates` describes one and its options.
        tokenizer: folder, file or Hub name of a tokenizer; or the settings of a byte-level BPE to train on the clean
            training split ({vocab_size: 16384, pattern: gpt2, sample_megabytes: 256, ...}); null: stop after cleaning.
        val_fraction: fraction of the documents held out for validation, chosen by the hash of their text.
        test_fraction: fraction of the documents held out for testing, chosen in the same way.
        on_bad_input: how to treat a file or row that cannot be read: error: stop and name it; skip: skip and count it.
        seed: seed of the filters that use random numbers (near_duplicates); null: each filter's default.
        keep_rejected: whether to save the text of rejected documents in steps/rejected/, with ID and reason.
        shard_megabytes: text per document shard, the unit of work of one task, in MB; null: chosen by the size of the
            input (never by the number of workers, so the output is the same for any number).
        expected_gigabytes: total text of sources whose size is unknown in advance (streams), in GB, for the check of
            free disk space.
        executor: how and where the tasks run; the result does not depend on it.
        overwrite: whether to delete the output of another recipe, or of other input, in `out`.
        explain: print the description and options of `sources`, `steps`, or one source or step (by name, or by the
            import path of a step), and exit; without a value, list the topics.
    """
    if explain is not None:
        from lit_gpt.data.pipeline.recipe import explanation

        print(explanation(explain))
        return
    from lit_gpt.extras import need

    for module in ("datatrove", "orjson", "dill", "loguru"):
        need(module, "data", "prepare")
    from lit_gpt.data.pipeline.recipe import make_recipe
    from lit_gpt.data.pipeline.run import run_recipe

    recipe = make_recipe(
        out,
        sources,
        steps,
        tokenizer,
        val_fraction,
        test_fraction,
        on_bad_input,
        seed,
        keep_rejected,
        shard_megabytes,
        expected_gigabytes,
        ExecutorOptions(**executor) if isinstance(executor, dict) else executor,  # the parser's own form
    )
    folder = run_recipe(recipe, overwrite)
    print(folder / "card.html")
