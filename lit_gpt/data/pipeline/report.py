"""Reports of what a transform did: one `TransformReport` per task, which can be merged in any order.

Documents in = kept + edited + dropped, where each split document counts as its parts:

    documents_in - split[0] + split[1] = out + dropped

The examples are the ten documents whose ids have the lowest hashes, so they are an even sample that does not depend on
how the documents were distributed over tasks.

If the recipe removes personal data from the documents, no report may reveal it: a text is masked as a whole before it
is cut to an excerpt, because half of a key would not be recognized.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from lit_gpt.data.cache import write_atomic
from lit_gpt.data.cleaning.base import Doc, Rejected

MAX_EXAMPLES = 10
MAX_CLUSTERS = 12
MAX_CLUSTER_MEMBERS = 4
EXCERPT_CHARACTERS = 400
UNKNOWN = "unknown"


def text_bytes(text: str) -> int:
    """Return the number of UTF-8 bytes of a text."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def excerpt(text: str) -> str:
    """Return the beginning and, for a long text, the end."""
    if len(text) <= EXCERPT_CHARACTERS:
        return text
    head = EXCERPT_CHARACTERS * 3 // 4
    return f"{text[:head]} […] {text[-(EXCERPT_CHARACTERS - head) :]}"


def sample_key(identity: str) -> str:
    """Return the hash by which examples are chosen."""
    return hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@cache
def personal_data_mask() -> Callable[[str], str]:
    """Return a function that replaces all personal data in a text by tags."""
    from lit_gpt.data.cleaning.pii import PII

    pii = PII()

    def mask(text: str) -> str:
        result = pii.apply(Doc(text, ""))
        return result.text if isinstance(result, Doc) else ""

    return mask


def masked_id(identity: str, mask: Callable[[str], str]) -> str:
    """Return a document's id with personal data masked in each path component.

    The suffix of a file name is masked separately: as part of an email address it would hide the address.
    """
    parts = re.split(r"([/:])", identity)
    for position, part in enumerate(parts):
        stem, dot, suffix = part.rpartition(".")
        masked = mask(part)
        parts[position] = masked if masked != part or not dot else mask(stem) + dot + suffix
    return "".join(parts)


