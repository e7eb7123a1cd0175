"""nanoGPT's character Shakespeare on a CPU, at exactly its budget.

    python benchmarks/shakespeare_char.py --data input.txt

The budget (nanoGPT's README, "I only have a macbook"): 4 layers, 4 heads, 128 wide, at most 0.81 M parameters, context
64, 2,000 steps of 12 x 64 tokens, dropout 0, the first 90 % of the text for training. nanoGPT reports a validation
loss of 1.88 nats a character. Here the loss is the mean over the whole validation split, cut into non-overlapping
windows of 64 characters, every target counted, the last model, no choice of a best step.

What is different from nanoGPT: Muon for the matrices, RoPE, RMSNorm with QK-norm, no biases, and each window of the
text once an epoch instead of random positions.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader

from lit_gpt.callbacks import TokenProgressBar
from lit_gpt.data.batches import BatchBuilder
from lit_gpt.data.sampler import WindowSampler
from lit_gpt.modules import PretrainModule
from lit_gpt.optim import Linear, MuonAdamW

BATCH, BLOCK, STEPS, MAX_PARAMETERS = 12, 64, 2000, 810_000
NANOGPT_LOSS = 1.88


class CharDataModule(pl.LightningDataModule):
    """Characters of one text as tokens: 90 % for training, 10 % for validation."""

    def __init__(self, path: Path, seed: int, steps: int) -> None:
        super().__init__()
        text = path.read_text(encoding="utf-8")
        characters = sorted(set(text))
        tokens = np.array([characters.index(c) for c in characters], dtype=np.int64)[
            np.searchsorted(np.array(characters), np.array(list(text)))
        ]
        split = int(0.9 * len(tokens))
        self.vocab_size = len(characters)
        self.train, self.val = tokens[:split], tokens[split:]
        self.seed, self.steps = seed, steps
        self.build = BatchBuilder(0, np.ones(self.vocab_size, dtype=np.int64), isolate_documents=False)

    def train_dataloader(self):
        """Each step's 12 windows, in the order of the project's sampler."""
        samples = np.arange(self.steps * BATCH, dtype=np.int64)
        starts = WindowSampler(len(self.train), BLOCK, self.seed).starts(samples)
        circle = np.concatenate([self.train, self.train[: BLOCK + 1]])
        windows = circle[starts[:, None] + np.arange(BLOCK + 1)].reshape(self.steps, BATCH, BLOCK + 1)
        return DataLoader([[self.build(rows, np.arange(BATCH))] for rows in windows], batch_size=None)

    def val_dataloader(self):
        """All windows of the validation split, the last one shorter."""
        starts = np.arange(0, len(self.val) - 1, BLOCK)
        lengths = np.minimum(BLOCK, len(self.val) - 1 - starts)
        padded = np.concatenate([self.val, np.zeros(BLOCK + 1, dtype=np.int64)])
        rows = padded[starts[:, None] + np.arange(BLOCK + 1)]
        cuts = [slice(i, i + 128) for i in range(0, len(rows), 128)]
        return DataLoader([self.build(rows[cut], starts[cut], lengths[cut]) for cut in cuts], batch_size=None)


class Curve(pl.Callback):
    """Validation loss by step, and the first step below nanoGPT's."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def on_validation_end(self, trainer, pl_module) -> None:
        """Note the loss of the whole split."""
        self.losses[trainer.global_step] = trainer.callback_metrics["val/loss"].item()


def train(path: Path, seed: int, steps: int, curve_every: int) -> dict:
    """One run; returns its figures."""
    data = CharDataModule(path, seed, steps)
    module = PretrainModule(
        preset="tiny",
        overrides={
            "n_layer": 4, "n_head": 4, "n_embd": 128, "intermediate_size": 341, "block_size": BLOCK,
            "vocab_size": data.vocab_size, "tie_embeddings": False, "rope_theta": 1000.0, "mlp": "swiglu",
        },
        optimizer=lambda groups: MuonAdamW(groups, lr=0.01, adamw_lr=0.003, weight_decay=0.1),
        schedule=Linear(warmup_steps=100, final=0.0),
        seed=seed,
    )  # fmt: skip
    num_parameters = module.config.num_parameters()
    assert num_parameters <= MAX_PARAMETERS, num_parameters
    curve = Curve()
    trainer = pl.Trainer(
        max_steps=steps, val_check_interval=curve_every, check_val_every_n_epoch=None, gradient_clip_val=1.0,
        logger=False, enable_checkpointing=False, enable_model_summary=False, num_sanity_val_steps=0,
        log_every_n_steps=50, callbacks=[curve, TokenProgressBar()],
    )  # fmt: skip
    start = time.perf_counter()
    trainer.fit(module, datamodule=data)
    reached = [step for step, loss in curve.losses.items() if loss <= NANOGPT_LOSS]
    return {
        "seed": seed,
        "parameters": num_parameters,
        "tokens": steps * BATCH * BLOCK,
        "val_loss": round(curve.losses[max(curve.losses)], 4),
        "seconds_with_validation": round(time.perf_counter() - start, 1),
        "tokens_to_1.88": min(reached) * BATCH * BLOCK if reached else None,
        "curve": {step: round(loss, 4) for step, loss in sorted(curve.losses.items())},
    }


def main() -> None:
    """Train each seed and print the mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="tiny Shakespeare's input.txt")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--curve_every", type=int, default=50, help="optimizer steps between validations")
    parser.add_argument("--out", type=Path, help="write the figures to this json file")
    arguments = parser.parse_args()
    runs = []
    for seed in arguments.seeds:
        runs.append(train(arguments.data, seed, arguments.steps, arguments.curve_every))
        print(json.dumps({key: value for key, value in runs[-1].items() if key != "curve"}))
    losses = [run["val_loss"] for run in runs]
    tokens = [run["tokens_to_1.88"] or STEPS * BATCH * BLOCK for run in runs]
    result = {
        "mean_val_loss": round(statistics.mean(losses), 4),
        "nanogpt_val_loss": NANOGPT_LOSS,
        "share_of_nanogpts_tokens_to_reach_1.88": round(statistics.mean(tokens) / (STEPS * BATCH * BLOCK), 3),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "runs": runs,
    }
    print(f"mean validation loss of {len(losses)} seeds: {result['mean_val_loss']} (nanoGPT: {NANOGPT_LOSS})")
    print(f"tokens to reach 1.88: {result['share_of_nanogpts_tokens_to_reach_1.88']:.1%} of nanoGPT's")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
