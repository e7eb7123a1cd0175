"""Text for the pipeline's tests: English prose that comes with Python, and the way to run a recipe on it."""

import hashlib
import json
import random
import re
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import yaml

from lit_gpt.cli import main
from lit_gpt.data.pipeline.document_shards import read_lines, shard_paths


@cache
def paragraphs() -> tuple[str, ...]:
    """Paragraphs of prose from the language reference, each once, in a fixed order."""
    found = []
    for _, text in sorted(topics.items()):
        for part in text.split("\n\n"):
            letters = sum(c.isalpha() or c.isspace() for c in part)
            if len(part) > 150 and part.strip()[-1] in ".!?:" and letters > 0.9 * len(part):
                found.append(re.sub(r"\s+", " ", part).strip())
    return tuple(dict.fromkeys(found))


def articles(number: int, of_paragraphs: int = 3, seed: int = 0) -> list[str]:
    """Clean documents: paragraphs that stand in no other of them."""
    pool = list(paragraphs())
    random.Random(seed).shuffle(pool)
    assert number * of_paragraphs <= len(pool)
    return ["\n\n".join(pool[i * of_paragraphs : (i + 1) * of_paragraphs]) + "\n" for i in range(number)]


def write_articles(folder: Path, number: int, **options: int) -> Path:
    """Writes each article to a file of its own."""
    folder.mkdir(parents=True)
    for index, text in enumerate(articles(number, **options)):
        (folder / f"article-{index:04}.txt").write_text(text)
    return folder


def write_recipe(path: Path, **recipe: Any) -> Path:
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def prepare(path: Path, *words: str) -> int:
    """Runs the command on a recipe's file."""
    return main(["prepare", "--config", str(path), *words])


def kept_documents(out: Path) -> list[dict[str, Any]]:
    return [line for path in shard_paths(out / "documents") for line in read_lines(path)]


def dropped_documents(out: Path, step: str) -> list[dict[str, Any]]:
    (folder,) = (out / "steps" / "rejected").glob(f"[0-9][0-9]-{step}")
    return [line for path in shard_paths(folder) for line in read_lines(path)]


def card(out: Path) -> dict[str, Any]:
    return json.loads((out / "card.json").read_bytes())


NOT_BYTES_OF_THE_CORPUS = ("seconds", "work.lock")


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of every file of a prepared corpus, but for the times that it took."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not any(part in NOT_BYTES_OF_THE_CORPUS for part in path.relative_to(out).parts)
    }
