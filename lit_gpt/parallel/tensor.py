"""Tensor parallelism: heads, widths and vocabulary split over processes, activations split along the sequence.

As in Megatron-LM (arXiv:1909.08053), q, k, v, gate and up are split by columns, o and down by rows. Between these
regions, each process holds a part of the sequence (sequence parallelism, arXiv:2205.05198), so that norms, residual
stream and recomputed activations take 1/n of the memory and of the time:

    embedding → [a part of the tokens: norm] → gather → [all tokens, some heads: attention] → scatter → [norm] → gather
    → [all tokens, some of the width: MLP] → scatter → ... → [norm] → gather → [some of the vocabulary: head and loss]

*gather* collects the tokens of all processes and, in the backward pass, adds up the processes' gradients and keeps the
own tokens'; *scatter* does the opposite. So a layer costs two of each, forward and backward.

**Gradients.** In the split regions, each process computes a summand of the gradients of the activations, and so of
every parameter that is not split: norms see a part of the tokens, a latent attention's first projections see the
gradients of some heads. These are `Partial` DTensors, which FSDP2 adds up with its own reduction and
`sum_partial_gradients` without FSDP2. What every process computes in full instead (routers, positions, an output layer
other than the head) has complete gradients, and passes 1/n of them on to its inputs, where they are added up.

**Parameters** are DTensors, because clipping, optimizers and checkpoints need to know what is split. Layers compute
with plain tensors: the classes of a layer's modules are replaced by subclasses whose parameters, when read, are the
shards of this process while their `forward` runs (`with_local_parameters`).

B batch, T time, C model width, H heads, D head size, V vocabulary, E experts, F width, n processes.
"""

import functools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import _functional_collectives as funcol
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from lit_gpt.errors import UserError
from lit_gpt.models.attention import SelfAttention
from lit_gpt.models.config import GPTConfig
from lit_gpt.models.gpt import GPT
from lit_gpt.models.head import HeadFn, LMHead, VocabularyShard, takes_shards
from lit_gpt.models.latent_attention import LatentAttention
from lit_gpt.models.mixers import BUILT_IN
from lit_gpt.models.mlp import MLP
from lit_gpt.models.moe import MixtureOfExperts, Routes
from lit_gpt.models.norms import OffsetRMSNorm

# ---- what can be split ----------------------------------------------------------------------------------------------


def check_tensor_parallel(config: GPTConfig, size: int) -> None:
    """Raise if the model cannot be divided among this number of tensor-parallel devices.

    Raises:
        UserError: With the part that cannot be divided.
    """
    counts = {"n_head": config.n_head}
    if config.mla is None:
        counts["n_kv_head"] = config.num_kv_heads
    layers = range(config.n_layer)
    if not all(config.is_moe(layer) for layer in layers):
        counts["intermediate_size"] = config.mlp_size
    if config.moe is not None:
        counts["moe.intermediate_size"] = config.expert_size
        counts["moe.shared_intermediate_size"] = config.moe.shared_intermediate_size or 0
    for name, count in counts.items():
        if count % size:
            raise UserError(
                f"{name} {count} is not divisible by the {size} tensor-parallel devices; set tensor to a divisor of it"
            )
    if -(-config.vocab_size // size) * (size - 1) >= config.vocab_size:
        raise UserError(
            f"vocab_size {config.vocab_size} leaves some of the {size} tensor-parallel devices without a token; set "
            "tensor to a smaller number"
        )
    foreign = sorted({name for name in config.layer_types or () if name not in BUILT_IN})
    if foreign:
        raise UserError(
            f"tensor parallelism does not support layer_types of other packages ({', '.join(foreign)}); set tensor: 1 "
            "and shard over data instead (FSDP2)"
        )


# ---- collectives with gradients -------------------------------------------------------------------------------------
# In pairs, each the gradient of the other. `dim` is split evenly: what is scattered is padded before.


# (The second names are those of torch before 2.13, which now warns of them.)
_all_gather = getattr(funcol, "all_gather_single", None) or funcol.all_gather_tensor
_reduce_scatter = getattr(funcol, "reduce_scatter_single", None) or funcol.reduce_scatter_tensor


class _Gather(torch.autograd.Function):
    """Concatenate the processes' parts; add up the processes' gradients of the own part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Any) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _wait(_all_gather(x.contiguous(), dim, group))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _wait(_reduce_scatter(grad.contiguous(), "sum", ctx.dim, ctx.group)), None, None


class _Scatter(torch.autograd.Function):
    """Add up the processes' summands and keep the own part; concatenate the parts' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Any) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _wait(_reduce_scatter(x.contiguous(), "sum", dim, group))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _wait(_all_gather(grad.contiguous(), ctx.dim, ctx.group)), None, None


