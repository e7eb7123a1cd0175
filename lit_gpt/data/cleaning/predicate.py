"""`predicate`: the user's own rule, a function or a class in their package."""

import inspect
from collections.abc import Callable
from typing import Any

from lit_gpt.data.cleaning.base import PerDocumentStep
from lit_gpt.data.cleaning.step import Doc, Rejected
from lit_gpt.data.pipeline.registry import code_stamp
from lit_gpt.errors import UserError
from lit_gpt.instantiate import import_object


class Predicate(PerDocumentStep):
    """Keeps the documents for which a function says so.

    The function takes a `Doc` (`.text`, `.id`, `.metadata`) and returns True to keep it, or False, or a text that says
    why it is dropped. A class is made with `init_args` first, and its instances are called. For the same bytes with any
    number of workers it must judge by the document alone.

    Args:
        class_path: Where it is: `my_package.my_module.keep`.
        init_args: Keyword arguments of a class; for a function, keyword arguments of each call.
        version: Changes when the rule does. Without it, any change of the file that the rule stands in makes it another
            rule; set it if the rule depends on more than that file, or to edit comments at will.
    """

    name = "predicate"

    def __init__(self, class_path: str, init_args: dict[str, Any] | None = None, version: str | int = "") -> None:
        super().__init__()
        target = import_object(class_path, "step predicate")
        if not callable(target):
            raise UserError(f"predicate: {class_path} is a {type(target).__name__}; name a function or a class")
        self.class_path = class_path
        self.version = version
        self.init_args = dict(init_args or {})
        options = {} if inspect.isclass(target) else self.init_args
        if inspect.isclass(target):
            try:
                target = target(**self.init_args)
            except TypeError as error:
                raise UserError(
                    f"predicate: {class_path} does not take init_args {self.init_args} ({error})"
                ) from error
        self._judge: Callable[..., Any] = target
        self._options: dict[str, Any] = options

    def stamps(self) -> str:
        """Returns what changes when the rule does."""
        return code_stamp(self.class_path, "step predicate", self.version)

    def apply(self, document: Doc) -> Doc | Rejected:
        """Returns the document, or what the function said.

        Raises:
            UserError: if the function fails or returns something else; it names the document.
        """
        try:
            answer = self._judge(document, **self._options)
        except Exception as error:
            raise UserError(f"predicate {self.class_path} failed on document {document.id}: {error!r}") from error
        if answer is True:
            return document
        if answer is False:
            return Rejected("predicate", self.class_path)
        if isinstance(answer, str) and answer:
            return Rejected("predicate", answer)
        raise UserError(
            f"predicate {self.class_path} returned {answer!r} for document {document.id}; return True to keep it, "
            "False or a text that says why to drop it"
        )
