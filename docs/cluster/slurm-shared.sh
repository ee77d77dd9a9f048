#!/bin/bash
# A stage on parts of nodes that others use too, under SLURM: sbatch docs/cluster/slurm-shared.sh RUN VERB [FLAG …], where
# RUN is the run's folder; slurm.md has an example. Submit the same again to go on.
#SBATCH --job-name=anatomask
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600

run=$1
shift
. "$HOME/anatomask/.venv/bin/activate"
export RAY_AUTH_MODE=token
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # which srun no longer takes from sbatch
head=$(hostname -I | cut -d' ' -f1) # this script runs on the first node; with several networks, choose
# Ports and a folder of this job's own. Nothing here runs `ray stop`, which would end the Ray of other jobs.
port=$((20000 + 10 * (SLURM_JOB_ID % 3000)))
megabytes=${SLURM_MEM_PER_NODE:-65536}
folder=/tmp/anatomask-$SLURM_JOB_ID # which no other account may enter: Ray trusts what it finds there
srun mkdir -m 700 "$folder" || exit 1
own=(--temp-dir="$folder/ray" --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}"
    --memory=$((megabytes * 1048576 * 6 / 10)) --object-store-memory=$((megabytes * 1048576 / 4))
    --dashboard-agent-listen-port=$((port + 3)) --node-manager-port=$((port + 4)) --object-manager-port=$((port + 5))
    --min-worker-port=0 --max-worker-port=0 --block)

trap 'touch "$run/stop"' USR1

srun --overlap --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" ray start --head --port="$port" \
    --ray-client-server-port=$((port + 1)) --dashboard-port=$((port + 2)) --dashboard-host=127.0.0.1 \
    --resources='{"trial_driver": 16}' "${own[@]}" &
until RAY_ADDRESS=$head:$port ray status >/dev/null 2>&1; do
    if ! kill -0 $! 2>/dev/null; then
        echo "Ray did not start: see above" >&2
        exit 1
    fi
    sleep 2
done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    srun --overlap --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$SLURMD_NODENAME" \
        ray start --address="$head:$port" "${own[@]}" &
fi
anatomask "$@" --cluster.address "$head:$port" --cluster.gpu True --cluster.wait-minutes 10 &
program=$!
wait "$program"
code=$?
while kill -0 "$program" 2>/dev/null; do # the signal has ended the first wait
    wait "$program"
    code=$?
done
exit "$code" # SLURM ends the job's other steps, and with them this Ray
