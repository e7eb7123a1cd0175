"""Training on a corpus that is larger than the disk: tokenised while it is read, in an order that can be resumed.

In stages: `documents` yields texts from remote shards or a Hugging Face stream, each with the place at which reading
can begin again; `tokens` turns them into one endless stream of ids; `blocks` cuts that into blocks of so many windows
and keeps the latest on disk, and permutes the windows within each block.

A shuffle buffer, the usual way, cannot do this: what it holds depends on everything that was read before, so that a
resumed run either repeats and loses samples or reads the whole stream again. Here window w of block b is a pure
function of (stream, seed, b, w). The state is a block, an offset in it and the place in the stream where the block
begins; any number of processes share a step in the same order.
"""
