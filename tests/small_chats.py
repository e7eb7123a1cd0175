"""Small conversations and a tokenizer, made by a seed, for the tests of everything after pretraining."""

import json
import random
from functools import cache
from pathlib import Path

from lit_gpt.data.bpe import train_bpe

WORDS = ["red", "blue", "two", "seven", "stone", "river", "Fluß", "漢字", "🙂", "runs", "sleeps", "x = 1", "return"]


def phrase(rng: random.Random, longest: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, longest)))


def alpaca_rows(count: int, seed: int = 0, longest: int = 12) -> list[dict]:
    """Instructions whose answers have 1 to `longest` words."""
    rng = random.Random(seed)
    return [
        {
            "instruction": f"{n} {phrase(rng, 6)}",
            "input": phrase(rng, 3) if n % 2 else "",
            "output": phrase(rng, longest),
        }
        for n in range(count)
    ]


def write_rows(path: Path, rows: list[dict]) -> str:
    """Writes json or jsonl, by the suffix."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return str(path)


@cache
def small_tokenizer():
    """A byte-level BPE of 300 entries without any chat template."""
    return train_bpe((f"{row['instruction']} {row['output']}" for row in alpaca_rows(60, seed=1)), 300)


def tokenizer_folder(path: Path) -> str:
    """Writes the small tokenizer to a folder."""
    small_tokenizer().save(path)
    return str(path)
