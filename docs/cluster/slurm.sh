#!/bin/bash
# A stage on whole nodes under SLURM: sbatch docs/cluster/slurm.sh RUN VERB [FLAG …], where RUN is the run's folder;
# slurm.md has an example. Submit the same again to go on.
#SBATCH --job-name=anatomask
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=2
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
# --exclusive: at its end, `ray symmetric-run` ends every Ray of this account on the node.

run=$1
shift
. "$HOME/anatomask/.venv/bin/activate"
export RAY_AUTH_MODE=token RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # a shared file system needs longer than Ray's 30 s
head=$(hostname -I | cut -d' ' -f1) # this script runs on the first node; with several networks, choose
ended=${SLURM_SUBMIT_DIR:-.}/anatomask-$SLURM_JOB_ID.ended

# Ten minutes before the time is up: write a checkpoint and end.
trap 'touch "$run/stop"' USR1

# Where `ray start` fails, `ray symmetric-run` runs nothing and exits with 0. So what has ended well leaves a file.
srun --kill-on-bad-exit=0 ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --dashboard-host=127.0.0.1 --resources='{"trial_driver": 16}' -- \
    sh -c '"$@" && touch "$0"' "$ended" anatomask "$@" --cluster.address auto --cluster.gpu True &
ray=$!
wait "$ray"
code=$?
while kill -0 "$ray" 2>/dev/null; do # the signal has ended the first wait
    wait "$ray"
    code=$?
done
if ! rm "$ended" 2>/dev/null && [ "$code" -eq 0 ]; then
    echo "Ray did not start: see above" >&2
    code=1
fi
exit "$code"
