"""Three small prepared corpora, and a run of a mixture of them for other processes.

`python mixing.py <folder> <devices> <max_steps> [<checkpoint>]` fits a recording module on 70/20/10.
"""

import json
import sys
from pathlib import Path

import torch
from lightning import LightningModule
from recording import stock_trainer

from lit_gpt.atomic import atomic_folder
from lit_gpt.callbacks import MixtureProportions
from lit_gpt.data.bpe import train_bpe
from lit_gpt.data.corpus_spec import CorpusSpec
from lit_gpt.data.mixture import MixtureCorpus
from lit_gpt.data.prepare import prepare_corpus
from lit_gpt.data.records import IterableRecords
from lit_gpt.datamodules import MixtureDataModule

NAMES = ("web", "books", "code")
SIZES = (60, 25, 12)
G = 8


def text(name: str, number: int) -> str:
    return f"{name} {number} " + " ".join(f"{name[0]}{(number * 31 + k * k) % 97}" for k in range(20 + number % 13))


def make_corpora(folder: Path, vocab_size: int = 300) -> dict[str, Path]:
    """Prepares the corpora as folders with `manifest.json` and `tokenizer/`, the shards moved to where one wants them."""
    texts = {name: [text(name, i) for i in range(size)] for name, size in zip(NAMES, SIZES, strict=True)}
    tokenizer = train_bpe([t for name in NAMES for t in texts[name]], vocab_size)
    paths = {}
    for name in NAMES:
        spec = CorpusSpec([IterableRecords(lambda name=name: texts[name], name)], val_fraction=0.15, test_fraction=0.15)
        made = prepare_corpus(spec, tokenizer, folder / "cache", 1)
        paths[name] = folder / "corpora" / name
        paths[name].mkdir(parents=True)
        made.rename(paths[name] / "tokens")
        with atomic_folder(paths[name] / "tokenizer") as unfinished:
            tokenizer.save(unfinished)
    return paths


def mixture(folder: Path, weights=(0.7, 0.2, 0.1), **kwargs) -> MixtureDataModule:
    """The mixture of the corpora below `folder`; weights None: none are given."""
    corpora = [
        MixtureCorpus(str(folder / "corpora" / name), weight=None if weights is None else weights[i])
        for i, name in enumerate(NAMES)
    ]
    settings = {"corpora": corpora, "block_size": 16, "global_batch_size": G, "seed": 5}
    return MixtureDataModule(**(settings | kwargs))


class Recorder(LightningModule):
    """Keeps (corpus, tokens) of every row of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[list[int]]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(
            [
                [corpus, sample, *row]
                for micro in batch
                for corpus, sample, row in zip(
                    micro["corpus_ids"].tolist(), micro["sample_ids"].tolist(), micro["input_ids"].tolist(), strict=True
                )
            ]
        )
        return self.weight * sum(micro["input_ids"].float().mean() for micro in batch)

    def validation_step(self, batch, batch_idx):
        assert isinstance(batch["corpus"], str)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


if __name__ == "__main__":
    root, devices, last_step = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    module, callback = Recorder(), MixtureProportions()
    strategy = "ddp" if devices > 1 else "auto"
    trainer = stock_trainer(
        root, last_step, devices=devices, strategy=strategy, callbacks=[callback], log_every_n_steps=5
    )
    schedule = json.loads((root / "schedule.json").read_text())
    from lit_gpt.data.mixture import MixtureChange

    data = mixture(root, micro_batch_size=2, total_steps=40, schedule=[MixtureChange(**change) for change in schedule])
    trainer.fit(module, data, ckpt_path=sys.argv[4] if len(sys.argv) > 4 else None)
    trainer.save_checkpoint(root / f"step-{last_step}.ckpt")
    record = {"seen": module.seen, "latest": callback.latest}
    (root / f"mixed-{last_step}-{trainer.global_rank}.json").write_text(json.dumps(record))
