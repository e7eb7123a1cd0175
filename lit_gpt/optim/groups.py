"""Parameter groups: which parameters are optimised in the same way.

The role of a parameter decides how it is optimised, and its module determines the role:

- `matrices`: weights that multiply hidden states, stacks of them too. They decay; Muon orthogonalises their updates.
- `head`: an output head that is not tied to the embeddings. It decays.
- `embeddings`: looked-up rows (token table, tied head included, learned positions). A row that the batch does not
  hold has no gradient, so decay would only shrink rare tokens: none.
- `vectors`: biases and norm gains. They have no scale to keep small: no decay.
"""

from typing import Any

from torch import nn

DECAYED = ("matrices", "head")


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Sort a model's trainable parameters into named groups for an optimizer.

    Args:
        model: any module; embeddings are recognised as `nn.Embedding`, the head by the name `lm_head`.

    Returns:
        Parameter groups with the keys `name` and `params`, and `weight_decay` = 0 where decay does not belong.
        Empty groups are left out; a tied weight is counted once, as an embedding.
    """
    embeddings = {
        id(parameter) for module in model.modules() if isinstance(module, nn.Embedding) for parameter in [module.weight]
    }
    groups: dict[str, list[nn.Parameter]] = {"matrices": [], "embeddings": [], "head": [], "vectors": []}
    for name, parameter in model.named_parameters():  # a shared parameter comes once
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
