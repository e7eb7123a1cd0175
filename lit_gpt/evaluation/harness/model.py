"""Wraps a subject as lm-eval's `LM`, with the three kinds of requests of its tasks.

- `loglikelihood`: the log-likelihood of given continuations, with shared beginnings computed once;
- `loglikelihood_rolling`: the log-likelihood of a whole text, in windows that do not overlap;
- `generate_until`: a completion up to a stop string, through the batching engine.

The opening tokens of a text change the scores, so they are a setting. A model that was trained here reads a text as in
training, after its separator. A published model reads it as in lm-eval's `hf` model, after what the tokenizer's rules
put first, so that scores can be compared with published ones item by item.
"""

from collections.abc import Mapping
from typing import Any

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from lit_gpt.data.chat import Message
from lit_gpt.errors import UserError
from lit_gpt.evaluation.likelihood import Continuation, LogLikelihoods, Opening, TextPairs
from lit_gpt.evaluation.progress import Progress, no_progress
from lit_gpt.evaluation.subject import Subject
from lit_gpt.generation.request import MAX_STOPS, SamplingParams

DEFAULT_MAX_GEN_TOKS = 256
"""Maximum length of an answer if the task sets none, as in lm-eval."""


class ChoiceLogprob(tuple[float, bool]):
    """lm-eval's (log-likelihood, is greedy), with the log-probability of each token as an additional attribute."""

    token_logprobs: tuple[float, ...]

    def __new__(cls, answer: Continuation) -> "ChoiceLogprob":
        """Create it from a result of `LogLikelihoods`."""
        pair = super().__new__(cls, (answer.logprob, answer.is_greedy))
        pair.token_logprobs = answer.token_logprobs
        return pair


