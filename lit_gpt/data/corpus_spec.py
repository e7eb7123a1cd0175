"""What a corpus is made of, and the one pass over its documents that everything else is built on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lit_gpt.data.documents import BadInput, Document, OnBadInput, Source, SplitName
from lit_gpt.data.split import check_fractions, choose_split, document_hash, uniform
from lit_gpt.errors import UserError


@dataclass(frozen=True)
class CorpusSpec:
    """Sources and how their documents are split.

    Attributes:
        sources: Where the documents come from, in order.
        val_fraction: Share of the documents held out for validation, by hash.
        test_fraction: Share held out for the test.
        on_bad_input: `error` stops at a file or row that cannot be read, `skip` leaves it out and counts it.
    """

    sources: Sequence[Source]
    val_fraction: float = 0.0
    test_fraction: float = 0.0
    on_bad_input: OnBadInput = "error"

    def __post_init__(self) -> None:
        check_fractions(self.val_fraction, self.test_fraction)
        BadInput(self.on_bad_input)
        if not self.sources:
            raise UserError("the corpus has no sources; name files or data sets")

    @property
    def names(self) -> str:
        """Names of the sources, for messages."""
        names = [source.name for source in self.sources]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    @property
    def nothing_found(self) -> str:
        """What to tell a user when no text was found."""
        share = " for the train split" if self.val_fraction or self.test_fraction else ""
        return (
            f"the corpus is empty: {self.names} hold no text{share}; name files that hold some, or lower val_fraction "
            "and test_fraction"
        )


@dataclass(frozen=True, slots=True)
class Admitted:
    """A document that goes into the corpus.

    Attributes:
        number: Its place among all admitted documents.
        document: The document.
        digest: SHA-256 of its text (32 bytes).
        num_bytes: UTF-8 bytes of its text.
        split: Where it goes.
    """

    number: int
    document: Document
    digest: bytes
    num_bytes: int
    split: SplitName


class Reading:
    """One pass over a corpus's documents, with its counts.

    Attributes:
        num_empty: Documents without a single character: left out, and no fault.
        bad_input: What could not be read.
    """

    def __init__(self, spec: CorpusSpec) -> None:
        self.spec = spec
        self.num_empty = 0
        self.bad_input = BadInput(spec.on_bad_input)

    def __iter__(self) -> Iterator[Admitted]:
        number = 0
        spec = self.spec
        for source in spec.sources:
            for document in source.documents(self.bad_input):
                if not document.text:
                    self.num_empty += 1
                    continue
                try:
                    digest = document_hash(document.text)
                except UnicodeEncodeError:
                    self.bad_input.reject(document.where, "the text holds a lone surrogate, which is no Unicode text")
                    continue
                num_bytes = len(document.text) if document.text.isascii() else len(document.text.encode())
                split = source.split or choose_split(digest, spec.val_fraction, spec.test_fraction)
                yield Admitted(number, document, digest, num_bytes, split)
                number += 1


def training_texts(spec: CorpusSpec, sample_bytes: int, corpus_bytes: int | None) -> Iterator[str]:
    """Yields texts of the train split for a tokenizer: all, or an even sample chosen by hash.

    Args:
        spec: The corpus.
        sample_bytes: Stop after about so many bytes.
        corpus_bytes: Size of the whole corpus; None (unknown) takes its beginning.
    """
    share = 1.0 if corpus_bytes is None else min(1.0, sample_bytes / max(corpus_bytes, 1))
    taken = 0
    for admitted in Reading(spec):
        # The split looks at the hash's first eight bytes, the sample at the next.
        if admitted.split == "train" and uniform(admitted.digest[8:16]) < share:
            yield admitted.document.text
            taken += admitted.num_bytes
            if taken >= sample_bytes:
                return
