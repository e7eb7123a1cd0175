"""The share of completed functions that are valid Python. Nothing is executed, imported or compiled to bytecode."""

import ast
import codeop
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lit_gpt.checks import check_at_least
from lit_gpt.errors import UserError
from lit_gpt.evaluation.code.humaneval import STOPS
from lit_gpt.evaluation.intervals import mean_score
from lit_gpt.evaluation.measure import Measure
from lit_gpt.evaluation.progress import Progress, no_progress
from lit_gpt.evaluation.result import Better, Example, Result, Score
from lit_gpt.evaluation.subject import Subject, answer_length_notes, check_answer_length, draw_seed
from lit_gpt.generation.request import Completion, SamplingParams
from lit_gpt.generation.text import opened

HEADERS = (
    "def add(a, b):\n",
    "def is_even(number):\n",
    "def largest(values):\n",
    'def count_words(text):\n    """Return how often each word of a text occurs."""\n',
    'def read_lines(path):\n    """Return the lines of a file without their ends."""\n',
    "def factorial(n):\n    if n < 2:\n        return 1\n",
    "def mean(values):\n    total = 0\n    for value in values:\n",
    'def reverse(text):\n    """Return the text backwards."""\n',
    "def clamp(value, low, high):\n    if value < low:\n",
    'def parse_size(text):\n    """Return the bytes that a size such as 10K stands for.\n',
    "def flatten(rows):\n    result = []\n",
    "def find(items, wanted):\n    for index, item in enumerate(items):\n",
    "def swap_keys(mapping):\n    return {",
    'def load_settings(path, default=None):\n    """Read settings from a JSON file."""\n    try:\n',
    "def gcd(a, b):\n    while b:\n",
    "def unique(items):\n    seen = set()\n",
    "def split_pairs(text, separator=','):\n",
    'def format_table(rows, width=80):\n    """Format rows of cells as text.\n',
    "def first_match(pattern, lines):\n    import re\n",
    "def merge(left, right):\n    result = dict(left)\n",
    'def close_all(files):\n    """Close files, whatever goes wrong."""\n',
    "def accept(self, name, *args, **kwargs):\n",
    "def __init__(self, name, size=0):\n    self.name = name\n",
    "def __repr__(self):\n    return ",
    "def __eq__(self, other):\n    if not isinstance(other, ",
    "async def fetch(self, key):\n",
    "def walk(node, depth=0):\n    yield node\n",
    "def test_empty(self):\n    self.assert",
    "def to_celsius(fahrenheit: float) -> float:\n",
    "def group_by(items: list, key) -> dict:\n    groups = {}\n",
    "def elapsed(start, end=None):\n    if end is None:\n",
    'def escape(text):\n    """Escape quotes and backslashes."""\n    return text.',
)


_INCOMPLETE_ALLOWED = ast.PyCF_ONLY_AST | codeop.PyCF_ALLOW_INCOMPLETE_INPUT  # type: ignore[attr-defined]
DEFINITION = (
    "The model completes {headers} beginnings of Python functions, {samples} times each, up to the next definition or "
    "{tokens} tokens. A completion parses if it is not empty and valid Python together with the beginning; if it is "
    "cut off by the limit, its last line is left out, and an open block or bracket is not an error. Valid Python may "
    "be nonsense."
)
MAX_EXAMPLES = 6


class ParsesAsPython(Measure):
    """The share of completed functions that are valid Python.

    Args:
        headers: Beginnings of functions to complete; null: a few dozen built-in ones.
        samples: Number of completions per beginning.
        temperature: Sampling temperature; 0 decodes greedily (with samples: 1).
        top_p: Nucleus sampling: keep the most probable tokens up to this probability.
        max_new_tokens: Maximum length of each completion.
        limit: Number of beginnings to use, in order; null: all.

    Raises:
        UserError: If a number is out of bounds, or headers is empty.
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
        check_at_least("samples", samples, 1)
        check_at_least("limit", limit, 1, "null for all")
        if headers is not None and not headers:
            raise UserError("headers of ParsesAsPython is empty; remove it to use the built-in ones")
        if temperature == 0 and samples > 1:
            raise UserError(f"temperature 0 writes the same text {samples} times; raise it, or set samples: 1")
        self.headers = list(HEADERS if headers is None else headers)[:limit]
        self.samples = samples
        self.params = SamplingParams(max_new_tokens, temperature, top_p=top_p, stop=(*STOPS, "\n@", "\nasync def"))

    def run(self, subject: Subject, progress: Progress = no_progress) -> list[Result]:
        """Complete all beginnings and parse the results; see `Measure`.

        Raises:
            UserError: If every beginning fills the context.
        """
        lengths = [_num_tokens(subject, header) for header in self.headers]
        check_answer_length(self.params.max_new_tokens, subject.block_size, lengths)
        fitting = [header for header, length in zip(self.headers, lengths, strict=True) if length < subject.block_size]
        if not fitting:
            raise UserError(f"every beginning fills the context of {subject.block_size} tokens; give shorter headers")
        jobs = [
            (header, replace(self.params, seed=draw_seed(subject.seed, number * self.samples + sample)))
            for number, header in enumerate(self.headers)
            if header in fitting
            for sample in range(self.samples)
        ]
        written = subject.complete([header for header, _ in jobs], [params for _, params in jobs], progress)
        judged = [
            (header, one, parses(header, one.text, one.finish_reason == "stop"))
            for (header, _), one in zip(jobs, written, strict=True)
        ]
        short = answer_length_notes(self.params.max_new_tokens, subject.block_size, lengths)
        return [self._result(subject, judged, len(self.headers) - len(fitting), short)]

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
        notes = [f"{too_long} beginnings fill the context and were left out."] if too_long else []
        return Result(
            name="parses_as_python",
            title="Completed functions that are valid Python",
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
    """Return whether a beginning and its completion are valid Python.

    Args:
        header: The beginning.
        text: The completion.
        finished: Whether the model ended the completion, rather than the token limit.

    Example:
        >>> parses("def f(x):", " return x", True), parses("def f(x):", " return", True), parses("def f(x):", "", True)
        (True, True, False)
    """
    if not finished:
        text = text[: text.rfind("\n") + 1]  # the last line may end in the middle of a word
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
