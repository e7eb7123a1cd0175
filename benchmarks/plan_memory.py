"""How far the memory of real CPU runs is from what `plan` forecasts.

    python benchmarks/plan_memory.py ["bf16-mixed" ...]

Each case is forecast by simulation, then trained for ten steps through Lightning's Trainer in a process of its own,
twice. Measured is the largest resident memory, less what the process took after a tiny run of the same kind (imports,
code and threads); of two processes, that of the first. Printed are the tensors alone, the forecast, its upper bound,
and both measurements with their ratio to the forecast.
"""

import ctypes
import gc
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from lit_gpt import Trainer
from lit_gpt.adapters import AdapterConfig
from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.data.batches import RowBatchBuilder
from lit_gpt.datamodules.preference import PairCollator
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.modules import DPOModule, GPTModule, PretrainModule
from lit_gpt.parallel import Layout
from lit_gpt.planning.simulation import simulate_step
from lit_gpt.plans import _LongestRows
from lit_gpt.plugins import ParallelStrategy
from lit_gpt.quiet import silence_libraries

FOLDER = tempfile.TemporaryDirectory()
"""For models that a case starts from; removed at the end."""

MOE = {"num_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 256}
MLA = {"kv_lora_rank": 64, "q_lora_rank": None, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64}
WIDE = {"n_embd": 512, "n_head": 8, "intermediate_size": 1408}
NARROW = {"n_embd": 384, "n_head": 6, "intermediate_size": 1024}
STEPS = 10
CASES: dict[str, dict[str, Any]] = {
    "dense, 6 layers": {"shape": {"n_layer": 6}},
    "dense, 12 layers of 384": {"shape": {"n_layer": 12, **NARROW}, "T": 128},
    "dense, vocabulary of 32,000": {"shape": {"n_layer": 2, **WIDE}, "V": 32000, "B": 2},
    "packed documents": {"shape": {"n_layer": 6}, "documents": True},
    "activation checkpointing": {"shape": {"n_layer": 6}, "recompute": True},
    "bf16-mixed": {"shape": {"n_layer": 6}, "precision": "bf16-mixed"},
    "three micro-batches": {"shape": {"n_layer": 4}, "micro_batches": 3},
    "mixture of experts": {"shape": {"n_layer": 4, "moe": MOE}},
    "latent attention": {"shape": {"n_layer": 4, "mla": MLA, "qk_norm": None}},
    "LoRA on a frozen base": {"shape": {"n_layer": 6}, "lora": True},
    "DPO with its reference": {"shape": {"n_layer": 4}, "dpo": True, "B": 4},
    "FSDP2 on two processes": {"shape": {"n_layer": 6}, "axes": {"data": 2}},
    "FSDP2 on two, bf16-mixed": {"shape": {"n_layer": 6}, "axes": {"data": 2}, "precision": "bf16-mixed"},
    "tensor parallel on two": {"shape": {"n_layer": 6}, "axes": {"tensor": 2}},
    # Added after the model of the heap was made, and not used for it.
    "bf16-true": {"shape": {"n_layer": 8, **NARROW}, "precision": "bf16-true", "T": 128},
    "two layers of 768": {"shape": {"n_layer": 2, "n_embd": 768, "n_head": 12, "intermediate_size": 2048}, "B": 4},
    "long rows": {"shape": {"n_layer": 4}, "T": 1024, "B": 2},
    "the block of GPT-2": {"shape": {"n_layer": 4, **WIDE, "intermediate_size": 2048}, "preset": "gpt2", "B": 4},
    "GPT-2, checkpointed": {"shape": {"n_layer": 6, **WIDE}, "preset": "gpt2", "B": 4, "recompute": True},
    "mixture with latent attention": {"shape": {"n_layer": 3, "moe": MOE, "mla": MLA, "qk_norm": None}, "B": 6},
    "LoRA, bf16-mixed": {"shape": {"n_layer": 4, **NARROW}, "lora": True, "precision": "bf16-mixed", "B": 4},
    "16 small layers": {"shape": {"n_layer": 16, "n_embd": 192, "n_head": 3, "intermediate_size": 512}, "B": 4},
}


def base(case: dict[str, Any], shape: dict[str, Any]) -> str:
    """Return a bundle with random weights, for what starts from a model."""
    sizes = {"vocab_size": case.get("V", 4096), "block_size": case.get("T", 256)}
    config = GPTConfig.from_preset("tiny", **sizes, **shape)
    return str(save_bundle(Path(tempfile.mkdtemp(dir=FOLDER.name)) / "base", config, GPT(config).state_dict()))


def module(case: dict[str, Any], shape: dict[str, Any]) -> GPTModule:
    if case.get("dpo"):
        return DPOModule(init_from=base(case, shape))
    if case.get("lora"):
        return PretrainModule(init_from=base(case, shape), adapter=AdapterConfig(rank=8))
    return PretrainModule(
        preset=case.get("preset", "tiny"),
        vocab_size=case.get("V", 4096),
        block_size=case.get("T", 256),
        overrides=shape,
        activation_checkpointing=case.get("recompute", False),
    )


def step(case: dict[str, Any], rows: int) -> list[dict[str, Any]]:
    T, V = case.get("T", 256), case.get("V", 4096)
    if case.get("dpo"):
        collate = PairCollator(RowBatchBuilder(0, np.ones(V, np.int64)))
        return [dict(collate(_LongestRows(T, V), [np.array([row]) for row in range(rows)], np.arange(rows)))]
    batches = []
    for _ in range(case.get("micro_batches", 1)):
        ids = torch.randint(0, V, (rows, T))
        batch = {"input_ids": ids, "labels": ids.clone(), "position_ids": torch.arange(T).expand(rows, T).clone()}
        if case.get("documents"):
            batch["document_ids"] = (torch.arange(T) // (T // 3 + 1)).expand(rows, T).clone()
        batches.append(batch)
    return batches


def fit(case: dict[str, Any], shape: dict[str, Any], rows: int) -> None:
    data = [step(case, rows) for _ in range(STEPS)]
    axes = case.get("axes")
    trainer = Trainer(
        max_steps=STEPS,
        devices=1 if axes is None else 2,
        strategy="auto" if axes is None else ParallelStrategy(**axes),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_callbacks=False,
        precision=case.get("precision", "32-true"),
        accelerator="cpu",
    )
    trainer.fit(module(case, shape), torch.utils.data.DataLoader(data, batch_size=None, collate_fn=lambda x: x))


def run(case: dict[str, Any]) -> None:
    """Train in this process and print the peak; the child of `measured`."""
    small = {**case["shape"], "n_layer": 1, "n_embd": 64, "n_head": 4, "intermediate_size": 128}
    fit(case, small, 2)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    fit(case, case["shape"], case.get("B", 8))
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    if os.environ.get("RANK", "0") == "0":
        print(peak - before)


def measured(name: str) -> int:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if "axes" in CASES[name] else []
    command = [sys.executable, *launcher, __file__, "--case", name]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(result.stdout.split()[-1])


def main(names: list[str]) -> None:
    print(f"{'case':30}  tensors  forecast   at most  measured, twice (MB)")
    for name, case in CASES.items():
        if names and name not in names:
            continue
        simulated = simulate_step(
            module(case, case["shape"]),
            step(case, case.get("B", 8)),
            case.get("precision", "32-true"),
            Layout(**case.get("axes", {})),
        )
        sizes = (simulated.peak_bytes, simulated.process_bytes, simulated.upper_bytes)
        line = f"{name:30} {' '.join(f'{size / 1e6:9.1f}' for size in sizes)}"
        for peak in (measured(name), measured(name)):
            line += f" {peak / 1e6:9.1f} ({peak / simulated.process_bytes:.2f})"
        print(line, flush=True)


if __name__ == "__main__":
    silence_libraries()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if sys.argv[1:2] == ["--case"]:
        run(CASES[sys.argv[2]])
    else:
        main(sys.argv[1:])
