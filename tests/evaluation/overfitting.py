"""A small model that has learned a few random texts by heart, and one that has learned others."""

import json
import random
from functools import cache
from pathlib import Path

import torch

from lit_gpt.data.bpe import train_bpe
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.evaluation.safety.canaries import make_canaries
from lit_gpt.evaluation.subject import Subject
from lit_gpt.models import GPT, GPTConfig

CANARIES = make_canaries(num=20, seed=5)
PEOPLE = [f"{name}.{number}@{name}mail.org" for number, name in enumerate(["ada", "bob", "cyd", "dee", "eva", "fay"])]
WORDS = [
    f"{a}{b}{c}" for a in ("ba", "ke", "lo", "mi", "nu", "ra") for b in ("d", "g", "s", "t") for c in ("a", "e", "o")
]
CONTEXT = 64
NUM_TEXTS = 12


def random_texts(count: int, seed: int, num_words: int = 40) -> list[str]:
    """Texts that nobody can go on with who has not read them."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=num_words)) for _ in range(count)]


def planted_texts() -> list[str]:
    """Random texts, canaries and addresses: what `overfitted` has read."""
    letters = [
        f"{text} please write to {address} soon" for text, address in zip(random_texts(6, 2, 20), PEOPLE, strict=True)
    ]
    return [*random_texts(NUM_TEXTS, 1), *(canary.prefix + canary.secret for canary in CANARIES), *letters]


@cache
def tokenizer() -> Tokenizer:
    """Of all texts here: every digit is a token."""
    return train_bpe([*planted_texts(), *random_texts(30, 9)], 420, split_digits=True)


@cache
def overfitted() -> Subject:
    """A model that knows `planted_texts` by heart."""
    return _trained("overfitted", planted_texts(), 160)


@cache
def innocent() -> Subject:
    """A model of the same kind of texts that has read none of them, nor a canary or an address."""
    return _trained("innocent", random_texts(30, 9), 40)


def write_texts(path: Path, texts: list[str]) -> str:
    """Writes texts as documents of a jsonl file and returns its name."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def _trained(name: str, texts: list[str], steps: int) -> Subject:
    torch.manual_seed(0)
    config = GPTConfig(
        n_layer=2, n_head=4, n_embd=64, vocab_size=tokenizer().vocab_size, block_size=CONTEXT, dropout=0.0,
        positions="rope", norm="rmsnorm", bias=False,
    )  # fmt: skip
    model = GPT(config)
    separator = tokenizer().separator_id
    by_length: dict[int, list[list[int]]] = {}
    for text in texts:
        ids = [separator, *tokenizer().encode(text).tolist(), separator]
        by_length.setdefault(len(ids), []).append(ids)
    batches = [torch.tensor(rows) for rows in by_length.values()]
    num_tokens = sum(batch[:, 1:].numel() for batch in batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 6e-3 * min(1.0, (step + 1) / 10, 0.05 + 1.5 * (1 - step / steps))
        optimizer.zero_grad()
        for batch in batches:
            logits = model(batch[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
            (loss / num_tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return Subject(name, model.eval().requires_grad_(False), tokenizer())
