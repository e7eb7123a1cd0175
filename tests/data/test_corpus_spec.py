import hashlib

import pytest

from lit_gpt.data.corpus_spec import check_fractions, choose_split, document_hash, uniform
from lit_gpt.errors import UserError


def splits(texts: list[str], val: float = 0.1, test: float = 0.2) -> dict[str, str]:
    return {text: choose_split(document_hash(text), val, test) for text in texts}


def test_shares_and_stability() -> None:
    texts = [f"document {i}" for i in range(5000)]
    first = splits(texts[:1000])
    assert splits(texts).items() >= first.items()  # more data move nothing
    counts = {name: list(splits(texts).values()).count(name) for name in ("train", "val", "test")}
    assert counts == {"train": pytest.approx(3500, abs=120), "val": pytest.approx(500, abs=80), "test": 5000 - sum(
        counts[name] for name in ("train", "val"))}  # fmt: skip


def test_changing_one_fraction_leaves_the_other_split_alone() -> None:
    texts = [f"document {i}" for i in range(2000)]
    before, after = splits(texts), splits(texts, val=0.3)
    assert {t for t in texts if before[t] == "test"} == {t for t in texts if after[t] == "test"}
    assert {t for t in texts if before[t] == "val"} < {t for t in texts if after[t] == "val"}


def test_zero_fractions_hold_nothing_out_even_at_the_ends_of_the_range() -> None:
    assert choose_split(b"\xff" * 32, 0.0, 0.0) == "train"
    assert choose_split(b"\x00" * 32, 0.0, 0.0) == "train"
    assert uniform(b"\xff" * 32) < 1.0


def test_the_hash_is_sha256_of_the_utf8_bytes() -> None:
    assert document_hash("Fluß") == hashlib.sha256("Fluß".encode()).digest()


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.0), (0.0, 1.0), (0.5, 0.5), (float("nan"), 0.0)])
def test_impossible_fractions(val: float, test: float) -> None:
    with pytest.raises(UserError, match="fraction"):
        check_fractions(val, test)
