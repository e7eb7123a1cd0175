"""Room for an answer: a context holds the prompt and what follows it."""

from collections.abc import Sequence

from lit_gpt.errors import UserError


def check_room(max_new_tokens: int, block_size: int, lengths: Sequence[int], option: str = "max_new_tokens") -> None:
    """Refuse answers that no prompt leaves room for, before anything is asked.

    Args:
        max_new_tokens: Of an answer.
        block_size: Tokens of the model's context.
        lengths: Tokens of the prompts; those that fill the context themselves do not count.
        option: What the user calls the first.

    Raises:
        UserError: Even after the shortest prompt an answer would end where the context does.
    """
    shortest = min((length for length in lengths if length < block_size), default=1)
    most = block_size - shortest
    if max_new_tokens > most:
        after = f" after the shortest prompt of {shortest} tokens" if shortest > 1 else ""
        raise UserError(
            f"{option} is {max_new_tokens}; the model's context of {block_size} tokens has room for at most {most} new "
            f"ones{after}: lower it, or measure a model with a longer context"
        )


def short_of_room(max_new_tokens: int, block_size: int, lengths: Sequence[int]) -> tuple[str, ...]:
    """What to note where some prompts leave less room than an answer may take; arguments as `check_room`."""
    fitting = [length for length in lengths if length < block_size]
    number = sum(length + max_new_tokens > block_size for length in fitting)
    if not number:
        return ()
    return (
        f"{number} of {len(fitting)} prompts leave less room in the context of {block_size} tokens than max_new_tokens "
        f"{max_new_tokens}: an answer to them ends where the context does.",
    )
