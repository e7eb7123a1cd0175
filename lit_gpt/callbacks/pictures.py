"""`AttentionPicture` and `ConfusionPicture`: matrices as heat maps in TensorBoard.

L layers, H heads, T tokens.
"""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_gpt.callbacks.quiet_model import (
    data_tokenizer,
    is_stopping,
    quiet_model,
    takes_part,
    unavailable_reason,
    writers,
)
from lit_gpt.checks import check_at_least
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.models import GPT
from lit_gpt.models.attention_maps import attention_maps

COLORS = torch.tensor([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=torch.float32)
"""Five points of the viridis color map (Smith & van der Walt 2015), from 0 to 1."""
GAP = 2
"""Number of pixels between two maps."""


def picture(weights: Tensor, scale: int = 4) -> Tensor:
    """Return a grid of heat maps as an image, with one row per layer and one column per head.

    Args:
        weights: (L, H, T, T) from 0 to 1.
        scale: width and height of each weight in pixels.

    Returns:
        (3, L · (T · scale + gap) + gap, H · (T · scale + gap) + gap) uint8; colors scale with the square root of the
        weight, so that small weights are visible too.
    """
    L, H, T, _ = weights.shape
    x = weights.float().cpu().clamp(0, 1).sqrt() * (len(COLORS) - 1)
    below = x.floor().clamp(max=len(COLORS) - 2).long()
    part = (x - below)[..., None]
    colored = COLORS[below] * (1 - part) + COLORS[below + 1] * part  # (L, H, T, T, 3)
    colored = colored.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    side = T * scale + GAP
    canvas = torch.full((L * side + GAP, H * side + GAP, 3), 255.0)
    for layer in range(L):
        for head in range(H):
            top, left = layer * side + GAP, head * side + GAP
            canvas[top : top + T * scale, left : left + T * scale] = colored[layer, head]
    return canvas.round().to(torch.uint8).permute(2, 0, 1)


class AttentionPicture(Callback):
    """Draws the attention weights of a fixed prompt every `every_n_steps` optimizer steps, and at the end.

    Training is not affected. Under FSDP2 all processes take part; under tensor parallelism nothing is drawn, with a
    warning.

    Args:
        prompt: text of the prompt, which is preceded by the token that starts a document.
        every_n_steps: number of optimizer steps between two images.
        layers: indices of the blocks to draw; None: at most eight, spread over the depth.
        max_tokens: maximum length of the prompt; further tokens are cut off.

    Raises:
        UserError: a number is below 1.
    """

    def __init__(
        self,
        prompt: str = "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
        every_n_steps: int = 1000,
        layers: list[int] | None = None,
        max_tokens: int = 64,
    ) -> None:
        check_at_least("every_n_steps of AttentionPicture", every_n_steps, 1)
        check_at_least("max_tokens of AttentionPicture", max_tokens, 1)
        self.prompt = prompt
        self.every_n_steps = every_n_steps
        self.layers = layers
        self.max_tokens = max_tokens
        self._tokenizer: Tokenizer | None = None
        self._drawn_at = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the tokenizer, or warn why there will be no image.

        Raises:
            UserError: the model has no such layer.
        """
        reason = unavailable_reason(trainer, pl_module)
        if reason is not None:
            rank_zero_warn(f"AttentionPicture draws nothing: {reason}")
            self._tokenizer = None
            return
        model = pl_module.model
        assert isinstance(model, GPT)
        count = model.config.n_layer
        wrong = [layer for layer in self.layers or [] if not 0 <= layer < count]
        if wrong:
            raise UserError(f"AttentionPicture cannot draw layer {wrong[0]}; the model's layers are 0 to {count - 1}")
        self._tokenizer = data_tokenizer(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw every `every_n_steps` optimizer steps."""
        if trainer.global_step % self.every_n_steps == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the final image, unless a signal ends the run."""
        if not is_stopping(trainer):
            self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if self._tokenizer is None or self._drawn_at == step or not takes_part(trainer):
            return
        self._drawn_at = step
        with quiet_model(trainer, pl_module) as model:
            ids = [self._tokenizer.separator_id, *self._tokenizer.encode(self.prompt).tolist()]
            ids = ids[: min(self.max_tokens, model.config.block_size)]
            maps = attention_maps(model, torch.tensor([ids], device=pl_module.device))[:, 0]  # (L, H, T, T)
        weights = maps[self.layers or sorted({round(i * (len(maps) - 1) / 7) for i in range(8)})]
        if trainer.is_global_zero:
            for writer in writers(trainer, "add_image"):
                writer.add_image("attention/rows: layers, columns: heads", picture(weights), step)


class ConfusionPicture(Callback):
    """Draws the module's `confusion` matrix (rows: true, columns: predicted classes) in TensorBoard after validation.

    A table with names and counts is also written as text.

    Args:
        cell: width and height of each class in pixels.
    """

    def __init__(self, cell: int = 40) -> None:
        self.cell = cell

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the matrix, on the first process."""
        confusion = getattr(pl_module, "confusion", None)
        if confusion is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        names = [str(name) for name in getattr(pl_module, "classes", range(len(confusion)))]
        shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
        for writer in writers(trainer, "add_image"):
            writer.add_image("confusion", picture(shares[None, None], self.cell), trainer.global_step)
        header = f"| true \\ predicted | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}\n"
        lines = "".join(
            f"| {name} | {' | '.join(map(str, row))} |\n" for name, row in zip(names, confusion.tolist(), strict=True)
        )
        for writer in writers(trainer, "add_text"):
            writer.add_text("confusion", header + lines, trainer.global_step)