class _GatherWhole(torch.autograd.Function):
    """Concatenate the processes' parts for a computation that all do in full; keep the own part of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Any) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _wait(_all_gather(x.contiguous(), dim, group))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _own_part(grad, ctx.dim, ctx.group), None, None


class _SplitWhole(torch.autograd.Function):
    """Keep the own part of what every process has computed in full; concatenate the parts' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Any) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _own_part(x, dim, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _wait(_all_gather(grad.contiguous(), ctx.dim, ctx.group)), None, None


class _Sum(torch.autograd.Function):
    """Add up values, gradients, or both over the processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: bool, gradients: bool, group: Any) -> Tensor:
        ctx.gradients, ctx.group = gradients, group
        return _wait(funcol.all_reduce(x.contiguous(), "sum", group)) if values else x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.gradients:
            grad = _wait(funcol.all_reduce(grad.contiguous(), "sum", ctx.group))
        return grad, None, None, None


class _ScaleGradient(torch.autograd.Function):
    """Multiply the gradient alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return x, whose gradient is multiplied by a factor."""
    return x if factor == 1 else _ScaleGradient.apply(x, factor)


def _wait(x: Tensor) -> Tensor:
    return funcol.wait_tensor(x)


def _own_part(x: Tensor, dim: int, group: Any) -> Tensor:
    return x.chunk(group.size(), dim)[group.rank()].contiguous()


# ---- parameters -----------------------------------------------------------------------------------------------------


def distribute(module: nn.Module, mesh: DeviceMesh, placements: Mapping[str, Placement]) -> None:
    """Make a module's own parameters DTensors; those without a placement are replicated."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        if not isinstance(parameter, DTensor):
            # Every process has the same value (initialized by name, or read from the same file), so none is sent.
            value = distribute_tensor(parameter.data, mesh, [placements.get(name, Replicate())], src_data_rank=None)
            module.register_parameter(name, nn.Parameter(value, requires_grad=parameter.requires_grad))


def local(parameter: Tensor | None, whole: bool = False, factor: float = 1.0) -> Tensor | None:
    """Return the shard of this process.

    Args:
        parameter: A DTensor, or anything else, which is returned.
        whole: Whether every process computes with the complete parameter, and so its complete gradient.
        factor: Multiplier of the gradient.
    """
    if not isinstance(parameter, DTensor):
        return parameter
    gradient = [
        Partial() if placement.is_replicate() and not whole else placement for placement in parameter.placements
    ]
    return scale_gradient(parameter.to_local(grad_placements=gradient), factor)


