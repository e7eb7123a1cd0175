"""One run, one folder: filled as it should be, never shared by accident."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import psutil
import pytest
import torch.distributed as dist
from lightning.pytorch import LightningDataModule
from tiny_run import CONFIG, TinyModule

from lit_gpt.callbacks import RunCheckpoint, RunFolder
from lit_gpt.callbacks.run_folder import LOCK, RunLock, run_dir_of
from lit_gpt.checkpoints.resolve import find_last_complete
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
    with pytest.raises(UserError, match=r"already contains a run \(step-00000002.*--ckpt_path last.*--trainer\.name"):
        trainer.fit(module, datamodule=Corpus(tokenizer_path, "other"))
    assert module.losses == {}
    assert (tmp_path / "run" / "lineage.json").read_text() == before


def test_a_resume_goes_on_in_the_same_folder(make_trainer, tmp_path, tokenizer_path):
    make_trainer(RunFolder(), RunCheckpoint(), max_steps=2).fit(TinyModule(), datamodule=Corpus(tokenizer_path))
    run = tmp_path / "run"
    first = json.loads((run / "lineage.json").read_text())
    path = str(find_last_complete(run)[0])
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


@pytest.mark.parametrize("other", ["the first step", "step-00000008.ckpt", "step-00000004.ckpt"])
def test_processes_that_see_different_folders(tmp_path, monkeypatch, other):
    own = str(tmp_path / "checkpoints" / "step-00000004.ckpt")
    trainer = SimpleNamespace(world_size=2, ckpt_path=own, default_root_dir=str(tmp_path))

    def gather(names, name):
        names[:] = [name, other]

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    if other == Path(own).name:
        RunFolder().setup(trainer, None, "fit")
    else:
        with pytest.raises(UserError, match=r"process 0 .*step-00000004.*process 1 .*default_root_dir"):
            RunFolder().setup(trainer, None, "fit")


# ---- one process a folder --------------------------------------------------------------------------------------------


def test_a_second_process_in_the_folder_is_refused(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        started = psutil.Process(other.pid).create_time()
        owner = {"host": socket.gethostname(), "pid": other.pid, "started": started}
        (tmp_path / LOCK).write_text(json.dumps(owner))
        with pytest.raises(UserError, match=rf"process {other.pid} on .*--trainer\.name"):
            RunLock(tmp_path).acquire()
        other.communicate(b"\n")
    lock = RunLock(tmp_path)
    lock.acquire()  # the process is gone
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    RunLock(tmp_path).acquire()  # an earlier fit of this process
    lock.release()
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("text", ["", "{", "{}", json.dumps({"host": socket.gethostname(), "pid": 1, "started": 5.0})])
def test_a_stale_or_damaged_lock_is_taken_over(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    RunLock(tmp_path).acquire()


def test_of_several_processes_one_takes_a_stale_lock(tmp_path):
    code = (
        "import sys, pathlib\nfrom lit_gpt.callbacks.run_folder import RunLock\n"
        "print('ready', flush=True)\ninput()\n"
        "try: RunLock(pathlib.Path(sys.argv[1])).acquire()\n"
        "except ValueError: print('refused', flush=True)\nelse: print('taken', flush=True)\ninput()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    others = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], **pipes) for _ in range(3)]
    for other in others:
        assert other.stdout.readline() == "ready\n"
    (tmp_path / LOCK).write_text(json.dumps({"host": socket.gethostname(), "pid": 1, "started": 5.0}))
    for other in others:
        other.stdin.write("\n")
    said = [other.stdout.readline() for other in others]
    for other in others:
        other.communicate("\n")
    assert sorted(said) == ["refused\n", "refused\n", "taken\n"]


def test_the_lock_does_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / LOCK).write_text("{")
    lock = RunLock(tmp_path)
    lock.acquire()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    lock.release()
    assert not list(tmp_path.iterdir())


def test_another_hosts_lock_is_respected(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 5.0}))
    with pytest.raises(UserError, match="process 1 on elsewhere"):
        RunLock(tmp_path).acquire()


@pytest.mark.parametrize(
    ("holder", "own", "is_taken"),
    [
        ("SLURM_JOB_ID=7", {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}, True),
        ("SLURM_JOB_ID=7", {"SLURM_JOB_ID": "7"}, False),
        ("TORCHELASTIC_RUN_ID=x", {"TORCHELASTIC_RUN_ID": "x", "SLURM_JOB_ID": "7"}, True),
        ("SLURM_JOB_ID=7", {"SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "1"}, False),
        ("SLURM_JOB_ID=7", {}, False),
        (None, {}, False),
        (None, {"TORCHELASTIC_RUN_ID": "none"}, False),
    ],
)
def test_a_job_takes_the_lock_that_it_left_on_another_host(tmp_path, monkeypatch, holder, own, is_taken):
    for variable in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in own.items():
        monkeypatch.setenv(variable, value)
    (tmp_path / LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 5.0, "job": holder}))
    if is_taken:
        RunLock(tmp_path).acquire()
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    else:
        with pytest.raises(UserError, match="process 1 on elsewhere"):
            RunLock(tmp_path).acquire()


def test_a_run_holds_its_folder_and_releases_it(make_trainer, module, tmp_path):
    held = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            held.append((run_dir_of(trainer) / LOCK).exists())

    trainer = make_trainer(RunFolder(), Look(), max_steps=1)
    trainer.fit(module)
    assert held == [True]
    assert not (run_dir_of(trainer) / LOCK).exists()
