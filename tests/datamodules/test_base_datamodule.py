import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from recording import RecordingModule, stock_trainer, text_data
from transformers import AutoTokenizer

from lit_gpt.datamodules import TokenDataModule
from lit_gpt.errors import UserError


def test_without_a_trainer(folder: Path) -> None:
    data = text_data(folder, micro_batch_size=4)
    assert data.vocab_size == 300
    assert data.block_size == 16
    path = data.tokenizer_path  # known before it exists
    assert not path.exists()
    data.prepare_data()
    data.setup("fit")
    assert data.tokenizer_path == path
    assert len(AutoTokenizer.from_pretrained(path)) == 300
    step = next(iter(data.train_dataloader()))
    assert [micro["input_ids"].shape for micro in step] == [(4, 16), (4, 16)]
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        assert sum(int(batch["num_bytes"].sum()) for batch in loader) == data.corpus.split(split).num_bytes > 0
    pickle.loads(pickle.dumps(data))  # strategies that spawn send it to other processes


def test_lineage_is_json_and_follows_the_data(folder: Path) -> None:
    def fingerprint() -> dict:
        data = text_data(folder)
        data.prepare_data()
        data.setup("fit")
        return json.loads(json.dumps(data.lineage()))

    before = fingerprint()
    assert before["corpus"]["sources"][0]["num_files"] == 40
    assert before["class"].endswith("TextDataModule")
    (folder / "texts" / "00.txt").write_text("changed " * 20)
    assert fingerprint()["corpus"]["fingerprint"] != before["corpus"]["fingerprint"]


@pytest.mark.parametrize(
    ("stop", "num_workers"),
    [
        ("in an epoch", 0),
        ("at its end", 0),
        ("in an epoch", 2),
        pytest.param("at its end", 2, marks=pytest.mark.slow),
    ],
)
def test_a_stock_trainer_resumes_exactly(folder: Path, stop: str, num_workers: int) -> None:
    def fit(max_steps: int, **kwargs) -> RecordingModule:
        module = RecordingModule()
        trainer = stock_trainer(folder, max_steps, num_sanity_val_steps=0)
        trainer.fit(module, text_data(folder, num_workers=num_workers), weights_only=True, **kwargs)
        trainer.save_checkpoint(folder / "last.ckpt")
        return module

    data = text_data(folder)
    data.prepare_data()
    data.setup("fit")
    length = len(data.train_dataloader())
    last = 2 * length + 2
    first_stop = length // 2 if stop == "in an epoch" else length
    uninterrupted = fit(last)
    seen = fit(first_stop).seen
    for max_steps in (first_stop + 1, last):
        seen += fit(max_steps, ckpt_path=folder / "last.ckpt").seen
    assert seen == uninterrupted.seen
    assert [step for step, _ in seen] == list(range(last))
    assert [sample for _, samples in seen for sample in samples] == list(range(8 * last))


def test_all_stages_of_a_stock_trainer(folder: Path) -> None:
    module, data = RecordingModule(), text_data(folder)
    trainer = stock_trainer(folder, 3, limit_train_batches=3)
    trainer.validate(module, data, verbose=False)
    assert sum(module.val_bytes) == data.corpus.split("val").num_bytes
    trainer.fit(module, data)
    module.val_bytes.clear()
    trainer.test(module, data, verbose=False)
    assert sum(module.val_bytes) == data.corpus.split("test").num_bytes
    trainer.predict(module, data)
    test = data.corpus.split("test")
    names = [test.document(i).source for i in range(test.num_documents)]
    assert list(dict.fromkeys(module.predicted)) == names


def test_training_without_validation(folder: Path) -> None:
    module = RecordingModule()
    stock_trainer(folder, 2).fit(module, text_data(folder, val_fraction=0.0))
    assert (len(module.seen), module.val_bytes) == (2, [])


@pytest.mark.slow
def test_one_two_one_devices_consume_the_same_samples(folder: Path) -> None:
    def run(devices: int, last_step: int, *checkpoint: str) -> list[list[int]]:
        command = [sys.executable, "recording.py", str(folder), str(devices), str(last_step), *checkpoint]
        subprocess.run(command, cwd=Path(__file__).parent, check=True, capture_output=True, timeout=180)
        records = [json.loads((folder / f"seen-{last_step}-{r}.json").read_text()) for r in range(devices)]
        assert len({len(record["val_bytes"]) for record in records}) == 1
        per_rank = zip(*(record["seen"] for record in records), strict=True)
        return [[sample for _, share in shares for sample in share] for shares in per_rank]

    seen = run(1, 3)
    seen += run(2, 11, str(folder / "step-3.ckpt"))
    seen += run(1, 14, str(folder / "step-11.ckpt"))
    assert seen == [list(range(8 * step, 8 * step + 8)) for step in range(14)]


class CountingDataModule(TokenDataModule):
    """A researcher's own corpus: one method."""

    def documents(self) -> Iterator[str]:
        for i in range(200):
            yield f"the number {i} comes before {i + 1}"


def test_a_subclass_needs_one_method(tmp_path: Path) -> None:
    data = CountingDataModule(
        block_size=8, global_batch_tokens=64, vocab_size=290, val_fraction=0.1, cache_dir=str(tmp_path)
    )
    module = RecordingModule()
    stock_trainer(tmp_path, 2, limit_val_batches=1).fit(module, data)
    assert len(module.seen) == 2
    assert data.lineage()["corpus"]["sources"][0]["name"] == "CountingDataModule"
    pickle.loads(pickle.dumps(data.spec))
    with pytest.raises(NotImplementedError, match="documents"):
        TokenDataModule(cache_dir=str(tmp_path)).prepare_data()


