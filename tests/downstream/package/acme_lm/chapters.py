"""A cleaning transform of somebody else's: it edits documents, splits them, and drops some."""

from collections.abc import Iterator

from lit_gpt.data.cleaning import Doc, Rejected, Transform


class SplitChapters(Transform):
    """Split documents at lines that begin with a heading; the title page is edited away.

    Args:
        heading: What a chapter's first line begins with.
        min_chars: A document without a chapter is dropped if it is shorter.
    """

    def __init__(self, heading: str = "# ", min_chars: int = 20) -> None:
        super().__init__()
        self.heading = heading
        self.min_chars = min_chars

    def apply(self, document: Doc) -> Doc | Rejected | Iterator[Doc]:
        title, *chapters = ("\n" + document.text).split("\n" + self.heading)
        if chapters:
            return self._parts(document, chapters)
        if len(title) < self.min_chars:
            return Rejected("no_chapter", f"{len(title)} characters")
        document.text = title.strip()
        return document

    def _parts(self, document: Doc, chapters: list[str]) -> Iterator[Doc]:
        for number, chapter in enumerate(chapters, start=1):
            part = document.part(chapter.strip())
            part.metadata["chapter"] = number
            self.counts["chapters"] += 1
            yield part
