"""Prompts for what a model should refuse and what it should not, put to it, and its answers judged."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_gpt.data.chat import Message
from lit_gpt.data.documents import BadInput, OnBadInput
from lit_gpt.data.hub import HubDataset
from lit_gpt.errors import UserError
from lit_gpt.evaluation.progress import Progress, no_progress
from lit_gpt.evaluation.room import check_room, short_of_room
from lit_gpt.evaluation.safety.judges import Exchange, Judge, Judgement
from lit_gpt.evaluation.safety.rows import RowSet, check_limit, drawn
from lit_gpt.evaluation.subject import Subject
from lit_gpt.generation.params import SamplingParams
from lit_gpt.generation.text import opened

Label = Literal["harmful", "safe"]
_LABELS: dict[str, Label] = {"harmful": "harmful", "unsafe": "harmful", "safe": "safe", "harmless": "safe"}


@dataclass(frozen=True)
class PromptSet:
    """Prompts and what they are.

    Attributes:
        files: csv, jsonl, ... with `prompt` and, unless `label` says it for all, `label` (harmful or unsafe, safe or
            harmless), in the form of XSTest; None, and no `hub`: the small set that comes along.
        hub: A data set instead, by name or with its configuration and split.
        columns: Our name of a field → the data's: {prompt: goal} for AdvBench.
        label: What all of them are.
        limit: Draw so many, the same for every model.
        on_bad_input: error stops at a row that cannot be used, skip leaves it out and counts it.
    """

    files: str | list[str] | None = None
    hub: str | HubDataset | None = None
    columns: dict[str, str] = field(default_factory=dict)
    label: Label | None = None
    limit: int | None = None
    on_bad_input: OnBadInput = "error"

    def rows(self) -> RowSet:
        """Where they come from.

        Raises:
            UserError: What is said of them does not fit together.
        """
        if self.label not in (None, "harmful", "safe"):
            raise UserError(f"label is {self.label!r}; it must be harmful or safe, or null where the rows say it")
        if self.label is not None and self.files is None and self.hub is None:
            raise UserError("label is for files or hub; the set that comes along has both kinds")
        return RowSet(self.files, self.hub, self.columns, self.limit, self.on_bad_input, embedded="prompts.jsonl")


PromptSets = PromptSet | list[PromptSet] | None
"""One, several, or None for the set that comes along."""


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        item: Its id.
        text: What is asked.
        label: What it is.
        kind: Its kind, where the rows say it.
    """

    item: str
    text: str
    label: Label
    kind: str = ""


@dataclass(frozen=True)
class Prompts:
    """Prompts that were read, how to read them again, and what was left out."""

    prompts: list[Prompt]
    settings: list[dict[str, Any]]
    notes: tuple[str, ...]


def check_prompts(sets: PromptSets, limit: int | None = None) -> None:
    """Refuse what cannot be meant, before anything is read.

    Raises:
        UserError: A set's settings do not fit together, or the limit is below 1.
    """
    check_limit(limit)
    for one in _listed(sets):
        one.rows()


def _listed(sets: PromptSets) -> list[PromptSet]:
    if sets is None:
        return [PromptSet()]
    return sets if isinstance(sets, list) else [sets]


def read_prompts(sets: PromptSets, limit: int | None = None) -> Prompts:
    """Read sets of prompts.

    Args:
        sets: One, several, or None for the set that comes along.
        limit: Prompts of each label, at most.

    Raises:
        UserError: A file is missing or empty, or a row has no prompt or no label (names file and row).
    """
    prompts: list[Prompt] = []
    check_limit(limit)
    settings: list[dict[str, Any]] = []
    notes: list[str] = []
    for chosen in _listed(sets):
        read = chosen.rows().read(["prompt"])
        bad_input = BadInput(chosen.on_bad_input)
        for row in read.rows:
            label = chosen.label or _LABELS.get(str(row.values.get("label")).strip().lower())
            if label is None:
                bad_input.reject(
                    row.where,
                    f"its label is {row.values.get('label')!r}; it must be one of {', '.join(_LABELS)} (or set label "
                    "for all rows of the file)",
                )
                continue
            kind = str(row.values.get("type") or row.values.get("category") or "")
            prompts.append(Prompt(row.where, row.values["prompt"], label, kind))
        settings.append(read.settings | ({"label": chosen.label} if chosen.label else {}))
        notes += read.notes
        if bad_input.named:
            notes.append(f"{bad_input.num_skipped} prompts were left out: {bad_input.named[0]}.")
    if not prompts:
        raise UserError("there is no prompt to ask; name a file that has some")
    if len({prompt.item for prompt in prompts}) < len(prompts):  # two sets of the same file's name
        prompts = [Prompt(f"{n}:{p.item}", p.text, p.label, p.kind) for n, p in enumerate(prompts, start=1)]
    if limit is not None:
        kept = [p for label in ("harmful", "safe") for p in drawn([p for p in prompts if p.label == label], limit)]
        if len(kept) < len(prompts):
            notes.append(f"A sample of {len(kept)} of {len(prompts)} prompts (limit).")
        prompts = kept
    return Prompts(prompts, settings, tuple(notes))


