"""Keys and values of the tokens already seen, so that decoding computes each of them once.

B batch, T new tokens, S tokens in the cache, K key/value heads, D head size.
"""

from torch import Tensor


class KVCache:
    """Room for `max_length` tokens in every layer, allocated at first use.

    Allocating from the first keys takes their batch size, head count, dtype and device, so a cache needs to know
    nothing of the model (under tensor parallelism a device holds only its own heads).

    Args:
        max_length: Tokens that fit.
    """

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.length = 0
        """Tokens held, the same in every layer; grows by `advance` after a whole forward."""
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values and return all of them.

        Args:
            layer: From 0.
            k: (B, K, T, D).
            v: (B, K, T, any width): values, or what a layer remembers beside its keys.

        Returns:
            Views (B, K, S + T, D) and (B, K, S + T, width).
        """
        end = self.length + k.shape[2]
        assert end <= self.max_length, f"{end} tokens in a cache of {self.max_length}"
        if layer not in self._layers:
            rooms = (x.new_empty(*x.shape[:2], self.max_length, x.shape[3]) for x in (k, v))
            self._layers[layer] = next(rooms), next(rooms)
        keys, values = self._layers[layer]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, num_tokens: int) -> None:
        """Count the tokens that every layer has now stored."""
        self.length += num_tokens

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        assert 0 <= length <= self.length
        self.length = length
