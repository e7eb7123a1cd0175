"""Train byte-level BPE tokenizers, and measure tokenizers on text."""

from typing import Literal

from lit_gpt.data.tokenizer_sample import WeightedFiles


def train(
    files: list[str] | None = None,
    out: str = "tokenizer",
    vocab_size: int = 4096,
    text_field: str = "text",
    document_separator: str | None = None,
    pattern: Literal["gpt2", "gpt4"] = "gpt2",
    special_tokens: list[str] | None = None,
    sample_megabytes: int = 256,
    val_fraction: float = 0.0,
    test_fraction: float = 0.0,
    on_bad_input: Literal["error", "skip"] = "error",
    mixture: list[WeightedFiles] | None = None,
    split_digits: bool = False,
    chat_tokens: Literal["chatml", "llama3"] | None = None,
) -> None:
    """Train a byte-level BPE tokenizer and write it as a Hugging Face tokenizer folder.

    Args:
        files: files, folders or glob patterns: text, code, JSON, JSON lines, CSV, Parquet or Arrow, also compressed.
        out: output folder; it must be empty or not exist.
        vocab_size: number of entries, including the 256 bytes and the special tokens.
        text_field: field or column that holds the text, or a template of fields.
        document_separator: string that separates documents in plain text files; null: each file is one document.
        pattern: pre-tokenization pattern: gpt2, or gpt4 (which also splits numbers into groups of three digits).
        special_tokens: special tokens in addition to <|endoftext|>, which is always included.
        sample_megabytes: maximum amount of text to train on, in MB, sampled evenly from the documents.
        val_fraction: val_fraction of the data module whose validation documents are excluded.
        test_fraction: test_fraction of the data module whose test documents are excluded.
        on_bad_input: how to treat a file or row that cannot be read: error: stop and name it; skip: skip and count it.
        mixture: weighted sources, instead of files: [{files: web/*.jsonl, weight: 3}, {files: code, weight: 1}]; the
            sample contains their text in proportion to the weights.
        split_digits: whether to make every digit a separate token, so that each number has a single tokenization.
        chat_tokens: chat format whose special tokens are added: chatml (<|im_start|>, <|im_end|>) or llama3
            (<|start_header_id|>, <|end_header_id|>, <|eot_id|>); null: none.
    """
    from lit_gpt.atomic import atomic_folder
    from lit_gpt.checks import local_path
    from lit_gpt.data.bpe import CHAT_TOKENS, train_bpe
    from lit_gpt.data.tokenizer_sample import TokenizerSample
    from lit_gpt.errors import UserError
    from lit_gpt.pages.text import human_bytes

    folder = local_path("out", out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{out} already exists; choose another --out, or remove it first")
    if bool(files) == bool(mixture):
        raise UserError("give either --files or --mixture, not both")
    # The command line passes mappings; Python callers may pass WeightedFiles.
    sources = [item if isinstance(item, WeightedFiles) else WeightedFiles(**item) for item in mixture or []]
    sources = sources or [WeightedFiles(files or [], 1.0, text_field, document_separator)]
    sample = TokenizerSample(sources, sample_megabytes * 1_000_000, val_fraction, test_fraction, on_bad_input)
    special = [*(special_tokens or ()), *(CHAT_TOKENS[chat_tokens] if chat_tokens else ())]
    tokenizer = train_bpe(sample, vocab_size, pattern, special, split_digits=split_digits)
    taken = [(source.spec.names, source.taken_bytes) for source in sample.sources]
    text_bytes = num_tokens = 0
    for source in sample.sources:
        source.sample_bytes = 4_000_000 // len(sample.sources)
    for text in sample:
        text_bytes += len(text.encode())
        num_tokens += len(tokenizer.encode(text))
    with atomic_folder(folder) as unfinished:
        tokenizer.save(unfinished)
    print(f"trained {tokenizer.vocab_size} entries on {', '.join(name for name, _ in taken)}")
    if len(taken) > 1:
        total = sum(count for _, count in taken)
        for name, count in taken:
            print(f"  {100 * count / total:5.1f} % of the sample ({human_bytes(count)}) from {name}")
    if tokenizer.vocab_size < vocab_size:
        print(f"the text has too few distinct words for {vocab_size} entries")
    print(f"{text_bytes / num_tokens:.2f} bytes per token on {human_bytes(text_bytes)} of this text")
    print(f"wrote {folder}; use it with: --data.init_args.tokenizer {folder}")


def measure(
    tokenizers: list[str],
    files: list[str],
    text_field: str = "text",
    document_separator: str | None = None,
    sample_megabytes: int = 16,
    json: bool = False,
    on_bad_input: Literal["error", "skip"] = "error",
) -> None:
    """Compare tokenizers on the same texts: compression, fertility, unused entries, speed, and round-trip exactness.

    Reports bytes per token (higher means shorter sequences), tokens per word for each source (fertility), the fraction
    of entries that never occur, single-threaded encoding speed, and whether decoding restores the text exactly, both
    for the documents and for a list of adversarial Unicode strings. Text that is not valid UTF-8, or contains lone
    surrogates, is rejected with its location.

    Args:
        tokenizers: tokenizer folders, tokenizer.json files, or names on the Hugging Face Hub.
        files: sources to measure on: files, folders or glob patterns; german=texts/*.txt names a source, so that
            languages or kinds of text can be compared; more than four unnamed ones are measured as one source.
        text_field: field or column that holds the text, or a template of fields.
        document_separator: string that separates documents in plain text files; null: each file is one document.
        sample_megabytes: maximum amount of text per source, in MB, sampled evenly from its documents.
        json: whether to print JSON instead of a table.
        on_bad_input: how to treat a file or row that cannot be read: error: stop and name it; skip: skip and count it.
    """
    import json as json_module
    import sys
    from pathlib import Path

    from lit_gpt.data.hostile_texts import HOSTILE
    from lit_gpt.data.tokenizer_measure import measure_tokenizer, table
    from lit_gpt.data.tokenizer_sample import TokenizerSample
    from lit_gpt.data.tokenizers import load_tokenizer
    from lit_gpt.errors import UserError

    sources: dict[str, list[str]] = {}
    unnamed = [item for item in files if "=" not in item or Path(item).exists()]
    for item in files:
        name, _, pattern = item.partition("=")
        if item in unnamed:  # more than a few files, such as those of a shell's pattern, share one column
            name, pattern = (Path(item).stem or item) if len(unnamed) <= 4 else f"{len(unnamed)} files", item
        sample = TokenizerSample(
            [WeightedFiles(pattern, 1.0, text_field, document_separator)],
            sample_megabytes * 1_000_000,
            on_bad_input=on_bad_input,
        )
        sources.setdefault(name, []).extend(sample)
    if not any(sources.values()):
        raise UserError(f"{', '.join(files)} contain no text; name files that do")
    measures = [measure_tokenizer(name, load_tokenizer(name), sources) for name in tokenizers]
    if json:
        print(json_module.dumps([measure.to_json() for measure in measures], indent=2, ensure_ascii=False))
        return
    print(table(measures))
    for result in measures:
        if result.hostile_failures:
            print(f"{result.name} changes: {', '.join(result.hostile_failures)}")
    size = sum(len(text.encode()) for texts in sources.values() for text in texts)
    documents = sum(map(len, sources.values()))
    print(
        f"on {size / 1e6:.2f} MB in {documents:,} documents and {len(HOSTILE)} adversarial strings; "
        "speed is single-threaded",
        file=sys.stderr,
    )
