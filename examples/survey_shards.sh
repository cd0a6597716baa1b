#!/bin/bash
# One survey by many processes, which share its folder and nothing else. Each reads its own shards.
#
#   SLURM:      sbatch --array=0-7 examples/survey_shards.sh prompts.jsonl -o /shared/my-survey -m MODEL
#   torchrun:   torchrun --no-python --nproc-per-node 8 examples/survey_shards.sh prompts.jsonl -o …
#
# Every other option of `logitlens survey run` may follow, the same for all. The process that commits the
# last shard merges the table. Run it again to go on where it was left, with as many processes as you like.
set -eu

index=${SLURM_ARRAY_TASK_ID:-${RANK:?neither SLURM\'s array nor torchrun started this}}
index=$((index - ${SLURM_ARRAY_TASK_MIN:-0}))  # of --array=1-8 the first is 1
count=${SLURM_ARRAY_TASK_COUNT:-$WORLD_SIZE}
# A GPU for each process of a node. (--device-map cuda:1 would be another survey than --device-map cuda:0.)
if [ -n "${LOCAL_RANK:-}" ] && [ -z "${CUDA_VISIBLE_DEVICES:-}" ]; then
  export CUDA_VISIBLE_DEVICES=$LOCAL_RANK
fi
exec logitlens survey run "$@" --shard "$index/$count"
