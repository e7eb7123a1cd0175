"""Consecutive blocks of a token stream on the local disk, and the training order of their windows.

    <folder>/block-00000007.bin         B T + 1 tokens: B windows and the last target
             block-00000007.json        the documents in the block
             cursor-00000007.json       stream position of the block's start

`BlockStore` creates blocks. Any process can create any block from the nearest earlier cursor. The process that needs a
block takes a lock, checks whether another process has created the block in the meantime, and otherwise creates it; a
thread creates the next one during training. The most recent blocks are kept and older ones deleted; the cursors, a
hundred bytes each, are kept.

`StreamOrder` permutes the windows within each block. The training loader (data/loader.py) does the rest.
"""

import contextlib
import dataclasses
import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.atomic import atomic_file, remove_leftovers
from lit_gpt.data.cache import check_disk_space, exclusive, write_json
from lit_gpt.data.loader import WindowOrder
from lit_gpt.data.provenance import Piece
from lit_gpt.data.sampler import hash_integers, permute
from lit_gpt.data.streaming.tokens import Cursor, Span, TokenReader
from lit_gpt.errors import UserError


class BlockStore:
    """Blocks of a stream.

    Args:
        folder: Folder of the blocks: one per (stream, tokenizer, block size).
        open_reader: Opens the stream at a cursor.
        block_tokens: Tokens per block, not counting the additional last target.
        dtype: Token dtype.
        keep_blocks: Blocks to keep on disk, at least 2: the one in use and the next.
        prefetch: Whether to create the next block in a thread while one is in use.
    """

    def __init__(
        self,
        folder: Path,
        open_reader: Callable[[Cursor], TokenReader],
        block_tokens: int,
        dtype: np.dtype[Any],
        keep_blocks: int,
        prefetch: bool = True,
    ) -> None:
        self.folder = folder
        self.open_reader = open_reader
        self.block_tokens = block_tokens
        self.dtype = dtype
        self.keep_blocks = max(2, keep_blocks)
        self.prefetch = prefetch
        self._reset_process()

    def _reset_process(self) -> None:
        """Reset everything that belongs to a process: threads, locks, open files."""
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._reader: tuple[int, TokenReader] | None = None  # the reader and the index of its next block
        self._maps: dict[int, np.ndarray] = {}

    def tokens(self, block: int) -> np.ndarray:
        """Return a block's (block_tokens + 1,) tokens, memory-mapped; the block is created if it does not exist."""
        if os.getpid() != self._process:  # a forked worker: threads and locks stayed in its parent
            self._reset_process()
        if block not in self._maps:
            while True:
                self._make(block)
                # Another process may have advanced further and deleted it in the meantime.
                with contextlib.suppress(FileNotFoundError):
                    self._maps[block] = np.memmap(self._path(block), dtype=self.dtype, mode="r").view(np.ndarray)
                    break
            # Keep only two maps, because mapped pages count as this process's memory.
            for old in list(self._maps)[:-2]:
                del self._maps[old]
            # One process per machine reads from block to block; the others find its blocks.
            continues = self._reader is None or self._reader[0] == block + 1
            if self.prefetch and continues and (self._thread is None or not self._thread.is_alive()):
                # An error will be raised again when the block is requested.
                self._thread = threading.Thread(target=self._make_quietly, args=(block + 1,), daemon=True)
                self._thread.start()
        return self._maps[block]

    def spans(self, block: int) -> list[Span]:
        """Return the documents of a block, in order."""
        self.tokens(block)
        path = self._path(block, ".json")
        if not path.exists():  # deleted together with a block that is still mapped
            self._maps.pop(block)
            self.tokens(block)
        return [Span(*fields) for fields in json.loads(path.read_bytes())]

    def cursor(self, block: int) -> tuple[int, Cursor]:
        """Return the nearest block at or before this one whose stream position is known, and that position."""
        while block > 0:
            with contextlib.suppress(FileNotFoundError):
                return block, Cursor(**json.loads(self._cursor_path(block).read_bytes()))
            block -= 1
        return 0, Cursor()

    def remember(self, block: int, cursor: Cursor) -> None:
        """Record a block's stream position from a checkpoint, so that nothing before it has to be read.

        Raises:
            UserError: if a different position is already known.
        """
        path = self._cursor_path(block)
        if not path.exists():
            if block:
                write_json(path, dataclasses.asdict(cursor))
        elif Cursor(**json.loads(path.read_bytes())) != cursor:
            raise UserError(
                f"block {block} of the stream does not start where the checkpoint says: the stream has changed; if "
                f"it is unchanged, delete {self.folder}"
            )

    def _make_quietly(self, block: int) -> None:
        with contextlib.suppress(Exception):
            self._make(block)

    def _make(self, block: int) -> None:
        """Create a block and the earlier ones that it requires, unless it exists."""
        with self._lock:
            if self._exists(block):
                return
            with exclusive(self.folder / "lock", "reading the stream", announce=False):
                if self._exists(block):
                    return
                nearest, cursor = self.cursor(block)
                if self._reader is None or self._reader[0] != nearest:
                    self._close()
                    self._reader = (nearest, self.open_reader(cursor))
                reader = self._reader[1]
                try:
                    for number in range(nearest, block + 1):
                        self._write(number, reader, keep=number + self.keep_blocks > block)
                        self._reader = (number + 1, reader)
                except BaseException:
                    self._close()
                    raise
                self._delete_before(block + 1 - self.keep_blocks)

    def _write(self, block: int, reader: TokenReader, keep: bool) -> None:
        tokens, spans = reader.read(self.block_tokens)
        following, span = reader.peek()
        if keep:
            path = self._path(block)
            remove_leftovers(path)
            check_disk_space(self.folder, (self.block_tokens + 1) * self.dtype.itemsize, "a block of the stream")
            if span.offset == 0 or not spans:
                spans.append(dataclasses.replace(span, start=self.block_tokens))
            write_json(self._path(block, ".json"), [list(vars(span).values()) for span in spans])
            with atomic_file(path) as temporary:
                np.append(tokens, np.array([following])).astype(self.dtype).tofile(temporary)
        write_json(self._cursor_path(block + 1), dataclasses.asdict(reader.cursor))

    def _exists(self, block: int) -> bool:
        path = self._path(block)
        size = (self.block_tokens + 1) * self.dtype.itemsize
        return path.exists() and path.stat().st_size == size and self._cursor_path(block + 1).exists()

    def _delete_before(self, block: int) -> None:
        for path in self.folder.glob("block-*"):
            if path.stem.split("-")[1].isdigit() and int(path.stem.split("-")[1]) < block:
                path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._reader is not None:
            self._reader[1].close()
        self._reader = None

    def _path(self, block: int, suffix: str = ".bin") -> Path:
        return self.folder / f"block-{block:08}{suffix}"

    def _cursor_path(self, block: int) -> Path:
        return self.folder / f"cursor-{block:08}.json"

    def __getstate__(self) -> dict[str, Any]:
        nothing: dict[str, Any] = {"_lock": None, "_thread": None, "_reader": None, "_maps": {}, "_process": -1}
        return self.__dict__ | nothing