@dataclass
class Tally:
    """Counts of documents and bytes, in total and by metadata.

    Attributes:
        documents: Number of documents.
        num_bytes: UTF-8 bytes of their texts.
        lengths: Number of documents by bit length of their length in characters (bin b: 2^(b-1) to 2^b - 1).
        groups: [documents, bytes] by kind (`source`, `language`, `license`) and value.
    """

    documents: int = 0
    num_bytes: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    groups: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    GROUPS: ClassVar[dict[str, str]] = {
        "source": "source",
        "language": "language",
        "license": "license",
    }

    def add(self, text: str, metadata: dict[str, Any]) -> int:
        """Count one document and return its bytes."""
        size = text_bytes(text)
        self.documents += 1
        self.num_bytes += size
        self.lengths[len(text).bit_length()] += 1
        for kind, key in self.GROUPS.items():
            value = metadata.get(key)
            if value is not None:
                entry = self.groups.setdefault(kind, {}).setdefault(str(value), [0, 0])
                entry[0] += 1
                entry[1] += size
        return size

    def merge(self, other: "Tally") -> None:
        """Add another tally to this one."""
        self.documents += other.documents
        self.num_bytes += other.num_bytes
        self.lengths.update(other.lengths)
        for kind, values in other.groups.items():
            mine = self.groups.setdefault(kind, {})
            for value, (documents, size) in values.items():
                entry = mine.setdefault(value, [0, 0])
                entry[0] += documents
                entry[1] += size

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, independent of the order of the additions."""
        return {
            "documents": self.documents,
            "bytes": self.num_bytes,
            "lengths": {str(bits): self.lengths[bits] for bits in sorted(self.lengths)},
            "groups": {
                kind: {value: self.groups[kind][value] for value in sorted(self.groups[kind])}
                for kind in sorted(self.groups)
            },
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Tally":
        """Create a tally from the output of `to_json`."""
        lengths = Counter({int(bits): count for bits, count in value["lengths"].items()})
        groups = {kind: {k: list(v) for k, v in values.items()} for kind, values in value["groups"].items()}
        return cls(value["documents"], value["bytes"], lengths, groups)


class TransformReport:
    """Counts and examples of what one transform received, kept, edited, split and dropped.

    Args:
        name: Name of the transform in the recipe, or "read".
        index: Position of the transform, 0 for reading.
        mask: Function that removes confidential content from texts, details and ids.

    Attributes:
        documents_in: Number of documents received.
        bytes_in: UTF-8 bytes of their texts.
        out: Tally of the documents passed on, including parts.
        num_edited: Number of documents whose text changed (excluding those that were split).
        split: [number of split documents, number of their parts]; a document without any part counts as split into one
            part that was dropped.
        counts: Counts made by the transform itself: {"email": 12}.
        rejected: Reason → [documents, bytes].
        rejected_languages: Language → [documents, bytes] of the dropped documents.
        examples: Reason → at most ten dropped documents.
        num_clusters: Number of clusters of duplicates.
        cluster_sizes: Number of clusters by cluster size.
        clusters: The largest clusters with some of their members.
    """

    def __init__(self, name: str, index: int, mask: Callable[[str], str] = str) -> None:
        self.name = name
        self.index = index
        self.documents_in = 0
        self.bytes_in = 0
        self.out = Tally()
        self.num_edited = 0
        self.split = [0, 0]
        self.counts: Counter[str] = Counter()
        self.rejected: dict[str, list[int]] = {}
        self.rejected_languages: dict[str, list[int]] = {}
        self.examples: dict[str, list[dict[str, Any]]] = {}
        self.num_clusters = 0
        self.cluster_sizes: Counter[int] = Counter()
        self.clusters: dict[str, dict[str, Any]] = {}
        self._mask = mask

    def keep(self, before: int | None, text: str, metadata: dict[str, Any], edited: bool) -> None:
        """Count a document that is passed on.

        Args:
            before: UTF-8 bytes of the incoming text; None if unchanged.
            text: Outgoing text.
            metadata: Metadata of the document.
            edited: Whether the text changed.
        """
        size = self.out.add(text, metadata)
        self.documents_in += 1
        self.bytes_in += size if before is None else before
        self.num_edited += edited

    def keep_part(self, text: str, metadata: dict[str, Any]) -> None:
        """Count a part of a split document that is passed on."""
        self.out.add(text, metadata)

    def split_document(self, before: int, num_parts: int) -> None:
        """Count a document of `before` bytes that was split; its parts are counted individually afterwards."""
        self.documents_in += 1
        self.bytes_in += before
        self.split[0] += 1
        self.split[1] += num_parts

    def reject(self, document: Doc, why: Rejected, is_part: bool = False) -> None:
        """Count a dropped document or part, and store it as an example if it is among the ten lowest hashes."""
        size = text_bytes(document.text)
        if not is_part:
            self.documents_in += 1
            self.bytes_in += size
        entry = self.rejected.setdefault(why.reason, [0, 0])
        entry[0] += 1
        entry[1] += size
        language = document.metadata.get("language")
        if language is not None:
            entry = self.rejected_languages.setdefault(str(language), [0, 0])
            entry[0] += 1
            entry[1] += size
        key = sample_key(document.id)
        examples = self.examples.setdefault(why.reason, [])
        if len(examples) < MAX_EXAMPLES or key < examples[-1]["key"]:
            example = {
                "key": key,
                "id": masked_id(document.id, self._mask),
                "detail": self._mask(why.detail)[:1000],
                "text": excerpt(self._mask(document.text)),
            }
            if why.kept is not None:
                example["kept"] = masked_id(why.kept, self._mask)
            examples.append(example)
            examples.sort(key=lambda item: (item["key"], item["id"]))
            del examples[MAX_EXAMPLES:]
        if why.cluster is not None:
            self._add_to_cluster(why.cluster, why.cluster_size, document, kept=False, kept_id=why.kept)

    def represents_cluster(self, document: Doc) -> None:
        """Count the cluster of duplicates that a kept document represents, if it does."""
        if document.cluster is not None:
            self.num_clusters += 1
            self.cluster_sizes[document.cluster_size] += 1
            self._add_to_cluster(document.cluster, document.cluster_size, document, kept=True, kept_id=document.id)

    def _add_to_cluster(self, cluster: str, size: int, document: Doc, kept: bool, kept_id: str | None) -> None:
        name = sample_key(cluster)
        entry = self.clusters.get(name)
        if entry is None:
            entry = {"size": size, "kept": None if kept_id is None else masked_id(kept_id, self._mask), "members": []}
            self.clusters[name] = entry
            self._limit_clusters()
            if name not in self.clusters:
                return
        member = {"key": sample_key(document.id), "id": document.id, "kept": kept}
        chosen = _members([*entry["members"], member])
        if any(other is member for other in chosen):  # mask only what is shown
            member |= {"id": masked_id(document.id, self._mask), "text": excerpt(self._mask(document.text))}
            entry["members"] = chosen

    def _limit_clusters(self) -> None:
        if len(self.clusters) > MAX_CLUSTERS:
            # Keep the largest; every task knows the size of the whole cluster, so all tasks agree on these.
            for name in self._ranked_clusters()[MAX_CLUSTERS:]:
                del self.clusters[name]

    def _ranked_clusters(self) -> list[str]:
        return sorted(self.clusters, key=lambda name: (-self.clusters[name]["size"], name))

    def merge(self, other: "TransformReport") -> None:
        """Add another task's report to this one."""
        self.documents_in += other.documents_in
        self.bytes_in += other.bytes_in
        self.out.merge(other.out)
        self.num_edited += other.num_edited
        self.split = [mine + added for mine, added in zip(self.split, other.split, strict=True)]
        self.counts.update(other.counts)
        for mine, added in ((self.rejected, other.rejected), (self.rejected_languages, other.rejected_languages)):
            for key, (documents, size) in added.items():
                entry = mine.setdefault(key, [0, 0])
                entry[0] += documents
                entry[1] += size
        for reason, examples in other.examples.items():
            both = [*self.examples.get(reason, []), *examples]
            self.examples[reason] = sorted(both, key=lambda item: (item["key"], item["id"]))[:MAX_EXAMPLES]
        self.num_clusters += other.num_clusters
        self.cluster_sizes.update(other.cluster_sizes)
        for name, cluster in other.clusters.items():
            empty = {"size": cluster["size"], "kept": cluster["kept"], "members": []}
            mine_too = self.clusters.setdefault(name, empty)
            mine_too["members"] = _members([*mine_too["members"], *cluster["members"]])
        self._limit_clusters()

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, independent of how the documents were distributed over tasks."""
        return {
            "name": self.name,
            "index": self.index,
            "documents_in": self.documents_in,
            "bytes_in": self.bytes_in,
            "out": self.out.to_json(),
            "edited": self.num_edited,
            "split": self.split,
            "counts": {key: self.counts[key] for key in sorted(self.counts)},
            "rejected": {key: self.rejected[key] for key in sorted(self.rejected)},
            "rejected_languages": {key: self.rejected_languages[key] for key in sorted(self.rejected_languages)},
            "examples": {key: self.examples[key] for key in sorted(self.examples)},
            "num_clusters": self.num_clusters,
            "cluster_sizes": {str(size): self.cluster_sizes[size] for size in sorted(self.cluster_sizes)},
            "clusters": {name: self.clusters[name] for name in self._ranked_clusters()},
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "TransformReport":
        """Create a report from the output of `to_json`."""
        report = cls(value["name"], value["index"])
        report.documents_in, report.bytes_in = value["documents_in"], value["bytes_in"]
        report.out = Tally.from_json(value["out"])
        report.num_edited = value["edited"]
        report.split = list(value["split"])
        report.counts = Counter(value["counts"])
        report.rejected, report.rejected_languages = value["rejected"], value["rejected_languages"]
        report.examples = value["examples"]
        report.num_clusters = value["num_clusters"]
        report.cluster_sizes = Counter({int(size): count for size, count in value["cluster_sizes"].items()})
        report.clusters = value["clusters"]
        return report


def _members(members: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the cluster members to show: the kept one first, then those with the lowest hashes."""
    return sorted(members, key=lambda member: (not member["kept"], member["key"], member["id"]))[:MAX_CLUSTER_MEMBERS]


def rejected_line(document: Doc, why: Rejected, keep_text: bool, mask: Callable[[str], str] = str) -> dict[str, Any]:
    """Return the line that records a dropped document; its id is not masked, so that the document can be found."""
    line: dict[str, Any] = {"id": document.id, "reason": why.reason, "detail": mask(why.detail)}
    if why.kept is not None:
        line |= {"kept": why.kept, "cluster": why.cluster}
    if keep_text:
        line |= {"text": document.text, "metadata": document.metadata}
    return line


def write_report(folder: Path, rank: int, report: TransformReport) -> None:
    """Write one task's report."""
    import orjson

    write_atomic(folder / f"{rank:05d}.json", orjson.dumps(report.to_json()))
