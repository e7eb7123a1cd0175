"""Consecutive blocks of a token stream on the local disk, and the order in which their windows are trained on.

    <folder>/block-00000007.bin         B T + 1 tokens: B windows and the last one's last target
             block-00000007.json        the documents that they are from
             cursor-00000007.json       where in the stream the block begins

`BlockStore` makes blocks. Any process can make any block from the nearest cursor before it. The one that needs a block
takes a lock, looks whether another process has made it meanwhile, and else makes it; a thread makes the next one while
this one is trained on. The latest blocks are kept and the older ones deleted; their cursors stay, a hundred bytes each.

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
        folder: Where they are stored: one for each (stream, tokenizer, block size).
        open_reader: Opens the stream at a cursor.
        block_tokens: Tokens of a block, without the one more that it holds.
        dtype: Of the tokens.
        keep_blocks: Blocks to keep on disk, at least 2: the one in use and the next.
        prefetch: Make the next block in a thread while one is in use.
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
        """Start without anything that belongs to a process: threads, locks, open files."""
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._reader: tuple[int, TokenReader] | None = None  # the block that it would read next
        self._maps: dict[int, np.ndarray] = {}

    def tokens(self, block: int) -> np.ndarray:
        """Return a block's (block_tokens + 1,) tokens, a map of its file; make it if it does not exist."""
        if os.getpid() != self._process:  # a worker: threads and locks stayed in its parent
            self._reset_process()
        if block not in self._maps:
            while True:
                self._make(block)
                # Another process may be further on and have deleted it meanwhile.
                with contextlib.suppress(FileNotFoundError):
                    self._maps[block] = np.memmap(self._path(block), dtype=self.dtype, mode="r").view(np.ndarray)
                    break
            # The one in use and the last: the pages of a map count as this process's memory.
            for old in list(self._maps)[:-2]:
                del self._maps[old]
            # One process of a machine reads from block to block; the others find what it has made.
            continues = self._reader is None or self._reader[0] == block + 1
            if self.prefetch and continues and (self._thread is None or not self._thread.is_alive()):
                # An error is raised again when the block is asked for.
                self._thread = threading.Thread(target=self._make_quietly, args=(block + 1,), daemon=True)
                self._thread.start()
        return self._maps[block]

    def spans(self, block: int) -> list[Span]:
        """Return the documents of a block, in order."""
        self.tokens(block)
        path = self._path(block, ".json")
        if not path.exists():  # deleted with a block that is still mapped
            self._maps.pop(block)
            self.tokens(block)
        return [Span(*fields) for fields in json.loads(path.read_bytes())]

    def cursor(self, block: int) -> tuple[int, Cursor]:
        """Return the nearest block not after this one whose place in the stream is known, and the place."""
        while block > 0:
            with contextlib.suppress(FileNotFoundError):
                return block, Cursor(**json.loads(self._cursor_path(block).read_bytes()))
            block -= 1
        return 0, Cursor()

    def remember(self, block: int, cursor: Cursor) -> None:
        """Record where a block begins, as a checkpoint says, so that nothing before it has to be read.

        Raises:
            UserError: if that is known, and it is another place.
        """
        path = self._cursor_path(block)
        if not path.exists():
            if block:
                write_json(path, dataclasses.asdict(cursor))
        elif Cursor(**json.loads(path.read_bytes())) != cursor:
            raise UserError(
                f"block {block} of the stream begins elsewhere than the checkpoint says: the stream has changed; if "
                f"it is as it was, delete {self.folder}"
            )

    def _make_quietly(self, block: int) -> None:
        with contextlib.suppress(Exception):
            self._make(block)

    def _make(self, block: int) -> None:
        """Make a block, and those before it that are needed for that, unless it exists."""
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
        store: The blocks.
        block_size: T, tokens of a window.
        block_windows: B, windows of a block: samples move by less than two blocks from their place in the stream.
        seed: Chooses the permutations.
        fingerprint: Hash of the stream and of how it is tokenised.
    """

    def __init__(self, store: BlockStore, block_size: int, block_windows: int, seed: int, fingerprint: str) -> None:
        self.store = store
        self.block_size = block_size
        self.block_windows = block_windows
        self.seed = seed
        self.fingerprint = fingerprint

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the block of each sample and where in it its window begins: two of (n,) int64."""
        blocks, offsets = np.divmod(samples, self.block_windows)
        starts = np.empty(len(samples), dtype=np.int64)
        for block in np.unique(blocks).tolist():
            chosen = blocks == block
            windows = permute(offsets[chosen], self.block_windows, hash_integers(self.seed, block, 5))
            starts[chosen] = windows * self.block_size
        return blocks, starts

    def read(self, part: int, start: int, length: int) -> np.ndarray:
        """Return `length` tokens of block `part` from `start` on."""
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
        """Return block and offset of a position, and where in the stream the block begins."""
        block, offset = divmod(position, self.block_windows)
        known, cursor = self.store.cursor(block)
        return {"block": block, "offset": offset, "cursor_block": known, "cursor": dataclasses.asdict(cursor)}

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of another stream."""
        if state.get("stream") != self.fingerprint:
            raise UserError(
                f"the checkpoint was trained with stream {state.get('stream')}, this run has {self.fingerprint}: "
                "shards were added, removed or changed (name, size, date or checksum), or they are read, held out or "
                "tokenised in another way; restore what it was, or start a new run from the weights (init_from)"
            )

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take in where the saved block begins, so that nothing before it has to be read."""
        self.store.remember(state["cursor_block"], Cursor(**state["cursor"]))
