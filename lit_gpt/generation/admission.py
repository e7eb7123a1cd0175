"""Which request gets which row of the cache, and whose keys it may begin with.

A request is given a row with room for all that it may write, so that nothing that runs is ever stopped for want of
room. Rows of ended requests stay until their room is needed, the longest unused going first: the next request with
the same beginning (a system prompt, the earlier turns of a chat) takes over its row or copies from it.
"""

from lit_gpt.generation.request import Request, common_prefix
from lit_gpt.models import GPTConfig
from lit_gpt.models.batch_cache import Slab, row_capacity

MIN_PREFIX = 8
"""Tokens: a shorter beginning is computed as fast as it is copied."""


class Admission:
    """Gives out rows.

    Args:
        config: The model's.
        slabs: The cache.
        max_length: Of one request, in tokens.
        max_rows: Requests running at once.
        reuse_prefixes: Keep the rows of ended requests, and begin with keys that others have.
    """

    def __init__(
        self, config: GPTConfig, slabs: list[Slab[Request]], max_length: int, max_rows: int, reuse_prefixes: bool
    ) -> None:
        self._config, self._slabs = config, slabs
        self._max_length, self._max_rows, self._reuse = max_length, max_rows, reuse_prefixes
        self._always_full = len(slabs) == 1 and slabs[0].num_tokens >= max_rows * max_length
        self._kept: dict[Request, None] = {}
        """Ended requests whose rows are kept, the longest unused first."""
        self.reused_tokens = 0

    def place(self, request: Request) -> bool:
        """Give a request a row; False if there is none for now."""
        if sum(slab.num_active for slab in self._slabs) >= self._max_rows:
            return False
        capacity = self._capacity(request)
        donor, length = self._best_prefix(request)
        if donor is not None and donor in self._kept and self._takes_over(request, donor, length, capacity):
            return True
        slab = self._find_slab(capacity)
        while slab is None and self._kept:
            self._evict(donor)
            slab = self._find_slab(capacity)
        if slab is None:
            return False
        slab.take(request)
        request.prefix = None if donor is None else (donor, length)
        return True

    def copy_prefix(self, request: Request) -> bool:
        """Copy what the request begins with, if it is there by now; False if it has to wait."""
        if request.prefix is None:
            return True
        donor, length = request.prefix
        if donor.slab is not None and donor.num_cached < length and not donor.finished:
            return False
        request.prefix = None
        if common_prefix(request.ids, donor.ids) < length or not self._independent_of_length(donor):
            return True  # its context has become full meanwhile, and was read again from another place
        length = min(length, donor.num_cached)
        if donor.slab is not None and length >= MIN_PREFIX and self._has_windows(donor, length):
            assert request.slab is not None
            request.slab.copy_prefix(request.row, donor.slab, donor.row, length)
            request.num_cached = length
            self.reused_tokens += length
        return True

    def release(self, request: Request) -> None:
        """A request has ended."""
        slab = request.slab
        assert slab is not None
        slab.retire(request.row)
        if self._reuse and request.num_cached >= MIN_PREFIX:
            self._kept[request] = None
        else:
            slab.free(request.row)

    def forget(self) -> None:
        """Give up all rows that are kept."""
        while self._kept:
            self._evict(None)

    def _capacity(self, request: Request) -> int:
        if self._always_full or request.num_reread is not None:
            return self._max_length
        return row_capacity(len(request.ids) + request.params.max_new_tokens, self._max_length)

    def _takes_over(self, request: Request, donor: Request, length: int, capacity: int) -> bool:
        """Go on in the donor's own row, unless much that it has would be lost while another row is free."""
        slab = donor.slab
        assert slab is not None
        if slab.capacity < capacity or not self._has_windows(donor, length):
            return False
        if 2 * length < donor.num_cached and self._find_slab(capacity, cut=False) is not None:
            return False
        del self._kept[donor]
        slab.wake(request, donor.row)
        request.num_cached = length
        self.reused_tokens += length
        return True

    def _find_slab(self, capacity: int, cut: bool = True) -> Slab[Request] | None:
        """A slab with a free row: of the smallest capacity that suffices, or cut anew."""
        ready = [s for s in self._slabs if s.capacity >= capacity and s.has_room(s.capacity)]
        if ready:
            return min(ready, key=lambda s: s.capacity)
        if not cut:
            return None
        # An empty slab first, then the one with the least to move.
        others = [s for s in self._slabs if s.capacity < capacity and s.has_room(capacity)]
        if not others:
            return None
        slab = min(others, key=lambda s: len(s.owners))
        slab.cut(capacity)
        return slab

    def _evict(self, spared: Request | None) -> None:
        gone = next((one for one in self._kept if one is not spared), spared)
        assert gone is not None
        del self._kept[gone]
        assert gone.slab is not None
        gone.slab.free(gone.row)

    def _best_prefix(self, request: Request) -> tuple[Request | None, int]:
        """The request with the longest common beginning, among those that have it or are reading it."""
        best, longest = None, MIN_PREFIX - 1
        if not self._reuse or not self._independent_of_length(request):
            return None, 0
        late: tuple[Request, int] | None = None
        for slab in self._slabs:
            for row, owner in enumerate(slab.owners):
                if not self._independent_of_length(owner):
                    continue
                reading = slab.num_decoding <= row < slab.num_active
                known = len(owner.ids) if reading else owner.num_cached
                length = min(common_prefix(request.ids, owner.ids), known, len(request.ids) - 1)
                if owner.prefix is None and length > longest:
                    best, longest = owner, length
                elif owner.prefix is not None and length > (late[1] if late else 0):
                    late = owner, length
        # One that itself waits for another's keys keeps this one waiting longer: worth it for many tokens.
        if late is not None and late[1] >= longest + MIN_PREFIX:
            return late
        return best, longest if best is not None else 0

    def _has_windows(self, donor: Request, length: int) -> bool:
        """Whether the windows before position `length` are still in the donor's rings."""
        slab = donor.slab
        assert slab is not None
        if donor.num_cached - length <= 1:  # the margin that guesses do not use
            return True
        written = donor.num_cached + slab.margin
        rings = [
            keys.shape[2] for (keys, _), window in zip(slab.layers, slab.windows, strict=True) if window is not None
        ]
        return written <= min(rings, default=written)

    def _independent_of_length(self, request: Request) -> bool:
        """Whether the keys of a text are what they would be in a longer one."""
        scaling = self._config.rope_scaling
        if scaling is None or scaling.kind not in ("dynamic", "longrope"):
            return True
        return len(request.ids) <= scaling.original_block_size
