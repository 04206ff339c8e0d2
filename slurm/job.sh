# Shared by finetune.sh and sweep.sh: `run [srun options] VERB …` starts the processes, forwards
# signals, and requeues the job if that helps. The exit code of the first process to end decides
# (hpc_ecg/jobs/requeue.py has the rule):
#
#   0  done, or stopped by a file STOP in the run's folder
#   2  user error; it would happen again, as would a bug (1 and all others): not restarted
#  75  saved after a signal (time limit, preemption): requeued; likewise if such a signal ended a
#      process that was not ready for it (128 + USR1, USR2 or TERM)
#  76  lost its peers or hung; likewise if killed (128 + signal): requeued at most
#      HPC_ECG_MAX_RESTARTS times (default 5; every restart of this job counts)
#  77  computed a step twice, with two results (engine.verify_every): requeued like 76, to other nodes

# A signal that comes before the processes run means the same as one that comes later.
asked=""
trap 'asked=yes' TERM USR1 USR2
# A job submitted from inside another one inherits what Slurm set for that one's steps, which srun
# would read. Without these, a step gets all that this job has.
unset SLURM_EXPORT_ENV SLURM_EXACT SLURM_OVERLAP SLURM_EXCLUSIVE SLURM_CPUS_PER_GPU SLURM_GRES \
  SLURM_STEP_GRES ${!SLURM_MEM_@} ${!SLURM_CPU_BIND@} ${!SLURM_GPUS@} ${!SLURM_GPU_@} \
  ${!SLURM_NTASKS_PER_G@} ${!SLURM_TRES_@} ${!PMI_@}
if [ -n "${SLURM_STEP_ID:-}" ]; then  # it was submitted from a step
  unset SLURM_DISTRIBUTION SLURM_HINT SLURM_THREADS_PER_CORE SLURM_OVERCOMMIT SLURM_MPI_TYPE
fi

site="$(dirname "${BASH_SOURCE[0]}")/site.sh"
# Module files often assume a less strict shell.
if [ -f "$site" ]; then set +eu; source "$site"; set -eu; fi
# Since Slurm 22.05, srun does not inherit --cpus-per-task.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
# With SLURM_GPUS_PER_TASK, Slurm would show each process only its own GPU. Each should see all of
# the job's GPUs on its node and take the one of its rank: then all libraries number the GPUs alike,
# and GPUs can reach each other.

say() { printf '%(%F %T)T slurm: %s\n' -1 "$*" >&2; }

run() {
  local options=(--kill-on-bad-exit=1) report copier step signalled=yes code name suspects
  while [[ $1 == -* ]]; do options+=("$1"); shift; done
  warn_of_site
  if [ -n "$asked" ]; then requeue_after 75; exit 75; fi
  # Keep what srun reports about its tasks. tee must survive a signal to the job.
  report=$(mktemp)
  exec 3> >(trap '' TERM USR1 USR2; exec tee "$report" >&2)
  copier=$!
  srun "${options[@]}" "${HPC_ECG_PYTHON[@]:-python}" -m hpc_ecg "$@" 2>&3 3>&- &
  step=$!
  exec 3>&-
  # Forward signals through Slurm: srun itself would kill its tasks on TERM.
  for name in TERM USR1 USR2; do
    trap "signalled=yes; scancel --quiet --signal=$name ${SLURM_JOB_ID:-} || true" "$name"
  done
  while [ -n "$signalled" ]; do  # a signal ends `wait` early
    signalled="" code=0
    wait "$step" || code=$?
  done
  wait "$copier" || true
  code=$(code_of_first "$report" "$code")
  # The last such line: a name in the log may look like one.
  suspects=$(sed -n 's/.*Suspect: \([A-Za-z0-9._,-]*\); keep it out with --exclude=\1$/\1/p' \
    "$report" | tail -n 1)
  rm -f "$report"
  requeue_after "$code" "$suspects"
  exit "$code"
}

