"""A forward for decoding in which everything that does not change is looked up beforehand.

One token through a small model is a few hundred operations of some microseconds each; finding modules, parameters and
branches again in every layer of every step takes as long as computing. `FlatModel` is `GPT.forward` with a
`StepCache`, written straight down for the commonest architecture (pre-norm blocks of attention and MLP, plain
weights: GPT-2, Llama, Qwen, Mistral and our own ladder). It holds the model's own tensors, no copies. Every other
model goes through its modules, and tests hold the two together.

N tokens of the step, C model width, H heads, K key/value heads, D head size.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.models.attention import SelfAttention
from lit_gpt.models.block import Block
from lit_gpt.models.gpt import GPT
from lit_gpt.models.head import HeadFn
from lit_gpt.models.mlp import MLP
from lit_gpt.models.norms import RMSNorm
from lit_gpt.models.positions import Rotation, Rotations, build_rotations
from lit_gpt.models.step_cache import StepCache

MAX_TABLE = 16384
"""Positions: RoPE's tables are kept for a context of at most so many."""
Step = Callable[[Tensor], Tensor]


class FlatBlock(NamedTuple):
    """One block's functions."""

    norm1: Step
    qkv: Step
    norm_q: Step | None
    norm_k: Step | None
    attend: Callable[[Sequence[Tensor], Tensor, Tensor, Tensor | None], Tensor]
    out: Step
    norm2: Step
    up: Step
    activation: Callable[..., Tensor]
    widths: list[int] | None
    """Of gate and up in what `up` returns; None = no gate."""
    down: Step
    rotates: bool
    slides: bool


class FlatModel:
    """`GPT.forward` for decoding; see `of` for the models it serves.

    Args:
        model: Prepared by `prepare_for_decoding`.
    """

    def __init__(self, model: GPT) -> None:
        self.model, self.config = model, model.config
        self.heads = [self.config.n_head + self.config.num_kv_heads, self.config.num_kv_heads]
        self.blocks = [_flat_block(model, layer) for layer in range(self.config.n_layer)]
        self.norm = _norm(model.ln_f)
        self._tables: Rotations | None = None
        scaling = self.config.rope_scaling
        if self.config.block_size <= MAX_TABLE and (scaling is None or scaling.kind not in ("dynamic", "longrope")):
            positions = torch.arange(self.config.block_size, device=model.wte.weight.device)
            self._tables = build_rotations(self.config, positions)
        self._seen = self._identity()

    @classmethod
    def of(cls, model: GPT) -> "FlatModel | None":
        """The flat form of a model, or None where it has parts that this file does not know."""
        config = model.config
        plain = config.residual_scale == 1 and config.qk_norm in (None, "head") and not model.training
        return cls(model) if plain and all(map(_is_known, model.blocks)) else None

    def is_current(self) -> bool:
        """Whether the model still has the tensors that were looked up (after a move or a load it has others)."""
        return self._identity() == self._seen

    def _identity(self) -> tuple[Any, ...]:
        last: Any = self.model.blocks[-1]
        linears = last.attn.q_proj, last.attn.o_proj, last.mlp.down_proj
        return *map(type, linears), *(linear.weight.data_ptr() for linear in linears), self.model.training

    def __call__(self, input_ids: Tensor, position_ids: Tensor, cache: StepCache, head_fn: HeadFn) -> Any:
        """As `GPT.forward` with these arguments."""
        x = self.model._embed(input_ids, position_ids)  # (1, N, C)
        rotations = self._rotations(position_ids, cache.context)
        N, D = x.shape[1], self.config.head_dim
        for layer, block in enumerate(self.blocks):
            qk, v = block.qkv(block.norm1(x)).view(1, N, -1, D).split_with_sizes(self.heads, dim=2)
            if block.norm_q is not None and block.norm_k is not None:
                q, k = qk.split((self.config.n_head, self.config.num_kv_heads), dim=2)
                qk = torch.cat((block.norm_q(q), block.norm_k(k)), dim=2)
            if rotations is not None and block.rotates:
                qk = _rotated(qk, rotations.sliding if block.slides else rotations.full, self.config.n_head)
            q, k = qk[:, :, : self.config.n_head], qk[:, :, self.config.n_head :]
            y = cache.attend(layer, (q,), k, v, block.attend)
            x = x + block.out(y.flatten(2))
            hidden = block.up(block.norm2(x))
            parts = (hidden,) if block.widths is None else hidden.split_with_sizes(block.widths, dim=-1)
            x = x + block.down(block.activation(*parts))
        return self.model._head(self.norm(x), head_fn)

    def _rotations(self, position_ids: Tensor, context: Tensor | None) -> Rotations | None:
        """Rows of the tables, where there are tables."""
        if self._tables is None:
            return build_rotations(self.config, position_ids, context)
        full, sliding = self._tables
        chosen = _rows(full, position_ids[0])
        return Rotations(chosen, chosen if sliding is full else _rows(sliding, position_ids[0]))


