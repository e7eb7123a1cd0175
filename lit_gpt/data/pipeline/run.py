"""Run a recipe to prepare a corpus.

Layout of the output folder:

    <out>/recipe.json   the recipe and its key; written first
          documents/    the clean documents, JSON lines in zstandard
          tokenizer/    a Hugging Face tokenizer folder
          tokens/       a TokenCorpus
          steps/        counts of each transform, and the lists of dropped documents with reasons
          card.json     the data card; written last, so a folder with it is complete
          card.html
          work/         only while the corpus is being prepared

After an interruption it resumes: finished tasks, segments and token shards are kept.
"""

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lit_gpt.atomic import fsync, raise_if_disk_full
from lit_gpt.data.cache import check_disk_space, exclusive, print_status, write_json
from lit_gpt.data.card import write_card
from lit_gpt.data.pipeline.document_shards import shard_paths
from lit_gpt.data.pipeline.executor import check_executor
from lit_gpt.data.pipeline.parts import Plan, make_plan
from lit_gpt.data.pipeline.recipe import Recipe
from lit_gpt.data.pipeline.segments import DONE, SegmentRunner, no_partial_files
from lit_gpt.data.pipeline.tokenise import clean_spec, make_tokenizer, tokenise
from lit_gpt.data.records import skipped_line
from lit_gpt.errors import UserError
from lit_gpt.pages.text import human_bytes

DOCUMENTS = 0.4
"""Bytes on disk per byte of text in document shards: zstandard compresses prose and code to 0.25 to 0.4."""

TOKENS = 0.7
"""Bytes on disk per byte of text in token shards, at two bytes per token and three bytes of text per token."""

CORPUS_FILES = (
    "card.json",
    "card.html",
    "tokens",
    "tokenizer",
    "documents",
    "steps",
    "work",
    "recipe.json",
    "work.lock",
)


def run_recipe(recipe: Recipe, overwrite: bool = False) -> Path:
    """Prepare a corpus, resume its preparation, or detect that it is complete.

    Args:
        recipe: Recipe of the corpus.
        overwrite: Whether to delete a corpus that was made by another recipe or from other input.

    Returns:
        The folder of the corpus.

    Raises:
        UserError: for user-correctable problems; completed work is kept.
    """
    check_executor(recipe.executor)
    out = recipe.out
    if out.exists() and not out.is_dir():
        raise UserError(f"out is {out}, which is a file; name a folder")
    plan = make_plan(recipe.sources, recipe.shard_bytes, out)
    fingerprints = recipe.input_fingerprints()
    key = recipe.key(plan, fingerprints)
    with _ended_by_sigterm(), exclusive(out / "work.lock", f"preparing {out}"):
        if not overwrite:
            _check_same(out, key, recipe, fingerprints)
        elif (found := _found(out)) is None or found["key"] != key:
            for name in CORPUS_FILES[:-1]:
                _remove(out / name)
        if (out / "card.json").exists():
            shutil.rmtree(out / "work", ignore_errors=True)  # left by a process killed right after writing the card
            print_status(f"{out} is prepared already; read {out / 'card.html'}")
            return out
        try:
            check_disk(recipe, plan.num_bytes)
            with no_partial_files(out):
                write_json(out / "recipe.json", {"key": key, "recipe": recipe.written, "stamps": fingerprints})
                _run(recipe, plan, key)
        except BaseException as error:
            raise_if_disk_full(error, out)
            raise
    return out


def _run(recipe: Recipe, plan: Plan, key: str) -> None:
    out, work = recipe.out, recipe.out / "work"
    documents = out / "documents"
    if not documents.exists():
        left = SegmentRunner(recipe, work, out / "steps").run(plan)
        left.mkdir(exist_ok=True)
        if _last_report(out)["out"]["documents"] == 0:
            raise UserError(_all_dropped(out))
        os.rename(left, documents)
        fsync(out)
    num_bytes = int(_last_report(out)["out"]["bytes"])
    if recipe.tokenizer is not None:
        spec = clean_spec(recipe, documents, num_bytes)
        tokenizer = make_tokenizer(recipe, spec, out / "tokenizer")
        tokenise(recipe, spec, tokenizer, out / "tokens", work, key)
    write_card(out, recipe, key)
    shutil.rmtree(work, ignore_errors=True)
    shards = len(shard_paths(documents))
    print_status(f"{out}: {human_bytes(num_bytes)} of clean text in {shards} shards; read {out / 'card.html'}")


