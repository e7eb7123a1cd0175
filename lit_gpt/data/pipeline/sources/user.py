"""`class_path:`: documents from the user's own code."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lit_gpt.data.cleaning.base import code_stamp
from lit_gpt.data.records import BadInput, Part, Record, RecordSource, TextField
from lit_gpt.data.records.source import as_record
from lit_gpt.errors import UserError
from lit_gpt.hashing import FileHashes, sha256_json
from lit_gpt.instantiate import construct, import_object


class UserSource(RecordSource):
    """Your own generator: a function, or a class with a method `documents()`, that yields the documents.

    Each is a text, a mapping `{"text": ..., <metadata>}` or a `lit_gpt.data.records.Document`; every pass yields the
    same ones in the same order. To be read by several tasks at once, the class may also have `num_parts` (int) and take
    the part as `documents(part)`.

    Args:
        class_path: Where it is: `my_package.my_module.MySource`. Its folder must be on PYTHONPATH, or installed.
        init_args: Arguments of the class, or of the function.
        version: Changes when the documents do, so that a prepared corpus is not taken for the new one. Without it, any
            change of the file with the code counts as one.
    """

    kind = "class_path"
    text = TextField("text", keep=None)

    def __init__(self, class_path: str, init_args: dict[str, Any] | None = None, version: str | int = "") -> None:
        self.name = class_path
        self.class_path = class_path
        self.init_args = init_args or {}
        self.version = version

    def _made(self) -> Any:
        target = import_object(self.class_path, "source")
        if not callable(target):
            raise UserError(f"source {self.class_path} is a {type(target).__name__}; name a function or a class")
        return construct(target, self.init_args, f"source {self.class_path}")

    def parts(self) -> Iterator[Part]:
        """Yield one part, or as many as the class has."""
        made = self._made()
        if not hasattr(made, "documents") and not isinstance(made, Iterable):
            raise UserError(f"source {self.class_path} has no method documents() and yields nothing; give it one")
        count = int(getattr(made, "num_parts", 1))
        for part in range(count):
            yield Part(f"{self.class_path}#{part}", part if count > 1 else None, self._stamp(), None)

    def read(self, spec: Any, bad_input: BadInput, columns: Sequence[str] | None = None) -> Iterator[Record]:
        """Yield the records of a part."""
        made = self._made()
        name = self.class_path if spec is None else f"{self.class_path}#{spec}"
        items = made
        if hasattr(made, "documents"):
            items = made.documents() if spec is None else made.documents(spec)
        for number, item in enumerate(items, start=1):
            record = as_record(item, name, number)
            if record is None:
                what = f"it is a {type(item).__name__}; yield a text, a mapping with a text under 'text', or a Document"
                bad_input.reject(f"{name}:{number}", what)
            else:
                yield record

    def fingerprint(self, hashes: FileHashes) -> str:
        """Return a hash of the code and its arguments."""
        return sha256_json([self.kind, self._stamp()])

    def _stamp(self) -> list[Any]:
        return [code_stamp(self.class_path, "source", self.version), self.init_args]

    def describe(self) -> dict[str, Any]:
        """Return the class and its arguments."""
        return {"kind": self.kind, "class_path": self.class_path, "init_args": self.init_args, "version": self.version}
