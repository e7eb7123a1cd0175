#!/bin/bash
# streaming-fineweb-edu on 16 x h100. Start with: sbatch slurm.sh
#SBATCH --job-name=streaming-fineweb-edu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=60
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%j.log

# One task a device, each with a log of its own: logs/<job>/<task>.log.
source .venv/bin/activate
mkdir -p logs/$SLURM_JOB_ID
srun --kill-on-bad-exit=1 --output=logs/%j/%t.log --open-mode=append \
    python -m lit_gpt fit --config configs/pretrain/streaming_fineweb_edu.yaml --ckpt_path auto \
    --trainer.num_nodes 2 --trainer.devices 8
code=$?

# 143: saved two minutes before the time limit (--signal). 75: ended by HangGuard. A failed node requeues the job itself.
case $code in
    75 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $code
