#!/bin/bash
# One survey by many processes, which share its folder and nothing else. Each reads its own shards.
#
#   SLURM:      sbatch --array=0-7 examples/survey_shards.sh prompts.jsonl -o /shared/my-survey -m MODEL --threads 8
#   torchrun:   torchrun --no-python --nproc-per-node 8 examples/survey_shards.sh prompts.jsonl -o … --threads 2
#
# Every other option of `logitlens survey run` may follow, the same for all. --threads is part of the plan: tasks
# that begin at once on machines with other numbers of processors would refuse each other without it. The process
# that commits the last shard merges the table. Run it again to go on where it was left, with as many processes as
# you like.
set -eu

index=${SLURM_ARRAY_TASK_ID:-${RANK:?neither SLURM\'s array nor torchrun started this}}
count=${SLURM_ARRAY_TASK_COUNT:-$WORLD_SIZE}
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then  # of --array=1-8 the first is 1, of --array=0-14:2 the second 2
  step=${SLURM_ARRAY_TASK_STEP:-1}
  index=$(((index - SLURM_ARRAY_TASK_MIN) / step))
  if [ $(((SLURM_ARRAY_TASK_MAX - SLURM_ARRAY_TASK_MIN) / step + 1)) -ne "$count" ]; then
    echo "survey_shards.sh: an array with gaps would leave shards out: use one like --array=0-7" >&2
    exit 2
  fi
fi
# A GPU for each process of a node. (--device-map cuda:1 would be another survey than --device-map cuda:0.)
if [ -n "${LOCAL_RANK:-}" ] && [ -z "${CUDA_VISIBLE_DEVICES:-}" ]; then
  export CUDA_VISIBLE_DEVICES=$LOCAL_RANK
fi
exec logitlens survey run "$@" --shard "$index/$count"
