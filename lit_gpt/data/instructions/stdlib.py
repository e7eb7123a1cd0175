"""Instruction data that needs no network: signature and docstring → function, from this machine's standard library.

The answer is the function's source without its docstring. Files are split by the hash that `StdlibDataModule` uses, so
that functions held out here were also held out in pretraining there.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from lit_gpt.data.corpus_spec import document_hash
from lit_gpt.data.records import GeneratedRecords, Record
from lit_gpt.data.stdlib import stdlib_files
from lit_gpt.hashing import FileHashes, sha256_json

INSTRUCTION = "Write the Python function."


class StdlibInstructions(GeneratedRecords):
    """Rows with the fields `prompt` and `completion`.

    Args:
        root: Folder of the library; this interpreter's by default.
        max_lines: Maximum number of lines; longer functions are left out.
    """

    name = "functions of the Python standard library"
    version = 1

    def __init__(self, root: Path | None = None, max_lines: int = 30) -> None:
        self.files = stdlib_files(root)
        self.max_lines = max_lines

    def fingerprint(self, hashes: FileHashes) -> str:
        """Return a hash of the files' names and contents and of the extraction options."""
        content = [[name, hashes.sha256(path)] for name, path in self.files]
        return sha256_json([self.name, self.version, content, self.max_lines, INSTRUCTION])

    def generate(self) -> Iterator[Record]:
        """Yield the functions, file by file."""
        for name, path in self.files:
            text = path.read_text(encoding="utf-8")
            for function in described_functions(text):
                if function.completion.count("\n") < self.max_lines:
                    values = {"prompt": function.prompt, "completion": function.completion}
                    yield Record(values, name, function.line, split_key=text)


class DescribedFunction:
    """A documented function of a module, as instruction and answer.

    Attributes:
        name: Name of the function.
        signature: Its `def` line or lines, dedented, without decorators.
        docstring: Its docstring.
        body: Source after the docstring, indented by one level.
        completion: Signature and body.
        line: Line of the module at which it starts.
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
        """Prompt that a user would send."""
        return f"{INSTRUCTION}\n\n{self.signature}\n\n{self.docstring}"


def described_functions(text: str) -> Iterator[DescribedFunction]:
    """Yield the functions and methods of a module that have a docstring followed by code."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # some libraries contain templates for other Python versions
        return
    lines = text.expandtabs().split("\n")
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or ast.get_docstring(node) is None or len(node.body) < 2:
            continue
        first, second = node.body[0], node.body[1]
        # Each statement starts on its own line: `def f(): "..."; return 1` cannot be split by lines.
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
    """Rows with `prompt`, `chosen` and `rejected`: the requested function, and the body of another one.

    The other function is the nearest in length, so that length carries no information, and gets the requested
    signature, so that copying the signature carries none either. It is from another file, chosen among the few whose
    hashes are nearest: splits are ranges of these hashes, so both sides of a pair are held out together (except for a
    few pairs where two splits meet).
    """

    name = "matching and mismatching functions of the Python standard library"
    version = 2
    FILES = 8
    """Number of files, adjacent by hash, among which the other function is searched."""

    def generate(self) -> Iterator[Record]:
        """Yield the pairs, a few files at a time."""
        texts = {name: path.read_text(encoding="utf-8") for name, path in self.files}
        by_hash = sorted(texts, key=lambda name: document_hash(texts[name]))
        for start in range(0, len(by_hash), self.FILES):
            names = by_hash[start : start + self.FILES]
            found = [(f, name) for name in names for f in described_functions(texts[name]) if self._is_short(f)]
            found.sort(key=lambda item: (len(item[0].body), item[1], item[0].line))
            for position, (function, name) in enumerate(found):
                other = self._nearest(found, position)
                if other is not None:
                    rejected = f"{function.signature}\n{other.body}"
                    values = {"prompt": function.prompt, "chosen": function.completion, "rejected": rejected}
                    yield Record(values, name, function.line, split_key=texts[name])

    def _is_short(self, function: DescribedFunction) -> bool:
        return function.completion.count("\n") < self.max_lines

    @staticmethod
    def _nearest(found: list[tuple[DescribedFunction, str]], position: int) -> DescribedFunction | None:
        """Return the nearest function in the list with another file and another body, after it or else before."""
        function, name = found[position]
        for step in range(1, len(found)):
            for index in (position + step, position - step) if position % 2 else (position - step, position + step):
                if 0 <= index < len(found):
                    other, their_name = found[index]
                    same = their_name == name or other.body == function.body
                    if not same and _parses(f"{function.signature}\n{other.body}"):
                        return other
        return None
