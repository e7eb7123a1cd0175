"""A classifier of texts as a guard: any class that gives a text a number."""

import math
import threading
from collections.abc import Callable
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.instantiate import import_object
from lit_gpt.serving.guards.base import Action, Guard, Passed, TextGuard

Classifier = Callable[[str], float]
"""The whole text so far → how much it is of what must not pass, such as a probability."""


class ClassifierGuard(Guard):
    """Stops texts that a classifier gives a number of at least `threshold`.

    An answer is held back until the classifier has seen it, some characters at a time; each time it sees the whole
    answer so far. It is asked by one thread at a time.

    Args:
        class_path: A class in your package, as package.module.Class; its instances are called with a text.
        init_args: Its arguments.
        threshold: From which number on a text is stopped.
        every_characters: New characters of an answer between two looks.
        max_characters: It sees at most so many, the last ones.
        input: What to do with such requests: pass or block.
        output: The same with answers.

    Raises:
        UserError: There is no such class, it does not take its arguments, or a setting is out of bounds.
    """

    name = "classifier"

    def __init__(
        self,
        class_path: str,
        init_args: dict[str, Any] | None = None,
        threshold: float = 0.5,
        every_characters: int = 200,
        max_characters: int = 20_000,
        input: Action = "block",
        output: Action = "block",
    ) -> None:
        super().__init__(input, output)
        if "redact" in (input, output):
            raise UserError("the guard classifier judges whole texts, so it cannot redact; set block or pass")
        if every_characters < 1 or max_characters < 1:
            raise UserError(
                f"every_characters {every_characters} and max_characters {max_characters} of the guard classifier must "
                "be at least 1"
            )
        if not math.isfinite(threshold):
            raise UserError(f"threshold of the guard classifier is {threshold}; it must be a finite number")
        self.threshold, self.every_characters, self.max_characters = threshold, every_characters, max_characters
        self._class_path = class_path
        target = import_object(class_path, "guard classifier")
        try:
            self._classifier: Classifier = target(**(init_args or {}))
        except TypeError as error:
            raise UserError(f"the guard classifier: {class_path} does not take {init_args} ({error})") from error
        if not callable(self._classifier):
            raise UserError(f"the guard classifier: what {class_path} makes cannot be called with a text")
        self._lock = threading.Lock()

    def stops(self, text: str) -> bool:
        """Whether a text must not pass.

        Raises:
            TypeError: The classifier gave no number.
        """
        with self._lock:
            value = float(self._classifier(text[-self.max_characters :]))
        if math.isnan(value):
            raise TypeError(f"{self._class_path} gave nan")
        return value >= self.threshold

    def text_guard(self, action: Action) -> TextGuard:
        """Return what looks at one text."""
        return _ClassifiedText(self)


class _ClassifiedText(TextGuard):
    def __init__(self, guard: ClassifierGuard) -> None:
        self._guard = guard
        self._seen = self._held = ""
        self._blocked = False

    def feed(self, text: str, last: bool = False) -> Passed:
        self._held += text
        if not self._blocked and self._held and (last or len(self._held) >= self._guard.every_characters):
            self._seen = (self._seen + self._held)[-self._guard.max_characters :]
            self._blocked = self._guard.stops(self._seen)
            if not self._blocked:
                passed, self._held = self._held, ""
                return Passed(passed)
        return Passed(blocked=self._blocked)
