#!/usr/bin/env bash
#SBATCH --job-name=inlay
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
# One search on the nodes of one Slurm job, token on; two minutes before the time is up it stops and queues itself again:
#   sbatch [--nodes=8 --gpus-per-node=4 ...] cluster/deploy/slurm.sh JOB.yaml [options of inlay submit]
# Job file, texts, parent, workspace and the Python environment lie on a file system that all nodes share.
set -euo pipefail
job=$1
shift
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_JOB_STOP_WAIT_TIME_S=8
python -c 'from inlay.cluster.ray_token import protect_token; protect_token()'

head=$SLURMD_NODENAME
address=$(hostname --ip-address | cut -d ' ' -f 1)
port=$((20000 + SLURM_JOB_ID % 5000 * 4))  # and the three above it: nodes may be shared with other jobs
server=http://127.0.0.1:$((port + 1))
id=slurm-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
log=inlay-ray-$SLURM_JOB_ID.log
node=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --block --disable-usage-stats)

trap 'kill $(jobs -p) 2> /dev/null || true; wait' EXIT
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
  ray start --head --node-ip-address="$address" --port="$port" --include-dashboard=true --dashboard-host=127.0.0.1 \
  --dashboard-port="$((port + 1))" --dashboard-agent-listen-port="$((port + 2))" "${node[@]}" >> "$log" 2>&1 &
others=$((SLURM_JOB_NUM_NODES - 1))
if [ "$others" -gt 0 ]; then
  srun --overlap --nodes="$others" --ntasks="$others" --exclude="$head" \
    ray start --address="$address:$port" --dashboard-agent-listen-port="$((port + 3))" "${node[@]}" >> "$log" 2>&1 &
fi

nodes() {
  ray list nodes --address "$server" --filter state=ALIVE --format json 2> /dev/null |
    python -c 'import json, sys; print(len(json.load(sys.stdin)))' 2> /dev/null || echo 0
}
deadline=$((SECONDS + 300))
until [ "$(nodes)" -ge "$SLURM_JOB_NUM_NODES" ]; do
  if [ "$SECONDS" -gt "$deadline" ]; then
    echo "inlay: $(nodes) of $SLURM_JOB_NUM_NODES nodes came up within 300 s; see $log" >&2
    exit 1
  fi
  sleep 2
done

again() {
  trap '' TERM
  inlay stop "$id" --address "$server" || true
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap again TERM
inlay submit "$job" --id "$id" --wait --address "$server" "$@" &
code=0
wait $! || code=$?
# 0, 2, 3 and 4 are the search's own end or the job's mistake; anything else is a head that was lost.
case $code in 0 | 2 | 3 | 4) exit "$code" ;; esac
if [ "${SLURM_RESTART_COUNT:-0}" -ge 5 ]; then
  exit "$code"
fi
echo "inlay: the job server was lost (exit code $code); the search is queued again and goes on" >&2
scontrol requeue "$SLURM_JOB_ID"
