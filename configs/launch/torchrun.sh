#!/bin/bash
# streaming-fineweb-edu on 16 x h100. Start on each of 2 machines, with the name or address of the first one:
#   bash torchrun.sh <first machine>
# With MIN_NODES below 2 the run continues with fewer machines when some fail, and with more when they come back;
# leave the strategy's `data` at auto then.
set -eu
# torch's agent keeps the addresses of processes that have ended; without this, new machines cannot join.
# An agent that does not reach the first machine for read_timeout seconds gives up, and closes the job for all others.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun --nnodes "${MIN_NODES:-2}:2" --nproc-per-node 8 --max-restarts "${MAX_RESTARTS:-10}" \
    --rdzv-backend c10d --rdzv-id streaming-fineweb-edu --rdzv-endpoint "${1:?name the first machine}:${PORT:-29500}" \
    --rdzv-conf read_timeout=600 \
    --log-dir logs --redirects 3 --tee 0:3 \
    -m lit_gpt fit --config configs/pretrain/streaming_fineweb_edu.yaml --ckpt_path auto --trainer.num_nodes 1 --trainer.devices auto
