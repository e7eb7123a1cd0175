"""A corpus that `python -m lit_gpt prepare` has made: its shards are opened, nothing is read or tokenised again."""

from pathlib import Path
from typing import Any

from lit_gpt.data.prepared import open_prepared, padded_vocab_size
from lit_gpt.data.sampler import WindowSampler
from lit_gpt.datamodules.windows import WindowDataModule


class PreparedDataModule(WindowDataModule):
    """Batches from token shards that exist.

    Args:
        path: The `out` folder of a `prepare` recipe, or a folder of token shards itself.
        tokenizer: Folder of the tokenizer that made the shards; null finds it beside them.
        vocab_size: Entries of the model's vocabulary; null takes the tokenizer's, more pads it.
        kwargs: Arguments of `WindowDataModule`.

    Raises:
        UserError: if there is no whole corpus, its tokenizer is missing or another, or a split that a stage needs is
            empty.

    Example:
        >>> data = PreparedDataModule("corpora/stdlib", block_size=512)  # doctest: +SKIP
    """

    def __init__(self, path: str, tokenizer: str | None = None, vocab_size: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.tokenizer = tokenizer
        prepared = open_prepared(path, tokenizer)
        self.vocab_size = padded_vocab_size(vocab_size, prepared.tokenizer.vocab_size, f"the tokenizer of {path}")
        self._tokenizer_path = prepared.tokenizer_path

    @property
    def tokenizer_path(self) -> Path:
        """Hugging Face folder of the tokenizer."""
        return self._tokenizer_path

    def prepare_data(self) -> None:
        """Checks the sizes; there is nothing to make."""
        self._check_batch_sizes()

    def setup(self, stage: str) -> None:
        """Opens the corpus and checks that it has what `stage` needs.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
        """
        self._corpus = open_prepared(self.path, self.tokenizer).corpus
        if stage == "fit":
            self._check_batch_sizes()
            WindowSampler(self.corpus.split("train").num_tokens, self.block_size, self.seed)
        elif stage in ("validate", "test"):
            self._evaluation_loader("val" if stage == "validate" else "test")
