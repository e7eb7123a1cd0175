"""Our side of `post_training.py`: the material that both sides load, our losses, our speed."""

import argparse
import json
import random
import resource
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from lit_gpt.batch import IGNORE_INDEX
from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.data.batches import RowBatchBuilder
from lit_gpt.data.bpe import train_bpe
from lit_gpt.data.chat import ChatRenderer
from lit_gpt.data.instructions import PreferenceEncoder, chat_tokenizer
from lit_gpt.data.instructions.stdlib import StdlibPreferences
from lit_gpt.data.records import BadInput
from lit_gpt.datamodules import InstructionDataModule, PreferenceDataModule, PromptDataModule
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.modules import DistillModule, DPOModule, GRPOModule, KTOModule, RewardModule, SFTModule
from lit_gpt.modules.rollouts import Answer, rollout_batch
from lit_gpt.rewards import Sample
from lit_gpt.trainer import Trainer

WARMUP_STEPS = 2
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"n_layer": 2, "n_head": 2, "n_embd": 64, "intermediate_size": 128, "block_size": 128, "vocab_size": 1024,
             "batch": 4, "packed_batch": 2, "prompts": 2, "group": 4, "forward": 8, "new_tokens": 16},
    "small": {"n_layer": 6, "n_head": 6, "n_embd": 384, "intermediate_size": 1024, "block_size": 512,
              "vocab_size": 8192, "batch": 8, "packed_batch": 4, "prompts": 4, "group": 8, "forward": 16,
              "new_tokens": 64},
    "llama-1b": {"n_layer": 16, "n_head": 32, "n_kv_head": 8, "n_embd": 2048, "intermediate_size": 8192,
                 "block_size": 1024, "vocab_size": 32768, "batch": 8, "packed_batch": 8, "prompts": 16, "group": 8,
                 "forward": 32, "new_tokens": 256},
}  # fmt: skip
FEW = 6


def material(args: argparse.Namespace) -> dict:
    """Write models, rows and ids. The second model's weights are somewhat off the first's."""
    folder, shape = Path(args.material), SHAPES[args.shape]
    rows = [row.values for row in StdlibPreferences(max_lines=12).records(BadInput("error"))]
    random.Random(0).shuffle(rows)
    train_bpe((f"{row['prompt']}\n{row['chosen']}" for row in rows), shape["vocab_size"] - 2).save(folder / "plain")
    tokenizer, _ = chat_tokenizer(folder / "plain", "chatml")
    tokenizer.save(folder / "tokenizer")
    encoder = PreferenceEncoder(ChatRenderer(tokenizer), shape["block_size"], "drop")
    pairs, kept = [], []
    wanted = 4 * shape["batch"] * (args.steps + WARMUP_STEPS)
    for row in rows[: 3 * wanted]:
        ids = pair_ids(encoder, row)
        if ids is not None and len(ids["prompt_ids"]) <= shape["block_size"] // 2:
            pairs.append(ids)
            kept.append(row)
    pairs, kept = pairs[:wanted], kept[:wanted]
    few_rows = shape["batch"] * (args.steps + WARMUP_STEPS)  # of DPO: one epoch, so that both sides see all lengths
    names = ("n_layer", "n_head", "n_kv_head", "n_embd", "intermediate_size", "block_size")
    config = GPTConfig(
        **{name: shape[name] for name in names if name in shape}, family="llama", vocab_size=tokenizer.vocab_size,
        bias=False,
        norm="rmsnorm", positions="rope", mlp="swiglu", tie_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():  # sharper than random weights are, so that losses differ
            parameter.mul_(1.5)
    save_bundle(folder / "policy", config, model.state_dict(), folder / "tokenizer")
    torch.manual_seed(1)
    near = {name: value + 0.2 * torch.randn_like(value) * value.std() for name, value in model.state_dict().items()}
    save_bundle(folder / "reference", config, near, folder / "tokenizer")
    few = pairs[:FEW]
    judged = [
        {"prompt_ids": p["prompt_ids"], "completion_ids": p["chosen_ids"], "label": place % 3 != 0,
         "KL_completion_ids": few[place - 1]["chosen_ids"]} for place, p in enumerate(few)
    ]  # fmt: skip
    sft = [
        {"input_ids": p["prompt_ids"] + p["chosen_ids"],
         "completion_mask": [0] * len(p["prompt_ids"]) + [1] * len(p["chosen_ids"])} for p in pairs
    ]  # fmt: skip
    files = {
        "sizes": shape, "pairs": pairs[:few_rows], "sft": sft, "batch_pairs": few, "batch_judged": judged,
        "prompts": [{"messages": [{"role": "user", "content": row["prompt"]}]} for row in kept],
        "batch_rollout": [p | {"advantage": 1.5 - place} for place, p in enumerate(few[:4])],
        "score": (0.1 * torch.randn(1, config.n_embd)).tolist(),
    }  # fmt: skip
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept[:few_rows]))
    completions = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in kept]
    (folder / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in completions))
    return {name: version(name) for name in ("torch", "lightning", "transformers")}


