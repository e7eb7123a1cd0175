"""What of a function's body can be reached and has an effect: the rest is how a reward for "does something" is gamed.

Left out are what stands after a `return`, the branch that a constant condition never takes, a loop over nothing, an
expression or a block without effect, and a binding (an assignment, an import, an inner function) of a name that
nothing left reads. Leaving one out may leave another without a reader, so it is repeated until nothing changes.
"""

import ast
import copy
from collections.abc import Iterator

Function = ast.FunctionDef | ast.AsyncFunctionDef
_EFFECT = (ast.Call, ast.Await, ast.Yield, ast.YieldFrom)
_ENDS = (ast.Return, ast.Raise, ast.Break, ast.Continue)
_BLOCKS = ("body", "orelse", "finalbody")


def live_body(function: Function) -> list[ast.stmt]:
    """Returns the statements that are left, inner blocks likewise; nothing of the function itself is changed."""
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
    """Yields the nodes of a tree but for the operands that constants before them keep from being evaluated.

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
    """Yields the names that a tree reads, `a` of `a += 1` among them."""
    for node in nodes(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def _needed(tree: ast.AST, arguments: set[str]) -> Iterator[str]:
    """As `names_read`, but `x += 1` needs no x of before, unless x is an argument, which it may change in place."""
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
    """A statement with live blocks; one without blocks as it is, and a class, whose names are read as attributes."""
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
    """Whether a target is nothing but names that nothing reads."""
    names = [node for node in ast.walk(target) if not isinstance(node, ast.expr_context)]
    return all(
        isinstance(node, ast.Tuple | ast.List | ast.Starred) or (isinstance(node, ast.Name) and node.id not in read)
        for node in names
    )


def _is_empty(iterated: ast.expr) -> bool:
    """Whether it is written as an empty collection."""
    if isinstance(iterated, ast.List | ast.Tuple | ast.Set):
        return not iterated.elts
    if isinstance(iterated, ast.Dict):
        return not iterated.keys
    return isinstance(iterated, ast.Constant) and iterated.value in ("", b"")
