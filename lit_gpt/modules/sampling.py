"""Answers that a module draws from its own model while it trains, through the project's engine."""

from collections.abc import Sequence
from typing import Any

import torch

from lit_gpt.checkpoints.resolve import ModelSource
from lit_gpt.data.chat import ChatRenderer
from lit_gpt.data.tokenizers import Tokenizer, load_tokenizer
from lit_gpt.errors import UserError
from lit_gpt.generation import Completion, Engine, SamplingParams
from lit_gpt.models import GPTConfig
from lit_gpt.modules.ranks import RanksMixin

Prompt = dict[str, Any]


class SamplingMixin(RanksMixin):
    """A module with a `model` that can answer prompts as it is, on the device where it trains."""

    config: GPTConfig
    max_new_tokens: int
    """Of an answer."""
    engine_batch_size: int
    """Answers drawn at once, which bounds the cache."""
    num_logged_samples: int = 0
    """Answers written to the log as text each time."""
    _source: ModelSource | None
    _tokenizer: Tokenizer | None = None
    _stop_ids: tuple[int, ...] = ()
    _shown: list[str]
    """Answers in hand, as `shown_answer` has them."""

    def sample(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], temperature: float
    ) -> list[list[Completion]]:
        """Answer prompts with the model as it is.

        Args:
            prompts: have their token ids as `ids`.
            seeds: for each prompt one for each answer.
            temperature: of the draws.

        Returns:
            For each prompt its answers.
        """
        if not prompts:
            return []
        if self._tokenizer is None:
            self._load_tokenizer()
        assert self._tokenizer is not None
        model: Any = self.model
        training = model.training
        requests = [(prompt["ids"], seed) for prompt, each in zip(prompts, seeds, strict=True) for seed in each]
        longest = max(len(ids) for ids, _ in requests)
        params = [
            SamplingParams(
                max_new_tokens=self.max_new_tokens, temperature=temperature, seed=seed, stop_token_ids=self._stop_ids
            )
            for _, seed in requests
        ]
        # A new engine each time: its cache is free again while the policy learns. Without autocast, because the cache
        # is of the weights' type.
        with torch.autocast(self.device.type, enabled=False):
            engine = Engine(
                model,
                self._tokenizer,
                max_batch_size=min(self.engine_batch_size, len(requests)),
                max_length=min(self.config.block_size, longest + self.max_new_tokens),
            )
            done = iter(engine.generate([ids for ids, _ in requests], params))
        model.train(training)
        return [[next(done) for _ in each] for each in seeds]

    def _load_tokenizer(self) -> None:
        path = self.data_info.tokenizer_path
        if path is None and self._source is not None:
            path = self._source.tokenizer_path
        if path is None:
            raise UserError("there is no tokenizer: give a DataModule that has one, or an init_from with its own")
        self._tokenizer = load_tokenizer(path)
        self._stop_ids = ChatRenderer(self._tokenizer).stop_ids

    def _write_answers(self, stage: str) -> None:
        """Write the answers in hand to every logger that takes text."""
        if not self._shown or not self.trainer.is_global_zero:
            return
        for logger in self.loggers:
            writer: Any = getattr(logger, "experiment", None)
            if hasattr(writer, "add_text"):
                step = self.trainer.global_step + (stage == "train")
                writer.add_text(f"{stage}/completions", "\n\n---\n\n".join(self._shown), step)


def shown_answer(title: str, prompt: str, answer: str, finished: bool) -> str:
    """An answer as Markdown, prompt and answer as they are."""
    prompt, answer = ("\n".join(f"    {line}" for line in text.splitlines()) or "    " for text in (prompt, answer))
    end = "" if finished else " (cut off by a limit)"
    return f"{title}\n\n{prompt}\n\nwas answered{end}:\n\n{answer}"
