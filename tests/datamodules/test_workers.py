"""Worker processes, forked and spawned, read what this process reads, in every DataModule."""

import pickle
from pathlib import Path

import pytest
import torch
from mixing import make_corpora, mixture
from recording import text_data
from small_chats import alpaca_rows, tokenizer_folder, write_rows
from streamed import make_stream, stream

from lit_gpt.datamodules import (
    ClassificationDataModule,
    FeedbackDataModule,
    InstructionDataModule,
    PreferenceDataModule,
    PreparedDataModule,
    PromptDataModule,
    StepDataModule,
)

PAIRS = [
    {"prompt": row["instruction"], "chosen": row["output"], "rejected": row["output"] + " no"}
    for row in alpaca_rows(30)
]
ROWS = {
    ClassificationDataModule: [
        {"text": row["instruction"], "label": "ab"[i % 2]} for i, row in enumerate(alpaca_rows(30))
    ],
    FeedbackDataModule: [row | {"label": i % 2 == 0} for i, row in enumerate(alpaca_rows(30))],
    InstructionDataModule: alpaca_rows(30),
    PreferenceDataModule: PAIRS,
    PromptDataModule: alpaca_rows(30),
}
KINDS = ["text", "prepared", "mixture", "stream", *ROWS]


def make(kind, folder: Path, **arguments) -> StepDataModule:
    if kind == "text":
        data: StepDataModule = text_data(folder, **arguments)
    elif kind in ("prepared", "mixture"):
        if not (folder / "corpora").exists():
            make_corpora(folder)
        path = str(folder / "corpora" / "web")
        data = (
            mixture(folder, **arguments)
            if kind == "mixture"
            else PreparedDataModule(path, block_size=16, global_batch_size=8, **arguments)
        )
    elif kind == "stream":
        if not (folder / "shards").exists():
            make_stream(folder)
        data = stream(folder, **arguments)
    else:
        if kind is ClassificationDataModule:
            arguments["classes"] = ["a", "b"]
        data = kind(
            tokenizer=tokenizer_folder(folder / "tokenizer"),
            chat_template="chatml",
            files=write_rows(folder / "rows.jsonl", ROWS[kind]),
            block_size=96,
            global_batch_size=4,
            val_fraction=0.3,
            cache_dir=str(folder / "cache"),
            **arguments,
        )
    data.prepare_data()
    data.setup("fit")
    return data


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_the_data_set_gives_the_same_batches(kind, folder: Path) -> None:
    """A spawned worker gets the data set by pickle: no local functions, no maps of whole files, no Trainer."""
    data = make(kind, folder)
    steps = data.train_steps()
    sent = pickle.dumps(steps)
    assert len(sent) < 200_000, "files are opened again, not sent"
    copied = pickle.loads(sent)
    assert all(equal(copied[step], steps[step]) for step in (0, 3, 70))
    loader = data.val_dataloader()
    assert equal(list(pickle.loads(pickle.dumps(loader))), list(loader))


@pytest.fixture(params=["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def start_method(request: pytest.FixtureRequest):
    """How worker processes are started while a test runs."""
    before = torch.multiprocessing.get_start_method(allow_none=True)
    torch.multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    torch.multiprocessing.set_start_method(before, force=True)


@pytest.mark.parametrize("kind", KINDS)
def test_workers_read_the_same_batches(kind, folder: Path, start_method: str) -> None:
    here, there = make(kind, folder), make(kind, folder, num_workers=2)
    for _, a, b in zip(range(4), here.train_dataloader(), there.train_dataloader(), strict=False):
        assert equal(a, b)
    assert equal(list(here.val_dataloader()), list(there.val_dataloader()))
