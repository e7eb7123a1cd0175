"""Rewards for Python source: parsed, compared and searched as a syntax tree; never compiled, imported or run."""

import ast
import re
import warnings
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.rewards.live_code import Function, live_body, names_read, nodes
from lit_gpt.rewards.sample import Reward, Sample

MAX_CHARACTERS = 100_000
"""A longer text counts as one that does not parse: the parser's time and memory stay bounded."""
_FENCE = re.compile(r"\A\s*```(?:python|py)?[ \t]*\n(.*?)\n?```\s*\Z", re.DOTALL)


class PythonFunction(Reward):
    """1 where the completion is one Python function that does something, else 0.

    "Something" is a body of more than a docstring, `pass`, `...`, what has no effect or cannot be reached
    (`lit_gpt.rewards.live_code`), a lone `raise`, or the bare return of an argument, an attribute or constants.
    """

    def __call__(self, sample: Sample) -> float:
        """Returns 1 or 0."""
        function = parse_function(sample.completion)
        return 1.0 if function is not None and not is_trivial(function) else 0.0


class KeepsSignature(Reward):
    """1 where the completion is one Python function with the name and the arguments that were asked for, else 0.

    Args:
        column: The field of the row that has the signature, as `def name(arguments):`.
        partial: Reward at most for one that is kept in part: this times the share of name and arguments that stand
            where they were asked for. A small model finds its way in small steps.
    """

    def __init__(self, column: str = "signature", partial: float = 0.0) -> None:
        if not 0 <= partial < 1:
            raise UserError(f"partial of KeepsSignature is {partial}; it must be at least 0 and below 1")
        self.column = column
        self.partial = partial

    def __call__(self, sample: Sample) -> float:
        """Returns a number from 0 to 1.

        Raises:
            UserError: if the row has no such field, or one that is no signature.
        """
        wanted = _asked(sample.row, self.column)
        function = parse_function(sample.completion)
        if function is None:
            return 0.0
        if _signature(function) == _signature(wanted):
            return 1.0
        given, asked = ([f.name, *argument_names(f)] for f in (function, wanted))
        kept = sum(one == other for one, other in zip(given, asked, strict=False))
        return self.partial * kept / max(len(given), len(asked))

    def check_row(self, row: dict[str, Any]) -> None:
        """Asks for a signature."""
        _asked(row, self.column)


class UsesArguments(Reward):
    """Share of the arguments that the completion's function makes use of; 0 if it does nothing (`PythonFunction`).

    Of the arguments that were asked for, if the row has a signature; one that the function leaves out is not used.
    Else of its own.

    What counts as use: the argument is read in a statement that can be reached and that has an effect. A bare name on
    a line of its own, `x = x`, `_ = a, b`, an inner function that is never called, and what stands after a `return` or
    under `if False` are no use (`lit_gpt.rewards.live_code`). `self` and `cls` count only where there is nothing else;
    where there are no arguments the share is 1.

    Args:
        column: The field of the row that has the signature, as `def name(arguments):`.
    """

    def __init__(self, column: str = "signature") -> None:
        self.column = column

    def __call__(self, sample: Sample) -> float:
        """Returns a number from 0 to 1."""
        function = parse_function(sample.completion)
        if function is None or is_trivial(function):
            return 0.0
        asked = _asked(sample.row, self.column) if sample.row.get(self.column) is not None else function
        own, names = argument_names(function), argument_names(asked)
        wanted = [name for name in names if name not in ("self", "cls")] or names
        read = {name for statement in live_body(function) for name in names_read(statement)}
        return sum(name in read and name in own for name in wanted) / len(wanted) if wanted else 1.0

    def check_row(self, row: dict[str, Any]) -> None:
        """Asks that a signature, if there is one, is one."""
        if row.get(self.column) is not None:
            _asked(row, self.column)


def _asked(row: dict[str, Any], column: str) -> Function:
    text = row.get(column)
    if not isinstance(text, str):
        raise UserError(f"no field {column!r}; its fields are {', '.join(map(repr, row)) or 'none'}")
    wanted = parse_function(f"{text.rstrip()}\n    pass")
    if wanted is None:
        raise UserError(f"the field {column!r} holds {text!r}, which is no `def name(arguments):`")
    return wanted


def parse_function(text: str) -> Function | None:
    """Returns the function that a text consists of, or None if it is anything else, or more.

    Args:
        text: Source, or one Markdown fence around it.
    """
    fenced = _FENCE.match(text)
    source = fenced[1] if fenced else text
    if len(source) > MAX_CHARACTERS:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes
            tree = ast.parse(source.strip("\n"))
        ast.unparse(tree)  # nested so deeply that this fails, it would fail later
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if len(tree.body) != 1 or not isinstance(tree.body[0], Function):
        return None
    names = argument_names(tree.body[0])
    return tree.body[0] if len(set(names)) == len(names) else None  # two of one name parse, but no Python runs them


def argument_names(function: Function) -> list[str]:
    """Returns the names of all arguments, `*args` and `**kwargs` included."""
    arguments = function.args
    several = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument.arg for argument in [*several, arguments.vararg, arguments.kwarg] if argument is not None]


def is_trivial(function: Function) -> bool:
    """Whether the body does nothing, only raises, or returns a bare argument, attribute or constants and no more."""
    statements = live_body(function)
    if not statements or all(isinstance(statement, ast.Raise) for statement in statements):
        return True
    if len(statements) > 1 or not isinstance(statements[0], ast.Return):
        return False
    value = statements[0].value
    if value is None or not any(True for _ in names_read(value)):  # `-1`, or a text joined out of nothing
        return True
    return not any(isinstance(node, _WORK) for node in nodes(value))


_WORK = (
    ast.Call, ast.BinOp, ast.BoolOp, ast.UnaryOp, ast.Compare, ast.IfExp, ast.Subscript, ast.Await,
    ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda, ast.JoinedStr, ast.Yield, ast.YieldFrom,
)  # fmt: skip
"""Expressions that compute something; a name, an attribute, a constant or a tuple of them does not."""


def _signature(function: Function) -> tuple[str, str, bool]:
    """Name and arguments with their defaults, without annotations, and whether it is async."""
    arguments = ast.parse(ast.unparse(function.args).join(("def f(", "): pass"))).body[0]
    assert isinstance(arguments, ast.FunctionDef)
    for node in ast.walk(arguments.args):
        if isinstance(node, ast.arg):
            node.annotation = None
    return function.name, ast.unparse(arguments.args), isinstance(function, ast.AsyncFunctionDef)
