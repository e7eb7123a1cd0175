"""`GPT`: token embeddings, a stack of transformer blocks, a final norm and the LM head, in plain PyTorch.

B batch, T time, C model width, V vocabulary.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_gpt.errors import UserError
from lit_gpt.models.block import build_block
from lit_gpt.models.cache import DecodeStep, LayerState
from lit_gpt.models.config import GPTConfig
from lit_gpt.models.head import HeadFn, LMHead
from lit_gpt.models.initialization import fill, initial_value
from lit_gpt.models.masks import build_masks
from lit_gpt.models.mixers import Context, SequencePart, TokenMixer, check_divisible_rows
from lit_gpt.models.moe import Router, Routing
from lit_gpt.models.multi_token import MultiTokenBlock, tokens_ahead
from lit_gpt.models.norms import build_norm
from lit_gpt.models.positions import Rotations, build_rotations, context_lengths, sinusoids

MAX_TABLE = 16384
"""RoPE's tables for decoding are precomputed once for models whose block_size is at most this many positions."""


class GPT(nn.Module):
    """A decoder-only transformer (GPT-2, Radford et al. 2019, and later architectures, selected through the config).

    Args:
        config: The model's architecture.

    Example:
        >>> model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, vocab_size=100, block_size=16))
        >>> model(torch.zeros(1, 16, dtype=torch.int64)).shape
        torch.Size([1, 16, 100])
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        """Recompute each block's activations in the backward pass instead of storing them: less memory, more time."""
        self.state_dtype: torch.dtype | None = None
        """Dtype of decoding states; None: that of the weights."""
        self._rope_tables: Rotations | None = None
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.positions == "learned" else None
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(build_block(config, layer) for layer in range(config.n_layer))
        self.ln_f = build_norm(config, config.n_embd)
        self.multi_token: nn.ModuleList | None = None
        if config.multi_token:
            self.multi_token = nn.ModuleList(MultiTokenBlock(config, depth + 1) for depth in range(config.multi_token))
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
        cache: DecodeStep | None = None,
        head_fn: HeadFn | None = None,
        routing: Routing | None = None,
        mtp_head_fns: Sequence[HeadFn] = (),
        sequence: SequencePart | None = None,
        hidden: Tensor | None = None,
    ) -> Any:
        """Return the next-token logits at every position.

        A stage of a pipeline is a GPT without some of its parts (`lit_gpt.parallel.pipeline`): it takes the hidden
        states of the previous stage instead of embedding tokens, and returns its own if it has no head.

        Args:
            input_ids: (B, T) int64; in decoding (1, N), the tokens of several sequences.
            position_ids: (B, T) int64 below block_size; None = count from 0, or from the current length of the cache.
            document_ids: (B, T) int64; a token attends only within its own document. -1 marks padding, whose outputs
                are undefined. None = each row is one document.
            cache: In decoding, the states of the sequences that these tokens continue; None = training or a full
                forward pass without a cache.
            head_fn: Function of the last hidden states and the head's weight that replaces the logits, such as a loss.
                It must apply `logit_softcap` itself; `logit_scale` has already been applied to the hidden states.
            routing: Where mixture-of-experts layers record their routing decisions and losses; None = not recorded.
            mtp_head_fns: Like `head_fn`, one per multi-token-prediction depth (`config.multi_token`); training only.
                If empty, the multi-token-prediction blocks do not run.
            sequence: If rows are divided over processes, the part that `input_ids`, `position_ids` and `document_ids`
                are, and the whole rows; None = whole rows.
            hidden: (B, T, C) hidden states of the previous stage of a pipeline; None = the model starts here.

        Returns:
            Logits (B, T, V), or the result of `head_fn`; with `mtp_head_fns`, also the list of their results. Of a
            stage without a head: hidden states (B, T, C).

        Raises:
            UserError: If the context is longer than block_size, or a layer does not support divided rows.
        """
        T, device = input_ids.shape[1], input_ids.device
        if cache is not None:
            assert document_ids is None, "each row of a cache must hold a single document"
            if position_ids is None:
                position_ids = cache.position_ids
        else:
            if sequence is not None:
                check_divisible_rows([(type(mixer).__name__, mixer) for mixer in self.token_mixers])
            length = T if sequence is None else sequence.num_read
            if self.config.block_size < length:
                raise UserError(
                    f"{length} tokens are more than the model's block_size {self.config.block_size}; "
                    "shorten the context or build the model with a larger block_size"
                )
        if position_ids is None:
            position_ids = torch.arange(T, device=device)  # (T,) broadcasts over B
        x = self.drop(self._embed(input_ids, position_ids)) if hidden is None else hidden
        # Positions and masks are shared by all layers of the same kind: compute them once here, not in every block.
        if cache is not None:
            rotations = self._decoding_rotations(position_ids, cache.context_lengths)
            context = Context(position_ids, rotations=rotations, routing=routing, prepared=cache.prepared)
        else:
            # Of the whole rows, also where this process holds only a part of them.
            positions, documents = position_ids, document_ids
            if sequence is not None:
                positions, documents, T = sequence.position_ids, sequence.document_ids, sequence.num_tokens
            lengths = context_lengths(self.config, positions, documents)
            if sequence is not None and lengths is not None and documents is not None:
                lengths = sequence.own(lengths)
            rotations = build_rotations(self.config, position_ids, lengths)
            dropout = self.config.dropout if self.training else 0.0
            masks = build_masks(self.config, documents, T, device, dropout, positions, sequence)
            context = Context(position_ids, document_ids, rotations, masks, routing, sequence)
        recompute = self.gradient_checkpointing and cache is None and torch.is_grad_enabled()
        for layer, block in enumerate(self.blocks):
            if recompute:
                x = checkpoint(block, x, context, use_reentrant=False)
            else:
                x = block(x, context, None if cache is None else cache.layer(layer))
        if self.lm_head is None:
            return x
        x = self.ln_f(x)
        result = self._head(x, head_fn)
        if not mtp_head_fns:
            return result
        assert cache is None, "multi-token prediction runs only in training"
        assert self.multi_token is not None
        results = []
        for depth, (predictor, mtp_head_fn) in enumerate(zip(self.multi_token, mtp_head_fns, strict=True), start=1):
            ahead = tokens_ahead(input_ids if sequence is None else sequence.input_ids, depth)
            embedding = self._embed(ahead if sequence is None else sequence.own(ahead), position_ids)
            if recompute:
                x = checkpoint(predictor, x, embedding, context, use_reentrant=False)
            else:
                x = predictor(x, embedding, context)
            results.append(self._head(x, mtp_head_fn))
        return result, results

    def new_states(
        self,
        num_rows: int,
        capacity: int,
        margin: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> list[LayerState]:
        """Return an empty decoding state for every layer.

        Args:
            num_rows: Number of sequences in each state.
            capacity: Maximum number of tokens per sequence.
            margin: Maximum number of tokens that may be removed from the end of a sequence.
            dtype: Type of the states; None = that of the weights (under autocast, autocast's).
            device: Device of the states; None = that of the weights.
        """
        weight = self.wte.weight
        device = weight.device if device is None else device
        if dtype is None:
            autocast = torch.is_autocast_enabled(device.type)
            dtype = torch.get_autocast_dtype(device.type) if autocast else self.state_dtype or weight.dtype
        return [mixer.new_state(num_rows, capacity, margin, dtype, device) for mixer in self.token_mixers]

    @property
    def token_mixers(self) -> list[TokenMixer]:
        """The token mixer of each layer."""
        return [block.attn for block in self.blocks]  # type: ignore[misc]

    def _decoding_rotations(self, position_ids: Tensor, lengths: Tensor | None) -> Rotations | None:
        """Return RoPE's tables for a decoding step, taken from a table over all positions that is computed once."""
        scaling = self.config.rope_scaling
        if (
            self.config.positions != "rope"
            or self.config.block_size > MAX_TABLE
            or (scaling is not None and scaling.follows_length)
        ):
            return build_rotations(self.config, position_ids, lengths)
        if self._rope_tables is None or self._rope_tables.full.cos.device != position_ids.device:
            with torch.inference_mode(False), torch.no_grad():
                positions = torch.arange(self.config.block_size, device=position_ids.device)
                self._rope_tables = build_rotations(self.config, positions)
        assert self._rope_tables is not None
        return self._rope_tables.rows(position_ids.flatten())

    def _head(self, x: Tensor, head_fn: HeadFn | None) -> Any:
        """Apply the LM head to normed hidden states (B, T, C).

        `head_fn` computes the loss in here for two reasons: under FSDP2 the head's weight is unsharded only during
        the head's own forward, and a loss that works in chunks never materializes the full (B, T, V) logits.
        """
        if self.config.logit_scale != 1:
            x = x * self.config.logit_scale
        if head_fn is None and self.config.logit_softcap is not None:
            head_fn = partial(softcapped_logits, softcap=self.config.logit_softcap)
        return self.lm_head(x, head_fn)

    def _embed(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Return the scaled token embeddings plus learned or sinusoidal positions: (B, T, C)."""
        x = self.wte(input_ids)
        if self.config.embedding_multiplier != 1:
            # Round the multiplier to the embedding's dtype first, as Gemma's reference code does.
            x = x * torch.tensor(self.config.embedding_multiplier, dtype=x.dtype, device=x.device)
        if self.wpe is not None:
            return x + self.wpe(position_ids)
        if self.config.positions == "sinusoidal":
            return x + sinusoids(position_ids, self.config.n_embd).to(x.dtype)
        return x

    def init_weights(self, seed: int) -> None:
        """Initialize every parameter from (seed, name): identical values on any device, sharding and process count.

        Call it again after `to_empty` has moved the model off the meta device. A tied matrix is initialized once.

        Args:
            seed: Any integer.
        """
        self._tie()
        if next(self.parameters()).is_meta:  # a plan's simulation has shapes alone
            return
        for name, parameter in self.named_parameters():
            value = None
            if ".attn." in name:  # a token mixer may define its own initialization
                owner, _, own_name = name.partition(".attn.")
                value = self.get_submodule(f"{owner}.attn").initial_value(own_name, parameter.shape)  # type: ignore
            fill(parameter, initial_value(self.config, seed, name, parameter.shape) if value is None else value)
        for module in self.modules():
            if isinstance(module, Router) and module.selection_bias is not None:
                module.selection_bias.zero_()

    def _tie(self) -> None:
        """Make embedding and head share one Parameter; leaving the meta device or loading by assignment splits them."""
        # A pipeline's stage that has a tied head has the embedding too; other stages have no head.
        if self.config.tie_embeddings and self.lm_head is not None and self.lm_head.weight is not self.wte.weight:
            self.lm_head.weight = self.wte.weight


def softcapped_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float) -> Tensor:
    """Return soft-capped logits, cap · tanh(z / cap) (Gemma 2, arXiv:2408.00118): (B, T, C) → (B, T, V)."""
    return softcap * torch.tanh(F.linear(hidden, weight, bias) / softcap)


def _accept_missing_tied_head(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Accept a state dict that stores the tied matrix only once."""
    head, embedding = f"{prefix}lm_head.weight", f"{prefix}wte.weight"
    assert isinstance(module, GPT)
    is_tied = module.config.tie_embeddings and module.lm_head is not None
    if is_tied and head not in state_dict and embedding in state_dict:
        state_dict[head] = state_dict[embedding]


def _tie_again(module: nn.Module, _: Any) -> None:
    """Tie the weights again after loading: loading by assignment turns the shared matrix into two parameters."""
    assert isinstance(module, GPT)
    module._tie()
