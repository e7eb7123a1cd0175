"""`score` writes whatever a row holds, and says what it cannot take."""

import datetime
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_gpt.commands.score import score
from lit_gpt.errors import UserError


class ByLength:
    """In the place of a reward model: as many points as fields."""

    def rate_rows(self, rows, bad_input, columns, batch_size):
        rows = list(rows)
        yield rows, [float(len(row.values)) for row in rows]


@pytest.fixture(autouse=True)
def scorer(monkeypatch):
    monkeypatch.setattr("lit_gpt.generation.scorer.load_scorer", lambda *_: ByLength())


def test_dates_and_broken_text_are_written(tmp_path):
    pq.write_table(pa.Table.from_pylist([{"prompt": "ü", "day": datetime.date(2026, 1, 2)}]), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"prompt": "\\ud800"}\n')
    out = tmp_path / "out.jsonl"
    score("any", [str(tmp_path / "a.parquet"), str(tmp_path / "b.jsonl")], str(out), device="cpu")
    first, second = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    assert first == {"prompt": "ü", "day": "2026-01-02", "reward": 2.0, "source": "a.parquet:1"}
    assert second == {"prompt": "\ud800", "reward": 1.0, "source": "b.jsonl:1"}


def test_no_rows_at_once_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match="batch_size is 0"):
        score("any", ["a.jsonl"], str(tmp_path / "out.jsonl"), batch_size=0)
