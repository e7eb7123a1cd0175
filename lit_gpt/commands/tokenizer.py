"""`tokenizer train`: a byte-level BPE tokenizer from files of text."""

from typing import Literal


def train(
    files: list[str],
    out: str,
    vocab_size: int = 4096,
    text_field: str = "text",
    document_separator: str | None = None,
    pattern: Literal["gpt2", "gpt4"] = "gpt2",
    special_tokens: list[str] | None = None,
    sample_megabytes: int = 256,
    val_fraction: float = 0.0,
    test_fraction: float = 0.0,
    on_bad_input: Literal["error", "skip"] = "error",
) -> None:
    """Trains a byte-level BPE tokenizer and writes it as a Hugging Face tokenizer folder.

    Args:
        files: Files, folders or glob patterns: txt, md, code, jsonl, csv, parquet, also compressed (.gz, .zst).
        out: Folder to write; it must not exist or be empty.
        vocab_size: Entries, the 256 bytes and the special tokens included.
        text_field: Field or column that holds the text in jsonl, csv and parquet.
        document_separator: String at which plain text files are cut into documents; null keeps each whole.
        pattern: How text is split into words: gpt2's rules, or gpt4's (numbers in groups of three digits).
        special_tokens: Special tokens beside <|endoftext|>, which is always there.
        sample_megabytes: Train on at most this much text, an even sample of the documents.
        val_fraction: Leave out the documents that a data module with this val_fraction holds out.
        test_fraction: Leave out the documents that a data module with this test_fraction holds out.
        on_bad_input: error stops at a file or row that cannot be read, skip leaves it out and counts it.
    """
    from pathlib import Path

    from lit_gpt.atomic import whole_folder
    from lit_gpt.data.bpe import train_bpe
    from lit_gpt.data.cache import human_bytes
    from lit_gpt.data.corpus_spec import CorpusSpec, training_texts
    from lit_gpt.data.files import FileSource
    from lit_gpt.errors import UserError

    folder = Path(out).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{out} exists already; name a new folder with --out, or remove it")
    source = FileSource(files, text_field, document_separator)
    spec = CorpusSpec([source], val_fraction, test_fraction, on_bad_input)
    sample_bytes = sample_megabytes * 1_000_000
    tokenizer = train_bpe(
        training_texts(spec, sample_bytes, source.num_bytes()), vocab_size, pattern, special_tokens or ()
    )
    text_bytes = num_tokens = 0
    for text in training_texts(spec, 4_000_000, source.num_bytes()):
        text_bytes += len(text.encode())
        num_tokens += len(tokenizer.encode(text))
    with whole_folder(folder) as unfinished:
        tokenizer.save(unfinished)
    print(f"trained {tokenizer.vocab_size} entries on {source.name}")
    if tokenizer.vocab_size < vocab_size:
        print(f"the text has too few different words for {vocab_size} entries")
    print(f"{text_bytes / num_tokens:.2f} bytes per token on {human_bytes(text_bytes)} of it")
    print(f"wrote {folder}; use it with: --data.init_args.tokenizer {folder}")
