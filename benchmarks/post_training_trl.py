"""TRL's side of `post_training.py`; runs in an environment of its own, and knows nothing of lit_gpt."""

import argparse
import json
import resource
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

WARMUP_STEPS = 2


class Clock(TrainerCallback):
    """Times the steps after the warm-up."""

    def __init__(self, steps: int, cuda: bool) -> None:
        self.steps, self.cuda = steps, cuda
        self.start, self.seconds, self.cpu_seconds = 0.0, 0.0, 0.0

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Start or stop the clock."""
        if state.global_step not in (WARMUP_STEPS, WARMUP_STEPS + self.steps):
            return
        if self.cuda:
            torch.cuda.synchronize()
        if state.global_step == WARMUP_STEPS:
            self.start, self.cpu_seconds = time.perf_counter(), time.process_time()
        else:
            self.seconds, self.cpu_seconds = time.perf_counter() - self.start, time.process_time() - self.cpu_seconds


def counting(trainer_class: type) -> type:
    """The trainer, with the rows taken as they are (they are token ids already) and the tokens of each step noted."""

    class Counting(trainer_class):
        units: ClassVar[list[int]] = []

        def _prepare_dataset(self, dataset, *args, **kwargs):
            return (
                dataset if "prompt_ids" in dataset.column_names else super()._prepare_dataset(dataset, *args, **kwargs)
            )

        def training_step(self, model, inputs, *args, **kwargs):
            if isinstance(inputs, dict) and "input_ids" in inputs:
                mask = inputs.get("attention_mask")
                self.units.append(int(inputs["input_ids"].numel() if mask is None else mask.sum()))
            return super().training_step(model, inputs, *args, **kwargs)

    Counting.__name__ = trainer_class.__name__
    return Counting


def reward(completions, **kwargs) -> list[float]:
    """As the other side's."""
    return [float(len(set(message[0]["content"])) % 7) for message in completions]


def common(args, **more) -> dict:
    """Arguments of every trainer."""
    cpu = args.device == "cpu"
    return {
        "output_dir": str(Path(args.material) / "trl"), "use_cpu": cpu, "bf16": not cpu, "report_to": "none",
        "gradient_checkpointing": False, "save_strategy": "no", "logging_steps": 10, "disable_tqdm": True,
        "learning_rate": 1e-4, "max_steps": WARMUP_STEPS + args.steps, "dataloader_pin_memory": False,
        **more,
    }  # fmt: skip


def rows_of(material: Path, name: str) -> list[dict]:
    return json.loads((material / f"{name}.json").read_text())


def model_of(path: Path, kind=AutoModelForCausalLM, **more):
    return kind.from_pretrained(path, dtype=torch.float32, **more)


