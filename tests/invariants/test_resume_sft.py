"""Supervised fine-tuning that is killed and resumed is the run that never was, with and without an adapter."""

import json
import random
import sys

import pytest
import torch
import yaml
from command_runs import Runs
from safetensors.torch import load_file
from small_chats import alpaca_rows, small_tokenizer, write_rows

from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.models import GPT, GPTConfig

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "intermediate_size": 64, "block_size": 128, "vocab_size": 300}
CONFIG = {
    "seed_everything": 7,
    "trainer": {
        "name": "run",
        "max_steps": 30,
        "accelerator": "cpu",
        "val_check_interval": 8,
        "log_every_n_steps": 5,
        "callbacks": [{"class_path": "RunCheckpoint", "init_args": {"every_n_steps": 4, "keep_last": 3}}],
    },
    "model": {"class_path": "SFTModule", "init_args": {"overrides": {"dropout": 0.1}}},
    "data": {
        "class_path": "InstructionDataModule",
        "init_args": {
            "chat_template": "chatml",
            "block_size": 128,
            "global_batch_size": 4,
            "micro_batch_size": 2,
            "val_fraction": 0.2,
        },
    },
}


class ChatRuns(Runs):
    """Runs of a config of ours on a small base and small conversations."""

    def __init__(self, folder, changes):
        super().__init__(folder)
        self.changes = changes
        config = GPTConfig.from_preset("tiny", **SHAPE)
        small_tokenizer().save(folder / "tokenizer")
        save_bundle(folder / "base", config, GPT(config).state_dict(), folder / "tokenizer")
        write_rows(folder / "rows.jsonl", alpaca_rows(60))

    def command(self, start, *arguments, root="runs", subcommand="fit"):
        config = json.loads(json.dumps(CONFIG))
        config["trainer"]["default_root_dir"] = str(self.folder / root)
        recorder = {"folder": str(self.folder / "records"), "start": start}
        config["trainer"]["callbacks"].append({"class_path": "recorder.Recorder", "init_args": recorder})
        config["model"]["init_args"] |= {"init_from": str(self.folder / "base"), **self.changes.get("model", {})}
        config["data"]["init_args"] |= {
            "tokenizer": str(self.folder / "base"), "files": str(self.folder / "rows.jsonl"), **self.changes.get("data", {})
        }  # fmt: skip
        path = self.folder / f"{start}.yaml"
        path.write_text(yaml.safe_dump(config))
        return [sys.executable, "-m", "lit_gpt", subcommand, "--config", str(path), *arguments]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="packed"),
        pytest.param({"data": {"packing": False}}, id="padded", marks=pytest.mark.slow),
        pytest.param(
            {"model": {"adapter": {"rank": 4, "dropout": 0.1, "dora": True}}}, id="adapter", marks=pytest.mark.slow
        ),
        pytest.param({"model": {"adapter": {"rank": 4, "quantize": "nf4"}}}, id="4 bits", marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed(tmp_path, changes):
    runs = ChatRuns(tmp_path, changes)
    runs.run("whole", root="whole")
    reference = runs.steps("whole")
    assert sorted(reference) == list(range(1, 31))
    generator = random.Random(3)
    for kill in range(2):
        resume = ["--ckpt_path", "last"] if runs.checkpoints("killed") else []
        runs.interrupt(f"killed{kill}", *resume, after_lines=generator.randint(6, 14), root="killed")
    resume = ["--ckpt_path", "last"] if runs.checkpoints("killed") else []
    runs.run("end", *resume, root="killed")
    for start in ("killed0", "killed1", "end"):
        for step, line in runs.steps(start).items():
            assert line == reference[step], f"{start} parts from the whole run at step {step}"
        for step, loss in runs.validations(start).items():
            assert loss == runs.validations("whole")[step]
    one, other = (load_file(runs.checkpoints(root)[-1] / "model.safetensors") for root in ("whole", "killed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