# srun returns the highest exit code, but after the first process ends, the others' are arbitrary.
code_of_first() {
  local first
  first=$(sed -n 's/.*srun: error: [^ ]*: tasks\{0,1\} [^ ]*: //p' "$1" | head -n 1)
  case $first in
    "Exited with exit code "*) echo "${first##* }" ;;
    "User defined signal 1"*) echo 138 ;;
    "User defined signal 2"*) echo 140 ;;
    Terminated*) echo 143 ;;
    *) echo "$2" ;;
  esac
}

requeue_after() {
  local code=$1 suspects=${2:-} state decision restarts=${SLURM_RESTART_COUNT:-0}
  [ "$code" = 0 ] && return
  # Call scontrol in this shell: Python may run in a container without Slurm.
  state=$(scontrol --oneliner show job "${SLURM_JOB_ID:-}" || true)
  # The variable may be that of another job, from which this one was submitted.
  if [[ $state =~ \ Restarts=([0-9]+) ]]; then restarts=${BASH_REMATCH[1]}; fi
  if [[ $restarts -gt 0 && $SECONDS -lt 60 && $state =~ \ TimeLimit=(00:0[0-2]:[0-9]+) ]]; then
    say "stopped at once: Slurm sends the signal to save two minutes before the time limit, and" \
      "--time is ${BASH_REMATCH[1]}; submit again with more"
    return
  fi
  decision=$(trap '' TERM USR1 USR2
    "${HPC_ECG_PYTHON[@]:-python}" -m hpc_ecg.jobs.requeue "$code" "$restarts" \
      "${HPC_ECG_MAX_RESTARTS:-5}" "$state" || true)
  case $decision in
    "requeue: "*) ;;
    "end: "*) say "${decision#end: }"; return ;;
    *) say "ended with exit code $code; not started again, because" \
         "${HPC_ECG_PYTHON[*]:-python} -m hpc_ecg.jobs.requeue failed: submit again to continue"
       return ;;
  esac
  if scontrol requeue "$SLURM_JOB_ID"; then
    say "${decision#requeue: }: job $SLURM_JOB_ID is back in the queue, to continue"
    if [ "$code" = 77 ] && [ -n "$suspects" ]; then avoid "$suspects" "$state"; fi
  else
    say "${decision#requeue: }; Slurm refuses to requeue the job: submit again to continue"
  fi
}

# Exclude nodes from a job that waits in the queue, besides those that it excludes already.
avoid() {
  local nodes=$1
  if [[ $2 =~ \ ExcNodeList=([^\ \(]+) ]]; then nodes=${BASH_REMATCH[1]},$nodes; fi
  if scontrol update "JobId=$SLURM_JOB_ID" "ExcNodeList=$nodes"; then
    say "it will not run on $nodes; to allow them: scontrol update JobId=$SLURM_JOB_ID ExcNodeList="
  else
    say "Slurm refuses to keep it from $nodes: submit again with --exclude=$nodes"
  fi
}

# A shell that has not sourced slurm/site.sh submits the job with Slurm's defaults.
warn_of_site() {
  local name wanted got advice="source slurm/site.sh in the shell that submits"
  if ! command -v "${HPC_ECG_PYTHON[0]:-python}" > /dev/null; then
    say "warning: no program ${HPC_ECG_PYTHON[0]:-python}: set HPC_ECG_PYTHON in $site, as in" \
      "site.example.sh"
  fi
  for name in PARTITION ACCOUNT QOS; do
    wanted=SBATCH_$name got=SLURM_JOB_$name
    if [ -n "${!wanted:-}" ] && [ -n "${!got:-}" ] && [[ ,${!wanted}, != *,${!got},* ]]; then
      say "warning: $wanted is ${!wanted}, but the job has ${!got}; $advice"
    fi
  done
  if [ -n "${!SBATCH_GPUS*}${SBATCH_GRES:-}" ] && [ -z "${SLURM_JOB_GPUS:-}" ]; then
    say "warning: the site's settings ask for GPUs, but the job has none; $advice"
  fi
}
