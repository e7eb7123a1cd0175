"""Trains with answers of its own in one process or two: `python sampling_worker.py <kind> <devices> <folder>`.

Rank 0 leaves `<folder>/<kind>-<devices>.safetensors` with the weights after the first step, every rank its own
`<kind>-<devices>-rank<r>.json` with the answers that it drew in three steps and a sum over its last weights.
"""

import json
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback
from safetensors.torch import save_file

from lit_gpt.datamodules import InstructionDataModule, PromptDataModule
from lit_gpt.modules import DistillModule, GRPOModule
from lit_gpt.trainer import Trainer

STEPS = 3


def share_of_e(sample) -> float:
    """A reward that random answers differ in; none of it for every third prompt, so that ranks learn unequally."""
    if sample.prompt[-1]["content"].startswith(("0", "3", "6", "9")):
        return 0.0
    return sample.completion.count("e") + 0.1 * len(sample.completion)


class Drawn(Callback):
    """Notes what was drawn, and the weights after the first step."""

    def __init__(self) -> None:
        self.answers, self.weights = {}, {}

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        named = pl_module.model.named_parameters()
        self.weights = self.weights or {name: p.detach().clone().contiguous() for name, p in named}

    def setup(self, trainer, pl_module, stage) -> None:
        sample = pl_module.sample

        def noted(prompts, seeds, temperature):
            done = sample(prompts, seeds, temperature)
            for prompt, group in zip(prompts, done, strict=True):
                key = f"{trainer.global_step} {prompt['number']}"
                self.answers[key] = [completion.token_ids for completion in group]
            return done

        pl_module.sample = noted


def main() -> None:
    kind, devices, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    base = str(folder / "base")
    common = {
        "tokenizer": base, "chat_template": "chatml", "files": str(folder / "rows.jsonl"), "block_size": 96,
        "global_batch_size": 4, "val_fraction": 0.25, "cache_dir": str(folder / "cache"),
    }  # fmt: skip
    start = {"init_from": base, "optimizer": lambda groups: torch.optim.SGD(groups, lr=0.05), "max_new_tokens": 8}
    if kind == "grpo":
        data = PromptDataModule(max_prompt_tokens=80, **common)
        module = GRPOModule(
            rewards=[share_of_e], group_size=4, completions_per_forward=3, kl_coefficient=0.0,
            vocab_size=data.vocab_size, **start,
        )  # fmt: skip
    else:
        data = InstructionDataModule(packing=False, **common)
        module = DistillModule(teacher=str(folder / "teacher"), lmbda=0.5, vocab_size=data.vocab_size, **start)
    drawn = Drawn()
    trainer = Trainer(
        name=f"{kind}-{devices}", default_root_dir=str(folder / "runs"), max_steps=STEPS, val_check_interval=STEPS,
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
        enable_progress_bar=False, callbacks=[drawn],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    total = sum(float(weight.detach().double().sum()) for weight in module.model.parameters())
    note = {"answers": drawn.answers, "total": total}
    (folder / f"{kind}-{devices}-rank{trainer.global_rank}.json").write_text(json.dumps(note))
    if trainer.global_rank == 0:
        save_file(drawn.weights, folder / f"{kind}-{devices}.safetensors")


if __name__ == "__main__":
    main()