class StreamOrder(WindowOrder):
    """Sample p is window perm(seed, b)(p mod B) of block b = p // B.

    Args:
        store: Store of the blocks.
        block_size: T, window length in tokens.
        block_windows: B, windows per block; shuffling moves a window by less than two blocks.
        seed: Seed of the permutations.
        fingerprint: Hash of the stream and of how it is tokenized.
    """

    def __init__(self, store: BlockStore, block_size: int, block_windows: int, seed: int, fingerprint: str) -> None:
        self.store = store
        self.block_size = block_size
        self.block_windows = block_windows
        self.seed = seed
        self.fingerprint = fingerprint

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the block of each sample and the start of its window in that block, (n,) int64 each."""
        blocks, offsets = np.divmod(samples, self.block_windows)
        starts = np.empty(len(samples), dtype=np.int64)
        for block in np.unique(blocks).tolist():
            chosen = blocks == block
            windows = permute(offsets[chosen], self.block_windows, hash_integers(self.seed, block, 5))
            starts[chosen] = windows * self.block_size
        return blocks, starts

    def read(self, part: int, start: int, length: int) -> np.ndarray:
        """Return `length` tokens of block `part`, starting at `start`."""
        return self.store.tokens(part)[start : start + length]

    def trace(self, samples: np.ndarray) -> list[list[Piece]]:
        """Return the documents of each sample's window."""
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

    def identity(self) -> dict[str, Any]:
        """Return stream, seed and sizes."""
        sizes = {"block_size": self.block_size, "block_windows": self.block_windows}
        return {"stream": self.fingerprint, "seed": self.seed, **sizes}

    def state(self, position: int) -> dict[str, Any]:
        """Return block and offset of a position, and the stream position of the block's start."""
        block, offset = divmod(position, self.block_windows)
        known, cursor = self.store.cursor(block)
        return {"block": block, "offset": offset, "cursor_block": known, "cursor": dataclasses.asdict(cursor)}

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise a `UserError` if the checkpoint was trained with another stream."""
        if state.get("stream") != self.fingerprint:
            raise UserError(
                f"the checkpoint was trained with stream {state.get('stream')}, this run has {self.fingerprint}: "
                "shards were added, removed or changed (name, size, date or checksum), or they are read, held out or "
                "tokenized in another way; restore the original stream, or start a new run from the weights (init_from)"
            )

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the stream position of the saved block, so that nothing before it has to be read."""
        self.store.remember(state["cursor_block"], Cursor(**state["cursor"]))
