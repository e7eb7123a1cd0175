"""Rewards for Python source, for `configs/grpo/stdlib.yaml`: an example of rewards of your own, named by `class_path`.

Source is parsed, compared and searched as a syntax tree; it is never compiled, imported or run.

A reward for "does something" invites code that only looks as if it did. So what cannot be reached or has no effect is
removed first (`live_body`): what stands after a `return`, the branch that a constant condition never takes, a loop over
nothing, an expression or a block without effect, and a binding (an assignment, an import, an inner function) of a name
that nothing left reads. Removing one may leave another without a reader, so it is repeated until nothing changes.
"""

import ast
import copy
import re
import warnings
from collections.abc import Iterator
from typing import Any

from lit_gpt.checks import check_between
from lit_gpt.errors import UserError
from lit_gpt.rewards import Reward, Sample

Function = ast.FunctionDef | ast.AsyncFunctionDef
_EFFECT = (ast.Call, ast.Await, ast.Yield, ast.YieldFrom)
_ENDS = (ast.Return, ast.Raise, ast.Break, ast.Continue)
_BLOCKS = ("body", "orelse", "finalbody")
MAX_CHARACTERS = 100_000
"""A longer text counts as one that does not parse: the parser's time and memory stay bounded."""
_FENCE = re.compile(r"\A\s*```(?:python|py)?[ \t]*\n(.*?)\n?```\s*\Z", re.DOTALL)


class PythonFunction(Reward):
    """1 where the completion is one Python function that does something, else 0.

    "Something" is a body of more than a docstring, `pass`, `...`, what has no effect or cannot be reached
    (`live_body`), a lone `raise`, or the bare return of an argument, an attribute or constants.
    """

    def __call__(self, sample: Sample) -> float:
        """Return 1 or 0."""
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
        check_between("partial of KeepsSignature", partial, 0, 1, high_open=True)
        self.column = column
        self.partial = partial

    def __call__(self, sample: Sample) -> float:
        """Return a number from 0 to 1.

        Raises:
            UserError: the row has no such field, or one that is no signature.
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
        """Require a signature."""
        _asked(row, self.column)


class UsesArguments(Reward):
    """Share of the arguments that the completion's function makes use of; 0 if it does nothing (`PythonFunction`).

    Of the arguments that were asked for, if the row has a signature; one that the function leaves out is not used.
    Else of its own.

    What counts as use: the argument is read in a statement that can be reached and that has an effect. A bare name on
    a line of its own, `x = x`, `_ = a, b`, an inner function that is never called, and what stands after a `return` or
    under `if False` are no use (`live_body`). `self` and `cls` count only where there is nothing else;
    where there are no arguments the share is 1.

    Args:
        column: The field of the row that has the signature, as `def name(arguments):`.
    """

    def __init__(self, column: str = "signature") -> None:
        self.column = column

    def __call__(self, sample: Sample) -> float:
        """Return a number from 0 to 1."""
        function = parse_function(sample.completion)
        if function is None or is_trivial(function):
            return 0.0
        asked = _asked(sample.row, self.column) if sample.row.get(self.column) is not None else function
        own, names = argument_names(function), argument_names(asked)
        wanted = [name for name in names if name not in ("self", "cls")] or names
        read = {name for statement in live_body(function) for name in names_read(statement)}
        return sum(name in read and name in own for name in wanted) / len(wanted) if wanted else 1.0

    def check_row(self, row: dict[str, Any]) -> None:
        """Require that a signature, if there is one, can be parsed."""
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
    """Return the function that a text consists of, or None if it is anything else, or more.

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
    """Return the names of all arguments, `*args` and `**kwargs` included."""
    arguments = function.args
    several = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument.arg for argument in [*several, arguments.vararg, arguments.kwarg] if argument is not None]


def is_trivial(function: Function) -> bool:
    """Return whether the body does nothing, only raises, or only returns a bare argument, attribute or constants."""
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
    """Return name and arguments with their defaults, without annotations, and whether it is async."""
    arguments = ast.parse(ast.unparse(function.args).join(("def f(", "): pass"))).body[0]
    assert isinstance(arguments, ast.FunctionDef)
    for node in ast.walk(arguments.args):
        if isinstance(node, ast.arg):
            node.annotation = None
    return function.name, ast.unparse(arguments.args), isinstance(function, ast.AsyncFunctionDef)


# ---- what can be reached and has an effect ----------------------------------------------------------------------


