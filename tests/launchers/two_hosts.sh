#!/usr/bin/env bash
# Trains on two hosts that share only a network: namespaces that a pair of virtual links joins.
#   two_hosts.sh PYTHON CONFIG FOLDER
# Needs root and the package iproute2.
set -euo pipefail
python=$1 config=$2 folder=$3
root=$(cd "$(dirname "$0")/../.." && pwd)
names=(shakegpt0 shakegpt1)
stop() {
  for name in "${names[@]}"; do
    ip netns del "$name" 2>/dev/null || true
    rm -rf "/etc/netns/$name"
  done
}
trap stop EXIT
stop
for name in "${names[@]}"; do
  ip netns add "$name"
  mkdir -p "/etc/netns/$name"  # its files stand in for those of /etc
  printf '127.0.0.1 localhost\n10.99.0.1 host0\n10.99.0.2 host1\n' >"/etc/netns/$name/hosts"
done
ip link add link0 netns shakegpt0 type veth peer name link1 netns shakegpt1
for i in 0 1; do
  ip -n "shakegpt$i" addr add "10.99.0.$((i + 1))/24" dev "link$i"
  ip -n "shakegpt$i" link set "link$i" up
  ip -n "shakegpt$i" link set lo up
done
train() { # process, arguments...
  local i=$1
  shift
  ip netns exec "shakegpt$i" unshare --uts sh -c "hostname host$i; exec \"\$@\"" sh "$python" "$root/run_train.py" --config "$config" \
    --workdir "$folder/run" --coordinator_address=host0:7000 --num_processes=2 \
    --process_id="$i" "$@"
}
cd "$folder"
train 1 & other=$!
train 0
wait "$other"
