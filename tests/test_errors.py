"""The search for a user's mistake in a chain of exceptions."""

from lit_gpt.errors import UserError, find_user_error


def test_the_mistake_is_found_behind_what_wraps_it():
    mistake = UserError("block_size is 0; it must be at least 1")
    wrapper = ValueError("does not validate")
    wrapper.__cause__ = KeyError("preset")
    wrapper.__cause__.__context__ = mistake
    assert find_user_error(wrapper) is mistake
    assert find_user_error(ValueError("ours")) is None
    assert find_user_error(None) is None


def test_a_chain_that_returns_to_itself_ends():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert find_user_error(first) is None
    second.__context__ = UserError("preset is tinny")
    assert find_user_error(first) is second.__context__