def reports(out: Path) -> list[dict[str, Any]]:
    """Return the merged reports of reading and of all transforms, in order."""
    return [json.loads(path.read_bytes()) for path in sorted((out / "steps").glob("[0-9]*.json"))]


def _last_report(out: Path) -> dict[str, Any]:
    return reports(out)[-1]


def _all_dropped(out: Path) -> str:
    every = reports(out)
    bad_input = every[0]["bad_input"]
    skipped = skipped_line(bad_input["num_skipped"], bad_input["named"])
    reasons = [skipped] if skipped else []
    reasons += [
        f"{report['name']} dropped {sum(count for count, _ in report['rejected'].values()):,} "
        f"({', '.join(sorted(report['rejected'], key=lambda r: -report['rejected'][r][0])[:3])})"
        for report in every
        if report["rejected"]
    ]
    return (
        f"no document is left: {'; '.join(reasons) or 'the sources contain none'}; "
        "loosen these filters, or name other sources or fields"
    )


def _found(out: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((out / "recipe.json").read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{out / 'recipe.json'} is damaged ({error}); set overwrite: true to start over") from error
    return found


def _check_same(out: Path, key: str, recipe: Recipe, fingerprints: dict[str, str]) -> None:
    """Raise a `UserError` if the folder contains anything but an earlier run of this recipe."""
    found = _found(out)
    if found is None:
        other_files = [
            path.name for path in out.iterdir() if path.name != "work.lock" and not path.name.startswith(".tmp-")
        ]
        if other_files:
            raise UserError(f"{out} contains {sorted(other_files)[0]} but no prepared corpus; set out to a new folder")
        return
    if found["key"] == key:
        return
    if _has_no_reusable_output(out):
        for name in CORPUS_FILES[:-1]:  # so nothing is lost
            _remove(out / name)
        return
    changed = [name for name, value in recipe.written.items() if found["recipe"].get(name) != value]
    inside = [name for name, stamp in fingerprints.items() if found.get("stamps", {}).get(name) != stamp]
    if changed:
        what = f"another recipe ({', '.join(changed)} changed)"
    elif inside:
        what = f"the same recipe, but what {', '.join(inside)} names has changed"
    else:
        what = "other input (the files have changed)"
    raise UserError(f"{out} was made by {what}; choose another out, or set overwrite: true to delete it")


def _has_no_reusable_output(out: Path) -> bool:
    """Return whether another recipe left nothing to reuse: no pass finished, or no document remained."""
    if (out / "documents").exists():
        return False
    if not any((out / "work").glob(f"*/{DONE}")):
        return True
    found = reports(out)
    return bool(found) and found[-1]["out"]["documents"] == 0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the work like Ctrl-C does, so that no partial files are left (only in the main thread)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def needed_bytes(recipe: Recipe, text_bytes: int) -> int:
    """Estimate the peak disk usage.

    While the transforms run, the input and output documents of a segment coexist with a corpus transform's findings; at
    the end, the clean documents coexist with the tokens.
    """
    findings = max((spec.target.findings_per_byte for spec in recipe.transforms), default=0.0)
    copies = 2 if recipe.transforms else 1
    rejected = DOCUMENTS if recipe.keep_rejected else 0.02
    steps = DOCUMENTS * copies + findings + rejected
    tokens = DOCUMENTS + rejected + (0.0 if recipe.tokenizer is None else TOKENS)
    return int(text_bytes * max(steps, tokens))


def check_disk(recipe: Recipe, text_bytes: int | None) -> None:
    """Raise if the estimated output does not fit on the disk; print a notice if the input size is unknown.

    Raises:
        UserError: if the disk of `out` has too little space.
    """
    text_bytes = recipe.expected_bytes if text_bytes is None else text_bytes
    if text_bytes is None:
        print_status(
            "disk space not checked: the sources do not know their size; set expected_gigabytes to have it checked"
        )
        return
    needed = needed_bytes(recipe, text_bytes) - _present(recipe.out)
    check_disk_space(recipe.out, needed, f"preparing {human_bytes(text_bytes)} of text", "set out to a larger disk")


def _present(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