def live_body(function: Function) -> list[ast.stmt]:
    """Return the statements that are left, inner blocks likewise; nothing of the function itself is changed."""
    arguments = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    outer: set[str] = set()
    everything = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    for node in ast.walk(function):
        if isinstance(node, ast.Global | ast.Nonlocal):
            outer.update(node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            everything.add(node.name)
    read = everything | outer
    try:
        while True:
            body = _live(function.body, read, arguments)
            still_read = outer | {name for statement in body for name in _needed(statement, arguments)}
            if still_read >= read:
                return body
            read &= still_read
    except RecursionError:  # thousands of `elif`
        return []


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a tree but for the operands that constants before them keep from being evaluated.

    Walked with a stack of our own: source may nest deeper than Python recurses.
    """
    stack = [tree]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, ast.IfExp) and isinstance(node.test, ast.Constant):
            stack.append(node.body if node.test.value else node.orelse)
        elif isinstance(node, ast.BoolOp):
            for value in node.values:
                stack.append(value)
                if isinstance(value, ast.Constant) and bool(value.value) == isinstance(node.op, ast.Or):
                    break
        else:
            stack.extend(ast.iter_child_nodes(node))


def names_read(tree: ast.AST) -> Iterator[str]:
    """Yield the names that a tree reads, `a` of `a += 1` among them."""
    for node in nodes(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def _needed(tree: ast.AST, arguments: set[str]) -> Iterator[str]:
    """Yield as `names_read` does, but not the x of `x += 1`, unless x is an argument, which may change in place."""
    for node in nodes(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name) and node.target.id in arguments:
            yield node.target.id


def _live(block: list[ast.stmt], read: set[str], arguments: set[str]) -> list[ast.stmt]:
    kept: list[ast.stmt] = []
    for statement in block:
        if isinstance(statement, ast.If | ast.While) and isinstance(statement.test, ast.Constant):
            taken = isinstance(statement, ast.If) and statement.test.value
            if taken or not statement.test.value:
                kept += _live(statement.body if taken else statement.orelse, read, arguments)
                if kept and isinstance(kept[-1], _ENDS):
                    return kept
                continue
        if isinstance(statement, ast.For | ast.AsyncFor) and _is_empty(statement.iter):
            kept += _live(statement.orelse, read, arguments)
            continue
        inner = _with_live_blocks(statement, read, arguments)
        if _does_something(inner, read, arguments):
            kept.append(inner)
        if isinstance(statement, _ENDS):
            return kept
    return kept


def _with_live_blocks(statement: ast.stmt, read: set[str], arguments: set[str]) -> ast.stmt:
    """Return a statement with live blocks; one without blocks as it is, also a class (its names are attributes)."""
    if isinstance(statement, ast.ClassDef):
        return statement
    blocks = {name: _live(getattr(statement, name), read, arguments) for name in _BLOCKS if hasattr(statement, name)}
    parts = {
        name: [_with_live_body(part, read, arguments) for part in getattr(statement, name)]
        for name in ("handlers", "cases")
        if hasattr(statement, name)
    }
    if not blocks and not parts:
        return statement
    result = copy.copy(statement)
    for name, value in (blocks | parts).items():
        setattr(result, name, value)
    return result


def _with_live_body(part: ast.ExceptHandler | ast.match_case, read: set[str], arguments: set[str]) -> ast.AST:
    result = copy.copy(part)
    result.body = _live(part.body, read, arguments)
    return result


def _does_something(statement: ast.stmt, read: set[str], arguments: set[str]) -> bool:
    match statement:
        case ast.Pass() | ast.Global() | ast.Nonlocal():
            return False
        case ast.Expr(value=value):
            return _has_effect(value, read)
        case ast.If(test=test, body=body, orelse=orelse):
            return bool(body or orelse) or _has_effect(test, read)
        case ast.Try(body=body, orelse=orelse, finalbody=finalbody):
            return bool(body or orelse or finalbody)
        case ast.Assert(test=test):
            return any(True for _ in names_read(test))
        case ast.Delete(targets=targets):
            return not all(isinstance(target, ast.Name) for target in targets)
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            bound = {(name.asname or name.name).partition(".")[0] for name in names}
            return bool(bound & read) or "*" in bound
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return name in read or bool(statement.decorator_list)
        case ast.AnnAssign(value=None):
            return False
        case ast.Assign(targets=targets, value=value):
            if all(ast.unparse(target) == ast.unparse(value) for target in targets):
                return False
            return _has_effect(value, read) or not all(_is_unread(target, read) for target in targets)
        case ast.AnnAssign(target=target, value=ast.expr() as value):
            return _has_effect(value, read) or not _is_unread(target, read)
        case ast.AugAssign(target=target, value=value):
            of_argument = isinstance(target, ast.Name) and target.id in arguments
            return of_argument or _has_effect(value, read) or not _is_unread(target, read)
    return True


def _has_effect(tree: ast.AST, read: set[str]) -> bool:
    return any(
        isinstance(node, _EFFECT) or (isinstance(node, ast.NamedExpr) and node.target.id in read)
        for node in nodes(tree)
    )


def _is_unread(target: ast.expr, read: set[str]) -> bool:
    """Return whether a target is nothing but names that nothing reads."""
    names = [node for node in ast.walk(target) if not isinstance(node, ast.expr_context)]
    return all(
        isinstance(node, ast.Tuple | ast.List | ast.Starred) or (isinstance(node, ast.Name) and node.id not in read)
        for node in names
    )


def _is_empty(iterated: ast.expr) -> bool:
    """Return whether it is written as an empty collection."""
    if isinstance(iterated, ast.List | ast.Tuple | ast.Set):
        return not iterated.elts
    if isinstance(iterated, ast.Dict):
        return not iterated.keys
    return isinstance(iterated, ast.Constant) and iterated.value in ("", b"")
