"""The model under test, and the ways of querying it.

`complete` continues a text as from the start of a document, `answer` puts a conversation through the chat template,
`respond` uses the chat template if the model has one and plain text otherwise. `likelihoods` gives log-probabilities of
given texts. All of them are batched, and sampling depends only on the subject's seed, the text's index and the sampling
parameters.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_gpt.checkpoints.resolve import resolve_model
from lit_gpt.checks import check_at_least
from lit_gpt.data.chat import ChatRenderer, Message, check_messages, normalise_messages
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.evaluation.progress import Progress, no_progress
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.loading import choose_device, load_source, make_renderer, short_name
from lit_gpt.generation.request import MAX_SEED, Completion, SamplingParams
from lit_gpt.generation.text import complete_texts
from lit_gpt.hashing import sha256_json
from lit_gpt.models import GPT

if TYPE_CHECKING:
    from lit_gpt.evaluation.likelihood import LogLikelihoods


Params = SamplingParams | Sequence[SamplingParams]
"""Sampling parameters for all texts, or one for each."""


@dataclass(frozen=True)
class Subject:
    """A loaded model that measures query; its weights must not change during its lifetime.

    Attributes:
        name: Name in the report: the name of the folder or the hub name.
        model: The model in eval mode, on its device.
        tokenizer: Tokenizer of the model.
        path: Path of the model; None for a model in training.
        lineage: Provenance record of the model, if known.
        chat_template: Preset name or file that replaces the tokenizer's own template.
        max_batch_size: Number of sequences that run at once.
        seed: Seed of everything that is sampled.
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
        """The device of the weights."""
        return next(self.model.parameters()).device

    @property
    def block_size(self) -> int:
        """Length of the model's context in tokens: prompt and answer together."""
        return self.model.config.block_size

    @cached_property
    def engine(self) -> Engine:
        """The batched generation engine; `engine.generate` takes token ids."""
        return Engine(self.model, self.tokenizer, max_batch_size=self.max_batch_size)

    @cached_property
    def likelihoods(self) -> "LogLikelihoods":
        """Log-probabilities of given texts."""
        from lit_gpt.evaluation.likelihood import LogLikelihoods

        return LogLikelihoods(self.model, self.tokenizer)

    @cached_property
    def renderer(self) -> ChatRenderer | None:
        """The chat template with the tokenizer; None if the model has none.

        Raises:
            UserError: If the template does not fit the tokenizer.
        """
        return make_renderer(self.tokenizer, self.chat_template)

    def complete(self, texts: Sequence[str], params: Params, progress: Progress = no_progress) -> list[Completion]:
        """Complete texts, each starting like the documents in training.

        Args:
            texts: The prompts.
            params: Sampling parameters; without a seed, each text gets one derived from the subject's and its index.
            progress: Called with the number of texts done.

        Returns:
            One completion for each text, in order.

        Raises:
            UserError: For a text that fills the context, naming it, before anything runs.
        """
        each = self._seeded(params, len(texts))
        return self._gather(complete_texts(self.engine, texts, each), len(texts), progress)

    def answer(
        self, conversations: Sequence[Sequence[Message]], params: Params, progress: Progress = no_progress
    ) -> list[Completion]:
        """Generate the assistant's next turn in conversations.

        Args:
            conversations: Messages of each; the last one is not the assistant's.
            params: As in `complete`; the template's stop tokens end an answer as well.
            progress: Called with the number of conversations done.

        Returns:
            One completion for each conversation, in order.

        Raises:
            UserError: If the model has no chat template, or a conversation does not render or fills the context.
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
                prompts.append(renderer(turns, add_generation_prompt=True).ids)
            except UserError as error:
                raise UserError(f"conversation {number}: {error}") from error
        stops = renderer.stop_ids
        each = [
            replace(one, stop_token_ids=tuple(dict.fromkeys((*one.stop_token_ids, *stops))))
            for one in self._seeded(params, len(prompts))
        ]
        return self.generate(prompts, each, progress)

    def respond(self, prompts: Sequence[str], params: Params, progress: Progress = no_progress) -> list[Completion]:
        """Answer prompts as for a user: through the chat template, or as plain text if there is none."""
        if self.renderer is None:
            return self.complete(prompts, params, progress)
        return self.answer([[Message(role="user", content=prompt)] for prompt in prompts], params, progress)

    def generate(
        self, prompts: Sequence[Sequence[int]], params: Params, progress: Progress = no_progress
    ) -> list[Completion]:
        """Complete prompts of token ids, which are used unchanged; see `complete` for arguments and errors."""
        each = self._seeded(params, len(prompts))
        for number, (ids, one) in enumerate(zip(prompts, each, strict=True), start=1):
            try:
                self.engine.check(ids, one)
            except UserError as error:
                raise UserError(f"prompt {number}: {error}") from error

        def run() -> Iterator[Completion]:
            # A few batches at a time, so that progress is visible while the engine still fills its batch.
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
            if self.engine.has_work:  # left over from an exception; the next measure needs an empty engine
                self.engine.fail_all("interrupted")
        return done

    def _seeded(self, params: Params, count: int) -> list[SamplingParams]:
        """Return the parameters of each text, adding a seed where sampling needs one and none is given."""
        each = [params] * count if isinstance(params, SamplingParams) else list(params)
        if len(each) != count:
            raise ValueError(f"{count} texts and {len(each)} sampling parameters; give one for all, or one for each")
        return [
            one if one.seed is not None or one.temperature == 0 else replace(one, seed=draw_seed(self.seed, number))
            for number, one in enumerate(each)
        ]


def draw_seed(seed: int, number: int) -> int:
    """Return the seed of sample `number`, hashed so that neighboring seeds and numbers give unrelated streams."""
    return int(sha256_json([seed, number])[:16], 16) & MAX_SEED


def load_subject(
    model: str,
    adapter: str | None = None,
    device: str = "auto",
    chat_template: str | None = None,
    max_batch_size: int = 16,
    seed: int = 0,
    weights: str = "plain",
) -> Subject:
    """Load a model to be measured.

    Args:
        model: A run's folder, a checkpoint, a bundle, a Hugging Face folder, a GGUF file, or a hub name.
        adapter: A run, checkpoint or folder with an adapter that was trained on it.
        device: The device; auto takes the accelerator if there is one.
        chat_template: Preset name or file that replaces the tokenizer's own template.
        max_batch_size: Number of sequences that run at once.
        seed: Seed of everything that is sampled.
        weights: Form of the weights on a CPU, as in `load_for_generation`.

    Raises:
        UserError: If there is no such model, it is damaged, has no tokenizer, or the template does not fit it.
    """
    check_at_least("max_batch_size", max_batch_size, 1)
    choose_device(device)  # refused before the model is downloaded or read
    source = resolve_model(model, adapter=adapter)
    network, tokenizer = load_source(source, device, weights, max_batch_size)
    name = short_name(model) if adapter is None else f"{short_name(model)} + {short_name(adapter)}"
    subject = Subject(name, network, tokenizer, source.path, source.lineage, chat_template, max_batch_size, seed)
    if chat_template is not None:
        subject.renderer  # noqa: B018 (a template that does not fit is reported now)
    return subject


def check_answer_length(
    max_new_tokens: int, block_size: int, lengths: Sequence[int], option: str = "max_new_tokens"
) -> None:
    """Raise if no prompt leaves enough of the context for an answer, before anything runs.

    Args:
        max_new_tokens: Maximum length of an answer.
        block_size: Length of the model's context.
        lengths: Lengths of the prompts in tokens; those that fill the context themselves are ignored.
        option: Name of the user's option for `max_new_tokens`.

    Raises:
        UserError: If even after the shortest prompt an answer would be cut off by the end of the context.
    """
    shortest = min((length for length in lengths if length < block_size), default=1)
    most = block_size - shortest
    if max_new_tokens > most:
        after = f" after the shortest prompt of {shortest} tokens" if shortest > 1 else ""
        raise UserError(
            f"{option} is {max_new_tokens}; the model's context of {block_size} tokens leaves at most {most} for an "
            f"answer{after}: lower it, or measure a model with a longer context"
        )


def answer_length_notes(max_new_tokens: int, block_size: int, lengths: Sequence[int]) -> tuple[str, ...]:
    """Return a note if the context cuts off the longest answers to some prompts; arguments as `check_answer_length`."""
    fitting = [length for length in lengths if length < block_size]
    number = sum(length + max_new_tokens > block_size for length in fitting)
    if not number:
        return ()
    return (
        f"{number} of {len(fitting)} prompts leave less of the context of {block_size} tokens than max_new_tokens "
        f"{max_new_tokens}: an answer to them ends where the context does.",
    )
