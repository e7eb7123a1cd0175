"""Train a byte-level BPE tokenizer (Sennrich et al. 2016, arXiv:1508.07909; on bytes as in GPT-2).

Text is split into words by a pattern and words into bytes; then the most frequent pair of adjacent tokens is merged
into a new token until the vocabulary is full. All 256 bytes are in the vocabulary, so every text can be encoded.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from lit_gpt.data.compiled_bpe import GPT2_PATTERN, GPT4_PATTERN
from lit_gpt.data.tokenizers import END_OF_TEXT, Tokenizer, pieces
from lit_gpt.errors import UserError

Pattern = Literal["gpt2", "gpt4"]

ChatTokens = Literal["chatml", "llama3"]

CHAT_TOKENS: dict[ChatTokens, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}
"""Special tokens that mark the turns of a conversation, by chat format."""

# The trainer processes 256 texts at a time; short pieces bound its memory.
_PIECE_CHARACTERS = 1 << 14


def check_vocab_size(vocab_size: int, special_tokens: Sequence[str] = ()) -> None:
    """Raise a `UserError` if the vocabulary cannot hold the 256 bytes and the special tokens."""
    least = 257 + len([token for token in special_tokens if token != END_OF_TEXT])
    if vocab_size < least:
        raise UserError(f"vocab_size {vocab_size} is below {least}: the 256 bytes and the special tokens; raise it")


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    pattern: Pattern = "gpt2",
    special_tokens: Sequence[str] = (),
    show_progress: bool = False,
    split_digits: bool = False,
) -> Tokenizer:
    """Train on texts in one pass; memory grows with the number of distinct words, not with the amount of text.

    Args:
        texts: The training texts.
        vocab_size: Vocabulary size, including special tokens and the 256 bytes; a small corpus may yield fewer entries.
        pattern: Pattern that splits text into words: `gpt2` or `gpt4`.
        special_tokens: Additional special tokens; `<|endoftext|>` always exists and has id 0.
        show_progress: Whether to show the trainer's progress bars.
        split_digits: Whether every digit is a separate word, so that each number has only one tokenization (as in Llama
            2, arXiv:2307.09288, section 2.2). Otherwise `gpt4` groups up to three digits and `gpt2` any number of them.

    Returns:
        The tokenizer, which is a deterministic function of the texts.

    Raises:
        UserError: if `vocab_size` is too small or there is no text.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    check_vocab_size(vocab_size, special_tokens)
    byte_level = pre_tokenizers.ByteLevel
    backend = Backend(models.BPE())
    if pattern not in ("gpt2", "gpt4"):
        raise UserError(f"pattern is {pattern!r}; it can be gpt2 or gpt4")
    if pattern == "gpt2" and not split_digits:
        pre_tokenizer: Any = byte_level(add_prefix_space=False)
    else:
        regex = Regex(GPT2_PATTERN if pattern == "gpt2" else GPT4_PATTERN)
        parts: list[Any] = [pre_tokenizers.Split(regex, behavior="isolated")]
        if split_digits:  # before the byte mapping, whose characters include ² and ³
            parts.append(pre_tokenizers.Digits(individual_digits=True))
        pre_tokenizer = pre_tokenizers.Sequence([*parts, byte_level(add_prefix_space=False, use_regex=False)])
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(dict.fromkeys([END_OF_TEXT, *special_tokens])),
        initial_alphabet=sorted(byte_level.alphabet()),
        show_progress=show_progress,
    )
    seen = 0

    def counted() -> Iterator[str]:
        nonlocal seen
        for text in texts:
            seen += len(text)
            yield from pieces(text, _PIECE_CHARACTERS)

    backend.train_from_iterator(counted(), trainer)
    # The trainer has used threads; if this process forked now (for DataLoader workers), the library would warn and
    # disable its parallelism. Set the variable here, as that warning advises.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if seen == 0:
        raise UserError("there is no text to train a tokenizer on; name files that contain text")
    return Tokenizer(backend, END_OF_TEXT)