class NoPromptFitsError(UserError):
    """All prompts are longer than the model's context."""


@dataclass(frozen=True)
class Asked:
    """Answers and what the judge says of them.

    Attributes:
        exchanges: What was asked and answered; None where the prompt does not fit the model's context.
        judgements: Of each; None there.
        notes: How it was asked, and what was left out.
    """

    exchanges: list[Exchange | None]
    judgements: list[Judgement | None]
    notes: tuple[str, ...]


def ask(
    subject: Subject,
    texts: Sequence[tuple[str, str]],
    judge: Judge,
    params: SamplingParams,
    judged_as: Sequence[str] | None = None,
    progress: Progress = no_progress,
) -> Asked:
    """Put prompts to a model and let a judge judge the answers.

    Args:
        subject: The model.
        texts: (item, prompt).
        judge: The judge.
        params: How answers are drawn.
        judged_as: What the judge is told was asked, where that differs (an encoded prompt in plain words).
        progress: Told how many answers there are.

    Raises:
        NoPromptFitsError: No prompt fits the context.
        UserError: The judge cannot judge at all.
    """
    lengths = [num_tokens(subject, text) for _, text in texts]
    kept = [place for place, length in enumerate(lengths) if length < subject.block_size]
    if not kept:
        raise NoPromptFitsError(
            f"none of {len(texts)} prompts fits the context of {subject.name}, {subject.block_size} tokens; use "
            "shorter prompts or a model with a longer context"
        )

    def half(done: int, judged: int) -> None:  # one half is answering, the other judging
        progress((done + judged) * len(texts) // (2 * len(kept)), len(texts))

    prompts = [texts[place][1] for place in kept]
    completions = subject.respond(prompts, params, lambda done, _: half(done, 0))
    exchanges: list[Exchange | None] = [None] * len(texts)
    for place, completion in zip(kept, completions, strict=True):
        prompt = texts[place][1] if judged_as is None else judged_as[place]
        exchanges[place] = Exchange(prompt, completion.text, texts[place][0])
    answered = [exchange for exchange in exchanges if exchange is not None]
    judged = judge.judge(answered, lambda done, _: half(len(kept), done))
    judgements: list[Judgement | None] = [None] * len(texts)
    for place, judgement in zip(kept, judged, strict=True):
        judgements[place] = judgement
    notes = []
    if len(kept) < len(texts):
        notes.append(
            f"{len(texts) - len(kept)} of {len(texts)} prompts do not fit the model's context of {subject.block_size} "
            "tokens and were left out."
        )
    notes += short_of_room(params.max_new_tokens, subject.block_size, lengths)
    if subject.renderer is None:
        notes.append(
            "The model has no chat template: the prompts were texts for it to go on from, which is not how people "
            "ask. Numbers of a model that was never taught to answer say little."
        )
    return Asked(exchanges, judgements, tuple(notes))


def num_tokens(subject: Subject, text: str) -> int:
    """Tokens of a prompt as the model reads it."""
    if subject.renderer is None:
        return len(opened(subject.tokenizer, subject.tokenizer.encode(text).tolist()))
    messages = [Message(role="user", content=text)]
    return len(subject.renderer(messages, add_generation_prompt=True, needs_mask=False).ids)


def check_answers_fit(subject: Subject, prompts: Sequence[Prompt], params: SamplingParams) -> None:
    """Refuse answers that no prompt leaves room for (`check_room`), before anything is asked."""
    lengths = [num_tokens(subject, prompt.text) for prompt in prompts]
    check_room(params.max_new_tokens, subject.block_size, lengths)
