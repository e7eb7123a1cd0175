"""Several prepared corpora in proportions that are kept exactly, and that may change over the run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_gpt.batch import Batch
from lit_gpt.data.cache import say
from lit_gpt.data.documents import SplitName
from lit_gpt.data.evaluation_loader import DocumentLoader, EvaluationLoader, OrderedLoader
from lit_gpt.data.loader import StepLoader
from lit_gpt.data.mixture import MixtureSampler
from lit_gpt.data.mixture_loader import AlternatingLoader, Mixture, MixtureLoader, corpus_samplers
from lit_gpt.data.mixture_plan import MixtureChange, MixtureCorpus, WeightsMode, first_weights, plan_phases
from lit_gpt.data.prepared import PreparedCorpus, open_prepared, padded_vocab_size
from lit_gpt.data.provenance import Piece, trace_window
from lit_gpt.data.shards import TokenCorpus
from lit_gpt.data_info import DataInfo
from lit_gpt.datamodules.windows import WindowDataModule
from lit_gpt.errors import UserError


class MixtureDataModule(WindowDataModule):
    """Training windows from several prepared corpora by weight; validation of each of them, and of all together.

    Which corpus and which of its windows a sample is, is computed from the seed and the sample's number: a run is
    resumed bit for bit, and goes on with another number of devices. The proportions are those of the weights to within
    about one sample, not by luck. A weight is a share of the training tokens: all windows are `block_size` long, and
    none holds tokens of two corpora. `MixtureProportions` logs what was drawn beside what was wanted.

    Validation goes through the held-out windows of all corpora: `val/loss` is over all, `val/<name>/loss` over one.

    Args:
        corpora: The corpora: `path`, and `weight`, `max_epochs`, `name` where wanted.
        weights: `tokens`: in proportion to the corpora's sizes. `temperature`: to size ** (1 / temperature).
            `explicit`: as each corpus's `weight` says. Null: `explicit` if the corpora have weights, else `tokens`.
        temperature: For `weights: temperature`: 1 is by size, larger values draw small corpora more often.
        schedule: Changes of the weights over the run, in order, such as `{at: 0.8, weights: {web: 0.3, books: 0.7}}`.
        total_steps: Optimizer steps that shares in `schedule` refer to; null takes `trainer.max_steps`.
        tokenizer: Folder of the tokenizer that made all corpora; null finds it beside them.
        vocab_size: Entries of the model's vocabulary; null takes the tokenizer's, more pads it.
        kwargs: Arguments of `WindowDataModule`.

    Raises:
        UserError: if a corpus is missing, was made with another tokenizer than the first or is shorter than a window,
            or weights and schedule cannot be used.
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
            raise UserError(f"the mixture's corpora are called {', '.join(self.names)}; give each a `name` of its own")
        given = any(corpus.weight is not None for corpus in corpora)
        self.weights: WeightsMode = weights or ("explicit" if given else "tokens")
        self.temperature = temperature
        self.schedule = list(schedule or [])
        self.total_steps = total_steps
        self.tokenizer = tokenizer
        self._opened: list[PreparedCorpus] = []
        self._mixture: Mixture | None = None
        first = self._open()[0]
        self._tokenizer_path = first.tokenizer_path
        self.vocab_size = padded_vocab_size(vocab_size, first.tokenizer.vocab_size, "the corpora's tokenizer")

    @property
    def tokenizer_path(self) -> Path:
        """Hugging Face folder of the tokenizer."""
        return self._tokenizer_path

    @property
    def mixture(self) -> Mixture:
        """Corpora and order of the training samples.

        Raises:
            UserError: before `setup`.
        """
        if self._mixture is None:
            raise UserError("the mixture is not open yet: call setup('fit') first")
        return self._mixture

    @property
    def data_info(self) -> DataInfo:
        """What the module and its callbacks may know about the data; complete after `setup`."""
        return replace(super().data_info, mixture=self._mixture)

    @property
    def corpus(self) -> TokenCorpus:
        """The first corpus: its tokenizer, separator and byte lengths are those of all."""
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

    def prepare_data(self) -> None:
        """Checks the sizes; there is nothing to make."""
        self._check_batch_sizes()

    def setup(self, stage: str) -> None:
        """Opens the corpora and, for training, lays out the order.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
        """
        self._open()
        if stage == "fit":
            self._check_batch_sizes()
            self._mixture = self._plan()
            self._check_length()
        elif stage in ("validate", "test"):
            self._alternating(EvaluationLoader, "val" if stage == "validate" else "test")

    def _plan(self) -> Mixture:
        splits = [prepared.corpus.split("train") for prepared in self._opened]
        tokens = [split.num_tokens for split in splits]
        weights = [corpus.weight for corpus in self.corpora]
        first = first_weights(self.weights, self.names, tokens, weights, self.temperature)
        phases = plan_phases(first, self.names, self.schedule, self._total_steps(), self.global_batch_size)
        samplers = corpus_samplers(self.names, splits, self.block_size, self.seed)
        caps = []
        for name, corpus, sampler in zip(self.names, self.corpora, samplers, strict=True):
            if corpus.max_epochs is not None and not corpus.max_epochs > 0:
                raise UserError(f"max_epochs of the corpus {name} is {corpus.max_epochs}; it must be above 0, or null")
            caps.append(None if corpus.max_epochs is None else int(corpus.max_epochs * sampler.num_windows))
        mixture = Mixture(self.names, splits, MixtureSampler(phases, caps), self.block_size, self.seed)
        if self.trainer is None or self.trainer.is_global_zero:
            self._tell(mixture)
        return mixture

    def _total_steps(self) -> int | None:
        if self.total_steps is not None:
            return self.total_steps
        limit = -1 if self.trainer is None else self.trainer.max_steps
        return None if limit < 1 else limit

    def _tell(self, mixture: Mixture) -> None:
        total = self._total_steps()
        ends = None if total is None else total * self.global_batch_size
        segments = [s for s in mixture.sampler.segments if ends is None or s.start < ends]
        for number, segment in enumerate(segments):
            if 3 <= number < len(segments) - 2 and len(segments) > 6:  # the stairs of a slow change
                if number == 3:
                    say("mixture …")
                continue
            shares = ", ".join(f"{n} {100 * w:.4g} %" for n, w in zip(self.names, segment.weights, strict=True))
            say(f"mixture from step {segment.start // self.global_batch_size:,}: {shares}")

    def _check_length(self) -> None:
        """Refuses a run that is longer than the epoch caps allow."""
        end = self.mixture.sampler.num_samples
        limit = -1 if self.trainer is None else self.trainer.max_steps
        if end is not None and limit > end // self.global_batch_size:
            raise UserError(
                f"the mixture is used up after {end // self.global_batch_size} steps, when every corpus with a weight "
                f"has reached its max_epochs, and the run has {limit}; raise max_epochs, or lower trainer.max_steps"
            )

    def lineage(self) -> dict[str, Any]:
        """Returns which corpora, weights, tokenizer and order made the batches (JSON values)."""
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
        if self._mixture is not None:
            lineage["segments"] = [
                {"step": s.start / self.global_batch_size, "weights": dict(zip(self.names, s.weights, strict=True))}
                for s in self._mixture.sampler.segments
            ]
        return lineage

    def provenance(self, batch: Batch, split: SplitName = "train") -> list[list[Piece]]:
        """Returns the documents of a batch's windows; see `WindowDataModule.provenance`."""
        if split != "train":
            name = batch["corpus"]
            tokens = self._opened[self.names.index(name)].corpus.split(split)
            return [self._trace_evaluation(tokens, sample, name) for sample in batch["sample_ids"].tolist()]
        corpora, starts = self.mixture.locate(batch["sample_ids"].numpy())
        return [
            trace_window(self.mixture.splits[corpus], start, self.block_size + 1, self.names[corpus])
            for corpus, start in zip(corpora.tolist(), starts.tolist(), strict=True)
        ]

    # ------------------------------------------------------------------ batches

    def train_dataloader(self) -> StepLoader:
        """Returns the resumable loader of optimizer steps."""
        return MixtureLoader(
            self.mixture,
            self._builder(),
            global_batch_size=self.global_batch_size,
            micro_batch_size=self._micro_batch_size(),
            **self._processes(),
        )

    def val_dataloader(self) -> Any:
        """Returns the loader of all corpora's validation windows; none if nothing is held out anywhere."""
        held_out = any(prepared.corpus.split("val").num_tokens for prepared in self._opened)
        return self._alternating(EvaluationLoader, "val") if held_out else []

    def test_dataloader(self) -> Any:
        """Returns the loader of all corpora's test windows."""
        return self._alternating(EvaluationLoader, "test")

    def predict_dataloader(self) -> Any:
        """Returns the loader of `predict_split` of all corpora, document by document."""
        return self._alternating(DocumentLoader, self.predict_split)

    def _alternating(self, kind: type[OrderedLoader], split: SplitName) -> AlternatingLoader:
        loaders: dict[str, OrderedLoader] = {}
        for name, prepared in zip(self.names, self._opened, strict=True):
            tokens = prepared.corpus.split(split)
            if tokens.num_tokens:  # a corpus need not hold anything out
                loaders[name] = kind(
                    tokens, self._builder(), self.block_size, self._eval_batch_size(), **self._processes()
                )
        if not loaders:
            raise UserError(f"no corpus of the mixture has a {split} split; prepare one with {split}_fraction above 0")
        return AlternatingLoader(loaders)
