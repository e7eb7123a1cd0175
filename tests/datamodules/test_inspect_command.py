"""`inspect` on the YAMLs of runs: what it says is what the training loop is given."""

import itertools
from pathlib import Path

import pytest
import torch
import yaml
from lightning import LightningDataModule
from mixing import make_corpora
from streamed import make_stream
from torch.utils.data import DataLoader

from lit_gpt.commands.inspect import inspect
from lit_gpt.data.bpe import train_bpe
from lit_gpt.datamodules.inspection import inspect_data, open_datamodule
from lit_gpt.errors import UserError


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The YAML of a run for each DataModule of the project."""
    root = tmp_path_factory.mktemp("inspect")
    make_corpora(root / "mix")
    make_stream(root / "stream")
    (root / "texts").mkdir()
    for number in range(30):
        (root / "texts" / f"{number}.txt").write_text(f"text {number} " * 9)
    small = {"block_size": 16, "global_batch_size": 4}
    corpora = [{"path": str(root / "mix" / "corpora" / name), "weight": 1} for name in ("web", "books")]
    cache = {"cache_dir": str(root / "cache")}
    schedule = [{"at": 0.5, "weights": {"web": 1}}]
    settings = {
        "TextDataModule": {"files": str(root / "texts"), "vocab_size": 300, "val_fraction": 0.3, **cache},
        "PreparedDataModule": {"path": corpora[0]["path"]},
        "MixtureDataModule": {"corpora": corpora, "schedule": schedule},
        "StreamingDataModule": {
            "files": str(root / "stream" / "shards"),
            "tokenizer": str(root / "stream" / "tokenizer"),
            "val_documents": 5,
            "block_windows": 16,
            **cache,
        },
    }
    paths = {}
    for name, init_args in settings.items():
        run = {
            "seed_everything": 11,
            "trainer": {"max_steps": 20},
            "model": {"class_path": "PretrainModule"},
            "data": {"class_path": name, "init_args": init_args | small},
        }
        paths[name] = root / f"{name}.yaml"
        paths[name].write_text(yaml.safe_dump(run))
    return paths


NAMES = ("TextDataModule", "PreparedDataModule", "MixtureDataModule", "StreamingDataModule")


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_traced_in_every_datamodule(runs: dict[str, Path], name: str) -> None:
    data = open_datamodule(runs[name], "fit")
    assert data.seed == 11
    report = inspect_data(data, "train", 2, step=13)
    loader = open_datamodule(runs[name], "fit").train_dataloader()
    endless = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
    step = next(itertools.islice(endless, 12, None))
    rows = [row for micro in step for row in micro["input_ids"].tolist()]
    assert [[token.id for token in window.tokens[:16]] for window in report.windows] == rows
    for window in report.windows:
        assert [window.pieces[0].begin, window.pieces[-1].end] == [0, 17]
        for before, after in itertools.pairwise(window.pieces):
            assert before.end == after.begin
            assert after.offset == 0


@pytest.mark.parametrize("name", NAMES)
def test_it_prints_and_writes_a_page(
    runs: dict[str, Path], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect(str(runs[name]), num_windows=2, trace=3, html=str(tmp_path / "page.html"), color="never")
    told = capsys.readouterr().out
    assert f"{name}: optimizer step 3" in told
    assert "sample 8 " in told
    assert told.count("━━ window") == 2
    assert "and 2 more windows of the step" in told
    assert any(line.split() == ["windows", "4"] for line in told.splitlines())  # the whole step, as in the table
    assert f"{name}: optimizer step 3" in (tmp_path / "page.html").read_text(encoding="utf-8")
    inspect(str(runs[name]), num_windows=1, split="val")
    told = capsys.readouterr().out
    assert "the val split" in told
    assert "sha256" in told


class PairsDataModule(LightningDataModule):
    """Another package's: plain batches of pairs, no provenance, a loader that cannot jump."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.tokenizer_path = Path(folder) / "tokenizer"

    def prepare_data(self) -> None:
        train_bpe(["some text to train on"] * 3, 280).save(self.tokenizer_path)

    def train_dataloader(self) -> DataLoader:
        batches = [
            {f"{kind}_input_ids": torch.full((1, 4), 60 + i) for kind in ("chosen", "rejected")} for i in range(3)
        ]
        return DataLoader(batches, batch_size=None)


def test_another_packages_datamodule(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    run = {"data": {"class_path": f"{__name__}.PairsDataModule", "init_args": {"folder": str(tmp_path)}}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    inspect(str(tmp_path / "run.yaml"), trace=2, color="never")
    told = capsys.readouterr().out
    assert "chosen" in told
    assert "rejected" in told
    assert "no provenance()" in told
    assert "no labels" in told


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("trainer: {}", "has no `data`"),
        ("a: [", "not YAML"),
        ("data: {class_path: NoSuchDataModule}", "NoSuchDataModule"),
        ("data: {class_path: StdlibDataModule, init_args: {blocksize: 3}}", "blocksize"),
    ],
)
def test_what_is_no_run(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        inspect(str(path))


def test_impossible_requests(runs: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="num_windows is 0"):
        inspect(str(runs["TextDataModule"]), num_windows=0)
    with pytest.raises(UserError, match="trace is 0"):
        inspect(str(runs["TextDataModule"]), trace=0)
    with pytest.raises(UserError, match="split is val"):
        inspect(str(runs["TextDataModule"]), trace=1, split="val")


def test_lists_on_the_command_line() -> None:
    from lit_gpt.cli import _with_lists

    words = ["tokenizer", "measure", "--tokenizers", "a", "b c", "--files", "x", "--json", "true"]
    assert _with_lists(words) == [*words[:3], '["a", "b c"]', "--files", '["x"]', "--json", "true"]
    given = ["tokenizer", "train", "--files", '["x"]', "--out", "y"]
    assert _with_lists(given) == given
    assert _with_lists(["fit", "--files", "a", "b"]) == ["fit", "--files", "a", "b"]
