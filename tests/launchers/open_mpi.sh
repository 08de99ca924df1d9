#!/usr/bin/env bash
# Trains with `mpirun -n 2` of Open MPI on this machine.
#   open_mpi.sh PYTHON CONFIG FOLDER
# Needs the package openmpi-bin.
set -euo pipefail
python=$1 config=$2 folder=$3
root=$(cd "$(dirname "$0")/../.." && pwd)
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
train() {
  # Without --bind-to none, a process has one core.
  mpirun -n 2 --oversubscribe --bind-to none "$python" "$root/run_train.py" --config "$config" --workdir "$folder/run" "$@"
}
cd "$folder"
train --distributed
if train; then
  echo "two processes that do not know of each other were not rejected" >&2
  exit 1
fi
