"""Two tokenizers that must agree: the data's, and that of a model which the data is given to."""

from pathlib import Path

from lit_gpt.data.tokenizers import load_tokenizer
from lit_gpt.errors import UserError


def check_same_tokens(data: Path, model: Path, name: str) -> None:
    """Refuse data whose tokens have other ids than the model's; further tokens on either side are fine.

    Args:
        data: folder of the data's tokenizer.
        model: folder of the model's.
        name: of the model, for the message.

    Raises:
        UserError: a token that both have, or the end of the smaller vocabulary, has another id.
    """
    one, other = (load_tokenizer(path).backend.get_vocab(with_added_tokens=True) for path in (data, model))
    different = sum(one[token] != other[token] for token in one.keys() & other.keys())
    # Of the tokens that only one side has, none may have an id that the other side uses.
    common = min(len(one), len(other))
    strangers = sum(index < common for token, index in one.items() if token not in other)
    if different or strangers:
        raise UserError(
            f"the data's tokenizer is not that of {name}: {different + strangers:,} of its {len(one):,} tokens have "
            f"other ids there; set data.init_args.tokenizer to {name}"
        )
