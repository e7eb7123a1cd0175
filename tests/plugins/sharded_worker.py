"""One process of a run of several; `test_strategy.py` starts it as `python sharded_worker.py <scenario> <folder>`.

A scenario is a function of this file's name; it runs on all processes and writes its findings as JSON on the first.
"""

import errno
import hashlib
import json
import math
import os
import signal
import sys
import threading
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from lit_gpt.callbacks import ExponentialMovingAverage, HangGuard, ReplicaGuard, RunCheckpoint, SampleText
from lit_gpt.checkpoints.resolve import find_last_complete
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.modules import PretrainModule
from lit_gpt.plugins import AtomicCheckpointIO, ParallelStrategy, strategy
from lit_gpt.plugins.background import BackgroundWriter

RANK = int(os.environ.get("LOCAL_RANK", "0"))
CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=8, block_size=8, vocab_size=11)


class Sharded(LightningModule):
    def __init__(self, config=CONFIG):
        super().__init__()
        self.config, self.model, self.losses, self.val = config, None, {}, []

    def configure_model(self):
        if self.model is None:
            with torch.device("meta"):
                self.model = GPT(self.config)
            if self.device_mesh is not None:
                self.trainer.strategy.parallelize(self.model)
            self.model.to_empty(device="cpu")
            self.model.init_weights(0)

    def training_step(self, ids, batch_idx):
        loss = F.cross_entropy(self.model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        self.losses[self.trainer.global_step] = loss.item()
        return loss

    def validation_step(self, ids, batch_idx):
        loss = F.cross_entropy(self.model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        self.val.append(loss.item())
        self.log("val/loss", loss)

    def configure_optimizers(self):
        by_size = [[p for p in self.parameters() if p.ndim < 2], [p for p in self.parameters() if p.ndim >= 2]]
        return torch.optim.AdamW(
            [{"params": group, "weight_decay": 0.1 * i} for i, group in enumerate(by_size)], lr=0.05
        )

    def train_dataloader(self):
        ids = torch.randint(0, 11, (1, 9), generator=torch.Generator().manual_seed(1))
        return DataLoader(ids.repeat(8, 1), batch_size=1)  # the same at each step: no loader to resume

    def val_dataloader(self):
        return DataLoader(torch.arange(18).view(2, 9) % 11, batch_size=1)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["lit_gpt"] = {"config": self.config.to_dict()}


def trainer(run, max_steps, shards=True, sizes=(2, 1), plain=False, background=False, **options):
    if plain:
        where = {"devices": 1}
    else:
        axes = dict(zip(("data", "tensor", "replicate"), sizes, strict=False))
        chosen = ParallelStrategy(save_distributed_checkpoint=shards, async_checkpoint=background, **axes)
        where = {"devices": math.prod(sizes), "strategy": chosen}
    return Trainer(
        default_root_dir=run,
        accelerator="cpu",
        max_steps=max_steps,
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **({"limit_val_batches": 0} | where | options),
    )


def callbacks(**options):
    return [ExponentialMovingAverage(decay=0.5), RunCheckpoint(**({"every_n_steps": 2, "keep_last": 9} | options))]


def digest(tree):
    """A number for every bit of the whole weights, averages and moments, by name."""
    found = {}

    def walk(value, place):
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{place}.{key}")
        elif isinstance(value, torch.Tensor):
            whole = value.full_tensor() if hasattr(value, "full_tensor") else value
            found[place] = hashlib.sha256(whole.detach().contiguous().numpy().tobytes()).hexdigest()

    walk(tree, "")
    return found


def final(module, run):
    moments = {name: run.optimizers[0].state[p] for name, p in module.named_parameters()}
    average = next(c for c in run.callbacks if isinstance(c, ExponentialMovingAverage))._averages
    return digest({"weights": module.state_dict(), "moments": moments, "average": average})


def resumes(folder, sizes=(2, 1), config=CONFIG):
    """Shards, whole files, and every way from one to the other, all in the same two processes."""
    found = {}
    module, run = (
        Sharded(config),
        trainer(folder / "background", 4, True, sizes, background=True, callbacks=callbacks()),
    )
    run.fit(module)
    found["background"] = {"losses": module.losses, "final": final(module, run)}
    for kind, shards in (("shards", True), ("whole", False)):
        module, run = Sharded(config), trainer(folder / kind, 4, shards, sizes, callbacks=callbacks())
        run.fit(module)
        found[kind] = {"losses": module.losses, "final": final(module, run)}
    for source in ("shards", "whole"):
        path = folder / source / "checkpoints" / "step-00000002.ckpt"
        for kind, shards in (("shards", True), ("whole", False)):
            run_dir = folder / f"{source}-to-{kind}"
            module, run = Sharded(config), trainer(run_dir, 4, shards, sizes, callbacks=callbacks())
            run.fit(module, ckpt_path=str(path))
            found[f"{source}-to-{kind}"] = {"losses": module.losses, "final": final(module, run)}
    return found


def tensor(folder):
    return resumes(folder, sizes=(1, 2))


def replicas(folder):
    return resumes(folder, sizes=(1, 1, 2))


def evaluates(folder):
    """Validation, and testing from a checkpoint without optimizers, see the average; samples need all processes."""
    import tokenizers

    from lit_gpt.data.tokenizers import Tokenizer

    class Data(LightningDataModule):
        tokenizer_path = folder / f"tokenizer-{RANK}"
        train_dataloader, val_dataloader = Sharded.train_dataloader, Sharded.val_dataloader

    letters = ["<|endoftext|>", *"abcdefghij"]
    words = tokenizers.models.WordLevel({letter: i for i, letter in enumerate(letters)}, "a")
    backend = tokenizers.Tokenizer(words)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    Tokenizer(backend).save(Data.tokenizer_path)
    module = Sharded()
    sample = SampleText(["abc"], every_n_steps=1, max_new_tokens=4)
    validating = {"limit_val_batches": 2, "val_check_interval": 2, "check_val_every_n_epoch": None}
    trainer(folder / "run", 4, callbacks=[sample, *callbacks()], **validating).fit(module, datamodule=Data())
    tested = Sharded()
    test = trainer(folder / "test", 4, callbacks=[ExponentialMovingAverage(decay=0.5)], limit_val_batches=2)
    test.validate(tested, ckpt_path=str(folder / "run" / "checkpoints" / "step-00000004.ckpt"), verbose=False)
    return {"in_fit": module.val[-2:], "from_checkpoint": tested.val, "sample": sample._sampled}


def other_model(folder):
    module, run = Sharded(), trainer(folder / "run", 2, callbacks=callbacks())
    run.fit(module)
    path = str(folder / "run" / "checkpoints" / "step-00000002.ckpt")
    errors = []
    for config in (GPTConfig(**{**vars(CONFIG), "n_embd": 16}), GPTConfig(**{**vars(CONFIG), "n_layer": 1})):
        try:
            trainer(folder / "other", 4).fit(Sharded(config), ckpt_path=path)
        except UserError as error:
            errors.append(str(error))
    return errors


def damaged(folder):
    """Both processes refuse a damaged shard with the same sentence."""
    trainer(folder / "run", 2, callbacks=callbacks()).fit(Sharded())
    path = folder / "run" / "checkpoints" / "step-00000002.ckpt"
    torch.distributed.barrier()
    if RANK == 0:
        shard = path / "shards" / "__1_0.distcp"
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    torch.distributed.barrier()
    try:
        trainer(folder / "run", 4).fit(Sharded(), ckpt_path=str(path))
    except UserError as error:
        return str(error)


def full_disk(folder):
    """The disk is full for the second process alone, in the middle of its shard; all leave, nothing is left."""
    module, run = Sharded(), trainer(folder / "run", 4, callbacks=callbacks())
    write = torch.distributed.checkpoint.FileSystemWriter.write_data

    def full(self, *arguments):
        if RANK == 1 and "step-00000004" in str(self.path):
            Path(self.path, "__1_0.distcp").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *arguments)

    torch.distributed.checkpoint.FileSystemWriter.write_data = full
    try:
        run.fit(module)
    except UserError as error:
        (folder / f"error-{RANK}").write_text(str(error))
    path, bad = find_last_complete(folder / "run")
    return {"last": path.name, "bad": bad, "files": sorted(p.name for p in path.parent.iterdir())}


def in_background(folder):
    """The second process is slow with step 2, until step 3 is done; then the disk is full for step 4."""
    release, seen = threading.Event(), []
    write, path = torch.distributed.checkpoint.FileSystemWriter.write_data, folder / "run" / "checkpoints"

    def slow(self, *arguments):
        if RANK == 1 and "step-00000002" in str(self.path):
            assert release.wait(60)
        if RANK == 1 and "step-00000004" in str(self.path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *arguments)

    class Looks(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:
                seen.extend(p.name for p in path.iterdir() if not p.name.startswith(".tmp-"))
                release.set()

    torch.distributed.checkpoint.FileSystemWriter.write_data = slow
    run = trainer(folder / "run", 8, background=True, callbacks=[*callbacks(), Looks()])
    try:
        run.fit(Sharded())
    except UserError as error:
        (folder / f"error-{RANK}").write_text(f"{error} {run.global_step}")
    return {"seen": seen, "files": sorted(p.name for p in path.iterdir()), "step": run.global_step}


def killed(folder, place, background=""):
    """SIGKILL on both processes in the middle of the second save."""

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def at_second(function):
        calls = []

        def wrapper(*arguments, **keywords):
            calls.append(1)
            return die() if len(calls) == 2 else function(*arguments, **keywords)

        return wrapper

    writer = torch.distributed.checkpoint.FileSystemWriter
    if place == "shard":
        writer.write_data = at_second(writer.write_data)
    elif place == "metadata":
        writer.finish = at_second(writer.finish)
    else:
        owner = BackgroundWriter if place == "copy" else strategy
        setattr(owner, place, at_second(getattr(owner, place)))
    trainer(folder / "run", 4, background=bool(background), callbacks=callbacks()).fit(Sharded())


def goes_on(folder):
    """Resumes what `killed` left, and compares with a run that was never killed."""
    path, bad = find_last_complete(folder / "run")
    module, run = Sharded(), trainer(folder / "run", 4, callbacks=callbacks())
    run.fit(module, ckpt_path=str(path))
    whole, other = Sharded(), trainer(folder / "whole", 4, callbacks=callbacks())
    other.fit(whole)
    files = sorted(p.name for p in path.parent.iterdir())
    return {"from": path.name, "bad": bad, "files": files, "exact": final(module, run) == final(whole, other)}


def flips(folder, count):
    """One bit of the last process's weights flips at step 3; the weights are compared every 2 steps."""
    found = {}

    class Flip(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step == 3 and int(count) - 1 == RANK:
                bits = local(next(module.parameters())).data.view(torch.int32)
                bits[0, 0] ^= 1 << 22  # the next update would round a lower bit away

    for name, chosen in {"ddp": DDPStrategy(), "hsdp": ParallelStrategy(replicate=int(count))}.items():
        run = Trainer(
            accelerator="cpu", devices=int(count), strategy=chosen, max_steps=8, logger=False,
            callbacks=[Flip(), ReplicaGuard(every_n_steps=2)], enable_checkpointing=False, limit_val_batches=0,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, use_distributed_sampler=False,
        )  # fmt: skip
        try:
            run.fit(Sharded())
        except UserError as error:
            found[name] = {"step": run.global_step, "error": str(error)}
    return found


def hangs(folder):
    """The second process stands still in the third step."""

    class Hangs(Sharded):
        def training_step(self, ids, batch_idx):
            if RANK == 1 and self.trainer.global_step == 2:
                threading.Event().wait()
            return super().training_step(ids, batch_idx)

    trainer(folder / "run", 4, callbacks=[HangGuard(minutes=0.2)]).fit(Hangs())


def local(parameter):
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


class Corpus(LightningDataModule):
    """Optimizer steps of four micro-batches."""

    def train_dataloader(self):
        ids = torch.randint(0, 11, (4, 3, 4, 1, 9), generator=torch.Generator().manual_seed(RANK))
        steps = [[{"input_ids": m[:, :-1], "labels": m[:, 1:]} for m in step[RANK]] for step in ids.transpose(0, 1)]
        return DataLoader(steps, batch_size=None)


class CountCollectives(TorchDispatchMode):
    """What torch's CommDebugMode counts, without its tracking of modules, which backward passes in a step upset."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class Collectives(Callback):
    """Counts the collectives of each optimizer step."""

    def __init__(self, hook):
        self.counts, self.hook = [], hook

    def on_train_start(self, trainer, _):
        if isinstance(trainer.strategy, DDPStrategy):  # it reduces gradients in C++, where no mode sees it
            trainer.strategy.model.register_comm_hook(None, self.hook)

    def on_train_batch_start(self, *_):
        self.mode = CountCollectives()
        self.mode.__enter__()

    def on_train_batch_end(self, *_):
        self.mode.__exit__(None, None, None)
        self.counts.append(dict(self.mode.counts))


def collectives(folder, count):
    """Counts of one step of four micro-batches, and the weights after two steps, on each strategy."""
    found = {}
    buckets = []

    def hook(_, bucket):
        buckets.append(1)
        return default_hooks.allreduce_hook(None, bucket)

    strategies = {
        "once": ParallelStrategy(),
        "each": ParallelStrategy(sync_micro_batches=True),
        "keep": ParallelStrategy(reshard_after_forward=False),
        "bfloat16": ParallelStrategy(all_gather_dtype="bfloat16"),
        "hsdp": ParallelStrategy(replicate=2),
        "hsdp each": ParallelStrategy(replicate=2, sync_micro_batches=True),
        "ddp": DDPStrategy(),
    }
    for name, chosen in strategies.items():
        counter = Collectives(hook)
        module = PretrainModule(
            overrides={"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 8, "vocab_size": 11},
            optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
        )
        run = Trainer(
            accelerator="cpu", devices=int(count), strategy=chosen, max_steps=2, callbacks=[counter], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
            use_distributed_sampler=False, precision="bf16-mixed" if name == "bfloat16" else None,
            plugins=[AtomicCheckpointIO()],
        )  # fmt: skip
        run.fit(module, datamodule=Corpus())
        weights = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in module.model.parameters()]
        flat = torch.cat([w.detach().flatten() for w in weights]).tolist()
        found[name] = {"counts": counter.counts[-1], "weights": flat, "groups": len(module.model.blocks) + 1}
    found["ddp"]["buckets"] = len(buckets) / 2
    return found


if __name__ == "__main__":
    scenario, folder, *arguments = sys.argv[1:]
    result = globals()[scenario](Path(folder), *arguments)
    if RANK == 0:
        Path(folder, "found.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()  # else gloo's threads may abort the process at its end
