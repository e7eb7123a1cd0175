"""Encode rows into a store in the cache, keyed by sources, encoder (tokenizer, template, lengths) and fractions.

Rows are read, encoded and written one by one in bounded memory; the folder appears only when it is complete.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.atomic import atomic_folder
from lit_gpt.data.cache import exclusive, print_status
from lit_gpt.data.corpus_spec import check_fractions, choose_split, document_hash
from lit_gpt.data.records import SPLITS, BadInput, OnBadInput, Record, RecordSource, SplitName
from lit_gpt.data.rows.store import FORMAT_VERSION, EncodedRow, RowEncoder, RowStore
from lit_gpt.errors import UserError
from lit_gpt.hashing import FileHashes, sha256_json


def prepare_rows(
    sources: Sequence[RecordSource],
    encoder: RowEncoder,
    cache_dir: Path,
    val_fraction: float = 0.0,
    test_fraction: float = 0.0,
    on_bad_input: OnBadInput = "error",
) -> Path:
    """Encode all rows, unless the cache has them, and report their number.

    Args:
        sources: Sources of the rows.
        encoder: Converts rows to tokens.
        cache_dir: Root of the cache.
        val_fraction: Fraction held out for validation, by the hash of each row's prompt.
        test_fraction: Fraction held out for testing.
        on_bad_input: `error` stops at the first bad row and names it; `skip` counts and names them.

    Returns:
        The folder of the store.

    Raises:
        UserError: for bad rows, no rows, or a full disk.
    """
    check_fractions(val_fraction, test_fraction)
    hashes = FileHashes.of_cache(cache_dir)
    content = [source.fingerprint(hashes) for source in sources]
    key = sha256_json([FORMAT_VERSION, content, encoder.fingerprint(), val_fraction, test_fraction])[:24]
    folder = cache_dir / "rows" / key
    if _is_complete(folder, on_bad_input):
        return folder
    with exclusive(cache_dir / "locks" / f"rows-{key}.lock", "preparing these rows"):
        if not _is_complete(folder, on_bad_input):
            began = time.monotonic()
            bad_input = BadInput(on_bad_input)
            with atomic_folder(folder) as unfinished:
                manifest = _write(unfinished, sources, encoder, (val_fraction, test_fraction), bad_input, key)
                text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
                (unfinished / "manifest.json").write_text(text, encoding="utf-8")
            print_status(f"{summary(manifest)} ({time.monotonic() - began:.1f} s, stored in {folder})")
            for note in bad_input.encoding_notes():
                print_status(note)
    return folder


def summary(manifest: dict[str, Any]) -> str:
    """Return a one-line summary of a store."""
    splits = ", ".join(
        f"{count['num_rows']:,} {name}" for name, count in manifest["splits"].items() if count["num_rows"]
    )
    tokens = sum(count["num_tokens"] for count in manifest["splits"].values())
    targets = sum(count["num_targets"] for count in manifest["splits"].values())
    notes = "".join(f"; {count:,} {note}" for note, count in manifest["notes"].items())
    left_out = f"; fields left out: {', '.join(manifest['fields_left_out'])}" if manifest["fields_left_out"] else ""
    skipped = f"; {manifest['num_skipped']:,} skipped" if manifest["num_skipped"] else ""
    named = "".join(f"\n  skipped {line}" for line in manifest["skipped"][:5])
    more = f"\n  and {manifest['num_skipped'] - 5:,} more (manifest.json)" if manifest["num_skipped"] > 5 else ""
    learned = f"{targets / tokens:.0%} supervised"
    return f"rows: {splits}; {tokens:,} tokens, {learned}{notes}{left_out}{skipped}{named}{more}"


def _is_complete(folder: Path, on_bad_input: OnBadInput) -> bool:
    if not (folder / "manifest.json").exists():
        return False
    store = RowStore(folder)
    if store.is_damaged():
        print_status(f"{folder} is damaged; preparing it again")
        return False
    if store.manifest["num_skipped"] and on_bad_input == "error":
        first = store.manifest["skipped"][0]
        count = store.manifest["num_skipped"]
        raise UserError(f"{first}; fix or remove it, or set on_bad_input: skip ({count} bad rows in total)")
    return True


class _SplitWriter:
    """Appends rows of one split to its files."""

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        folder.mkdir()
        self.folder = folder
        self.dtype = dtype
        self.ids = open(folder / "ids.bin", "wb")  # noqa: SIM115 (closed in finish)
        self.mask = open(folder / "mask.bin", "wb")  # noqa: SIM115
        self.ends: list[int] = []
        self.rows: list[tuple[int, int]] = []
        self.numbers: list[list[float]] = []
        self.num_targets = 0
        self.attached = open(folder / "attached.bin", "wb")  # noqa: SIM115
        self.attached_ends: list[int] = []

    def add(self, row: EncodedRow, source: int, record: int) -> None:
        for ids, mask in row.sequences:
            self.ids.write(np.array(ids, self.dtype).tobytes())
            self.mask.write(np.array(mask, np.bool_).tobytes())
            self.num_targets += sum(mask)
            self.ends.append((self.ends[-1] if self.ends else 0) + len(ids))
        self.rows.append((source, record))
        self.numbers.append(list(row.numbers.values()))
        self.attached.write(row.attached.encode("utf-8"))
        self.attached_ends.append(self.attached.tell())

    def finish(self) -> dict[str, int]:
        self.ids.close()
        self.mask.close()
        self.attached.close()
        if self.attached_ends and self.attached_ends[-1]:
            np.save(self.folder / "attached_ends.npy", np.array(self.attached_ends, np.int64))
        else:
            (self.folder / "attached.bin").unlink()
        np.save(self.folder / "ends.npy", np.array(self.ends, np.int64))
        np.save(self.folder / "rows.npy", np.array(self.rows, np.int64).reshape(-1, 2))
        width = len(self.numbers[0]) if self.numbers else 0
        np.save(self.folder / "numbers.npy", np.array(self.numbers, np.float64).reshape(len(self.rows), width))
        tokens = self.ends[-1] if self.ends else 0
        return {"num_rows": len(self.rows), "num_tokens": tokens, "num_targets": self.num_targets}


def _write(
    folder: Path,
    sources: Sequence[RecordSource],
    encoder: RowEncoder,
    fractions: tuple[float, float],
    bad_input: BadInput,
    key: str,
) -> dict[str, Any]:
    dtype = np.dtype("<u2" if encoder.vocab_size <= 1 << 16 else "<u4")
    writers = {name: _SplitWriter(folder / name, dtype) for name in SPLITS}
    notes: Counter[str] = Counter()
    fields: Counter[str] = Counter()
    rows = Counter({"read": 0, "used": 0, "left_out": 0})
    names: dict[str, int] = {}
    shape: tuple[int, list[str]] | None = None
    for row, split, encoded in _encoded(sources, encoder, bad_input, rows):
        if isinstance(encoded, str):
            notes[encoded] += 1
            rows["left_out"] += 1
            continue
        rows["used"] += 1
        for part in [encoded] if isinstance(encoded, EncodedRow) else encoded:
            own_split = split
            if own_split is None:
                own_split = choose_split(
                    document_hash(part.split_key if row.split_key is None else row.split_key), *fractions
                )
            own = (len(part.sequences), list(part.numbers))
            assert shape is None or shape == own, "an encoder gives every row the same shape"
            shape = own
            notes.update(part.notes)
            fields.update(part.left_out)
            writers[own_split].add(part, names.setdefault(row.source, len(names)), row.record)
    splits = {name: writer.finish() for name, writer in writers.items()}
    if shape is None:
        skipped = f" ({bad_input.num_skipped} were skipped, the first: {bad_input.named[0]})" if bad_input.named else ""
        left_out = "".join(f"; {count:,} {note}" for note, count in notes.items())
        remedy = "" if skipped else "; raise block_size (or max_prompt_tokens), or set long_rows: cut" if notes else ""
        raise UserError(
            f"{', '.join(source.title for source in sources)}: no row can be used{left_out}{skipped}{remedy}"
        )
    return {
        "version": FORMAT_VERSION,
        "key": key,
        "dtype": dtype.str,
        "sequences_per_row": shape[0],
        "numbers": shape[1],
        "splits": splits,
        "rows": dict(rows),
        "notes": dict(sorted(notes.items())),
        "fields_left_out": dict(sorted(fields.items())),
        "num_skipped": bad_input.num_skipped,
        "skipped": bad_input.named,
        "sources": list(names),
    }


def _encoded(
    sources: Sequence[RecordSource], encoder: RowEncoder, bad_input: BadInput, counts: Counter[str]
) -> Iterator[tuple[Record, SplitName | None, EncodedRow | list[EncodedRow] | str]]:
    """Yield each row, the split that it or its source is assigned to, and what it was encoded to; count those read."""
    for source in sources:
        for row in source.records(bad_input):
            counts["read"] += 1
            try:
                encoded = encoder(row)
            except UserError as error:
                bad_input.reject(row.where, str(error))
                continue
            yield row, row.split or source.split, encoded