def pair_ids(encoder: PreferenceEncoder, row: dict) -> dict | None:
    """Ids of the prompt and of both answers, as `PreferenceDataModule` has them."""
    from lit_gpt.data.records import Record

    encoded = encoder(Record(row, "rows", 1))
    if isinstance(encoded, str):
        return None
    chosen, rejected = encoded.sequences
    first = list(chosen.mask).index(True)
    return {"prompt_ids": list(chosen.ids[:first]), "chosen_ids": list(chosen.ids[first:]),
            "rejected_ids": list(rejected.ids[first:])}  # fmt: skip


# ---- losses -------------------------------------------------------------------------------------------------------


def read(args: argparse.Namespace, name: str) -> Any:
    """A file of the material."""
    return json.loads((Path(args.material) / f"{name}.json").read_text())


def batch_of(rows: list[tuple[list[int], list[int]]]) -> Any:
    """Prompts with answers, padded."""
    builder = RowBatchBuilder(0, np.ones(1 << 20, dtype=np.int64))
    sequences = [(np.array(p + a), np.array([False] * len(p) + [True] * len(a))) for p, a in rows]
    return builder([[sequence] for sequence in sequences], np.arange(len(rows)))


def built(module: Any, reference: str | None = None) -> Any:
    """The module with its model, and another reference than its own first weights."""
    module.trainer = pl.Trainer(accelerator="cpu", logger=False)
    module.configure_model()
    if reference is not None:
        from lit_gpt.checkpoints.resolve import resolve_model

        module.reference.model.load_state_dict(dict(resolve_model(reference).load_state_dict()))
    return module.train()


@torch.no_grad()
def losses(args: argparse.Namespace) -> dict:
    """Each loss on the batch."""
    policy, reference = (str(Path(args.material) / name) for name in ("policy", "reference"))
    pairs = read(args, "batch_pairs")
    both = batch_of([(p["prompt_ids"], p[side]) for side in ("chosen_ids", "rejected_ids") for p in pairs])
    cases: dict[str, dict] = {
        "dpo": {"beta": 0.3}, "ipo": {"loss_type": "ipo", "beta": 0.3},
        "hinge": {"loss_type": "hinge", "beta": 0.3},
        "robust": {"loss_type": "robust", "beta": 0.3, "label_smoothing": 0.1},
        "orpo": {"loss_type": "orpo", "beta": 0.1}, "simpo": {"loss_type": "simpo", "beta": 2.0, "gamma": 0.5},
    }  # fmt: skip
    found = {}
    for name, arguments in cases.items():
        module: Any = DPOModule(init_from=policy, **arguments)
        built(module, reference if module.uses_reference else None)
        found[name] = float(module.loss(both).loss) / len(pairs)

    judged = read(args, "batch_judged")
    batch = batch_of([(row["prompt_ids"], row["completion_ids"]) for row in judged])
    batch["desirable"] = torch.tensor([row["label"] for row in judged])
    batch["mismatched"] = batch_of([(row["prompt_ids"], row["KL_completion_ids"]) for row in judged])
    kto: Any = built(KTOModule(init_from=policy, beta=0.3, undesirable_weight=1.5), reference)
    batch["reference_log_probs"] = kto.scores_under_reference(batch)
    total, count = kto._mismatched_ratios(batch)
    kto._reference_point = (total / count).clamp(min=0)
    found["kto"] = float(kto.loss(batch).loss) / len(judged)

    reward: Any = built(RewardModule(init_from=policy, center=0.01))
    reward.model.score.weight.copy_(torch.tensor(read(args, "score")))
    found["reward"] = float(reward.loss(both).loss) / len(pairs)

    found |= of_grpo(args, policy, reference)
    chosen = batch_of([(p["prompt_ids"], p["chosen_ids"]) for p in pairs])
    for name, arguments in {
        "gkd_forward": {"divergence": "forward"}, "gkd_reverse": {"divergence": "reverse"},
        "gkd_jsd": {"divergence": "jsd", "beta": 0.3},
    }.items():  # fmt: skip
        module = built(DistillModule(teacher=reference, init_from=policy, hard_weight=0.0, **arguments))
        found[name] = float(module.loss(chosen).loss) / int((chosen["labels"] != IGNORE_INDEX).sum())
    return found


def of_grpo(args: argparse.Namespace, policy: str, reference: str) -> dict:
    """The clipped objective with its three averages."""
    rows, found = read(args, "batch_rollout"), {}
    cases = {"grpo": "completion", "dapo": "token", "dr_grpo": "constant", "grpo_unbiased_kl": "completion"}
    for name, average in cases.items():
        module: Any = GRPOModule(
            rewards=[spread], init_from=policy, average=average, kl_coefficient=0.05,
            unbiased_kl=name == "grpo_unbiased_kl", temperature=0.7, clip_high=0.28, max_new_tokens=64,
        )  # fmt: skip
        built(module, reference)
        answers = [
            Answer([*row["prompt_ids"], *row["chosen_ids"]], len(row["prompt_ids"]), row["advantage"]) for row in rows
        ]
        plain = rollout_batch(answers, module.policy_loss, module.device)
        old, _ = module._log_probs(module.reference.model, plain)
        for answer, values in zip(answers, old.split([answer.num_tokens for answer in answers]), strict=True):
            answer.old_log_probs = answer.reference_log_probs = values
        units = sum(module.policy_loss.units(answer.num_tokens, 64) for answer in answers)
        batch = rollout_batch(answers, module.policy_loss, module.device)
        log_probs, _ = module._log_probs(module.model, batch)
        terms = module.policy_loss(log_probs, batch["old_log_probs"], batch["advantages"], batch["reference_log_probs"])
        found[name] = float((terms.loss * batch["weights"]).sum()) / units
    return found


