"""Open the output of `prepare`: the token shards and the tokenizer that made them."""

from dataclasses import dataclass
from pathlib import Path

from lit_gpt.data.shards import TokenCorpus
from lit_gpt.data.tokenizers import Tokenizer, load_tokenizer
from lit_gpt.errors import UserError

TOKENS = "tokens"
TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class PreparedCorpus:
    """Token shards with their tokenizer.

    Attributes:
        corpus: The shards.
        tokenizer: The tokenizer.
        tokenizer_path: Folder of the tokenizer.
    """

    corpus: TokenCorpus
    tokenizer: Tokenizer
    tokenizer_path: Path


def open_prepared(path: str | Path, tokenizer: str | Path | None = None) -> PreparedCorpus:
    """Open a prepared corpus.

    Args:
        path: The `out` folder of a `prepare` recipe, or a folder of token shards.
        tokenizer: Folder of the tokenizer; None looks in `tokenizer/` next to or above the shards, and in the cache
            that contains the shards.

    Raises:
        UserError: if there is no complete corpus, or the tokenizer that made it is not found.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        raise UserError(
            f"there is no prepared corpus {path}; make it first: python -m lit_gpt prepare --config <recipe with out: "
            f"{path}>"
        )
    corpus = TokenCorpus(folder if (folder / "manifest.json").exists() else folder / TOKENS)
    wanted = corpus.manifest["tokenizer"]
    if tokenizer is not None:
        found = load_tokenizer(tokenizer)
        if found.fingerprint != wanted:
            raise UserError(f"the corpus {path} was not made with the tokenizer {tokenizer}; name the one that made it")
        return PreparedCorpus(corpus, found, Path(tokenizer).expanduser())
    for candidate in _candidates(corpus.path):
        found = load_tokenizer(candidate)
        if found.fingerprint == wanted:
            return PreparedCorpus(corpus, found, candidate)
    raise UserError(f"the tokenizer of the corpus {path} is not next to it; name its folder with `tokenizer`")


def _candidates(shards: Path) -> list[Path]:
    folders = [shards / TOKENIZER, shards.parent / TOKENIZER]
    cache = shards.parent.parent / "tokenizers"  # <cache>/corpora/<key>
    if shards.parent.name == "corpora" and cache.is_dir():
        folders += sorted(path for path in cache.iterdir() if not path.name.startswith("."))
    return [folder for folder in folders if folder.is_dir()]


def padded_vocab_size(vocab_size: int | None, own: int, name: str) -> int:
    """Return the model's vocabulary size for a tokenizer with `own` entries.

    Args:
        vocab_size: Requested size; None takes the tokenizer's.
        own: Number of entries of the tokenizer.
        name: Name of the tokenizer in messages.

    Raises:
        UserError: if the vocabulary would be smaller than the tokenizer's.
    """
    if vocab_size is not None and vocab_size < own:
        raise UserError(
            f"vocab_size {vocab_size} is smaller than the {own} entries of {name}; set it to null or to at least {own}"
        )
    return own if vocab_size is None else vocab_size
