"""What is inspected, as one value: the windows and what is said above them."""

from dataclasses import dataclass, field

from lit_gpt.data.inspection.view import Window


@dataclass
class Report:
    """Windows of a split or of one optimizer step.

    Attributes:
        title: What is shown.
        facts: (name, value) lines about the run, the corpus and the tokenizer.
        windows: The windows.
        num_hidden: Windows of the step that are not shown.
        step: The optimizer step, counted from 1, where one is traced.
    """

    title: str
    facts: list[tuple[str, str]]
    windows: list[Window]
    num_hidden: int = 0
    step: int | None = None
    notes: list[str] = field(default_factory=list)

    def totals(self) -> list[tuple[str, str]]:
        """Returns (name, value) of what the windows add up to."""
        positions = sum(window.length for window in self.windows)
        learned = sum(window.num_learned for window in self.windows)
        sizes = [window.num_bytes for window in self.windows if window.num_bytes is not None]
        documents = sum(len(window.blocks) for window in self.windows)
        rows = [
            ("windows", f"{len(self.windows):,}"),
            ("positions", f"{positions:,}"),
            ("of them learned", f"{100 * learned / max(positions, 1):.1f} %"),
            ("padding", f"{sum(window.num_padding for window in self.windows):,}"),
            ("documents a window", f"{documents / max(len(self.windows), 1):.2f}"),
            ("stops learned", f"{sum(window.num_stops for window in self.windows):,}"),
        ]
        if sizes and learned:
            rows.append(("bytes a target", f"{sum(sizes) / learned:.2f}"))
        return rows

    def corpora(self) -> str:
        """Returns the windows of each corpus in one line; "" where there is one corpus."""
        names = [window.corpus for window in self.windows if window.corpus]
        return ", ".join(f"{name} {names.count(name)}" for name in dict.fromkeys(names))
