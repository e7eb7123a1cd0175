"""Parameter groups: sets of parameters that are optimized in the same way.

A parameter's role decides how it is optimized, and its module determines the role:

- `matrices`: weights that multiply hidden states, including stacks of them. Weight decay; Muon orthogonalizes their
  updates.
- `head`: an output head that is not tied to the embeddings. Weight decay.
- `embeddings`: lookup tables (token embedding, including a tied head; learned positions). No weight decay: a row that
  does not occur in the batch has no gradient, so decay would only shrink rare tokens.
- `vectors`: biases and norm gains. No weight decay: their scale need not be kept small.
"""

from typing import Any

from torch import nn

DECAYED = ("matrices", "head")


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Group a model's trainable parameters for an optimizer.

    Args:
        model: any module; embeddings are recognized as `nn.Embedding`, the head by the name `lm_head`.

    Returns:
        Parameter groups with the keys `name` and `params`, and `weight_decay` = 0 for groups without decay.
        Empty groups are omitted; a tied weight is listed once, as an embedding.
    """
    embeddings = {
        id(parameter) for module in model.modules() if isinstance(module, nn.Embedding) for parameter in [module.weight]
    }
    groups: dict[str, list[nn.Parameter]] = {"matrices": [], "embeddings": [], "head": [], "vectors": []}
    for name, parameter in model.named_parameters():  # yields a shared parameter once
        if not parameter.requires_grad:
            continue
        if id(parameter) in embeddings:
            groups["embeddings"].append(parameter)
        elif parameter.ndim < 2 or name.endswith("bias"):  # experts' biases are stacked
            groups["vectors"].append(parameter)
        elif name.split(".")[-2:-1] == ["lm_head"]:
            groups["head"].append(parameter)
        else:
            groups["matrices"].append(parameter)
    return [
        {"name": name, "params": params} | ({} if name in DECAYED else {"weight_decay": 0.0})
        for name, params in groups.items()
        if params
    ]
