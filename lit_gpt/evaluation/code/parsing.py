"""Does it parse? The share of functions gone on with that are Python. Nothing is run, imported or compiled to code."""

import ast
import codeop
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lit_gpt.errors import UserError
from lit_gpt.evaluation.code.headers import HEADERS
from lit_gpt.evaluation.code.humaneval import STOPS
from lit_gpt.evaluation.measure import Measure
from lit_gpt.evaluation.progress import Progress, no_progress
from lit_gpt.evaluation.result import Better, Example, Result, Score
from lit_gpt.evaluation.room import check_room, short_of_room
from lit_gpt.evaluation.safety.shares import mean_score
from lit_gpt.evaluation.subject import Subject, draw_seed
from lit_gpt.generation.params import Completion, SamplingParams
from lit_gpt.generation.text import opened

_INCOMPLETE_ALLOWED = ast.PyCF_ONLY_AST | codeop.PyCF_ALLOW_INCOMPLETE_INPUT  # type: ignore[attr-defined]
DEFINITION = (
    "The model goes on from {headers} beginnings of Python functions, {samples} times each, up to the next definition "
    "or {tokens} tokens. A continuation parses if it is not empty, and it and the beginning together are valid Python; "
    "where the limit cuts it, its last line is left out, and that something is still open is no mistake. Valid Python "
    "may be nonsense."
)
MAX_EXAMPLES = 6


class ParsesAsPython(Measure):
    """The share of continued functions that are valid Python.

    Args:
        headers: Beginnings of functions; None: a few dozen that come along.
        samples: Continuations of each.
        temperature: Of the draws; 0 takes the likeliest token (samples 1).
        top_p: Keep the likeliest tokens up to this much probability.
        max_new_tokens: Of each continuation.
        limit: Beginnings at most, the first ones; None: all.

    Raises:
        UserError: A number is out of bounds, or there is nothing to go on from.
    """

    def __init__(
        self,
        headers: list[str] | None = None,
        samples: int = 4,
        temperature: float = 0.8,
        top_p: float | None = 0.95,
        max_new_tokens: int = 96,
        limit: int | None = None,
    ) -> None:
        if samples < 1 or (limit is not None and limit < 1):
            raise UserError(f"samples {samples} and limit {limit} of ParsesAsPython must be at least 1")
        if headers is not None and not headers:
            raise UserError("headers of ParsesAsPython is empty; leave it out for those that come along")
        if temperature == 0 and samples > 1:
            raise UserError(f"temperature 0 writes the same text {samples} times; raise it, or set samples: 1")
        self.headers = list(HEADERS if headers is None else headers)[:limit]
        self.samples = samples
        self.params = SamplingParams(max_new_tokens, temperature, top_p=top_p, stop=(*STOPS, "\n@", "\nasync def"))

    def run(self, subject: Subject, progress: Progress = no_progress) -> list[Result]:
        """Go on from all beginnings and parse.

        Raises:
            UserError: No beginning leaves room in the context.
        """
        lengths = [_num_tokens(subject, header) for header in self.headers]
        check_room(self.params.max_new_tokens, subject.block_size, lengths)
        room = [header for header, length in zip(self.headers, lengths, strict=True) if length < subject.block_size]
        if not room:
            raise UserError(
                f"no beginning leaves room in the context of {subject.block_size} tokens; give shorter headers"
            )
        jobs = [
            (header, replace(self.params, seed=draw_seed(subject.seed, number * self.samples + sample)))
            for number, header in enumerate(self.headers)
            if header in room
            for sample in range(self.samples)
        ]
        written = subject.complete([header for header, _ in jobs], [params for _, params in jobs], progress)
        judged = [
            (header, one, parses(header, one.text, one.finish_reason == "stop"))
            for (header, _), one in zip(jobs, written, strict=True)
        ]
        short = short_of_room(self.params.max_new_tokens, subject.block_size, lengths)
        return [self._result(subject, judged, len(self.headers) - len(room), short)]

    @staticmethod
    def _score(name: str, found: Mapping[str, list[bool]], items: list[str], better: Better, seed: int) -> Score:
        shares = [sum(values) / len(values) for values in found.values()]
        return mean_score(name, shares, items, "share", better=better, seed=seed, bounds=(0.0, 1.0))

    def _result(
        self, subject: Subject, judged: Sequence[tuple[str, Completion, bool]], too_long: int, short: tuple[str, ...]
    ) -> Result:
        by_header: dict[str, list[bool]] = {}
        ended: dict[str, list[bool]] = {}
        for header, one, good in judged:
            by_header.setdefault(header, []).append(good)
            ended.setdefault(header, []).append(one.finish_reason == "stop")
        items = [f"{number:02d} {header.splitlines()[0]}" for number, header in enumerate(by_header)]
        scores = (
            self._score("parses", by_header, items, "higher", subject.seed),
            self._score("ended_itself", ended, items, "neither", subject.seed),
        )
        notes = [f"{too_long} beginnings leave no room in the context and were left out."] if too_long else []
        return Result(
            name="parses_as_python",
            title="Continued functions that are valid Python",
            definition=DEFINITION.format(
                headers=len(by_header), samples=self.samples, tokens=self.params.max_new_tokens
            ),
            source="lit_gpt, with the stop strings of Chen et al. 2021, arXiv:2107.03374; the parser is Python's own",
            scores=scores,
            examples=_examples(judged),
            settings={
                "headers": len(self.headers),
                "samples": self.samples,
                "temperature": self.params.temperature,
                "top_p": self.params.top_p,
                "max_new_tokens": self.params.max_new_tokens,
                "stop": list(self.params.stop),
            },
            notes=(*notes, *short),
        )


def parses(header: str, text: str, finished: bool) -> bool:
    """Whether a beginning and its continuation are Python.

    Args:
        header: The beginning.
        text: What follows it.
        finished: Whether the text ended by itself, rather than where a limit cut it.

    Example:
        >>> parses("def f(x):", " return x", True), parses("def f(x):", " return", True), parses("def f(x):", "", True)
        (True, True, False)
    """
    if not finished:
        text = text[: text.rfind("\n") + 1]  # its last line may end in the middle of a word
    if not text.strip():
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes
            flags = ast.PyCF_ONLY_AST if finished else _INCOMPLETE_ALLOWED
            compile(header + text, "continuation.py", "exec", flags, dont_inherit=True)
    except SyntaxError as error:
        return not finished and "incomplete input" in str(error.msg)
    except (ValueError, RecursionError, MemoryError):
        return False
    return True


def _num_tokens(subject: Subject, header: str) -> int:
    return len(opened(subject.tokenizer, subject.tokenizer.encode(header).tolist()))


def _examples(judged: Sequence[tuple[str, Completion, bool]]) -> tuple[Example, ...]:
    good, bad = ([one for one in judged if one[2] is kind] for kind in (True, False))
    half = MAX_EXAMPLES // 2
    chosen = [*good[:: max(1, len(good) // half)][:half], *bad[:: max(1, len(bad) // half)][:half]]
    return tuple(
        Example("parses" if good else "does not parse", {"function": header + completion.text}, header.splitlines()[0])
        for header, completion, good in chosen
    )
