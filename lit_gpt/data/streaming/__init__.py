"""Training on a corpus larger than the disk, which is tokenized while it is read, in a resumable order.

`documents` yields texts from remote shards or a Hugging Face stream, each with the position at which reading can
restart; `tokens` encodes them as one endless stream of ids; `blocks` cuts that into blocks of a fixed number of
windows, keeps the most recent ones on disk, and permutes the windows within each block.

A shuffle buffer, the usual approach, cannot do this: its content depends on everything that was read before, so that a
resumed run either repeats and loses samples or reads the whole stream again. Here window w of block b is a pure
function of (stream, seed, b, w). The state is a block, an offset in it and the stream position of the block's start;
any number of processes can share a step in the same order.
"""
