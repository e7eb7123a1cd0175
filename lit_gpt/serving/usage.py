"""What a request has cost."""

from typing import Any


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """Tokens as OpenAI's API counts them: a prompt once, whatever the number of answers to it."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