def _rows(rotation: Rotation, positions: Tensor) -> Rotation:
    cos, signed_sin, query_scale = rotation
    scale = None if query_scale is None else query_scale.index_select(1, positions)
    return Rotation(cos.index_select(1, positions), signed_sin.index_select(1, positions), scale)


def _is_known(block: nn.Module) -> bool:
    if type(block) is not Block or type(block.attn) is not SelfAttention or type(block.mlp) is not MLP:
        return False
    attn, mlp = block.attn, block.mlp
    linears = [attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj, mlp.up_proj, mlp.down_proj]
    linears += [] if mlp.gate_proj is None else [mlp.gate_proj]
    fused = attn.fused is not None and (mlp.gate_proj is None or mlp.fused is not None)
    return fused and all(type(linear) is nn.Linear and type(linear.weight.data) is Tensor for linear in linears)


def _flat_block(model: GPT, layer: int) -> FlatBlock:
    block: Any = model.blocks[layer]
    attn, mlp = block.attn, block.mlp
    gated = mlp.gate_proj is not None
    up = mlp.fused if gated else mlp.up_proj
    return FlatBlock(
        norm1=_norm(block.ln1),
        qkv=partial(F.linear, weight=attn.fused.weight, bias=attn.fused.bias),
        norm_q=None if attn.q_norm is None else _norm(attn.q_norm),
        norm_k=None if attn.k_norm is None else _norm(attn.k_norm),
        attend=attn._attend_step,
        out=partial(F.linear, weight=attn.o_proj.weight, bias=attn.o_proj.bias),
        norm2=_norm(block.ln2),
        up=partial(F.linear, weight=up.weight, bias=up.bias),
        activation=mlp.activation,
        widths=mlp.fused.sizes if gated else None,
        down=partial(F.linear, weight=mlp.down_proj.weight, bias=mlp.down_proj.bias),
        rotates=model.config.rotates(layer),
        slides=model.config.slides(layer),
    )


def _norm(module: nn.Module) -> Step:
    """The norm as a function: RMSNorm on a CPU has no kernel of its own, and its parts by hand are half of its time."""
    if type(module) is nn.LayerNorm:
        return partial(
            F.layer_norm,
            normalized_shape=module.normalized_shape,
            weight=module.weight,
            bias=module.bias,
            eps=module.eps,
        )
    if type(module) is RMSNorm and module.weight.device.type == "cpu" and module.weight.dtype == torch.float32:
        width = module.normalized_shape[0]
        floor = torch.tensor((width * (module.eps or 0.0)) ** 0.5)
        return partial(_rms_norm, weight=module.weight, root=width**-0.5, floor=floor)
    return module


def _rms_norm(x: Tensor, weight: Tensor, root: float, floor: Tensor) -> Tensor:
    """RMSNorm, x w / √(mean x² + ε), with √(Σ x² + C ε) as the hypotenuse of ‖x‖ and √(C ε)."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (x * weight).div_(torch.hypot(size, floor).mul_(root))


def _rotated(qk: Tensor, rotation: Rotation, num_queries: int) -> Tensor:
    """Queries and keys (1, N, H + K, D) in one go, in their own dtype; as `apply_rope`."""
    cos, signed_sin, query_scale = rotation
    size = cos.shape[-1]
    front = qk if qk.shape[-1] == size else qk[..., :size]
    rotated = torch.addcmul(front * cos, front.roll(size // 2, dims=-1), signed_sin).to(qk.dtype)
    if qk.shape[-1] != size:
        rotated = torch.cat((rotated, qk[..., size:]), dim=-1)
    if query_scale is not None:
        rotated[:, :, :num_queries] *= query_scale
    return rotated
