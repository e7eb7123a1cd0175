"""Sample text to train a tokenizer on, from one source or from several in given proportions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lit_gpt.data.corpus_spec import CorpusSpec, training_texts
from lit_gpt.data.records import FileFormat, FileRecords, OnBadInput
from lit_gpt.errors import UserError

# A file may contain much less text than its size suggests (JSON's escapes, other columns): read this many times more.
_OVERESTIMATE = 4


@dataclass(frozen=True)
class WeightedFiles:
    """One source of a mixture to sample from.

    Args:
        files: Files, folders or glob patterns.
        weight: Share of the sample's bytes, relative to the other sources' weights.
        text_field: Field or column with the text, or a template of fields.
        document_separator: String at which plain text files are split into documents; null keeps each file whole.
        format: File format options that the suffix does not determine: encoding, quoting, delimiter.
    """

    files: str | list[str]
    weight: float = 1.0
    text_field: str = "text"
    document_separator: str | None = None
    format: FileFormat | None = None


@dataclass
class SampledSource:
    """A source and the amount of text sampled from it.

    Attributes:
        spec: The source.
        num_bytes: Size of the source's text, estimated from its files.
        sample_bytes: Bytes to sample.
        taken_bytes: Bytes sampled by the last pass.
    """

    spec: CorpusSpec
    num_bytes: int
    sample_bytes: int
    taken_bytes: int = 0

    def texts(self) -> Iterator[str]:
        """Yield the sample of this source."""
        self.taken_bytes = 0
        for text in training_texts(self.spec, self.sample_bytes, self.num_bytes):
            self.taken_bytes += len(text.encode())
            yield text


class TokenizerSample:
    """Training texts for a tokenizer, an even sample of each source by document hash.

    With several sources, their shares of the bytes match the weights to within a document. If one has too little text
    for its share, the whole sample shrinks accordingly, because repeated text would distort the merges. (The amount of
    text in a source is known only after reading it, so several sources are read twice.)

    Args:
        sources: The sources.
        sample_bytes: Maximum size of the sample in bytes.
        val_fraction: Exclude the documents that a data module with this fraction holds out for validation.
        test_fraction: The same for the test split.
        on_bad_input: What to do with a file or row that cannot be read: `error` or `skip`.

    Raises:
        UserError: for weights that are not above 0.
    """

    def __init__(
        self,
        sources: Sequence[WeightedFiles],
        sample_bytes: int,
        val_fraction: float = 0.0,
        test_fraction: float = 0.0,
        on_bad_input: OnBadInput = "error",
    ) -> None:
        for source in sources:
            if not 0 < source.weight < float("inf"):
                raise UserError(f"weight {source.weight} of {source.files} must be above 0; or leave the source out")
        self._shares = [source.weight / sum(other.weight for other in sources) for source in sources]
        self.sources = []
        for source, share in zip(sources, self._shares, strict=True):
            files = FileRecords(source.files, source.text_field, source.document_separator, format=source.format)
            spec = CorpusSpec([files], val_fraction, test_fraction, on_bad_input)
            self.sources.append(SampledSource(spec, files.num_bytes(), max(1, int(sample_bytes * share))))
        self._settled = len(sources) == 1

    def __iter__(self) -> Iterator[str]:
        self._allocate()
        for source in self.sources:
            yield from source.texts()

    def _allocate(self) -> None:
        """Measure the text in each source, and scale all shares down to what the scarcest source allows."""
        if self._settled:
            return
        for source in self.sources:
            source.num_bytes //= _OVERESTIMATE
            for _ in source.texts():
                pass
        total = min(source.taken_bytes / share for source, share in zip(self.sources, self._shares, strict=True))
        for source, share in zip(self.sources, self._shares, strict=True):
            source.sample_bytes = min(source.sample_bytes, max(1, int(total * share)))
        self._settled = True
