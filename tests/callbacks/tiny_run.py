"""A GPT of one block under a LightningModule of the tests' own, and an exactly resumable loader."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader

from lit_gpt.models import GPT, GPTConfig

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=8, block_size=8, vocab_size=11, dropout=0.1)


class TinyLoader:
    """Batches as a pure function of the position, as the project's own loader is."""

    def __init__(self, length=5, batch_size=2):
        self.length, self.batch_size, self.position = length, batch_size, 0

    def __len__(self):
        return self.length

    def batch(self, position):
        generator = torch.Generator().manual_seed(position)
        ids = torch.randint(0, CONFIG.vocab_size, (self.batch_size, CONFIG.block_size + 1), generator=generator)
        return [{"input_ids": ids[:, :-1], "labels": ids[:, 1:]}]

    def __iter__(self):
        while True:
            self.position += 1
            yield self.batch(self.position - 1)
            if self.position % self.length == 0:
                return

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class TinyModule(LightningModule):
    """Counts, logs and checkpoints like the project's modules."""

    def __init__(self, val_losses=None, lr=0.05):
        super().__init__()
        self.config = CONFIG
        self.model = GPT(CONFIG)
        self.model.init_weights(0)
        self.lr = lr
        self.tokens_seen = 0
        self.losses = {}
        self.validated_at = []
        self.val_losses = list(val_losses or [])
        self.spoil_at = None

    def on_train_batch_start(self, batch, batch_idx):
        torch.manual_seed(self.trainer.global_step)

    def training_step(self, batch, batch_idx):
        (batch,) = batch
        logits = self.model(batch["input_ids"])
        loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        if self.trainer.global_step + 1 == self.spoil_at:
            loss = loss * float("nan")
        self.tokens_seen += batch["input_ids"].numel()
        self.losses[self.trainer.global_step] = loss.item()
        return loss

    def validation_step(self, batch, batch_idx):
        (batch,) = batch
        torch.rand(3)  # uses up random numbers
        return F.cross_entropy(self.model(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten())

    def on_validation_epoch_end(self):
        if self.trainer.sanity_checking:
            return
        self.validated_at.append(self.trainer.global_step)
        value = self.val_losses[len(self.validated_at) - 1] if self.val_losses else float(len(self.validated_at))
        self.log("val/loss", value)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
                "interval": "step",
            },
        }

    def train_dataloader(self):
        return TinyLoader()

    def val_dataloader(self):
        return DataLoader([TinyLoader().batch(100 + i) for i in range(2)], batch_size=None)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["lit_gpt"] = {"config": self.config.to_dict(), "tokens_seen": self.tokens_seen}

    def on_load_checkpoint(self, checkpoint):
        self.tokens_seen = checkpoint["lit_gpt"]["tokens_seen"]


class ListLogger(Logger):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.entries = []

    name, version = "list", "0"

    def log_metrics(self, metrics, step=None):
        self.entries.append((step, dict(metrics)))

    def log_hyperparams(self, *_, **__):
        pass

    def of(self, name):
        return {step: metrics[name] for step, metrics in self.entries if name in metrics}
