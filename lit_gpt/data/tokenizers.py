"""Load tokenizers from several formats, and store them as a Hugging Face tokenizer folder.

`tokenizer.json` determines the ids; `tokenizer_config.json` names the end-of-text token, which serves as the separator.
The separator precedes every document in the token stream; text that spells it out is encoded as ordinary tokens, so
that data cannot forge the end of a document.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.data.compiled_bpe import CompiledBPE, byte_alphabet
from lit_gpt.errors import UserError
from lit_gpt.hashing import sha256_json
from lit_gpt.hub import HubError, download_snapshot

# Encoding needs some hundred bytes of memory per byte of text, so long texts are split where a tokenizer would split
# them anyway. A piece ends before a space between two words: pre-tokenizers (GPT-2's and GPT-4's patterns,
# SentencePiece's `▁`) start a new word exactly there, so the concatenated ids of the pieces equal those of the text.
PIECE_CHARACTERS = 1 << 17
_BETWEEN_WORDS = re.compile(r"(?<=[\w!-~])(?= [\w!-~])")


def pieces(text: str, limit: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Yield `text` in pieces of at most `limit` characters.

    A run of `limit` characters without a space between words (base64, some scripts) is split at the limit; only there
    can a token differ from that of the unsplit text.

    Args:
        text: Any text.
        limit: Maximum number of characters in a piece.
    """
    start = 0
    while len(text) - start > limit:
        end = _last_cut(text, start, start + limit)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _last_cut(text: str, start: int, end: int) -> int:
    """Return the last position between words in text[start + 1 : end], or `end`."""
    width = 256
    while True:
        low = max(start + 1, end - width)
        cuts = [match.start() for match in _BETWEEN_WORDS.finditer(text, low, end)]
        if cuts:
            return cuts[-1]
        if low == start + 1:
            return end
        width *= 8


END_OF_TEXT = "<|endoftext|>"
# Tried in this order if no configuration names the end-of-text token.
_KNOWN_SEPARATORS = (END_OF_TEXT, "<|end_of_text|>", "<|im_end|>", "</s>", "<eos>", "[EOS]", "[SEP]")

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
"""The files of a model's folder that belong to its tokenizer."""


