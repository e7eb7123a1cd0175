"""The vectorised bookkeeping of a batch against a loop over its tokens."""

import numpy as np
import pytest
import torch

from lit_gpt.batch import IGNORE_INDEX
from lit_gpt.data.batches import BatchBuilder

SEPARATOR = 0


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("B", [6, 1])
def test_against_a_loop(isolate: bool, padded: bool, B: int) -> None:
    rng = np.random.default_rng(0)
    T = 23
    rows = rng.integers(0, 5, (B, T + 1))
    lengths = rng.integers(0, T + 1, B) if padded else np.full(B, T)
    byte_lengths = np.array([0, 1, 2, 3, 4])
    samples = np.arange(B) + 7
    batch = BatchBuilder(SEPARATOR, byte_lengths, isolate)(rows, samples, lengths if padded else None)
    for b in range(B):
        document, position, num_bytes = 0, 0, 0
        for t in range(T):
            if t >= lengths[b]:
                assert not isolate or batch["document_ids"][b, t] == -1
                assert batch["labels"][b, t] == IGNORE_INDEX
                continue
            if isolate and t > 0 and rows[b, t] == SEPARATOR:
                document, position = document + 1, 0
            assert batch["input_ids"][b, t] == rows[b, t]
            assert batch["labels"][b, t] == rows[b, t + 1]
            assert not isolate or batch["document_ids"][b, t] == document
            assert batch["position_ids"][b, t] == position
            position += 1
            num_bytes += rows[b, t + 1]
        assert batch["num_bytes"][b] == num_bytes
    assert ("document_ids" in batch) == isolate, "without isolation there is no mask to build"
    assert batch["sample_ids"].tolist() == samples.tolist()
    for key, value in batch.items():
        assert isinstance(value, torch.Tensor)
        assert value.dtype == torch.int64, key
        assert value.is_contiguous()
        assert value.shape == ((B,) if key in ("sample_ids", "num_bytes") else (B, T))


def test_the_rest_of_a_cut_document_begins_at_position_zero() -> None:
    rows = np.array([[5, 6, 0, 7, 8, 0]])
    batch = BatchBuilder(SEPARATOR, np.ones(9, dtype=np.int64), True)(rows, np.array([0]))
    assert batch["document_ids"].tolist() == [[0, 0, 1, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
    assert batch["labels"].tolist() == [[6, 0, 7, 8, 0]]  # a document's end and the next one's beginning are learnt
