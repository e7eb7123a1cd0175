"""What a Trainer's limits do to the data: epochs cut short, overfitting, a second fit, limited evaluation."""

from pathlib import Path

import numpy as np
import pytest
from lightning import LightningModule
from lightning.pytorch.callbacks import Callback
from recording import RecordingModule, stock_trainer, text_data
from small_chats import alpaca_rows, tokenizer_folder, write_rows
from streamed import make_stream, stream

from lit_gpt.datamodules import InstructionDataModule, StepDataModule


def row_data(folder: Path, **arguments) -> InstructionDataModule:
    settings = {
        "tokenizer": tokenizer_folder(folder / "tokenizer"),
        "chat_template": "chatml",
        "files": write_rows(folder / "rows.jsonl", alpaca_rows(80)),
        "block_size": 96,
        "global_batch_size": 8,
        "val_fraction": 0.3,
        "packing": False,
        "cache_dir": str(folder / "cache"),
    }
    return InstructionDataModule(**(settings | arguments))


def stream_data(folder: Path) -> StepDataModule:
    if not (folder / "shards").exists():
        make_stream(folder)
    return stream(folder, steps_per_epoch=7)


KINDS = {"text": text_data, "rows": row_data, "stream": stream_data}


class Epochs(Callback):
    """Writes down the global step at the end of each epoch, and whether Lightning knew that a batch was the last."""

    def __init__(self) -> None:
        self.ends: list[int] = []
        self.last: list[int] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.is_last_batch:
            self.last.append(trainer.global_step)

    def on_train_epoch_end(self, trainer, pl_module):
        self.ends.append(trainer.global_step)


def fit(folder: Path, data: StepDataModule, max_steps: int = -1, ckpt_path=None, **settings):
    module, epochs = RecordingModule(), Epochs()
    settings |= {"callbacks": [epochs, *settings.get("callbacks", [])], "limit_val_batches": 0}
    trainer = stock_trainer(folder, max_steps, **settings)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return trainer, module, epochs


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_that_is_cut_short_is_as_long_as_asked(folder: Path, kind: str) -> None:
    """Three epochs of 4 steps, where the loader's length is no multiple of 4."""
    data = KINDS[kind](folder)
    data.prepare_data()
    data.setup("fit")
    assert len(data.train_dataloader()) % 4
    _, module, epochs = fit(folder, data, max_epochs=3, limit_train_batches=4)
    assert [step for step, _ in module.seen] == list(range(12))
    assert epochs.ends == epochs.last == [4, 8, 12]
    if kind != "rows":  # which come in groups of similar length
        assert [sample for _, samples in module.seen for sample in samples] == list(range(12 * 8))


class SaveAt(Callback):
    """Saves a checkpoint after an optimizer step, inside the training loop."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("kind", ["text", "rows"])
@pytest.mark.parametrize("limit", [4, 1.0])
@pytest.mark.parametrize("stop", [4, 5, 6])
def test_a_resumed_epoch_ends_where_it_would_have_ended(folder: Path, kind: str, limit: int | float, stop: int) -> None:
    settings = {"max_epochs": 3, "limit_train_batches": limit}
    _, whole, epochs = fit(folder, KINDS[kind](folder), callbacks=[SaveAt(stop, folder / "stop.ckpt")], **settings)
    _, resumed, ends = fit(folder, KINDS[kind](folder), ckpt_path=folder / "stop.ckpt", **settings)
    assert resumed.seen == whole.seen[stop:]
    assert ends.ends == [end for end in epochs.ends if end > stop]


def test_the_trainers_checkpoint_is_saved_at_the_end_of_a_short_epoch(folder: Path) -> None:
    fit(folder, text_data(folder), max_epochs=2, limit_train_batches=4, enable_checkpointing=True)
    (checkpoint,) = folder.rglob("*.ckpt")
    assert checkpoint.name == "epoch=1-step=8.ckpt"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("overfit", [1, 2])
def test_overfitting_repeats_the_same_batches(folder: Path, kind: str, overfit: int) -> None:
    _, module, _ = fit(folder, KINDS[kind](folder), 6, overfit_batches=overfit)
    seen = [samples for _, samples in module.seen]
    assert seen == seen[:overfit] * (6 // overfit)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_fit_of_the_same_trainer_continues_with_the_data(folder: Path, kind: str) -> None:
    _, whole, _ = fit(folder, KINDS[kind](folder), 6)
    trainer, module, _ = fit(folder, data := KINDS[kind](folder), 3)
    trainer.fit_loop.epoch_loop.max_steps = 6
    trainer.fit(module, data)
    assert module.seen == whole.seen


def test_reloading_the_loader_continues_with_the_data(folder: Path) -> None:
    _, module, _ = fit(
        folder, text_data(folder), max_epochs=3, limit_train_batches=4, reload_dataloaders_every_n_epochs=1
    )
    assert [sample for _, samples in module.seen for sample in samples] == list(range(12 * 8))


class Lengths(LightningModule):
    """Keeps the samples and the unpadded length of every validation row."""

    def __init__(self) -> None:
        super().__init__()
        self.samples: list[int] = []
        self.lengths: list[int] = []

    def validation_step(self, batch, batch_idx):
        self.samples += batch["sample_ids"].tolist()
        self.lengths += (batch["labels"] != -100).sum(dim=1).tolist()


@pytest.mark.parametrize("kind", ["text", "rows"])
@pytest.mark.parametrize("limit", [2, 0.4])
def test_a_limited_validation_is_a_random_sample(folder: Path, kind: str, limit: int | float) -> None:
    data = KINDS[kind](folder, eval_batch_size=4)

    def validate(limit: int | float) -> Lengths:
        module = Lengths()
        stock_trainer(folder, 1, limit_val_batches=limit).validate(module, data, verbose=False)
        return module

    whole, limited, again = validate(1.0), validate(limit), validate(limit)
    assert limited.samples == again.samples
    assert set(limited.samples) < set(whole.samples)
    assert len(limited.samples) == 4 * (limit if isinstance(limit, int) else int(len(whole.samples) // 4 * limit))
    assert limited.samples != whole.samples[: len(limited.samples)]
    if kind == "rows":  # the longest came first, and were all that was measured
        assert whole.lengths == sorted(whole.lengths, reverse=True) or np.mean(limited.lengths) < max(whole.lengths)
        assert np.mean(limited.lengths) < np.mean(whole.lengths[: len(limited.lengths)])