class Tokenizer:
    """A `tokenizers.Tokenizer` together with the information that training needs.

    Args:
        backend: The tokenizer. Its truncation and padding are turned off, and special tokens that occur in a text are
            encoded as ordinary text.
        separator: Token at the start of each document; None finds the end-of-text token by its usual names.
        files: Files of the folder that it was loaded from (name → content), written unchanged by `save`.

    Raises:
        UserError: if the vocabulary has no such token.
    """

    def __init__(self, backend: Any, separator: str | None = None, files: dict[str, bytes] | None = None) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self.backend = backend
        self.files = files
        if separator is None:
            separator = next((t for t in _KNOWN_SEPARATORS if backend.token_to_id(t) is not None), None)
            if separator is None:
                special = [token.content for token in backend.get_added_tokens_decoder().values()]
                raise UserError(
                    f"the tokenizer has no end-of-text token (its special tokens: {', '.join(special) or 'none'}); "
                    "name it as eos_token in tokenizer_config.json"
                )
        index = backend.token_to_id(separator)
        if index is None:
            raise UserError(
                f"the tokenizer names {separator!r} as its end-of-text token, but has no such token; correct "
                "eos_token in tokenizer_config.json"
            )
        self.separator = separator
        self.separator_id: int = index
        self.opening_ids: tuple[int, ...] = (index,)
        """Ids that a model's input starts with: the separator, or those found by `as_published`."""
        self.stop_ids: tuple[int, ...] = (index,)
        """Ids of the tokens that end a text."""
        self.is_published = False
        """Whether `as_published` has been called."""
        self._compiled = CompiledBPE(backend)
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what a pickled backend loses: it is no part of tokenizer.json."""
        self.__dict__.update(state)
        self.backend.encode_special_tokens = True

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that the ids depend on: the vocabulary, the rules and the separator."""
        return sha256_json([json.loads(self.backend.to_str()), self.separator])

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """(vocab_size,) int64: number of UTF-8 bytes of each token's text, 0 for special tokens."""
        return token_byte_lengths(self.backend, self.vocab_size)

    @property
    def rule_ids(self) -> tuple[int, ...]:
        """Ids that the tokenizer's post-processor puts before a text."""
        rules = self.backend.encode("x", add_special_tokens=True).ids
        plain = self.backend.encode("x", add_special_tokens=False).ids
        before = next((i for i in range(len(rules)) if rules[i : i + len(plain)] == plain), 0)
        return tuple(rules[:before])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smaller of uint16 and uint32 that can hold every id."""
        return np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text, of any length, without adding special tokens: (n,) of `dtype`.

        Raises:
            UserError: if the text contains a lone surrogate, which is not valid Unicode and has no bytes.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of several texts; long texts are encoded in pieces."""
        encoded: list[np.ndarray] = []
        short = [text for text in texts if len(text) <= PIECE_CHARACTERS]
        of_short = iter(self._encode(short))
        for text in texts:
            if len(text) <= PIECE_CHARACTERS:
                encoded.append(next(of_short))
            else:
                encoded.append(np.concatenate([self._encode([piece])[0] for piece in pieces(text)]))
        return encoded

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        found = self._compiled.encode(texts, self.dtype)
        rest = [text for text, ids in zip(texts, found, strict=True) if ids is None]
        try:
            # The fast variant skips the token offsets.
            encodings = iter(self.backend.encode_batch_fast(rest, add_special_tokens=False) if rest else ())
        except TypeError:
            for text in texts:
                check_unicode(text)
            raise
        # fromiter takes half the time of np.array, which inspects all values for their type first.
        return [
            np.fromiter(ids := next(encodings).ids, dtype=self.dtype, count=len(ids)) if fast is None else fast
            for fast in found
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, including special tokens."""
        return str(self.backend.decode([int(index) for index in ids], skip_special_tokens=False))

    def beginning_with(self, index: int) -> list[int]:
        """Return the ids of all tokens whose text begins with that of token `index`, itself included."""
        start = self.backend.id_to_token(index)
        return [other for token, other in self.backend.get_vocab().items() if token.startswith(start)]

    def as_published(self, eos_token_ids: Sequence[int] = ()) -> "Tokenizer":
        """Set the start and end tokens as published, for a model that was not trained here.

        As in transformers, a text starts with what the tokenizer's post-processor puts before it (Llama, Gemma), else
        with the `bos_token` if its configuration sets `add_bos_token`, else with nothing (Qwen, GPT-2, SmolLM).

        Args:
            eos_token_ids: End-of-text ids of the model's generation_config or config.

        Returns:
            This tokenizer.
        """
        self.is_published = True
        self.opening_ids = self.rule_ids
        config = json.loads((self.files or {}).get("tokenizer_config.json", b"{}"))
        token = config.get("bos_token")
        if not self.opening_ids and token is not None and config.get("add_bos_token", False):
            index = self.backend.token_to_id(token["content"] if isinstance(token, dict) else token)
            self.opening_ids = () if index is None else (index,)
        self.stop_ids = tuple(dict.fromkeys((self.separator_id, *eos_token_ids)))
        return self

    def folder_files(self) -> dict[str, bytes]:
        """Return the names and contents of the files of its Hugging Face tokenizer folder."""
        if self.files is not None:
            return self.files
        self.backend.encode_special_tokens = False  # needed for training data, not part of the tokenizer
        content = self.backend.to_str(pretty=True)
        self.backend.encode_special_tokens = True
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.separator,
            "eos_token": self.separator,
            "unk_token": self.separator,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1 << 30,
        }
        names = {key: config[key] for key in ("bos_token", "eos_token", "unk_token")}
        return {
            "tokenizer.json": content.encode(),
            "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
            "special_tokens_map.json": (json.dumps(names, indent=2) + "\n").encode(),
        }

    def save(self, folder: Path) -> None:
        """Write a folder that `transformers.AutoTokenizer.from_pretrained` can load."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.folder_files().items():
            (folder / name).write_bytes(content)


def check_unicode(text: str) -> None:
    """Reject a text with a lone surrogate, i.e. half of a UTF-16 surrogate pair, which is not valid Unicode.

    Raises:
        UserError: naming the first one and its position.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text has the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, which is not "
            "valid Unicode; remove it, or read its bytes as UTF-8 again"
        ) from error


def is_local_tokenizer(path_or_name: str) -> bool:
    """Return whether the argument names a local path, existing or not, rather than a hub name."""
    path = Path(path_or_name).expanduser()
    looks_like_a_path = path.is_absolute() or path_or_name.startswith((".", "~")) or path.suffix == ".json"
    return path.exists() or looks_like_a_path or path_or_name.count("/") > 1


def load_tokenizer(path_or_name: str | Path, separator: str | None = None) -> Tokenizer:
    """Load a tokenizer.

    Args:
        path_or_name: A Hugging Face tokenizer or model folder, a `tokenizer.json`, a folder with GPT-2's `encoder.json`
            and `vocab.bpe` (or `vocab.json` and `merges.txt`), or a hub name.
        separator: End-of-text token; None takes the one named in the folder's configuration.

    Raises:
        UserError: if there is no tokenizer, or it cannot be read.
    """
    path = Path(path_or_name).expanduser()
    if path.is_file():
        return Tokenizer(_from_json(path), separator)
    if path.is_dir():
        return _load_folder(path, separator)
    name = str(path_or_name)
    if is_local_tokenizer(name):
        raise UserError(f"tokenizer {name} does not exist; name a folder, a tokenizer.json or a hub name")
    return _load_folder(_download(name), separator)


def _load_folder(folder: Path, separator: str | None) -> Tokenizer:
    if (folder / "tokenizer.json").exists():
        files = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
        return Tokenizer(_from_json(folder / "tokenizer.json"), separator or _named_separator(folder), files)
    for vocabulary, merges in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
        if (folder / vocabulary).exists() and (folder / merges).exists():
            return Tokenizer(_from_gpt2_files(folder / vocabulary, folder / merges), separator or END_OF_TEXT)
    if (folder / "tokenizer_config.json").exists():  # SentencePiece only: transformers converts it
        import transformers

        try:
            converted = transformers.AutoTokenizer.from_pretrained(folder)
            return Tokenizer(converted.backend_tokenizer, separator or converted.eos_token)
        except (OSError, ValueError, ImportError, AttributeError) as error:
            raise UserError(
                f"the tokenizer in {folder} cannot be loaded: {str(error).splitlines()[0]}; save it as tokenizer.json"
            ) from error
    raise UserError(
        f"{folder} contains no tokenizer: neither tokenizer.json, nor encoder.json and vocab.bpe, nor vocab.json and "
        "merges.txt; name the folder that has them"
    )


def _from_json(path: Path) -> Any:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(path.read_bytes().decode())
    except Exception as error:  # the Rust side raises bare Exception
        raise UserError(f"{path} is not a tokenizer.json: {str(error).splitlines()[0]}; use another copy") from error


def _from_gpt2_files(vocabulary: Path, merges: Path) -> Any:
    import tokenizers

    try:
        model = tokenizers.models.BPE.from_file(str(vocabulary), str(merges))
    except Exception as error:  # the Rust side raises bare Exception
        raise UserError(f"{vocabulary} and {merges} are not a BPE tokenizer: {error}; use another copy") from error
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([END_OF_TEXT])
    return backend


def _named_separator(folder: Path) -> str | None:
    """Return the `eos_token` that the folder's configuration names."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            try:
                token = json.loads((folder / name).read_bytes()).get("eos_token")
            except ValueError as error:
                raise UserError(f"{folder / name} is not JSON: {error}") from error
            if token is not None:
                return str(token["content"] if isinstance(token, dict) else token)
    return None


def _download(name: str) -> Path:
    try:
        return download_snapshot(name, TOKENIZER_FILES)
    except HubError as error:
        raise UserError(
            f"tokenizer {name!r} is not a local file or folder, and cannot be loaded from the hub: {error}"
        ) from error


# The number of UTF-8 bytes per token converts a loss per token into bits per byte. Losses per token are not comparable
# between tokenizers (one with longer tokens has fewer and harder ones), but the nats of a text divided by its bytes and
# ln 2 are. A byte-level token has exactly that many bytes; special tokens have none, because they are not part of any
# text.
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def _component_types(component: Any) -> set[str]:
    """Return the types in a tokenizer.json component, including those in sequences."""
    if isinstance(component, list):
        return set().union(*map(_component_types, component)) if component else set()
    if not isinstance(component, dict):
        return set()
    inner = [value for key, value in component.items() if key in ("decoders", "pretokenizers", "normalizers")]
    return {str(component.get("type"))} | _component_types(inner)


def token_byte_lengths(backend: Any, vocab_size: int) -> np.ndarray:
    """Return the number of text bytes that each token represents.

    Byte-level vocabularies are exact. SentencePiece-like ones count `▁` as a space and `<0x0A>` as one byte, so that a
    `▁` that the tokenizer itself puts before a text counts one byte too many. For others the token's own characters are
    counted.

    Args:
        backend: A `tokenizers.Tokenizer`.
        vocab_size: Length of the table; ids without a token get 0.

    Returns:
        (vocab_size,) int64; 0 for special tokens.
    """
    state = json.loads(backend.to_str())
    byte_level = "ByteLevel" in _component_types(state["decoder"]) | _component_types(state["pre_tokenizer"])
    added = {token["id"]: token for token in state["added_tokens"]}
    alphabet = byte_alphabet()
    lengths = np.zeros(vocab_size, dtype=np.int64)
    for token, index in backend.get_vocab(with_added_tokens=True).items():
        if index in added:
            lengths[index] = 0 if added[index]["special"] else len(token.encode())
        elif byte_level and all(character in alphabet for character in token):
            lengths[index] = len(token)
        elif _BYTE_TOKEN.fullmatch(token):
            lengths[index] = 1
        else:
            lengths[index] = len(token.replace("▁", " ").encode())
    return lengths