def test_isolation_can_be_turned_off(folder: Path) -> None:
    steps = {}
    for isolate in (True, False):
        data = text_data(folder, isolate_documents=isolate, global_batch_size=32)
        data.prepare_data()
        data.setup("fit")
        steps[isolate] = next(iter(data.train_dataloader()))[0]
    assert torch.equal(steps[True]["input_ids"], steps[False]["input_ids"])
    assert steps[True]["document_ids"].max() > 0
    assert "document_ids" not in steps[False]
    assert steps[False]["position_ids"][0].tolist() == list(range(16))


def test_a_given_tokenizer_and_its_vocabulary(folder: Path) -> None:
    first = text_data(folder)
    first.prepare_data()
    given = str(first.tokenizer_path)
    data = text_data(folder, tokenizer=given, vocab_size=None)
    assert data.vocab_size == 300
    data.prepare_data()
    data.setup("fit")
    assert data.corpus.manifest["tokenizer"] == data.lineage()["tokenizer"]["fingerprint"]
    assert {p.name for p in data.tokenizer_path.iterdir()} == {p.name for p in first.tokenizer_path.iterdir()}
    assert text_data(folder, tokenizer=given, vocab_size=320).vocab_size == 320  # pads the model's vocabulary
    with pytest.raises(UserError, match=r"vocab_size 299 is smaller than the 300 entries .* at least 300"):
        text_data(folder, tokenizer=given, vocab_size=299)
    with pytest.raises(UserError, match="does not exist"):
        text_data(folder, tokenizer="./no/tokenizer.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"global_batch_size": 4, "global_batch_tokens": 64}, "global_batch_tokens 64 are both set"),
        (
            {"global_batch_size": None, "global_batch_tokens": 40},
            "40 is not a multiple of block_size 16; set it to 32 or 48",
        ),
        ({"global_batch_size": 0}, "global_batch_size is 0"),
        ({"block_size": 0}, "block_size is 0"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"vocab_size": 100}, "vocab_size 100 is below 257"),
    ],
)
def test_impossible_arguments(folder: Path, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        text_data(folder, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"micro_batch_size": 3}, "micro_batch_size 3 does not divide the 8 sequences"),
        ({"val_fraction": 0.7, "test_fraction": 0.4}, "leave nothing to train on"),
        ({"on_bad_input": "ignore"}, "on_bad_input is 'ignore'; it can be error or skip"),
        ({"block_size": 100_000, "global_batch_size": 1}, "fewer than one window of block_size 100000"),
    ],
)
def test_impossible_preparations(folder: Path, arguments: dict, message: str) -> None:
    data = text_data(folder, **arguments)
    with pytest.raises(UserError, match=message):
        stock_trainer(folder, 1).fit(RecordingModule(), data)


def test_setup_before_prepare_data(folder: Path) -> None:
    with pytest.raises(UserError, match=r"call prepare_data\(\)"):
        text_data(folder).setup("fit")
    with pytest.raises(UserError, match=r"call prepare_data\(\) and setup\(\)"):
        text_data(folder).train_dataloader()


def test_default_batch_and_evaluation_sizes(folder: Path) -> None:
    assert text_data(folder, global_batch_size=None).global_batch_size == 32
    assert text_data(folder, global_batch_size=None, global_batch_tokens=4096).global_batch_size == 256
    data = text_data(folder, global_batch_size=None, global_batch_tokens=4096, eval_batch_size=5)
    data.prepare_data()
    data.setup("validate")
    assert next(iter(data.val_dataloader()))["input_ids"].shape == (5, 16)


class UsedUpDataModule(TokenDataModule):
    """Its documents can be read once: the generator is made only here."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.generator = (f"the number {i} comes before {i + 1}" for i in range(200))

    def documents(self) -> Iterator[str]:
        return self.generator


def test_documents_that_can_be_read_only_once(tmp_path: Path) -> None:
    data = UsedUpDataModule(block_size=8, vocab_size=290, val_fraction=0.1, cache_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"UsedUpDataModule: documents\(\)"):
        data.prepare_data()


@pytest.mark.parametrize("lines", [3000, 600, 60])
def test_a_default_batch_fits_a_small_corpus(tmp_path: Path, lines: int) -> None:
    class Lines(TokenDataModule):
        def documents(self) -> Iterator[str]:
            yield from (f"line {i} " for i in range(lines))

    settings = {"block_size": 16, "vocab_size": 290, "cache_dir": str(tmp_path), "val_fraction": 0, "test_fraction": 0}
    for given in ({"global_batch_size": 32}, {"micro_batch_size": 4}):
        data = Lines(**settings, **given)
        data.prepare_data()
        data.setup("fit")
        assert data.global_batch_size == 32
    data = Lines(**settings)
    data.prepare_data()
    data.setup("fit")
    windows, size = data.corpus.split("train").num_tokens // 16, data.global_batch_size
    assert size == {3000: 32, 600: 16, 60: 8}[lines]
    assert windows // size >= 8 or size == 8
    assert size == 32 or windows // (2 * size) < 8
    assert data.data_info.tokens_per_step == size * 16
    data.setup("fit")
    assert data.global_batch_size == size


def test_no_warning_where_nothing_is_held_out(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    data = text_data(folder, val_fraction=0.0, test_fraction=0.0)
    stock_trainer(folder, 2, log_every_n_steps=1).fit(RecordingModule(), data)
    assert not [str(warning.message) for warning in recwarn if "Total length" in str(warning.message)]
