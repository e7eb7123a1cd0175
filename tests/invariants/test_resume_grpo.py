"""Reinforcement learning that is killed and resumed is the run that never was, in the middle of a rollout too."""

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

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "intermediate_size": 64, "block_size": 128, "vocab_size": 302}
CONFIG = {
    "seed_everything": 7,
    "trainer": {
        "name": "run",
        "max_steps": 20,
        "accelerator": "cpu",
        "val_check_interval": 8,
        "log_every_n_steps": 5,
        "callbacks": [{"class_path": "RunCheckpoint", "init_args": {"every_n_steps": 4, "keep_last": 3}}],
    },
    "model": {
        "class_path": "GRPOModule",
        "init_args": {
            "rewards": [
                {"class_path": "lit_gpt.rewards.Length", "init_args": {"max_tokens": 12, "margin": 10}},
                {"class_path": "lit_gpt.rewards.MatchesFormat", "init_args": {"pattern": "[a-z ]", "whole": False}},
            ],
            "reward_weights": [1.0, 0.5],
            "group_size": 4,
            "max_new_tokens": 12,
            "completions_per_forward": 3,
            "kl_coefficient": 0.05,
            "optimizer": {"class_path": "MuonAdamW", "init_args": {"lr": 0.003}},
        },
    },
    "data": {
        "class_path": "PromptDataModule",
        "init_args": {"chat_template": "chatml", "block_size": 128, "global_batch_size": 2, "val_fraction": 0.2},
    },
}


class PromptRuns(Runs):
    """Runs of a config of ours on a small base and small prompts."""

    def __init__(self, folder, updates):
        super().__init__(folder)
        self.updates = updates
        config = GPTConfig.from_preset("tiny", **SHAPE)
        small_tokenizer().save(folder / "tokenizer")
        save_bundle(folder / "base", config, GPT(config).state_dict(), folder / "tokenizer")
        write_rows(folder / "rows.jsonl", alpaca_rows(30))

    def command(self, start, *arguments, root="runs", subcommand="fit"):
        config = json.loads(json.dumps(CONFIG))
        config["trainer"]["default_root_dir"] = str(self.folder / root)
        recorder = {"folder": str(self.folder / "records"), "start": start}
        config["trainer"]["callbacks"].append({"class_path": "recorder.Recorder", "init_args": recorder})
        config["model"]["init_args"]["init_from"] = str(self.folder / "base")
        config["data"]["init_args"] |= {
            "tokenizer": str(self.folder / "base"), "files": str(self.folder / "rows.jsonl"), "updates_per_rollout": self.updates
        }  # fmt: skip
        path = self.folder / f"{start}.yaml"
        path.write_text(yaml.safe_dump(config))
        return [sys.executable, "-m", "lit_gpt", subcommand, "--config", str(path), *arguments]


@pytest.mark.slow
@pytest.mark.parametrize("updates", [1, 3])
def test_killed_and_resumed(tmp_path, updates):
    runs = PromptRuns(tmp_path, updates)
    runs.run("whole", root="whole")
    reference = runs.steps("whole")
    assert sorted(reference) == list(range(1, 21))
    generator = random.Random(3)
    resume = []
    for kill in range(2):
        runs.interrupt(f"killed{kill}", *resume, after_lines=generator.randint(5, 8), root="killed")
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
