#!/bin/bash
# One potential on several nodes: a Dask scheduler, workers on every node, the job on the first. Settings: mlip-pace.env.
#SBATCH --job-name=mlip-pace
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -u

image=${IMAGE:-mlip-pace.sif}
data=${DATA:-data}
out=${OUT:-out}
mkdir -p "$out"

# Other users share this network: all of it is TLS, with a certificate for this job alone.
tls=$(mktemp -d "$PWD/.mlip-pace-tls-XXXXXX")
openssl req -x509 -newkey rsa:3072 -nodes -days 30 -subj /CN=mlip-pace -keyout "$tls/key.pem" -out "$tls/cert.pem" 2>/dev/null || exit 1
cat >"$tls/env" <<'ENV'
DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=True
DASK_DISTRIBUTED__COMM__TLS__CA_FILE=/tls/cert.pem
DASK_DISTRIBUTED__COMM__TLS__SCHEDULER__CERT=/tls/cert.pem
DASK_DISTRIBUTED__COMM__TLS__SCHEDULER__KEY=/tls/key.pem
DASK_DISTRIBUTED__COMM__TLS__WORKER__CERT=/tls/cert.pem
DASK_DISTRIBUTED__COMM__TLS__WORKER__KEY=/tls/key.pem
DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT=/tls/cert.pem
DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY=/tls/key.pem
MLIP_PACE_RUN_SCHEDULER=/tls/scheduler.json
ENV
[ -f mlip-pace.env ] && cat mlip-pace.env >>"$tls/env"

inside=(--containall --env-file "$tls/env" --bind "$tls:/tls" --bind "$data:/data:ro" --bind "$out:/out")
for name in SLURM_MEM_PER_NODE SLURM_MEM_PER_CPU; do
  [ -n "${!name:-}" ] && inside+=(--env "$name=${!name}")
done
once=(srun --overlap --nodes=1 --ntasks=1)

# USR1 is for the job alone, but SLURM sends it to all.
"${once[@]}" apptainer exec "${inside[@]}" "$image" sh -c 'trap "" USR1; exec dask scheduler --protocol tls --port 0 \
  --scheduler-file /tls/scheduler.json --no-dashboard --dashboard-address 127.0.0.1:0' &
helpers=($!)
srun --overlap --ntasks-per-node=1 apptainer run "${inside[@]}" "$image" worker &
helpers+=($!)
"${once[@]}" apptainer run "${inside[@]}" "$image"
code=$?
kill "${helpers[@]}" 2>/dev/null
wait
rm -r "$tls"

# 300 s before the end of its time the job gets USR1 and ends with 138, progress kept. What continues goes back into the queue.
case $code in
68 | 74 | 75 | 124 | 130 | 138 | 140 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $code
