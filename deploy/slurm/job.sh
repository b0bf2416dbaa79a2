#!/bin/bash
# One potential, or with `sbatch --array=0-3 deploy/slurm/job.sh` an ensemble. Settings: mlip-pace.env (deploy/apptainer.md).
#SBATCH --job-name=mlip-pace
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
# On a GPU, with pacemaker's BFGS (the default fit is on the CPU): sbatch --gres=gpu:1 deploy/slurm/job.sh
set -u

image=${IMAGE:-mlip-pace.sif}
data=${DATA:-data}
out=${OUT:-out}
mkdir -p "$out"

# Nothing of the host is seen inside but what is named here: SLURM's limits, so that mlip-pace keeps to them.
limits=()
for name in SLURM_CPUS_PER_TASK SLURM_MEM_PER_NODE SLURM_MEM_PER_CPU SLURM_ARRAY_TASK_ID; do
  [ -n "${!name:-}" ] && limits+=(--env "$name=${!name}")
done
[ -n "${SLURM_ARRAY_TASK_ID:-}" ] && limits+=(--env MLIP_PACE_RUN_MEMBER=auto)
settings=()
[ -f mlip-pace.env ] && settings+=(--env-file mlip-pace.env)
gpu=()
[ -n "${SLURM_JOB_GPUS:-}" ] && gpu+=(--nv --env MLIP_PACE_RUN_DEVICE=gpu --env MLIP_PACE_TRAINING_OPTIMIZER=BFGS)

srun --ntasks=1 apptainer run --containall "${gpu[@]}" "${settings[@]}" "${limits[@]}" \
  --bind "$data:/data:ro" --bind "$out:/out" "$image"
code=$?

# 300 s before the end of its time the job gets USR1 and ends with 138, progress kept. What continues goes back into the queue.
case $code in
124 | 130 | 138 | 140 | 143 | 74 | 75) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $code