@functools.cache
def with_local_parameters(
    kind: type[nn.Module], names: tuple[str, ...], whole: bool = False, factor: float = 1.0, zeros: tuple[str, ...] = ()
) -> type[nn.Module]:
    """Return a subclass of a module's class whose parameters, when read in its `forward`, are this process's shards.

    A forward written for one process then computes with plain tensors, as fast as on one process. Everything else
    (FSDP2, optimizers, checkpoints) sees the DTensors.

    Args:
        kind: The module's class.
        names: Names of its own parameters.
        whole: See `local`.
        factor: See `local`.
        zeros: Names of parameters that count as zero here, because another process adds them to the sum over all.
    """

    def read(name: str) -> property:
        def get(module: Any) -> Tensor | None:
            if not module._is_running:
                return module._parameters[name]
            shard = local(module._parameters[name], whole, factor)
            return shard * 0 if name in zeros and shard is not None else shard

        return property(get)

    def forward(module: Any, *args: Any, **kwargs: Any) -> Any:
        module._is_running = True
        try:
            return kind.forward(module, *args, **kwargs)
        finally:
            module._is_running = False

    members = {"_is_running": False, "forward": forward, "__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), members | {name: read(name) for name in names})


def localize(module: nn.Module, **options: Any) -> None:
    """Replace a module's class by `with_local_parameters`."""
    names = tuple(name for name, value in module._parameters.items() if value is not None)
    module.__class__ = with_local_parameters(type(module), names, **options)  # type: ignore[arg-type]


# ---- modules --------------------------------------------------------------------------------------------------------


class VocabularyEmbedding(nn.Embedding):
    """An embedding whose rows are spread over processes; each adds those that it holds."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """Look up: (B, T) → (B, T, C), complete on every process."""
        shard = vocabulary_shard(self.weight)
        row, held = shard.local(input_ids)
        x = F.embedding(row, shard.weight).masked_fill(~held.unsqueeze(-1), 0.0)
        return _Sum.apply(x, True, False, shard.group)


class WholeEmbedding(nn.Embedding):
    """An embedding that every process computes in full."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """Look up: (T,) or (B, T) → (..., C)."""
        weight = local(self.weight, whole=True)
        assert weight is not None
        return F.embedding(input_ids, weight)


class VocabularyHead(LMHead):
    """The LM head with its rows spread over processes."""

    sequence: "Sequence"

    def forward(self, hidden: Tensor, head_fn: HeadFn | None = None) -> Any:
        """Return logits (B, T, V) of hidden states (B, T/n, C), or the result of `head_fn`, on every process."""
        shard = vocabulary_shard(self.weight)
        if takes_shards(head_fn):
            assert head_fn is not None
            return head_fn(self.sequence.gather(hidden), shard, None)  # type: ignore[arg-type]
        V, rows = self.weight.shape[0], -(-self.weight.shape[0] // shard.group.size())
        padded = F.pad(shard.weight, (0, 0, 0, rows - shard.weight.shape[0]))
        weight = _GatherWhole.apply(padded, 0, shard.group)[:V]
        return (head_fn or F.linear)(self.sequence.gather(hidden, whole=True), weight, None)


def vocabulary_shard(weight: Tensor) -> VocabularyShard:
    """Return the rows that this process holds of an embedding or head, a DTensor."""
    assert isinstance(weight, DTensor)
    rows = -(-weight.shape[0] // weight.device_mesh.size())  # as torch.chunk divides: the last part may be smaller
    return VocabularyShard(
        weight.to_local(), rows * weight.device_mesh.get_local_rank(), weight.device_mesh.get_group()
    )


@functools.cache
def _split_norm(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass of one of the norms that normalizes over a dimension that is split over processes."""
    return type(kind.__name__, (kind,), {"forward": _forward_of_split_norm, "__module__": kind.__module__})


def _forward_of_split_norm(norm: Any, x: Tensor, prepared: bool = False) -> Tensor:
    """Normalize: (..., part of F) → (..., part of F); see `norms.py` for the three kinds."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    width = norm.normalized_shape[0]
    if isinstance(norm, nn.LayerNorm):
        wide = wide - _Sum.apply(wide.sum(-1, keepdim=True), True, True, norm.group) / width
    square = _Sum.apply(wide.square().sum(-1, keepdim=True), True, True, norm.group) / width
    y = (
        wide
        * torch.rsqrt(square + (norm.eps or 0.0))
        * (norm.weight + 1 if isinstance(norm, OffsetRMSNorm) else norm.weight)
    )
    if getattr(norm, "bias", None) is not None:
        y = y + norm.bias
    return y.to(torch.promote_types(x.dtype, norm.weight.dtype))


class Sequence:
    """The part of the sequence that this process holds between the layers: T/n tokens, the last ones padded.

    Args:
        mesh: The tensor axis.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self.group, self.size = mesh.get_group(), mesh.size()
        self.length = 0
        """T of the forward that is running, for the head; blocks take it from their context."""

    def gather(self, x: Tensor, length: int | None = None, whole: bool = False) -> Tensor:
        """Return all tokens: (B, T/n, C) → (B, T, C).

        Args:
            x: The own tokens.
            length: T; None = that of the forward that is running.
            whole: Whether all processes compute the same with it.
        """
        y: Tensor = (_GatherWhole if whole else _Gather).apply(x, 1, self.group)
        return y.narrow(1, 0, self.length if length is None else length)

    def scatter(self, x: Tensor) -> Tensor:
        """Return the own tokens of the sum over processes: (B, T, C) → (B, T/n, C)."""
        return _Scatter.apply(self._padded(x), 1, self.group)

    def split(self, x: Tensor) -> Tensor:
        """Return the own tokens of what all processes have computed: (B, T, C) → (B, T/n, C)."""
        return _SplitWhole.apply(self._padded(x), 1, self.group)

    def _padded(self, x: Tensor) -> Tensor:
        missing = -x.shape[1] % self.size
        return F.pad(x, (0, 0, 0, missing)) if missing else x

    # ---- hooks ------------------------------------------------------------------------------------------------------

    def surround(self, module: nn.Module) -> None:
        """Gather the input of an attention or MLP, `module(x, context, ...)`, and scatter its output."""

        def enter(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            x, context = inputs[:2]
            return (self.gather(x, context.position_ids.shape[-1]), *inputs[1:])

        def leave(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            return self.scatter(output)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    def attach(self, model: GPT) -> None:
        """Split the embeddings of a model, and remember the length of each forward."""

        def remember(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.length = inputs[0].shape[1]

        model.register_forward_pre_hook(remember)
        model.drop.register_forward_hook(lambda _, inputs, x: self.split(x))
        for predictor in model.multi_token or ():
            predictor.register_forward_pre_hook(lambda _, inputs: (inputs[0], self.split(inputs[1]), *inputs[2:]))


# ---- the plan -------------------------------------------------------------------------------------------------------

COLUMNS, ROWS = Shard(0), Shard(1)
"""Placements of a linear layer's weight (out, in): by outputs, by inputs."""


def apply_tensor_parallel(model: GPT, mesh: DeviceMesh) -> None:
    """Split the layers of a model in place.

    Args:
        model: A model that `check_tensor_parallel` accepts.
        mesh: The tensor axis.
    """
    sequence = Sequence(mesh)
    for module in list(model.modules()):
        if isinstance(module, SelfAttention | LatentAttention):
            _split_attention(module, mesh)
        elif isinstance(module, MLP):
            _split_mlp(module, mesh)
        elif isinstance(module, MixtureOfExperts):
            _split_mixture(module, mesh)
    for block in (*model.blocks, *(predictor.block for predictor in model.multi_token or ())):
        sequence.surround(block.attn)
        sequence.surround(block.mlp)
    sequence.attach(model)
    # Embedding and head keep their `weight`, because they may share it.
    # (A stage of a pipeline has only some of these parts.)
    if model.wte is not None:
        distribute(model.wte, mesh, {"weight": COLUMNS})
        model.wte.__class__ = VocabularyEmbedding
    if model.lm_head is not None:
        if model.config.tie_embeddings:
            model.lm_head.weight = model.wte.weight
        distribute(model.lm_head, mesh, {"weight": COLUMNS})
        model.lm_head.__class__ = VocabularyHead
        model.lm_head.sequence = sequence  # type: ignore[assignment]
    if model.wpe is not None:
        distribute(model.wpe, mesh, {})
        model.wpe.__class__ = WholeEmbedding
    # The rest: norms of the residual stream and a multi-token block's projection see the own tokens alone. A module
    # that an objective adds to the model is applied in its `head_fn`, by every process to all tokens.
    for name, module in model.named_modules():
        if any(not isinstance(parameter, DTensor) for parameter in module.parameters(recurse=False)):
            distribute(module, mesh, {})
            localize(module, whole=name.split(".")[0] not in ("blocks", "ln_f", "multi_token"))


def _linear(linear: Any, mesh: DeviceMesh, placement: Placement) -> None:
    """Split a linear layer by columns or rows."""
    if linear is None:
        return
    if hasattr(linear, "base_layer"):  # with an adapter, B A x: B has the columns, or A the rows; the other is whole
        adapters = linear.lora_B if placement == COLUMNS else linear.lora_A
        for adapter in adapters.values():
            _linear(adapter, mesh, placement)
        linear = linear.base_layer
    bias = {"bias": Shard(0)} if placement == COLUMNS else {}
    distribute(linear, mesh, {"weight": placement, **bias})
    localize(linear, zeros=("bias",) if placement == ROWS and mesh.get_local_rank() else ())


def _split_attention(mixer: Any, mesh: DeviceMesh) -> None:
    """Give each process its part of the heads; latents and what computes them are complete on each."""
    rank, size = mesh.get_local_rank(), mesh.size()
    for name in ("q_proj", "k_proj", "v_proj", "q_b_proj", "kv_b_proj"):
        _linear(getattr(mixer, name, None), mesh, COLUMNS)
    _linear(mixer.o_proj, mesh, ROWS)
    total, mixer.num_heads = mixer.num_heads, mixer.num_heads // size
    mixer.scoring = mixer.scoring._replace(heads=(rank * mixer.num_heads, total))
    if not isinstance(mixer, SelfAttention):
        return
    mixer.num_kv_heads //= size
    if mixer.sinks is not None:
        distribute(mixer, mesh, {"sinks": Shard(0)})
        localize(mixer)
    if mixer.config.qk_norm == "projection":
        for norm in (mixer.q_norm, mixer.k_norm):
            assert norm is not None
            distribute(norm, mesh, {"weight": Shard(0), "bias": Shard(0)})
            norm.__class__ = _split_norm(type(norm))  # type: ignore[arg-type]
            norm.group = mesh.get_group()  # type: ignore[assignment]
            localize(norm)


def _split_mlp(mlp: MLP, mesh: DeviceMesh) -> None:
    _linear(mlp.gate_proj, mesh, COLUMNS)
    _linear(mlp.up_proj, mesh, COLUMNS)
    _linear(mlp.down_proj, mesh, ROWS)


def _split_mixture(mixture: MixtureOfExperts, mesh: DeviceMesh) -> None:
    """Split each expert's width; the router sees all tokens on every process.

    The gradient of an expert's weight for a token is a summand on each process. The router needs the whole of it.
    """
    size, group = mesh.size(), mesh.get_group()
    by_width = {"gate_proj": Shard(1), "up_proj": Shard(1), "down_proj": Shard(2)}
    distribute(mixture.experts, mesh, by_width | {"gate_bias": Shard(1), "up_bias": Shard(1)})
    localize(mixture.experts, zeros=("down_bias",) if mesh.get_local_rank() else ())
    distribute(mixture.router, mesh, {})
    localize(mixture.router, whole=True)

    def enter(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (scale_gradient(inputs[0], 1 / size), *inputs[1:])

    def leave(_: nn.Module, inputs: Any, routes: Routes) -> Routes:
        return routes._replace(weights=_Sum.apply(routes.weights, False, True, group))

    mixture.router.register_forward_pre_hook(enter)
    mixture.router.register_forward_hook(leave)
