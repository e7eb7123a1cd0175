#!/bin/bash
# {{ run }} on {{ nodes * per_node }} x {{ device }}. Start on each of {{ nodes }} machine{{ "s" if nodes > 1 }}, with the name or address of the first one:
#   bash {{ file }} <first machine>
# With MIN_NODES below {{ nodes }} the run continues with fewer machines when some fail, and with more when they come back;
# leave the strategy's `data` at auto then.
set -eu
# torch's agent keeps the addresses of processes that have ended; without this, new machines cannot join.
# An agent that does not reach the first machine for read_timeout seconds gives up, and closes the job for all others.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun --nnodes "${MIN_NODES:-{{ nodes }}}:{{ nodes }}" --nproc-per-node {{ per_node }} --max-restarts "${MAX_RESTARTS:-10}" \
    --rdzv-backend c10d --rdzv-id {{ label }} --rdzv-endpoint "${1:?name the first machine}:${PORT:-29500}" \
    --rdzv-conf read_timeout=600 \
    --log-dir logs --redirects 3 --tee 0:3 \
    -m lit_gpt fit --config {{ config | quoted }} --ckpt_path auto --trainer.num_nodes 1 --trainer.devices auto
