"""Rewards for Python source, used by `configs/grpo/stdlib.yaml`: an example of custom rewards named by `class_path`.

Source is parsed, compared and searched as a syntax tree; it is never compiled, imported or executed.

A reward for "does something" invites code that only looks as if it did. Therefore unreachable code and code without
effect are removed first (`live_body`): statements after a `return`, the branch that a constant condition never takes, a
loop over nothing, an expression or a block without effect, and a binding (an assignment, an import, an inner function)
of a name that no remaining code reads. Removing one may leave another without a reader, so this is repeated until
nothing changes.
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
"""A longer text counts as one that does not parse, which bounds the parser's time and memory."""
_FENCE = re.compile(r"\A\s*```(?:python|py)?[ \t]*\n(.*?)\n?```\s*\Z", re.DOTALL)


class PythonFunction(Reward):
    """1 if the completion is a single Python function that does something, else 0.

    "Something" is a body of more than a docstring, `pass`, `...`, code that has no effect or is unreachable
    (`live_body`), a single `raise`, or the bare return of an argument, an attribute or constants.
    """

    def __call__(self, sample: Sample) -> float:
        """Return 1 or 0."""
        function = parse_function(sample.completion)
        return 1.0 if function is not None and not is_trivial(function) else 0.0


class KeepsSignature(Reward):
    """1 if the completion is a single Python function with the requested name and arguments, else 0.

    Args:
        column: Field of the row with the signature, as `def name(arguments):`.
        partial: Maximum reward for a partly kept signature: this times the share of name and arguments in the requested
            positions, because a small model learns in small steps.
    """

    def __init__(self, column: str = "signature", partial: float = 0.0) -> None:
        check_between("partial of KeepsSignature", partial, 0, 1, high_open=True)
        self.column = column
        self.partial = partial

    def __call__(self, sample: Sample) -> float:
        """Return a number from 0 to 1.

        Raises:
            UserError: if the row has no such field, or it is not a signature.
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
        """Check that the row has a signature."""
        _asked(row, self.column)


class UsesArguments(Reward):
    """Share of the arguments that the completion's function uses; 0 if the function does nothing (`PythonFunction`).

    If the row has a signature, its arguments count, and those that the function omits are not used; otherwise the
    function's own arguments count.

    An argument is used if it is read in a reachable statement that has an effect. A bare name on a line, `x = x`, `_ =
    a, b`, an inner function that is never called, and code after a `return` or under `if False` are not uses
    (`live_body`). `self` and `cls` count only if there is no other argument; without arguments the share is 1.

    Args:
        column: Field of the row with the signature, as `def name(arguments):`.
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
        """Check that the signature, if there is one, can be parsed."""
        if row.get(self.column) is not None:
            _asked(row, self.column)


def _asked(row: dict[str, Any], column: str) -> Function:
    text = row.get(column)
    if not isinstance(text, str):
        raise UserError(f"no field {column!r}; its fields are {', '.join(map(repr, row)) or 'none'}")
    wanted = parse_function(f"{text.rstrip()}\n    pass")
    if wanted is None:
        raise UserError(f"the field {column!r} is {text!r}, which is not a `def name(arguments):`")
    return wanted


def parse_function(text: str) -> Function | None:
    """Return the function if a text consists of exactly one, else None.

    Args:
        text: Source, optionally in a Markdown fence.
    """
    fenced = _FENCE.match(text)
    source = fenced[1] if fenced else text
    if len(source) > MAX_CHARACTERS:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes
            tree = ast.parse(source.strip("\n"))
        ast.unparse(tree)  # if it is nested so deeply that this fails, later code would fail, too
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if len(tree.body) != 1 or not isinstance(tree.body[0], Function):
        return None
    names = argument_names(tree.body[0])
    return tree.body[0] if len(set(names)) == len(names) else None  # duplicate names parse, but cannot run


def argument_names(function: Function) -> list[str]:
    """Return the names of all arguments, including `*args` and `**kwargs`."""
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
    """Return the remaining statements, also within inner blocks; the function itself is not changed."""
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
    """Yield the nodes of a tree except for operands whose evaluation constants before them prevent.

    It uses an explicit stack, because source may be nested deeper than Python's recursion limit.
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
    """Yield the names that a tree reads, including `a` of `a += 1`."""
    for node in nodes(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def _needed(tree: ast.AST, arguments: set[str]) -> Iterator[str]:
    """Yield the same as `names_read`, but not the x of `x += 1`, unless x is an argument, which may change in place."""
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
    """Return a statement with live blocks; one without blocks is unchanged, and so is a class definition."""
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
    """Return whether a target consists only of names that nothing reads."""
    names = [node for node in ast.walk(target) if not isinstance(node, ast.expr_context)]
    return all(
        isinstance(node, ast.Tuple | ast.List | ast.Starred) or (isinstance(node, ast.Name) and node.id not in read)
        for node in names
    )


def _is_empty(iterated: ast.expr) -> bool:
    """Return whether it is a literal empty collection."""
    if isinstance(iterated, ast.List | ast.Tuple | ast.Set):
        return not iterated.elts
    if isinstance(iterated, ast.Dict):
        return not iterated.keys
    return isinstance(iterated, ast.Constant) and iterated.value in ("", b"")
