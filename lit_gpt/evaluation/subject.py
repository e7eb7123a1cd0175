"""The model under test, and the ways of querying it.

`complete` continues a text as from the start of a document, `answer` puts a conversation through the chat template,
`respond` uses the chat template if the model has one and plain text otherwise. `likelihoods` gives log-probabilities
of given texts. All of them are batched, and sampling depends on the subject's seed, the text's index and the sampling
parameters alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_gpt.checkpoints.resolve import resolve_model
from lit_gpt.data.chat import ChatRenderer, Message, check_messages, normalise_messages
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.evaluation.progress import Progress, no_progress
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.loading import load_source, make_renderer, short_name
from lit_gpt.generation.request import MAX_SEED, Completion, SamplingParams
from lit_gpt.generation.text import complete_texts
from lit_gpt.hashing import sha256_json
from lit_gpt.models import GPT

if TYPE_CHECKING:
    from lit_gpt.evaluation.likelihood import LogLikelihoods


Params = SamplingParams | Sequence[SamplingParams]
"""Settings for all texts, or one each."""


@dataclass(frozen=True)
class Subject:
    """A loaded model that measures ask; its weights do not change while it lives.

    Attributes:
        name: What the report calls it: its folder's or hub name.
        model: In eval mode, on its device.
        tokenizer: The model's own.
        path: Where it was found; None for a model in training.
        lineage: Where it comes from, if that is known.
        chat_template: A preset or file instead of the tokenizer's own template.
        max_batch_size: Sequences that are run at once.
        seed: Of whatever is drawn.
    """

    name: str
    model: GPT
    tokenizer: Tokenizer
    path: Path | None = None
    lineage: Mapping[str, Any] | None = None
    chat_template: str | None = None
    max_batch_size: int = 16
    seed: int = 0

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.model.parameters()).device

    @property
    def block_size(self) -> int:
        """Tokens of the model's context: prompt and answer together."""
        return self.model.config.block_size

    @cached_property
    def engine(self) -> Engine:
        """Writes for it, batched; `engine.generate` takes token ids."""
        return Engine(self.model, self.tokenizer, max_batch_size=self.max_batch_size)

    @cached_property
    def likelihoods(self) -> "LogLikelihoods":
        """Log-probabilities that the model gives to texts."""
        from lit_gpt.evaluation.likelihood import LogLikelihoods

        return LogLikelihoods(self.model, self.tokenizer)

    @cached_property
    def renderer(self) -> ChatRenderer | None:
        """The chat template on the tokenizer; None: the model has none.

        Raises:
            UserError: The template does not fit the tokenizer.
        """
        return make_renderer(self.tokenizer, self.chat_template)

    def complete(self, texts: Sequence[str], params: Params, progress: Progress = no_progress) -> list[Completion]:
        """Go on from texts, each opened as the model's documents were in training.

        Args:
            texts: To go on from.
            params: How to draw; without a seed, each text has one that follows from the subject's and its place.
            progress: Told how many texts are done.

        Returns:
            In the order of the texts.

        Raises:
            UserError: For a text that leaves no room in the context; says which. Then nothing has run.
        """
        each = self._seeded(params, len(texts))
        return self._gather(complete_texts(self.engine, texts, each), len(texts), progress)

    def answer(
        self, conversations: Sequence[Sequence[Message]], params: Params, progress: Progress = no_progress
    ) -> list[Completion]:
        """Let the assistant take the next turn of conversations.

        Args:
            conversations: Messages of each, the last one not the assistant's.
            params: As `complete`; the template's stop tokens end an answer as well.
            progress: Told how many are done.

        Returns:
            In the order of the conversations.

        Raises:
            UserError: The model has no chat template, one does not render, or leaves no room in the context.
        """
        renderer = self.renderer
        if renderer is None:
            raise UserError(
                f"{self.name} has no chat template, so it cannot answer messages; give one with --chat_template "
                "<preset or file>, or measure it on plain texts"
            )
        prompts = []
        for number, messages in enumerate(conversations, start=1):
            try:
                turns = normalise_messages(messages)
                check_messages(turns)
                prompts.append(renderer(turns, add_generation_prompt=True, needs_mask=False).ids)
            except UserError as error:
                raise UserError(f"conversation {number}: {error}") from error
        stops = renderer.stop_ids
        each = [
            replace(one, stop_token_ids=tuple(dict.fromkeys((*one.stop_token_ids, *stops))))
            for one in self._seeded(params, len(prompts))
        ]
        return self.generate(prompts, each, progress)

    def respond(self, prompts: Sequence[str], params: Params, progress: Progress = no_progress) -> list[Completion]:
        """Ask as a user would: through the chat template, or where there is none as plain texts to go on from."""
        if self.renderer is None:
            return self.complete(prompts, params, progress)
        return self.answer([[Message(role="user", content=prompt)] for prompt in prompts], params, progress)

    def generate(
        self, prompts: Sequence[Sequence[int]], params: Params, progress: Progress = no_progress
    ) -> list[Completion]:
        """Go on from token ids just as they are; arguments and errors otherwise as `complete`."""
        each = self._seeded(params, len(prompts))
        for number, (ids, one) in enumerate(zip(prompts, each, strict=True), start=1):
            try:
                self.engine.check(ids, one)
            except UserError as error:
                raise UserError(f"prompt {number}: {error}") from error

        def run() -> Iterator[Completion]:
            # A few batches at a time: longer texts do not wait for each other, and somebody sees how far it is.
            at_once = 8 * self.max_batch_size
            for start in range(0, len(prompts), at_once):
                yield from self.engine.generate(prompts[start : start + at_once], each[start : start + at_once])

        return self._gather(run(), len(prompts), progress)

    def _gather(self, completions: Iterator[Completion], total: int, progress: Progress) -> list[Completion]:
        done = []
        progress(0, total)
        try:
            for completion in completions:
                done.append(completion)
                progress(len(done), total)
        finally:
            if self.engine.has_work:  # left by an exception: the next measure finds an engine as new
                self.engine.fail_all("interrupted")
        return done

    def _seeded(self, params: Params, count: int) -> list[SamplingParams]:
        """Settings of each text, with a seed where something is drawn and none is given."""
        each = [params] * count if isinstance(params, SamplingParams) else list(params)
        if len(each) != count:
            raise ValueError(f"{count} texts and {len(each)} settings; give one for all, or one each")
        return [
            one if one.seed is not None or one.temperature == 0 else replace(one, seed=draw_seed(self.seed, number))
            for number, one in enumerate(each)
        ]


