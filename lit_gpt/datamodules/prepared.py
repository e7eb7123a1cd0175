"""DataModules of corpora made by `python -m lit_gpt prepare`: token shards are opened without tokenizing again.

`PreparedDataModule` opens one corpus; `MixtureDataModule` samples from several in exact proportions, which may change
during the run.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_gpt.batch import Batch
from lit_gpt.checks import check_above
from lit_gpt.data.cache import print_status
from lit_gpt.data.evaluation_loader import AlternatingLoader, TokenLoader
from lit_gpt.data.loader import Mixture, corpus_samplers
from lit_gpt.data.mixture import (
    MixtureChange,
    MixtureCorpus,
    MixtureSampler,
    WeightsMode,
    first_weights,
    plan_phases,
)
from lit_gpt.data.prepared import PreparedCorpus, open_prepared, padded_vocab_size
from lit_gpt.data.records import SplitName
from lit_gpt.data.shards import TokenCorpus, TokenSplit
from lit_gpt.data_info import DataInfo
from lit_gpt.datamodules.windows import WindowDataModule
from lit_gpt.errors import UserError


class PreparedDataModule(WindowDataModule):
    """Batches from existing token shards.

    Args:
        path: The `out` folder of a `prepare` recipe, or a folder of token shards.
        tokenizer: Folder of the tokenizer that made the shards; null looks for it next to them.
        vocab_size: Vocabulary size of the model; null takes the tokenizer's, a larger value pads it.
        kwargs: Arguments of `WindowDataModule`.

    Raises:
        UserError: if the corpus is missing or incomplete, its tokenizer is missing or a different one, or a split that
            a stage needs is empty.

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

    def setup(self, stage: str) -> None:
        """Open the corpus and check that it has what `stage` needs.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
        """
        self._corpus = open_prepared(self.path, self.tokenizer).corpus
        self._check_stage(stage)