class HarnessModel(LM):
    """A subject as lm-eval's `LM`.

    Args:
        subject: The model.
        opening: Opening tokens of a text: those of training, those of lm-eval's `hf` model, or auto: the latter for
            published models, the former for models trained here. A chat template writes its own, so nothing is added.
        chat: Requests are rendered by the chat template, so special tokens in them are parsed as tokens.
        max_batch_tokens: Maximum number of tokens per forward pass; None: chosen by device.
        progress: Called with the number of requests of one kind done.

    Raises:
        UserError: If `chat` is set for a model without a chat template.
    """

    def __init__(
        self,
        subject: Subject,
        opening: Opening = "auto",
        chat: bool = False,
        max_batch_tokens: int | None = None,
        progress: Progress = no_progress,
    ) -> None:
        super().__init__()
        tokenizer = subject.tokenizer
        self.subject, self.chat, self.progress = subject, chat, progress
        self.opening = ("hf" if tokenizer.is_published else "trained") if opening == "auto" else opening
        if chat and subject.renderer is None:
            raise UserError(
                f"{subject.name} has no chat template, so tasks cannot be put to it as chats; give one with "
                "--chat_template <preset or file>, or set apply_chat_template: false"
            )
        as_hf = self.opening == "hf"
        opening_ids = () if chat else tokenizer.rule_ids if as_hf else tokenizer.opening_ids
        pairs = TextPairs(tokenizer, opening_ids, parse_special=chat or as_hf)
        self.likelihoods = LogLikelihoods(subject.model, tokenizer, max_batch_tokens, pairs)

    def loglikelihood(self, requests: list[Instance]) -> list[ChoiceLogprob]:
        """Return the log-likelihood in nats of each (context, continuation), and whether it is the greedy one."""
        found = self.likelihoods.of_texts([request.args for request in requests], self.progress)
        return [ChoiceLogprob(one) for one in found]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the log-likelihood in nats of each text; each token is predicted once, within its window."""
        pairs = self.likelihoods.pairs
        contexts: list[list[int]] = []
        continuations: list[list[int]] = []
        owners: list[int] = []
        texts = pairs.encode_texts([request.args[0] for request in requests])
        for number, ids in enumerate(texts):
            # As in `hf`: the tokens that its tokenizer puts before a text are predicted, too, after one more opening
            # token.
            whole = [*pairs.opening_ids, *ids] if self.opening == "hf" else ids
            windows = utils.get_rolling_token_windows(
                token_list=whole,
                prefix_token=pairs.open([])[-1],
                max_seq_len=self.subject.block_size,
                context_len=1,
            )
            for context, continuation in map(utils.make_disjoint_window, windows):
                contexts.append(context)
                continuations.append(continuation)
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, found in zip(owners, self.likelihoods.of_ids(contexts, continuations, self.progress), strict=True):
            totals[owner] += found.logprob
        return totals

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return the completion of each context, up to a stop string."""
        prompts, settings, stops = [], [], []
        encoded = self.likelihoods.pairs.encode_texts([request.args[0] for request in requests])
        for request, ids in zip(requests, encoded, strict=True):
            kwargs = normalize_gen_kwargs(request.args[1], DEFAULT_MAX_GEN_TOKS)
            params, until = self._params(kwargs, request.task_name or "")
            capacity = self.subject.block_size - params.max_new_tokens
            prompts.append(self.likelihoods.pairs.open(ids)[-capacity:])
            settings.append(params)
            stops.append(until)
        completions = self.subject.generate(prompts, settings, self.progress)
        decode = self.subject.tokenizer.backend.decode
        # As in `hf`: special tokens generated by the model are not part of the text.
        texts = [decode(completion.token_ids, skip_special_tokens=True) for completion in completions]
        return [postprocess_generated_text(text, until, None) for text, until in zip(texts, stops, strict=True)]

    def check_answer_length(self, task: Any, name: str) -> None:
        """Raise if a task's answers leave no room in the context for a prompt, before any task runs.

        Raises:
            UserError: With the lengths.
        """
        if task.OUTPUT_TYPE == "generate_until":
            asked = dict(task.get_config("generation_kwargs") or {})
            self._params(normalize_gen_kwargs(asked, DEFAULT_MAX_GEN_TOKS), name)

    def _params(self, kwargs: Mapping[str, Any], task: str) -> tuple[SamplingParams, list[str]]:
        """Convert a task's `generation_kwargs` to sampling parameters and stop strings."""
        asked = int(kwargs["max_gen_toks"])
        block_size = self.subject.block_size
        if asked >= block_size:
            raise UserError(
                f"task {task!r} asks for {asked} new tokens, which leaves nothing for a prompt in the model's "
                f"block_size of {block_size}; set max_gen_toks lower"
            )
        until = [stop for stop in kwargs.get("until", []) if stop]
        renderer = self.subject.renderer if self.chat else None
        top_k = kwargs.get("top_k")
        return SamplingParams(
            max_new_tokens=asked,
            temperature=float(kwargs.get("temperature", 1.0)) if kwargs.get("do_sample") else 0.0,
            top_k=None if top_k in (None, 0, -1) else int(top_k),
            top_p=kwargs.get("top_p"),
            min_p=kwargs.get("min_p"),
            repetition_penalty=float(kwargs.get("repetition_penalty", 1.0)),
            stop=tuple(until[:MAX_STOPS]),
            stop_token_ids=() if renderer is None else renderer.stop_ids,
        ), until

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation as a prompt; without a generation prompt its last turn is left open."""
        assert self.subject.renderer is not None
        turns = [Message(role=turn["role"], content=turn["content"]) for turn in chat_history]  # type: ignore[typeddict-item]
        text = self.subject.renderer(turns, add_generation_prompt).text
        if add_generation_prompt:
            return text
        last = turns[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the template's source, for lm-eval's records."""
        return self.subject.renderer.template.source if self.chat and self.subject.renderer is not None else None

    @property
    def tokenizer_name(self) -> str:
        """Key of lm-eval's cache of requests."""
        return self.subject.tokenizer.fingerprint
