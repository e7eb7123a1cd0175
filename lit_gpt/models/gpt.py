"""`GPT`: embeddings, a stack of blocks, a norm and the LM head. Plain torch, nothing hidden.

B batch, T time, C model width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_gpt.errors import UserError
from lit_gpt.models.block import Block
from lit_gpt.models.cache import KVCache
from lit_gpt.models.config import GPTConfig
from lit_gpt.models.head import HeadFn, LMHead
from lit_gpt.models.initialization import fill, initial_value
from lit_gpt.models.masks import build_masks
from lit_gpt.models.norms import build_norm
from lit_gpt.models.positions import rope_rotation


class GPT(nn.Module):
    """A decoder-only transformer language model (Radford et al. 2019), and its descendants by config.

    Args:
        config: The model's shape.

    Example:
        >>> model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, vocab_size=100, block_size=16))
        >>> model(torch.zeros(1, 16, dtype=torch.int64)).shape
        torch.Size([1, 16, 100])
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        """Recompute each block in the backward instead of keeping its activations: less memory, more time."""
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.positions == "learned" else None
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = build_norm(config, config.n_embd)
        self.lm_head = LMHead(config.n_embd, config.vocab_size, bias=False)
        self._tie()
        self.register_load_state_dict_pre_hook(_accept_missing_tied_head)
        self.register_load_state_dict_post_hook(_tie_again)
        if not self.wte.weight.is_meta:
            self.init_weights(torch.initial_seed())

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
        head_fn: HeadFn | None = None,
    ) -> Any:
        """Next-token logits of every position.

        Args:
            input_ids: (B, T) int64.
            position_ids: (B, T) int64 below block_size; None = counted from 0, or from the end of the cache.
            document_ids: (B, T) int64; tokens see only their own document, and -1 marks padding, whose outputs mean
                nothing. None = each row is one document.
            cache: Keys and values of the tokens before; grows by T.
            head_fn: What to make of the last hidden states and the head's weight instead of logits.

        Returns:
            Logits (B, T, V), or what `head_fn` returns.

        Raises:
            UserError: If the context is longer than block_size.
        """
        T, device = input_ids.shape[1], input_ids.device
        start = 0 if cache is None else cache.length
        if start + T > self.config.block_size:
            raise UserError(
                f"{start + T} tokens are more than the model's block_size {self.config.block_size}; "
                "shorten the context or build the model with a larger block_size"
            )
        assert cache is None or document_ids is None, "a cache holds one document a row"
        if position_ids is None:
            position_ids = torch.arange(start, start + T, device=device)  # (T,) broadcasts over B
        x = self.wte(input_ids)  # (B, T, C)
        if self.wpe is not None:
            x = x + self.wpe(position_ids)
        x = self.drop(x)
        # Positions and masks are the same in every layer: once here, not once a block.
        rotation = None if self.wpe is not None else rope_rotation(self.config, position_ids)
        dropout = self.config.dropout if self.training else 0.0
        masks = build_masks(self.config, document_ids, T, None if cache is None else start, device, dropout)
        recompute = self.gradient_checkpointing and cache is None and torch.is_grad_enabled()
        for layer, block in enumerate(self.blocks):
            mask = masks.full if self.config.window(layer) is None else masks.sliding
            if recompute:
                x = checkpoint(block, x, rotation, mask, use_reentrant=False)
            else:
                x = block(x, rotation, mask, cache)
        if cache is not None:
            cache.advance(T)
        return self.lm_head(self.ln_f(x), head_fn)

    def init_weights(self, seed: int) -> None:
        """Fill every parameter from (seed, its name): the same numbers on any device, sharding and process count.

        Call it again after `to_empty` has brought the model from the meta device. A tied matrix is filled once.

        Args:
            seed: Any integer.
        """
        self._tie()
        for name, parameter in self.named_parameters():
            fill(parameter, initial_value(self.config, seed, name, parameter.shape))

    def _tie(self) -> None:
        """One Parameter for embedding and head: moving off the meta device, or loading by assignment, splits them."""
        if self.config.tie_embeddings and self.lm_head.weight is not self.wte.weight:
            self.lm_head.weight = self.wte.weight


def _accept_missing_tied_head(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A file that stores the tied matrix once is complete."""
    head, embedding = f"{prefix}lm_head.weight", f"{prefix}wte.weight"
    assert isinstance(module, GPT)
    if module.config.tie_embeddings and head not in state_dict and embedding in state_dict:
        state_dict[head] = state_dict[embedding]


def _tie_again(module: nn.Module, _: Any) -> None:
    """Loading by assignment makes two parameters of one matrix."""
    assert isinstance(module, GPT)
    module._tie()
