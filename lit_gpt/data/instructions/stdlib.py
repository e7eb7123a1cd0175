"""Instructions that need no network: signature and docstring → function, from this machine's standard library.

The answer is the function's own source without its docstring. The split goes by file, with the hash that
`StdlibDataModule` splits by, so that a function that is held out here was held out in pretraining there.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from lit_gpt.data.documents import BadInput
from lit_gpt.data.file_hashes import FileHashes, sha256_json
from lit_gpt.data.rows.sources import Row
from lit_gpt.data.stdlib import stdlib_files

INSTRUCTION = "Write the Python function."


class StdlibInstructions:
    """Rows with the fields `prompt` and `completion`.

    Args:
        root: Folder of the library; this interpreter's by default.
        max_lines: Functions with more lines are left out.
    """

    name = "functions of the Python standard library"

    def __init__(self, root: Path | None = None, max_lines: int = 30) -> None:
        self.files = stdlib_files(root)
        self.max_lines = max_lines

    def fingerprint(self, hashes: FileHashes) -> str:
        """Returns a hash of the files' names and contents and of what is taken from them."""
        content = [[name, hashes.sha256(path)] for name, path in self.files]
        return sha256_json([self.name, content, self.max_lines, INSTRUCTION])

    def rows(self, bad_input: BadInput) -> Iterator[Row]:
        """Yields the functions, file by file."""
        for name, path in self.files:
            text = path.read_text(encoding="utf-8")
            for function in described_functions(text):
                if function.completion.count("\n") < self.max_lines:
                    values = {"prompt": function.prompt, "completion": function.completion}
                    yield Row(values, name, function.line, split_key=text)


class DescribedFunction:
    """A function of a module, as instruction and answer.

    Attributes:
        name: Of the function.
        signature: Its `def` line or lines, dedented, with decorators left out.
        docstring: What it says it does.
        body: Its source after the docstring, indented by one level.
        completion: Signature and body.
        line: Where it begins in the module.
    """

    def __init__(self, node: ast.FunctionDef, lines: list[str]) -> None:
        self.name = node.name
        self.line = node.lineno
        self.docstring = ast.get_docstring(node) or ""
        indent = node.col_offset
        body = node.body[1].lineno if not _decorated(node.body[1]) else node.body[1].decorator_list[0].lineno  # type: ignore[attr-defined]
        head = lines[node.lineno - 1 : node.body[0].lineno - 1]
        rest = lines[body - 1 : node.end_lineno]
        self.signature = "\n".join(line[indent:] for line in head).rstrip()
        self.body = "\n".join(line[indent:].rstrip() for line in rest).rstrip()
        self.completion = f"{self.signature}\n{self.body}"

    @property
    def prompt(self) -> str:
        """What a user asks."""
        return f"{INSTRUCTION}\n\n{self.signature}\n\n{self.docstring}"


def described_functions(text: str) -> Iterator[DescribedFunction]:
    """Yields the functions and methods of a module that have a docstring and something after it."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # templates of other versions lie in some libraries
        return
    lines = text.expandtabs().split("\n")
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or ast.get_docstring(node) is None or len(node.body) < 2:
            continue
        first, second = node.body[0], node.body[1]
        # One line each: `def f(): "..."; return 1` cannot be cut apart by lines.
        if first.lineno == node.lineno or second.lineno <= (first.end_lineno or first.lineno):
            continue
        function = DescribedFunction(node, lines)
        if _parses(function.completion):
            yield function


def _decorated(node: ast.stmt) -> bool:
    return bool(getattr(node, "decorator_list", None))


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    return True


class StdlibPreferences(StdlibInstructions):
    """Rows with `prompt`, `chosen` and `rejected`: the function that was asked for, and another function's body.

    The other is the next in the library, of about the same number of characters, so that length says nothing; it
    stands under the wanted signature, so that copying the signature says nothing either.
    """

    name = "matching and mismatching functions of the Python standard library"

    def rows(self, bad_input: BadInput) -> Iterator[Row]:
        """Yields the pairs, file by file."""
        for name, path in self.files:
            text = path.read_text(encoding="utf-8")
            functions = [f for f in described_functions(text) if f.completion.count("\n") < self.max_lines]
            by_length = sorted(functions, key=lambda function: (len(function.completion), function.line))
            for place, function in enumerate(by_length):
                others = [*by_length[place + 1 : place + 3], *by_length[max(place - 2, 0) : place]]
                other = next((o for o in others if o.body != function.body), None)
                if other is None:  # a file of one function
                    continue
                rejected = f"{function.signature}\n{other.body}"
                if not _parses(rejected):
                    continue
                values = {"prompt": function.prompt, "chosen": function.completion, "rejected": rejected}
                yield Row(values, name, function.line, split_key=text)