def draw_seed(seed: int, number: int) -> int:
    """A seed of its own for draw `number`: neighbouring seeds and numbers share no stream."""
    return int(sha256_json([seed, number])[:16], 16) & MAX_SEED


def load_subject(
    model: str,
    adapter: str | None = None,
    device: str = "auto",
    chat_template: str | None = None,
    max_batch_size: int = 16,
    seed: int = 0,
) -> Subject:
    """Load a model to be measured.

    Args:
        model: A run's folder, a checkpoint, a bundle, or a Hugging Face folder or hub name.
        adapter: A run, checkpoint or folder with an adapter that was trained on it.
        device: Where to run; auto takes the accelerator if there is one.
        chat_template: A preset's name or a file, instead of the tokenizer's own.
        max_batch_size: Sequences that are run at once.
        seed: Of whatever is drawn.

    Raises:
        UserError: There is no such model, it is damaged, has no tokenizer, or the template does not fit it.
    """
    if max_batch_size < 1:
        raise UserError(f"max_batch_size is {max_batch_size}, it must be at least 1")
    source = resolve_model(model, adapter=adapter)
    network, tokenizer = load_source(source, device)
    name = short_name(model) if adapter is None else f"{short_name(model)} + {short_name(adapter)}"
    subject = Subject(name, network, tokenizer, source.path, source.lineage, chat_template, max_batch_size, seed)
    if chat_template is not None:
        subject.renderer  # noqa: B018 (one that does not fit is told of now)
    return subject


def check_answer_length(
    max_new_tokens: int, block_size: int, lengths: Sequence[int], option: str = "max_new_tokens"
) -> None:
    """Refuse answers that no prompt leaves room for, before anything is asked.

    Args:
        max_new_tokens: Of an answer.
        block_size: Tokens of the model's context.
        lengths: Tokens of the prompts; those that fill the context themselves do not count.
        option: What the user calls the first.

    Raises:
        UserError: Even after the shortest prompt an answer would end where the context does.
    """
    shortest = min((length for length in lengths if length < block_size), default=1)
    most = block_size - shortest
    if max_new_tokens > most:
        after = f" after the shortest prompt of {shortest} tokens" if shortest > 1 else ""
        raise UserError(
            f"{option} is {max_new_tokens}; the model's context of {block_size} tokens has room for at most {most} new "
            f"ones{after}: lower it, or measure a model with a longer context"
        )


def answer_length_notes(max_new_tokens: int, block_size: int, lengths: Sequence[int]) -> tuple[str, ...]:
    """What to note where some prompts leave less room than an answer may take; arguments as `check_answer_length`."""
    fitting = [length for length in lengths if length < block_size]
    number = sum(length + max_new_tokens > block_size for length in fitting)
    if not number:
        return ()
    return (
        f"{number} of {len(fitting)} prompts leave less room in the context of {block_size} tokens than max_new_tokens "
        f"{max_new_tokens}: an answer to them ends where the context does.",
    )
