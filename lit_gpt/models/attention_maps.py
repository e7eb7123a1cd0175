"""Attention maps for plots: the attention weights, which the fast kernels do not return.

B batch, T time, L layers, H heads, K key/value heads, D head size.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt.models.attention import SelfAttention, attention_weights
from lit_gpt.models.gpt import GPT
from lit_gpt.models.latent_attention import LatentAttention
from lit_gpt.models.masks import build_masks


@torch.no_grad()
def attention_maps(model: GPT, input_ids: Tensor) -> Tensor:
    """Return the attention weights of every head for a batch of sequences.

    The model runs in eval mode and uncompiled. A sharded model stays sharded, so under FSDP every process must call
    this function. Layers without attention weights (recurrent ones) are skipped.

    Args:
        model: The model, on the device of `input_ids`.
        input_ids: (B, T) int64, each row one document.

    Returns:
        (attention layers, B, H, T, T) float32 on CPU; row i of the last two dimensions sums to 1 over the tokens that
        token i may attend to (minus the share of an attention sink).
    """
    maps: list[Tensor] = []
    T, device = input_ids.shape[1], input_ids.device
    # Build the masks as for a CPU: dense, whatever kernel the device prefers.
    masks = build_masks(model.config, None, T, torch.device("cpu"))

    def record(module: nn.Module, args: tuple[Any, ...], _: Any) -> None:
        assert isinstance(module, (SelfAttention, LatentAttention))
        x, context = args[:2]
        rotation = context.rotation(module.slides) if module.rotates else None
        q, k = (part.transpose(1, 2) for part in module.project(x, rotation)[:2])
        mask = masks.sliding if module.slides else masks.full
        assert mask is None or isinstance(mask, Tensor)
        mask = None if mask is None else mask.to(device)
        sinks = getattr(module, "sinks", None)
        maps.append(attention_weights(q, k, mask, module.scoring, sinks).float().cpu())

    attentions = (module for module in model.modules() if isinstance(module, (SelfAttention, LatentAttention)))
    hooks = [module.register_forward_hook(record) for module in attentions]
    was_training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            model(input_ids)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return torch.stack(maps)