# ---- speed --------------------------------------------------------------------------------------------------------


class Clock(pl.Callback):
    """Times the steps after the warm-up, and counts their tokens."""

    def __init__(self, steps: int) -> None:
        self.steps, self.units, self.before = steps, 0, 0.0
        self.start, self.seconds, self.cpu_seconds = 0.0, 0.0, 0.0

    def on_train_start(self, trainer, *_) -> None:
        """Note what is in memory before it."""
        self.before = memory_mb(trainer.strategy.root_device.type, peak=False)

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        """Count tokens."""
        if trainer.global_step >= WARMUP_STEPS and not isinstance(module, GRPOModule):
            self.units += sum(tokens_of(part) for part in batch)

    def on_train_batch_end(self, trainer, *_) -> None:
        """Start or stop the clock."""
        if trainer.global_step not in (WARMUP_STEPS, WARMUP_STEPS + self.steps):
            return
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        if trainer.global_step == WARMUP_STEPS:
            self.start, self.cpu_seconds = time.perf_counter(), time.process_time()
        else:
            self.seconds, self.cpu_seconds = time.perf_counter() - self.start, time.process_time() - self.cpu_seconds


def tokens_of(batch: Any) -> int:
    """Positions that are no padding; a row of n tokens has n - 1, and the other side counts n."""
    if "document_ids" in batch:
        here = batch["document_ids"] >= 0
        return int(here.sum() + (here & (batch["position_ids"] == 0)).sum())
    last = torch.where(batch["labels"] != IGNORE_INDEX, torch.arange(batch["labels"].shape[1]), -2).amax(1)
    return int((last + 2).sum())


def memory_mb(device: str, peak: bool = True) -> float:
    """Of this process, or of the accelerator."""
    if device == "cuda":
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def spread(sample: Sample) -> float:
    """As the other side's."""
    return float(len(set(sample.completion)) % 7)


def speed(task: str, args: argparse.Namespace) -> dict:
    """Train and measure."""
    folder, sizes = Path(args.material), read(args, "sizes")
    policy = str(folder / "policy")
    shared: dict[str, Any] = {
        "tokenizer": policy, "block_size": sizes["block_size"], "val_fraction": 0.0, "cache_dir": str(folder / "cache")
    }  # fmt: skip
    start: dict[str, Any] = {
        "init_from": policy,
        "optimizer": lambda groups: torch.optim.AdamW(groups, lr=1e-4, fused=True),
    }
    data: Any
    module: Any
    if task == "sft":
        data = InstructionDataModule(
            files=str(folder / "completions.jsonl"), global_batch_size=sizes["packed_batch"], **shared
        )
        module = SFTModule(**start)
    elif task == "dpo":
        data = PreferenceDataModule(files=str(folder / "rows.jsonl"), global_batch_size=sizes["batch"], **shared)
        module = DPOModule(**start)
    else:
        data = PromptDataModule(files=str(folder / "rows.jsonl"), global_batch_size=sizes["prompts"], **shared)
        module = GRPOModule(
            rewards=[spread], group_size=sizes["group"], max_new_tokens=sizes["new_tokens"],
            completions_per_forward=sizes["forward"], engine_batch_size=sizes["prompts"] * sizes["group"], **start,
        )  # fmt: skip
    clock = Clock(args.steps)
    shutil.rmtree(folder / "ours" / task, ignore_errors=True)  # of an earlier round
    trainer = Trainer(
        default_root_dir=str(folder / "ours"), name=task, max_steps=WARMUP_STEPS + args.steps, callbacks=[clock],
        accelerator="cpu" if args.device == "cpu" else "gpu", devices=1, logger=False, log_every_n_steps=10,
        precision="32-true" if args.device == "cpu" else "bf16-mixed", enable_progress_bar=False, gradient_clip_val=1.0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    units = args.steps * sizes["prompts"] if task == "grpo" else clock.units
    peak = memory_mb(args.device)
    return {"rate": units / clock.seconds, "seconds": clock.seconds, "cpu_rate": units / clock.cpu_seconds,
            "units": units, "peak_mb": peak,
            "gained_mb": peak - clock.before}  # fmt: skip


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", required=True)
    parser.add_argument("--material", required=True)
    parser.add_argument("--shape", default="small", choices=list(SHAPES))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.task == "material":
        result = material(args)
    else:
        result = losses(args) if args.task == "losses" else speed(args.task, args)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