def speed(task: str, args) -> dict:
    """Trains and measures."""
    material = Path(args.material)
    sizes = json.loads((material / "sizes.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(material / "policy")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batch = {"per_device_train_batch_size": sizes["batch"]}
    model = model_of(material / "policy")
    if task == "sft":
        config = SFTConfig(
            **common(args, per_device_train_batch_size=sizes["packed_batch"]), packing=True,
            max_length=sizes["block_size"], completion_only_loss=True, dataset_kwargs=None,
        )  # fmt: skip
        trainer = counting(SFTTrainer)(
            model, config, train_dataset=Dataset.from_list(rows_of(material, "sft")), processing_class=tokenizer
        )
    elif task == "dpo":
        trainer = counting(DPOTrainer)(
            model, model_of(material / "policy"), DPOConfig(**common(args, **batch), max_length=None),
            train_dataset=Dataset.from_list(rows_of(material, "pairs")), processing_class=tokenizer,
        )  # fmt: skip
    else:
        forwards = sizes["prompts"] * sizes["group"] // sizes["forward"]
        config = GRPOConfig(
            **common(args, per_device_train_batch_size=sizes["forward"], gradient_accumulation_steps=forwards),
            num_generations=sizes["group"], max_completion_length=sizes["new_tokens"], beta=0.0,
        )  # fmt: skip
        prompts = Dataset.from_list([{"prompt": row["messages"]} for row in rows_of(material, "prompts")])
        trainer = counting(GRPOTrainer)(model, reward, config, train_dataset=prompts, processing_class=tokenizer)
    clock = Clock(args.steps, args.device == "cuda")
    trainer.add_callback(clock)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if args.device == "cuda":
        before = torch.cuda.memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if args.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    units = args.steps * sizes["prompts"] if task == "grpo" else sum(trainer.units[WARMUP_STEPS:])
    return {"rate": units / clock.seconds, "seconds": clock.seconds, "cpu_rate": units / clock.cpu_seconds,
            "units": units, "peak_mb": peak,
            "gained_mb": peak - before}  # fmt: skip


@torch.no_grad()
def losses(args) -> dict:
    """Each loss on the batch."""
    material = Path(args.material)
    tokenizer = AutoTokenizer.from_pretrained(material / "policy")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    pairs, judged = rows_of(material, "batch_pairs"), rows_of(material, "batch_judged")
    many = {"per_device_train_batch_size": len(pairs)}
    found: dict[str, float] = {}
    cases = {"dpo": ("sigmoid", 0.0), "ipo": ("ipo", 0.0), "hinge": ("hinge", 0.0),
             "robust": ("robust", 0.1)}  # fmt: skip
    for name, (kind, smoothing) in cases.items():
        config = DPOConfig(
            **common(args, **many), loss_type=[kind], beta=0.3, label_smoothing=smoothing, max_length=None
        )
        trainer = counting(DPOTrainer)(
            model_of(material / "policy"), model_of(material / "reference"), config,
            train_dataset=Dataset.from_list(pairs), processing_class=tokenizer,
        )  # fmt: skip
        found[name] = float(trainer._compute_loss(trainer.model, trainer.data_collator(pairs), False))
        if name == "dpo":
            found |= reference_free(trainer, pairs)
    config = KTOConfig(**common(args, **many), beta=0.3, desirable_weight=1.0, undesirable_weight=1.5, max_length=None)
    trainer = counting(KTOTrainer)(
        model_of(material / "policy"), model_of(material / "reference"), config,
        train_dataset=Dataset.from_list(judged), processing_class=tokenizer,
    )  # fmt: skip
    found["kto"] = float(trainer._compute_loss(trainer.model, trainer.data_collator(judged), False))
    return found | of_reward(args, tokenizer) | of_grpo(args, tokenizer) | of_gkd(material, pairs)


def reference_free(trainer, pairs: list[dict]) -> dict:
    """ORPO's and SimPO's, on the log-probabilities of the batch. ORPO's NLL is taken over answers, as in the paper."""
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    inputs = trainer.data_collator(pairs)
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    logits = trainer.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    averages = ORPOTrainer.get_batch_logps(logits, labels, average_log_prob=True)
    chosen, rejected = averages.chunk(2)
    place = SimpleNamespace(device="cpu")
    orpo = SimpleNamespace(beta=0.1, accelerator=place)
    odds = ORPOTrainer.odds_ratio_loss(orpo, chosen, rejected)[0]
    simpo = SimpleNamespace(
        alpha=0.0, loss_type="simpo", simpo_gamma=0.5, beta=2.0, label_smoothing=0.0, accelerator=place
    )
    margin = CPOTrainer.cpo_loss(simpo, chosen, rejected)[0]
    return {"orpo": float(-chosen.mean() - odds.mean()), "simpo": float(margin.mean())}


def of_reward(args, tokenizer) -> dict:
    """TRL scores the last token: the stop token is left away, so that both sides read the same position."""
    material = Path(args.material)
    model = model_of(material / "policy", AutoModelForSequenceClassification, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.score.weight.copy_(torch.tensor(rows_of(material, "score")))
    sides = ("chosen_ids", "rejected_ids")
    rows = [{side: row["prompt_ids"] + row[side][:-1] for side in sides} for row in rows_of(material, "batch_pairs")]
    config = RewardConfig(**common(args), center_rewards_coefficient=0.01, max_length=None)
    trainer = RewardTrainer(model, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    return {"reward": float(trainer.compute_loss(trainer.model, trainer.data_collator(rows)))}


def of_grpo(args, tokenizer) -> dict:
    """The clipped objective with a KL term; the policy that drew, and the reference, are the other weights."""
    material = Path(args.material)
    rows = rows_of(material, "batch_rollout")
    other = model_of(material / "reference")
    longest = [max(len(row[name]) for row in rows) for name in ("prompt_ids", "chosen_ids")]
    pad = tokenizer.pad_token_id
    prompts = [[pad] * (longest[0] - len(row["prompt_ids"])) + row["prompt_ids"] for row in rows]
    answers = [row["chosen_ids"] + [pad] * (longest[1] - len(row["chosen_ids"])) for row in rows]
    counts = torch.tensor([len(row["chosen_ids"]) for row in rows]).unsqueeze(1)
    prompt_counts = torch.tensor([len(row["prompt_ids"]) for row in rows]).unsqueeze(1)
    inputs = {
        "prompt_ids": torch.tensor(prompts),
        "prompt_mask": (torch.arange(longest[0]) >= longest[0] - prompt_counts).long(),
        "completion_ids": torch.tensor(answers),
        "completion_mask": (torch.arange(longest[1]) < counts).long(),
        "advantages": torch.tensor([row["advantage"] for row in rows]),
        "num_items_in_batch": counts.sum(),
    }  # fmt: skip
    found = {}
    cases = {"grpo": "grpo", "dapo": "dapo", "dr_grpo": "dr_grpo", "grpo_unbiased_kl": "grpo"}
    for name, kind in cases.items():
        config = GRPOConfig(
            **common(args, per_device_train_batch_size=len(rows)), loss_type=kind, beta=0.05, temperature=0.7,
            epsilon=0.2, epsilon_high=0.28, use_bias_correction_kl=name == "grpo_unbiased_kl",
            max_completion_length=64, num_generations=len(rows),
        )  # fmt: skip
        prompt = Dataset.from_list([{"prompt": "a"}])
        trainer = GRPOTrainer(
            model_of(material / "policy"), reward, config, train_dataset=prompt, processing_class=tokenizer
        )
        trainer.model.eval()
        trainer.ref_model.load_state_dict(other.state_dict())
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        old = trainer._get_per_token_logps_and_entropies(trainer.ref_model, ids, mask, longest[1])[0]
        found[name] = float(
            trainer._compute_loss(trainer.model, inputs | {"old_per_token_logps": old, "ref_per_token_logps": old})
        )
    return found


def of_gkd(material: Path, pairs: list[dict]) -> dict:
    """Divergences of the chosen answers' tokens."""
    from trl.experimental.gkd import GKDTrainer

    student, teacher = model_of(material / "policy"), model_of(material / "reference")
    parts: dict[str, list] = {"student": [], "teacher": []}
    for row in pairs:
        ids = torch.tensor([row["prompt_ids"] + row["chosen_ids"]])
        answer = slice(len(row["prompt_ids"]) - 1, ids.shape[1] - 1)
        parts["student"].append(student(ids).logits[0, answer])
        parts["teacher"].append(teacher(ids).logits[0, answer])
    logits = [torch.cat(part).unsqueeze(0) for part in parts.values()]
    labels = torch.zeros(1, logits[0].shape[1], dtype=torch.int64)
    cases = {"gkd_forward": 0.0, "gkd_reverse": 1.0, "gkd_jsd": 0.3}
    return {name: float(GKDTrainer.generalized_jsd_loss(*logits, labels, beta=beta)) for name, beta in cases.items()}


def main() -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", required=True)
    parser.add_argument("--material", required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    print(json.dumps(losses(args) if args.task == "losses" else speed(args.task, args)))


if __name__ == "__main__":
    main()
