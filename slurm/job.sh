# What finetune.sh and sweep.sh share: `run [srun's options] VERB …` starts the processes, passes
# signals on, and has Slurm start the job again where that helps. The exit code of the first process
# that ends decides:
#
#   0  done, or stopped by a file STOP in the run's folder
#   2  a mistake of the user; it would happen again, as would a bug (1 and all others): no new start
#  75  saved after a signal (time limit, preemption): started again
#  76  lost the other processes, or hung; killed (128 + signal): started again, but not more often
#      than HPC_ECG_MAX_RESTARTS (default 5; every restart of this job counts)

site="${SLURM_SUBMIT_DIR:-.}/slurm/site.sh"
# modules and environments are often written for a shell that is less strict
if [ -f "$site" ]; then set +eu; source "$site"; set -eu; fi
# srun does not inherit --cpus-per-task since Slurm 22.05
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
# A process would see its own GPU only. It shall see all of the job's on its node and take that of
# its rank: all libraries then mean the same one by its number, and GPUs reach each other.
unset SLURM_GPUS_PER_TASK SLURM_TRES_PER_TASK

say() { printf '%(%F %T)T slurm: %s\n' -1 "$*" >&2; }

run() {
  local options=(--kill-on-bad-exit=1) said copier step signalled=yes code name
  while [[ $1 == -* ]]; do options+=("$1"); shift; done
  warn_of_site
  # what srun says of its tasks is kept beside the log; a signal to the job must not end the copying
  said=$(mktemp)
  exec 3> >(trap '' TERM USR1 USR2; exec tee "$said" >&2)
  copier=$!
  srun "${options[@]}" "${HPC_ECG_PYTHON[@]:-python}" -m hpc_ecg "$@" 2>&3 3>&- &
  step=$!
  exec 3>&-
  # through Slurm: srun itself takes TERM for an order to kill
  for name in TERM USR1 USR2; do
    trap "signalled=yes; scancel --quiet --signal=$name ${SLURM_JOB_ID:-} || true" "$name"
  done
  while [ -n "$signalled" ]; do  # which ends `wait` early
    signalled="" code=0
    wait "$step" || code=$?
  done
  wait "$copier" || true
  code=$(code_of_first "$said" "$code")
  rm -f "$said"
  start_again_after "$code"
  exit "$code"
}

# The others end because the first did, with codes that chance makes; srun returns the highest.
code_of_first() {
  local first
  first=$(sed -n 's/.*srun: error: [^ ]*: tasks\{0,1\} [^ ]*: //p' "$1" | head -n 1)
  case $first in
    "Exited with exit code "*) echo "${first##* }" ;;
    *) echo "$2" ;;
  esac
}

start_again_after() {
  local code=$1 why state
  case $code in
    0) return ;;
    75) why="saved after a signal" ;;
    76) why="a process lost the others, or hung" ;;
    129 | 1[3-9]?) why="a process was killed (exit code $code)" ;;
    *) say "ended with exit code $code, for the reason above: not started again"; return ;;
  esac
  if [ "$code" != 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -ge "${HPC_ECG_MAX_RESTARTS:-5}" ]; then
    say "$why; after ${SLURM_RESTART_COUNT:-0} restarts not once more: submit again to go on"
    return
  fi
  state=$(scontrol --oneliner show job "${SLURM_JOB_ID:-}" 2>&1 |
    grep -oE ' (JobState|Reason)=\w+' | xargs || true)
  case $state in
    "JobState=RUNNING "* | *"Reason=TimeLimit") ;;
    "") say "$why; no Slurm answers here: submit again to go on"; return ;;
    # cancelled by somebody, or on its way back into the queue already
    *) say "$why; Slurm ended the job: submit again to go on, if it is not back in the queue"
       return ;;
  esac
  if scontrol requeue "$SLURM_JOB_ID"; then
    say "$why: job $SLURM_JOB_ID is back in the queue, to go on"
  else
    say "$why; Slurm does not take the job back into the queue: submit again to go on"
  fi
}

# Who forgets to source slurm/site.sh before sbatch gets a job of Slurm's defaults.
warn_of_site() {
  local name wanted got advice="source slurm/site.sh in the shell that submits"
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