class MixtureDataModule(WindowDataModule):
    """Training windows from several prepared corpora by weight, validated on each corpus and on all of them together.

    The corpus and the window of a sample are computed from the seed and the sample index, so a run is resumed bit for
        bit and can continue on another number of devices. The proportions match the weights to within about one sample,
        deterministically. A weight is a share of the training tokens: all windows are `block_size` long, and no window
        contains tokens of two corpora. `MixtureProportions` logs the actual and the requested proportions.

    Validation covers the held-out windows of all corpora: `val/loss` is over all, `val/<name>/loss` over one.

    Args:
        corpora: The corpora, each with `path` and optionally `weight`, `max_epochs` and `name`.
        weights: `tokens`: proportional to the sizes of the corpora. `temperature`: proportional to size ** (1 /
            temperature). `explicit`: the `weight` of each corpus. Null: `explicit` if the corpora have weights, else
            `tokens`.
        temperature: For `weights: temperature`; 1 is proportional to size, larger values sample small corpora more
            often.
        schedule: Changes of the weights over the run, in order, such as `{at: 0.8, weights: {web: 0.3, books: 0.7}}`.
        total_steps: Optimizer steps to which fractions in `schedule` refer; null takes `trainer.max_steps`.
        tokenizer: Folder of the tokenizer that made all corpora; null looks for it next to them.
        vocab_size: Vocabulary size of the model; null takes the tokenizer's, a larger value pads it.
        kwargs: Arguments of `WindowDataModule`.

    Raises:
        UserError: if a corpus is missing, was made with another tokenizer than the first or is shorter than a window,
            or if weights and schedule are invalid.
    """

    def __init__(
        self,
        corpora: list[MixtureCorpus],
        weights: WeightsMode | None = None,
        temperature: float = 1.0,
        schedule: list[MixtureChange] | None = None,
        total_steps: int | None = None,
        tokenizer: str | None = None,
        vocab_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not corpora:
            raise UserError("the mixture has no corpora; name at least one prepared corpus")
        self.corpora = list(corpora)
        self.names = [corpus.name or Path(corpus.path).name for corpus in corpora]
        if len(set(self.names)) < len(self.names):
            raise UserError(f"the mixture's corpora are called {', '.join(self.names)}; give each a different `name`")
        given = any(corpus.weight is not None for corpus in corpora)
        self.weights: WeightsMode = weights or ("explicit" if given else "tokens")
        self.temperature = temperature
        self.schedule = list(schedule or [])
        self.total_steps = total_steps
        self.tokenizer = tokenizer
        self._opened: list[PreparedCorpus] = []
        first = self._open()[0]
        self._tokenizer_path = first.tokenizer_path
        self.vocab_size = padded_vocab_size(vocab_size, first.tokenizer.vocab_size, "the corpora's tokenizer")

    @property
    def tokenizer_path(self) -> Path:
        """Hugging Face folder of the tokenizer."""
        return self._tokenizer_path

    @property
    def mixture(self) -> Mixture:
        """Corpora and sampling order of the training samples.

        Raises:
            UserError: before `setup`.
        """
        if not isinstance(self._order, Mixture):
            raise UserError("the mixture is not open yet: call setup('fit') first")
        return self._order

    @property
    def data_info(self) -> DataInfo:
        """Facts about the data for the module and its callbacks; complete after `setup`."""
        return replace(super().data_info, mixture=self._order if isinstance(self._order, Mixture) else None)

    @property
    def corpus(self) -> TokenCorpus:
        """The first corpus; all corpora share its tokenizer, separator and byte lengths."""
        return self._opened[0].corpus

    def _open(self) -> list[PreparedCorpus]:
        opened = [open_prepared(corpus.path, self.tokenizer) for corpus in self.corpora]
        for corpus, prepared in zip(self.corpora, opened, strict=True):
            if prepared.tokenizer.fingerprint != opened[0].tokenizer.fingerprint:
                raise UserError(
                    f"{corpus.path} was made with another tokenizer than {self.corpora[0].path}: their ids mean "
                    "different things; prepare all corpora of a mixture with one tokenizer"
                )
        self._opened = opened
        return opened

    def setup(self, stage: str) -> None:
        """Open the corpora and, for training, plan the sampling order.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
        """
        self._open()
        self._check_stage(stage)
        if stage == "fit":
            self._check_length()

    def _num_train_windows(self) -> int:
        """Return the number of training windows of all corpora."""
        return sum(prepared.corpus.split("train").num_tokens // self.block_size for prepared in self._opened)

    def make_order(self) -> Mixture:
        """Return the order in which windows are sampled from the corpora, and print the weights."""
        splits = [prepared.corpus.split("train") for prepared in self._opened]
        tokens = [split.num_tokens for split in splits]
        weights = [corpus.weight for corpus in self.corpora]
        first = first_weights(self.weights, self.names, tokens, weights, self.temperature)
        phases = plan_phases(first, self.names, self.schedule, self._total_steps(), self.global_batch_size)
        samplers = corpus_samplers(self.names, splits, self.block_size, self.seed)
        caps = []
        for name, corpus, sampler in zip(self.names, self.corpora, samplers, strict=True):
            check_above(f"max_epochs of the corpus {name}", corpus.max_epochs, 0, "null sets no cap")
            caps.append(None if corpus.max_epochs is None else int(corpus.max_epochs * sampler.num_windows))
        mixture = Mixture(self.names, splits, MixtureSampler(phases, caps), self.block_size, self.seed)
        if self.trainer is None or self.trainer.is_global_zero:
            self._print_weights(mixture)
        return mixture

    def _total_steps(self) -> int | None:
        if self.total_steps is not None:
            return self.total_steps
        return self._trainer_steps()

    def _print_weights(self, mixture: Mixture) -> None:
        total = self._total_steps()
        ends = None if total is None else total * self.global_batch_size
        segments = [s for s in mixture.sampler.segments if ends is None or s.start < ends]
        for number, segment in enumerate(segments):
            if 3 <= number < len(segments) - 2 and len(segments) > 6:  # intermediate steps of a gradual change
                if number == 3:
                    print_status("mixture …")
                continue
            shares = ", ".join(f"{n} {100 * w:.4g} %" for n, w in zip(self.names, segment.weights, strict=True))
            print_status(f"mixture from step {segment.start // self.global_batch_size:,}: {shares}")

    def _check_length(self) -> None:
        """Raise a `UserError` if the run is longer than the epoch caps allow."""
        end, trainer = self.mixture.num_samples, self.trainer
        if end is None or trainer is None:
            return
        available = end // self.global_batch_size
        asked = [limit for limit in (self._trainer_steps(), self._trainer_epochs_in_steps(available)) if limit]
        if asked and min(asked) > available:
            raise UserError(
                f"the mixture is used up after {available} steps, when every corpus with a weight has reached its "
                f"max_epochs, and the run has {min(asked)}; raise max_epochs of the corpora, or lower "
                "trainer.max_steps or trainer.max_epochs"
            )

    def _trainer_epochs_in_steps(self, steps_per_epoch: int) -> int | None:
        """Return the Trainer's `max_epochs` in optimizer steps, or None if it sets no limit."""
        assert self.trainer is not None
        epochs, limit = self.trainer.max_epochs, self.trainer.limit_train_batches
        if epochs is None or epochs < 0:
            return None
        return epochs * (min(steps_per_epoch, limit) if isinstance(limit, int) else int(steps_per_epoch * limit))

    def lineage(self) -> dict[str, Any]:
        """Return which corpora, weights, tokenizer and sample order produced the batches (JSON values)."""
        corpora = {
            name: prepared.corpus.lineage() | {"weight": corpus.weight, "max_epochs": corpus.max_epochs}
            for name, prepared, corpus in zip(self.names, self._opened, self.corpora, strict=True)
        }
        lineage = self._order_lineage() | {
            "corpora": corpora,
            "weights": self.weights,
            "temperature": self.temperature,
            "tokenizer": {
                "path": str(self.tokenizer_path),
                "vocab_size": self.corpus.vocab_size,
                "fingerprint": self.corpus.manifest["tokenizer"],
            },
        }
        if isinstance(self._order, Mixture):
            lineage["segments"] = [
                {"step": s.start / self.global_batch_size, "weights": dict(zip(self.names, s.weights, strict=True))}
                for s in self._order.sampler.segments
            ]
        return lineage

    # ------------------------------------------------------------------ evaluation

    def _holds_out(self, split: SplitName) -> bool:
        """Return whether any corpus has the split."""
        return any(prepared.corpus.split(split).num_tokens for prepared in self._opened)

    def _evaluated_split(self, batch: Batch, split: SplitName) -> TokenSplit:
        """Return the token split of the corpus that an evaluation batch belongs to."""
        return self._opened[self.names.index(batch["corpus"])].corpus.split(split)

    def _evaluation_loader(self, kind: type[TokenLoader], split: SplitName) -> AlternatingLoader:
        """Return the loader of a split, which alternates between the corpora."""
        splits = {n: prepared.corpus.split(split) for n, prepared in zip(self.names, self._opened, strict=True)}
        # A corpus may have no held-out data.
        loaders = {name: self._token_loader(kind, tokens) for name, tokens in splits.items() if tokens.num_tokens}
        if not loaders:
            raise UserError(f"no corpus of the mixture has a {split} split; prepare one with {split}_fraction above 0")
        return AlternatingLoader(loaders)
