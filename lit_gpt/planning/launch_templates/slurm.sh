#!/bin/bash
# {{ run }} on {{ nodes * per_node }} x {{ device }}. Start with: sbatch {{ file }}
#SBATCH --job-name={{ label }}
#SBATCH --nodes={{ nodes }}
#SBATCH --ntasks-per-node={{ per_node }}
{% if is_gpu %}
#SBATCH --gpus-per-node={{ per_node }}
{% endif %}
#SBATCH --cpus-per-task=8
{% if minutes %}
#SBATCH --time={{ minutes }}
{% endif %}
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%j.log

# One task a device, each with a log of its own: logs/<job>/<task>.log.
source .venv/bin/activate
mkdir -p logs/$SLURM_JOB_ID
srun --kill-on-bad-exit=1 --output=logs/%j/%t.log --open-mode=append \
    python -m lit_gpt fit --config {{ config | quoted }} --ckpt_path auto \
    --trainer.num_nodes {{ nodes }} --trainer.devices {{ per_node }}
code=$?

# 143: saved two minutes before the time limit (--signal). 75: ended by HangGuard. A failed node requeues the job itself.
case $code in
    75 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $code
