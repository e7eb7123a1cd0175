"""Rewards for Python source: parsed, compared and searched as a syntax tree; never compiled, imported or run."""

import ast
import re
import warnings
from collections.abc import Iterator

from lit_gpt.errors import UserError
from lit_gpt.rewards.sample import Reward, Sample

MAX_CHARACTERS = 100_000
"""A longer text counts as one that does not parse: the parser's time and memory stay bounded."""
_FENCE = re.compile(r"\A\s*```(?:python|py)?[ \t]*\n(.*?)\n?```\s*\Z", re.DOTALL)

Function = ast.FunctionDef | ast.AsyncFunctionDef


class PythonFunction(Reward):
    """1 where the completion is one Python function that does something, else 0.

    "Something" is a body of more than a docstring, `pass`, `...`, an expression without effect, or the bare return of
    an argument, an attribute or a constant.
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
        wanted = _asked(sample, self.column)
        function = parse_function(sample.completion)
        if function is None:
            return 0.0
        if _signature(function) == _signature(wanted):
            return 1.0
        given, asked = ([f.name, *argument_names(f)] for f in (function, wanted))
        kept = sum(one == other for one, other in zip(given, asked, strict=False))
        return self.partial * kept / max(len(given), len(asked))


class UsesArguments(Reward):
    """Share of the arguments that the completion's function makes use of; 0 if it does nothing (`PythonFunction`).

    Of the arguments that were asked for, if the row has a signature; one that the function leaves out is not used.
    Else of its own.

    What counts as use: the argument is read in a statement that can be reached and that has an effect. A bare name on
    a line of its own, `x = x`, and what stands after a `return` are no use. `self` and `cls` count only where
    there is nothing else; where there are no arguments the share is 1.

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
        asked = _asked(sample, self.column) if sample.row.get(self.column) is not None else function
        own, names = argument_names(function), argument_names(asked)
        wanted = [name for name in names if name not in ("self", "cls")] or names
        read = {name for statement in _effective(function.body) for name in _names_read(statement)}
        return sum(name in read and name in own for name in wanted) / len(wanted) if wanted else 1.0


def _asked(sample: Sample, column: str) -> Function:
    text = sample.row.get(column)
    if not isinstance(text, str):
        raise UserError(f"no field {column!r}; its fields are {', '.join(map(repr, sample.row)) or 'none'}")
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
    """Whether the body does nothing, or returns a bare argument, attribute or constant and no more."""
    statements = list(_effective(function.body))
    if not statements:
        return True
    if len(statements) > 1 or not isinstance(statements[0], ast.Return):
        return False
    value = statements[0].value
    return value is None or not any(isinstance(node, _WORK) for node in ast.walk(value))


_WORK = (
    ast.Call, ast.BinOp, ast.BoolOp, ast.UnaryOp, ast.Compare, ast.IfExp, ast.Subscript, ast.Await,
    ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda, ast.JoinedStr, ast.Yield, ast.YieldFrom,
)  # fmt: skip
"""Expressions that compute something; a name, an attribute, a constant or a tuple of them does not."""
_EFFECT = (ast.Call, ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)
_ENDS = (ast.Return, ast.Raise, ast.Break, ast.Continue)


def _effective(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yields the statements of a block that can be reached and do something."""
    for statement in body:
        if isinstance(statement, ast.Expr):
            if any(isinstance(node, _EFFECT) for node in ast.walk(statement.value)):
                yield statement
        elif isinstance(statement, ast.Assign):
            if not all(ast.unparse(target) == ast.unparse(statement.value) for target in statement.targets):
                yield statement
        elif not isinstance(statement, ast.Pass | ast.Global | ast.Nonlocal):
            yield statement
        if isinstance(statement, _ENDS):
            return


def _names_read(statement: ast.stmt) -> Iterator[str]:
    """Yields the names that a statement reads, those in its inner blocks as far as they are reached and do something.

    Walked with a stack of our own: source may nest deeper than Python recurses.
    """
    stack: list[ast.AST] = [statement]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        for _, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                stack.extend(_effective(value))
            elif isinstance(value, list):
                stack.extend(item for item in value if isinstance(item, ast.AST))
            elif isinstance(value, ast.AST):
                stack.append(value)


def _signature(function: Function) -> tuple[str, str, bool]:
    """Name and arguments with their defaults, without annotations, and whether it is async."""
    arguments = ast.parse(ast.unparse(function.args).join(("def f(", "): pass"))).body[0]
    assert isinstance(arguments, ast.FunctionDef)
    for node in ast.walk(arguments.args):
        if isinstance(node, ast.arg):
            node.annotation = None
    return function.name, ast.unparse(arguments.args), isinstance(function, ast.AsyncFunctionDef)
