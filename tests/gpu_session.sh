#!/usr/bin/env bash
# What to train and time once a GPU is there, most important first, in two calls of a few minutes:
#     tests/gpu_session.sh FOLDER train
#     tests/gpu_session.sh FOLDER speed [NANOGPT]
# FOLDER gets the logs and runs, and results.txt a line for each figure as soon as it is known.
# NANOGPT is a folder with nanoGPT's model.py; its figures need torch. Further options in TINY, such
# as TINY="--config.model.n_embd=48 --config.train.num_steps=4", make it small, to try on a CPU.
set -uo pipefail
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
read -ra tiny <<<"${TINY:-}"

run() {  # NAME COMMAND...: keep its output; a failure does not end the session
  SECONDS=0
  "${@:2}" >"$out/$1.log" 2>&1 || echo "failed: $1" | tee -a "$out/results.txt"
  echo "$1: $SECONDS s" | tee -a "$out/results.txt"
}
train() {  # NAME CONFIG OPTIONS...
  run "$1" python -m shakegpt_jax train --config "$2" --workdir "$out/$1" "${@:3}" "${tiny[@]}"
  grep -hE "validation loss|training time|^device|^memory" "$out/$1.log" | tee -a "$out/results.txt"
}
time_step() {  # NAME OPTIONS...
  run "$1" python -m shakegpt_jax benchmark --json "${@:2}" "${tiny[@]}"
  grep -hE '"(work|seconds|characters_per_second|share_of_ceiling)"' "$out/$1.log" |
    tee -a "$out/results.txt"
}

case $2 in
train)
  train base-0 base
  run verse python -m shakegpt_jax generate --workdir "$out/base-0" --seed 0
  train record-0 record
  train record-1 record --config.train.seed=1
  train record-2 record --config.train.seed=2
  for change in optimizer.weight_decay=2.0 optimizer.weight_decay=12.0 model.dropout=0.0 \
    model.dropout=0.2; do
    train "base-$change" base "--config.$change"
  done
  ;;
speed)
  time_step base-step --config base --work train --work sample --sample_batch 1 --sample_batch 32
  if [ -n "${3:-}" ]; then
    for mode in "" compile; do
      # shellcheck disable=SC2086  # no mode is no argument
      run "nanogpt$mode" python tests/time_nanogpt.py "$3" base $mode
      tail -n 1 "$out/nanogpt$mode.log" | tee -a "$out/results.txt"
    done
  fi
  for draft in draft nodraft; do  # the time of three commands, each of which writes 20,000 more
    for length in 5000 25000; do
      run "$draft-$length" python -m shakegpt_jax generate --workdir "$out/base-0" "--$draft" \
        --max_new_tokens "$length"
    done
  done
  time_step bias --config base --work train --config.model.bias=True
  time_step record-step --config record --work train
  XLA_FLAGS=--xla_gpu_enable_command_buffer=+WHILE time_step graph --config base --work sample \
    --sample_batch 1
  ;;
esac
