"""Repeat allocations with this machine's malloc, and print how large its heap becomes.

    python -I heap_replay.py REPEATS < events

Standard input: pairs of int64, (key, size in bytes). A size of 0 frees the block of a key; a negative key is a small
object of the C++ library, not a tensor. Standard output: one number of bytes for each repeat, the peak of heap and
mapped blocks together. Exit status 3: malloc is not glibc's, or has refused a block.

It is a script of its own because it needs a fresh process in which nothing else allocates; so it imports no package.
Only the headers of blocks are touched, so it takes a few megabytes, however much is replayed.
"""

import array
import ctypes
import os
import random
import sys

ALIGNMENT = 64
"""Of torch's tensors on a CPU (c10/core/alignment.h, `gAlignment`)."""
ALWAYS_MAPPED = 32 * 1024**2
"""Blocks of this size get pages of their own whatever the threshold is (`DEFAULT_MMAP_THRESHOLD_MAX`, mallopt(3))."""
PAGE = 4096
NUM_FREE_BLOCKS = 2000
"""Free blocks in the heap of a process that has imported torch (1,700 to 1,800 by mallinfo2(3))."""
BRIEF_SHARE, BRIEF_SIZES = 0.1, (4, 8, 16, 32, 56, 96, 768, 824, 2144)
"""Share of events with another block that is freed at once, and its size in bytes: traced in steps on a CPU, most of
them descriptions of matrix products and numbers as tensors. Their alignment leaves small free blocks behind."""
IS_MAPPED = 2
"""Flag in a block's header, the word before it (glibc, malloc/malloc.c, `IS_MMAPPED`)."""

libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.sbrk.argtypes = [ctypes.c_ssize_t]
libc.posix_memalign.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t]


def mapped_bytes(address: int) -> int:
    """Return the size of a block that has pages of its own, 0 if it is in the heap."""
    header = ctypes.c_size_t.from_address(address - ctypes.sizeof(ctypes.c_size_t)).value
    return header & ~7 if header & IS_MAPPED else 0


def is_glibc() -> bool:
    """Return whether blocks have glibc's headers, which another malloc (jemalloc, musl) has not."""
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    size = 2 * ALWAYS_MAPPED
    address = libc.malloc(size)
    found = mapped_bytes(address) if address else 0
    libc.free(address)
    return size < found <= size + 2 * PAGE


def peak(keys: array.array, sizes: array.array, seed: int) -> int:
    """Replay the events and return the largest sum of heap and mapped blocks in bytes.

    Args:
        keys: Key of each event.
        sizes: Size of each event in bytes, 0 = free.
        seed: For the sizes of what is in the heap before, and for brief blocks.
    """
    chance = random.Random(seed)
    small = [libc.malloc(chance.randrange(24, 1000)) for _ in range(2 * NUM_FREE_BLOCKS)]
    for address in small[::2]:  # so that no two are adjacent, and joined
        libc.free(address)
    blocks = dict.fromkeys(keys, (0, 0))
    pointer = ctypes.c_void_p()
    libc.malloc_trim(0)
    start = libc.sbrk(0)
    mapped = largest = 0
    for key, size in zip(keys, sizes, strict=True):
        if chance.random() < BRIEF_SHARE:
            libc.posix_memalign(ctypes.byref(pointer), ALIGNMENT, chance.choice(BRIEF_SIZES))
            libc.free(pointer)
        if size >= ALWAYS_MAPPED:
            whole = -(-size // PAGE) * PAGE + PAGE
            blocks[key] = 0, whole
            mapped += whole
        elif size:
            if key < 0:
                address = libc.malloc(size)
            else:
                failed = libc.posix_memalign(ctypes.byref(pointer), ALIGNMENT, size)
                address = None if failed else pointer.value
            if not address:
                os._exit(3)
            own = mapped_bytes(address)
            blocks[key] = address, own
            mapped += own
        else:
            address, own = blocks[key]
            mapped -= own
            libc.free(address)
        largest = max(largest, mapped + libc.sbrk(0) - start)
    return largest


def main() -> None:
    """Replay standard input as often as told, each time in a process of its own."""
    events = array.array("q", sys.stdin.buffer.read())
    keys, sizes = events[::2], events[1::2]
    if not is_glibc():
        sys.exit(3)
    for repeat in range(int(sys.argv[1])):
        sys.stdout.flush()
        child = os.fork()
        if not child:
            print(peak(keys, sizes, repeat), flush=True)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            sys.exit(3)


if __name__ == "__main__":
    main()
