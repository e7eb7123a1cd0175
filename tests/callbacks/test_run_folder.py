"""One run, one folder: filled as it should be, never shared by accident."""

import json

import pytest
from lightning.pytorch import LightningDataModule
from tiny_run import CONFIG, TinyModule

from lit_gpt.callbacks import RunCheckpoint, RunFolder
from lit_gpt.checkpoints.resolve import find_last_whole
from lit_gpt.errors import UserError
from lit_gpt.hashing import sha256_json


class Corpus(LightningDataModule):
    def __init__(self, tokenizer_path, name="corpus"):
        super().__init__()
        self.tokenizer_path, self.name = tokenizer_path, name

    def lineage(self):
        return {"name": self.name, "folder": str(self.tokenizer_path)}

    def train_dataloader(self):
        return TinyModule().train_dataloader()


@pytest.fixture
def tokenizer_path(tmp_path):
    folder = tmp_path / "some" / "tokenizer-folder"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "unrelated.bin").write_text("x")
    return folder


def test_what_is_in_the_folder(make_trainer, tmp_path, tokenizer_path):
    make_trainer(RunFolder(), RunCheckpoint(), max_steps=2).fit(TinyModule(), datamodule=Corpus(tokenizer_path))
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "lineage.json", "tokenizer"]
    assert [path.name for path in (run / "tokenizer").iterdir()] == ["tokenizer.json"]
    lineage = json.loads((run / "lineage.json").read_text())
    assert lineage["config_sha256"] == sha256_json(CONFIG.to_dict())
    assert lineage["corpus"] == {"name": "corpus", "folder": "tokenizer-folder"}
    assert lineage["code"]["torch"]
    assert str(tmp_path) not in json.dumps(lineage)


def test_a_new_run_where_one_is_already(make_trainer, tmp_path, tokenizer_path):
    make_trainer(RunFolder(), RunCheckpoint(), max_steps=2).fit(TinyModule(), datamodule=Corpus(tokenizer_path))
    before = (tmp_path / "run" / "lineage.json").read_text()
    module = TinyModule()
    trainer = make_trainer(RunFolder(), RunCheckpoint(), max_steps=4)
    with pytest.raises(UserError, match=r"already holds a run \(step-00000002.*--ckpt_path last.*--trainer\.name"):
        trainer.fit(module, datamodule=Corpus(tokenizer_path, "other"))
    assert module.losses == {}
    assert (tmp_path / "run" / "lineage.json").read_text() == before


def test_a_resume_goes_on_in_the_same_folder(make_trainer, tmp_path, tokenizer_path):
    make_trainer(RunFolder(), RunCheckpoint(), max_steps=2).fit(TinyModule(), datamodule=Corpus(tokenizer_path))
    run = tmp_path / "run"
    first = json.loads((run / "lineage.json").read_text())
    path = str(find_last_whole(run)[0])
    make_trainer(RunFolder(), RunCheckpoint(), max_steps=3).fit(
        TinyModule(), datamodule=Corpus(tokenizer_path), ckpt_path=path
    )
    second = json.loads((run / "lineage.json").read_text())
    assert [session["from_step"] for session in second.pop("resumed")] == [2]
    assert second == first
    (tokenizer_path / "tokenizer.json").write_text("{ }")
    trainer = make_trainer(RunFolder(), RunCheckpoint(), max_steps=4)
    with pytest.raises(UserError, match="started with the tokenizer in"):
        trainer.fit(TinyModule(), datamodule=Corpus(tokenizer_path), ckpt_path=path)


def test_without_a_datamodule(make_trainer, module, tmp_path):
    make_trainer(RunFolder(), max_steps=1).fit(module)
    assert json.loads((tmp_path / "run" / "lineage.json").read_text())["corpus"] is None
