"""Optimizer steps from a stream: windows in an order that is permuted within each block."""

import dataclasses
from typing import Any

import numpy as np

from lit_gpt.data.batches import BatchBuilder
from lit_gpt.data.loader import StepDataset, StepLoader, check_batch_sizes
from lit_gpt.data.provenance import Piece
from lit_gpt.data.sampler import hash_integers, permute
from lit_gpt.data.streaming.blocks import BlockStore
from lit_gpt.data.streaming.tokens import Cursor
from lit_gpt.errors import UserError


class StreamOrder:
    """Sample p is window perm(seed, b)(p mod B) of block b = p // B.

    Args:
        store: The blocks.
        block_size: T, tokens of a window.
        block_windows: B, windows of a block: samples move by less than two blocks from their place in the stream.
        seed: Chooses the permutations.
    """

    def __init__(self, store: BlockStore, block_size: int, block_windows: int, seed: int) -> None:
        self.store = store
        self.block_size = block_size
        self.block_windows = block_windows
        self.seed = seed

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the block of each sample and where in it its window begins: two of (n,) int64."""
        blocks, offsets = np.divmod(samples, self.block_windows)
        starts = np.empty(len(samples), dtype=np.int64)
        for block in np.unique(blocks).tolist():
            chosen = blocks == block
            windows = permute(offsets[chosen], self.block_windows, hash_integers(self.seed, block, 5))
            starts[chosen] = windows * self.block_size
        return blocks, starts

    def rows(self, samples: np.ndarray) -> np.ndarray:
        """Returns (n, T + 1) int64 tokens."""
        rows = np.empty((len(samples), self.block_size + 1), dtype=np.int64)
        for row, block, start in zip(rows, *(part.tolist() for part in self.locate(samples)), strict=True):
            row[:] = self.store.tokens(block)[start : start + self.block_size + 1]
        return rows

    def trace(self, samples: np.ndarray) -> list[list[Piece]]:
        """Returns the documents of each sample's window."""
        found = []
        spans = {block: self.store.spans(block) for block in np.unique(samples // self.block_windows).tolist()}
        for block, start in zip(*(part.tolist() for part in self.locate(samples)), strict=True):
            end = start + self.block_size + 1
            pieces = []
            for span, after in zip(spans[block], [*spans[block][1:], None], strict=True):
                begin, stop = max(span.start, start), min(end, end if after is None else after.start)
                if begin < stop:
                    pieces.append(
                        Piece(
                            begin=begin - start,
                            end=stop - start,
                            source=span.source,
                            record=span.record,
                            sha256=span.sha256,
                            offset=span.offset + begin - span.start,
                            num_tokens=span.num_tokens,
                        )
                    )
            found.append(pieces)
        return found


class StreamSteps(StepDataset):
    """Steps from a stream.

    Args:
        order: Says which window a sample is.
        builder: Makes batches.
        global_batch_size: G, sequences of a step over all ranks.
        micro_batch_size: Sequences of a micro-batch; divides the share.
        rank: Which share.
        world_size: Number of shares; divides G.
    """

    def __init__(
        self,
        order: StreamOrder,
        builder: BatchBuilder,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
    ) -> None:
        super().__init__(builder, order.block_size, global_batch_size, micro_batch_size, rank, world_size)
        self.order = order

    def rows(self, step: int, samples: np.ndarray) -> np.ndarray:
        """Returns the windows that the order names."""
        return self.order.rows(samples)


class StreamLoader(StepLoader):
    """Optimizer steps from a stream. Its state says where in the stream the block in hand begins.

    Args:
        order: Says which window a sample is.
        builder: Makes batches.
        fingerprint: Of the stream and of how it is tokenised.
        num_steps: Steps of what the Trainer shall call an epoch.
        global_batch_size: G, sequences of an optimizer step over all ranks.
        micro_batch_size: Sequences of a micro-batch.
        rank: This process's place among those that see different data.
        world_size: Number of these processes.
        num_workers: Processes that read ahead.
        pin_memory: Put batches where a GPU fetches them faster.
    """

    def __init__(
        self,
        order: StreamOrder,
        builder: BatchBuilder,
        fingerprint: str,
        num_steps: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        check_batch_sizes(global_batch_size, micro_batch_size, world_size)
        self.order = order
        identity = {
            "stream": fingerprint,
            "seed": order.seed,
            "block_size": order.block_size,
            "block_windows": order.block_windows,
            "global_batch_size": global_batch_size,
        }
        steps = StreamSteps(order, builder, global_batch_size, micro_batch_size, rank, world_size)
        super().__init__(steps, num_steps, global_batch_size, identity, num_workers, pin_memory)

    def state_dict(self) -> dict[str, Any]:
        """Returns block, offset and the block's place in the stream, and what the order depends on."""
        block, offset = divmod(self._position, self.order.block_windows)
        known, cursor = self.order.store.cursor(block)
        place = {"block": block, "offset": offset, "cursor_block": known, "cursor": dataclasses.asdict(cursor)}
        return super().state_dict() | place

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes to a saved position, reading nothing that comes before its block.

        Raises:
            UserError: if stream, seed or sizes are not those of the saved run.
        """
        if state_dict.get("stream") != self._identity["stream"]:
            raise UserError(
                f"the checkpoint was trained with stream {state_dict.get('stream')}, this run has "
                f"{self._identity['stream']}: shards were added, removed or changed (name, size, date or checksum), or "
                "they are read, held out or tokenised in another way; restore what it was, or start a new run from the "
                "weights (init_from)"
            )
        super().load_state_dict(state_dict)
        self.order.store.remember(state_dict["cursor_block"], Cursor(**state_dict["cursor"]))
