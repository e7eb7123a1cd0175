"""`tokenizer train` and `tokenizer measure`: byte-level BPE from text, and what tokenizers cost and keep."""

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
    """Trains a byte-level BPE tokenizer and writes it as a Hugging Face tokenizer folder.

    Args:
        files: Files, folders or glob patterns: text, code, JSON, JSON lines, CSV, Parquet, Arrow; also compressed.
        out: Folder to write; it must not exist or be empty.
        vocab_size: Entries, the 256 bytes and the special tokens included.
        text_field: Field or column that holds the text, or a template of fields.
        document_separator: String at which plain text files are cut into documents; null keeps each whole.
        pattern: How text is split into words: gpt2's rules, or gpt4's (numbers in groups of three digits).
        special_tokens: Special tokens beside <|endoftext|>, which is always there.
        sample_megabytes: Train on at most this much text, an even sample of the documents.
        val_fraction: Leave out the documents that a data module with this val_fraction holds out.
        test_fraction: Leave out the documents that a data module with this test_fraction holds out.
        on_bad_input: error stops at a file or row that cannot be read, skip leaves it out and counts it.
        mixture: Instead of files: sources with weights, [{files: web/*.jsonl, weight: 3}, {files: code, weight: 1}];
            the sample holds their texts in proportion to the weights.
        split_digits: Make every digit a token of its own, so that a number is spelled in one way only.
        chat_tokens: Add the special tokens of a chat format: chatml (<|im_start|>, <|im_end|>) or llama3
            (<|start_header_id|>, <|end_header_id|>, <|eot_id|>).
    """
    from pathlib import Path

    from lit_gpt.atomic import atomic_folder
    from lit_gpt.data.bpe import CHAT_TOKENS, train_bpe
    from lit_gpt.data.tokenizer_sample import TokenizerSample
    from lit_gpt.errors import UserError
    from lit_gpt.pages.text import human_bytes

    folder = Path(out).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{out} exists already; name a new folder with --out, or remove it")
    if bool(files) == bool(mixture):
        raise UserError("there is nothing to train on, or too much: give either --files or --mixture")
    # The command line gives mappings, Python code the class.
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
        print(f"the text has too few different words for {vocab_size} entries")
    print(f"{text_bytes / num_tokens:.2f} bytes per token on {human_bytes(text_bytes)} of it")
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
    """Compares tokenizers on the same texts: length, fertility, unused entries, speed, exactness.

    Bytes per token (more: shorter sequences), tokens per word by source (fertility), the share of entries that no text
    needed, encoding speed of one thread, and whether texts come back from their ids exactly: the files' documents, and
    a list of hostile Unicode. Text that is not UTF-8 and lone surrogates are refused, with their place.

    Args:
        tokenizers: Tokenizer folders, tokenizer.json files, or names on the Hugging Face hub.
        files: Sources to measure on, each a file, a folder or a pattern; german=texts/*.txt gives one a name, so that
            languages or kinds of text stand side by side.
        text_field: Field or column that holds the text, or a template of fields.
        document_separator: String at which plain text files are cut into documents; null keeps each whole.
        sample_megabytes: Measure on at most this much text of each source, an even sample of its documents.
        json: Print the measures as JSON instead of a table.
        on_bad_input: error stops at a file or row that cannot be read, skip leaves it out and counts it.
    """
    import json as json_module
    import sys
    from pathlib import Path

    from lit_gpt.data.tokenizer_measure import HOSTILE, measure_tokenizer, table
    from lit_gpt.data.tokenizer_sample import TokenizerSample
    from lit_gpt.data.tokenizers import load_tokenizer
    from lit_gpt.errors import UserError

    sources: dict[str, list[str]] = {}
    for item in files:
        name, equals, pattern = item.partition("=")
        if not equals or Path(item).exists():
            name, pattern = Path(item).stem or item, item
        sample = TokenizerSample(
            [WeightedFiles(pattern, 1.0, text_field, document_separator)],
            sample_megabytes * 1_000_000,
            on_bad_input=on_bad_input,
        )
        sources.setdefault(name, []).extend(sample)
    if not any(sources.values()):
        raise UserError(f"{', '.join(files)} hold no text; name files that hold some")
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
        f"on {size / 1e6:.2f} MB in {documents:,} documents and {len(HOSTILE)} hostile texts; speed of one thread",
        file=sys.stderr,
    )
