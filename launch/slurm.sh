#!/bin/bash
# Fine-tune on several nodes of a Slurm cluster: sbatch launch/slurm.sh recipe.yaml
#
# Submit it in the checkout of lora_chat, in a folder that every node shares and with .venv installed as README.md shows.
# Home is shared too, or set XDG_CACHE_HOME and XDG_CONFIG_HOME to shared folders: the cache has the encoded data, the
# configuration has the key with which checkpoints are signed. Change the lines below to suit the cluster.
#
# Five minutes before the time limit the processes commit a checkpoint and stop, and the job is queued again; the same
# command then continues the newest run of the recipe. `scancel --signal=USR1 --batch JOB` does the same at any time.
#SBATCH --job-name=lora-chat
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -u
recipe=${1:?usage: sbatch launch/slurm.sh RECIPE}
python=${PYTHON:-.venv/bin/python}
processes=${SLURM_GPUS_ON_NODE:-1}
restart=${SLURM_RESTART_COUNT:-0}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs may have the same first node
threads=$((${SLURM_CPUS_PER_TASK:-1} / processes))
export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))

# A SIGTERM to srun would kill the processes without a checkpoint, so Slurm sends it to the tasks instead.
# On `scancel JOB` and preemption Slurm has sent it already, and a second one would cut the checkpoint short.
stopped=no
trap 'stopped=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
trap : TERM

# The first node that has stopped must not end the others, which may still write the checkpoint.
srun --kill-on-bad-exit=0 --wait=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    "$python" -m torch.distributed.run --nnodes "$SLURM_NNODES" --nproc-per-node "$processes" \
    --rdzv-backend c10d --rdzv-endpoint "$head:$port" --rdzv-id "$SLURM_JOB_ID-$restart" --shutdown-timeout 240 \
    -m lora_chat sft "$recipe" --resume &
step=$!
while true; do
    wait "$step" # a trap ends it early
    code=$?
    kill -0 "$step" 2>/dev/null || break
done

if [ "$stopped" = yes ] && [ "$code" -ne 0 ] && [ "$restart" -lt 50 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
