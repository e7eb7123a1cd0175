"""Training time that a checkpoint costs, written in the background against written while training waits.

    python benchmarks/checkpoint_pause.py --out results.json
    python benchmarks/checkpoint_pause.py --processes 2

A run is cut into windows of some steps. Windows without a save, with a blocking save and with one in the background
take turns, because a machine drifts. What a save costs is the time of its window less the median of the windows without
one; so it contains the copy to host memory, steps that are slower while a thread hashes and writes, and the wait at the
end of a window if the checkpoint is still in flight. On a CPU this thread takes its share of the training's cores; on a
GPU it does not. With one process the plugin is `AtomicCheckpointIO`, with several `ParallelStrategy` (FSDP2).
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

import lit_gpt.trainer
from lit_gpt.modules import PretrainModule
from lit_gpt.plugins import AtomicCheckpointIO, ParallelStrategy

SHAPES = {
    "135m": {"preset": "smollm2-135m", "overrides": {}},
    "tiny": {"preset": "tiny", "overrides": {"n_layer": 1, "n_head": 1, "n_embd": 32}},
}
KINDS = ("none", "blocking", "background")
CONTEXT = 128


class Windows(pl.Callback):
    """Measures windows of steps, each with another kind of save at its start."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        self.found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        self.kind: str | None = None  # the first steps are a warm-up
        self.size = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find what writes, and its writer."""
        is_parallel = isinstance(trainer.strategy, ParallelStrategy)
        self.owner = trainer.strategy if is_parallel else trainer.strategy.checkpoint_io
        self.writer = self.owner._writer

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        """Close a window and open the next one."""
        if trainer.global_step % self.steps:
            return
        self.owner._writer = self.writer
        self.owner.wait()
        if self.kind is not None:
            seconds, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
            self.found[self.kind].append({"seconds": seconds, "cpu_seconds": cpu, "pause": self.pause})
        path = self.folder / f"step-{trainer.global_step:08d}.ckpt"
        for old in self.folder.glob("step-*.ckpt") if trainer.is_global_zero else ():
            self.size = sum(file.stat().st_size for file in old.rglob("*") if file.is_file())
            shutil.rmtree(old)
        self.kind = KINDS[(trainer.global_step // self.steps) % len(KINDS)]
        trainer.strategy.barrier()
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        if self.kind != "none":
            self.owner._writer = self.writer if self.kind == "background" else None
            trainer.save_checkpoint(path)
        self.pause = time.perf_counter() - self.wall


def measure(shape: str, processes: int, windows: int, steps: int, folder: Path) -> dict:
    """Return what was measured on process 0."""
    module = PretrainModule(**SHAPES[shape], block_size=CONTEXT)
    rows = torch.randint(0, module.config.vocab_size, (1, CONTEXT + 1), generator=torch.Generator().manual_seed(0))
    batch = {
        "input_ids": rows[:, :-1].contiguous(),
        "labels": rows[:, 1:].contiguous(),
        "position_ids": torch.arange(CONTEXT)[None],
        "document_ids": torch.zeros(1, CONTEXT, dtype=torch.int64),
        "num_bytes": torch.full((1,), CONTEXT),
    }
    callback = Windows(folder, steps)
    background = AtomicCheckpointIO(async_checkpoint=True)
    trainer = lit_gpt.trainer.Trainer(
        name="run",
        default_root_dir=str(folder),
        max_steps=(1 + len(KINDS) * windows) * steps + 1,
        accelerator="cpu",
        devices=processes,
        strategy="auto" if processes == 1 else ParallelStrategy(async_checkpoint=True),
        plugins=[background] if processes == 1 else None,
        callbacks=[callback],
        default_callbacks=False,
        enable_checkpointing=False,
        logger=False,
        enable_progress_bar=False,
    )
    loader = DataLoader([[batch]] * 100000, batch_size=None)  # a training batch is the list of its micro-batches
    trainer.fit(module, loader)
    found = {
        "shape": shape,
        "processes": processes,
        "parameters": sum(p.numel() for p in module.parameters()) if processes == 1 else None,
        "checkpoint_bytes": callback.size,
        "steps_a_window": steps,
        "windows": callback.found,
    }
    for name in ("seconds", "cpu_seconds"):
        medians = {kind: statistics.median(w[name] for w in callback.found[kind]) for kind in KINDS}
        found[f"{name}_lost_a_save"] = {kind: medians[kind] - medians["none"] for kind in KINDS[1:]}
    found["pause_seconds"] = {kind: statistics.median(w["pause"] for w in callback.found[kind]) for kind in KINDS[1:]}
    found["step_seconds"] = statistics.median(w["seconds"] for w in callback.found["none"]) / steps
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--windows", type=int, default=5, help="windows of each kind")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps of a window")
    parser.add_argument("--folder", help="where to write the checkpoints; the disk matters")
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if options.folder:
        Path(options.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        shared = os.environ.setdefault("CHECKPOINT_PAUSE_FOLDER", folder)  # of all processes
        found = measure(options.shape, options.processes, options.windows, options.steps, Path(shared))
    if int(os.environ.get("LOCAL_RANK", 0)):
        return
    found["machine"] = {"cpu": platform.processor(), "cores": os.cpu_count(), "torch": torch.__version__}
    lost, pause = found["seconds_lost_a_save"], found["pause_seconds"]
    print(f"checkpoint of {found['checkpoint_bytes'] / 1e9:.2f} GB, step of {found['step_seconds']:.2f} s")
    for kind in KINDS[1:]:
        cpu = found["cpu_seconds_lost_a_save"][kind]
        print(f"{kind:10}  training pauses {pause[kind]:6.2f} s, loses {lost[kind]:6.2f} s a save ({cpu:.2f} s of CPU)")
    if options.out:
        Path(options.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
