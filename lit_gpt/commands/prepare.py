"""`prepare`: raw documents → clean, deduplicated, decontaminated token shards and a data card."""

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
    """Prepare a corpus: raw documents in, clean token shards and a data card out.

    Args:
        out: folder of the corpus: documents/, tokenizer/, tokens/, card.json, card.html. Started again, it resumes.
        sources: where the documents come from: a list of mappings with one of files, html, warc, hub, code, stdlib,
            class_path, its options, and what you declare: name, license, language. `--explain sources` says more.
        steps: what happens to them, in order: a list of `name: {options}`. `--explain steps` lists them,
            `--explain near_duplicates` shows one with its options.
        tokenizer: folder, file or hub name of a tokenizer; or the settings of a byte-level BPE to train on the clean
            train split ({vocab_size: 16384, pattern: gpt2, sample_megabytes: 256, ...}); null stops at clean text.
        val_fraction: share of the documents held out for validation, by the hash of their text.
        test_fraction: share held out for the test.
        on_bad_input: what happens at a file or row that cannot be read: error stops and names it, skip counts it.
        seed: for the filters that draw at random (near_duplicates); null leaves each its own.
        keep_rejected: keep the texts of dropped documents in steps/rejected/, with id and reason.
        shard_megabytes: text of one shard of documents, which is what one task works on; null chooses by the size
            of the input. (Not by the number of workers: the bytes are the same for any.)
        expected_gigabytes: text of all sources, where they cannot know it (streams), to check the free disk space.
        executor: where it runs; the result is the same.
        overwrite: delete what another recipe, or other input, left in out.
        explain: print what `sources`, `steps`, or one of them by name is and takes, and stop; without a
            name, list the topics.
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
