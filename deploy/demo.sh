#!/usr/bin/env bash
# The whole journey on this machine: a bootstrap, four contributors and an aggregator, each its own process with its own key,
# data folder and port on loopback, make a model together; then a client asks it for pictures.
#
#   deploy/demo.sh            16 prompts, 300 images and 1,500 steps an expert
#   deploy/demo.sh --quick    a first look: 400 steps, one picture a prompt
#   deploy/demo.sh --full     every image of every cluster, 6,000 steps: about an hour on two cores
#   deploy/demo.sh --fresh    forget what an earlier run trained, first
#
# What is trained stays in demo/ and is used again. The pictures are demo/samples.png.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/prepare.sh

size=normal steps=1500 count=4 limit=(--limit 300) home=demo/network minutes=10
for flag in "$@"; do
  case $flag in
    --quick) size=quick steps=400 count=1 home=demo/quick minutes=4 ;;
    --full) size=full steps=6000 limit=() home=demo/full minutes=60 ;;
    --fresh) rm -rf demo ;;
    -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) die "unknown flag $flag; --help lists them." ;;
  esac
done

started=$SECONDS
mkdir -p "$home"
free=$(df -Pm "$home" | awk 'NR==2 {print $4}')
[ "$free" -ge 2000 ] || die "this disk has $free MB free and the demo needs 2000; free some."

say "building hdd-node (the first time 8 to 15 minutes, most of it libtorch's bindings; log: demo/build.log)"
cargo build --release -p hdd-node > demo/build.log 2>&1 || { tail -n 30 demo/build.log >&2; die "the build failed; all of its output is in demo/build.log."; }
node=$(cargo metadata --format-version 1 --no-deps | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')/release/hdd-node
"$node" --version

# Four experts and a router train at once: each gets its share of the cores instead of fighting for all of them.
threads=$(( cores / 4 )); [ "$threads" -ge 1 ] || threads=1
export HDD_THREADS=$threads
say "time budget on $cores cores ($threads thread(s) a process): training about $(( minutes * 2 / (cores < 8 ? cores : 8) )) minutes, sampling about one"

pids=()
stop() {
  trap - EXIT INT TERM
  [ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null || true
  for _ in $(seq 100); do jobs -pr | grep -q . || break; sleep 0.1; done
  [ ${#pids[@]} -eq 0 ] || kill -9 "${pids[@]}" 2>/dev/null || true
  wait 2>/dev/null || true
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

launch() { # launch NAME COMMAND...: a node with its own folder, log and free port
  local name=$1; shift
  mkdir -p "$home/$name"
  : > "$home/$name.log"
  "$node" "$@" --data "$home/$name" --listen /ip4/127.0.0.1/tcp/0 2>> "$home/$name.log" >&2 &
  pids+=($!)
  names+=("$name")
}
names=()
alive() { # each process, or the reason why one is gone
  local i
  for i in "${!pids[@]}"; do
    kill -0 "${pids[$i]}" 2>/dev/null || { tail -n 15 "$home/${names[$i]}.log" >&2; die "${names[$i]} ended; its log is $home/${names[$i]}.log."; }
  done
}

launch bootstrap relay
for _ in $(seq 150); do
  address=$(grep -oE -- '/ip4/127.0.0.1/tcp/[0-9]+/p2p/[A-Za-z0-9]+' "$home/bootstrap.log" | head -n 1 || true)
  [ -n "$address" ] && break
  alive; sleep 0.2
done
[ -n "$address" ] || die "the bootstrap did not come up; its log is $home/bootstrap.log."
say "bootstrap: $address"
export HDD_BOOTSTRAP=$address

# Objective of each cluster's expert. An epsilon network's errors are divided by alpha at high noise: the network is
# preconditioned against that, and its loss weighed toward high noise (see README.md).
contribute() { # contribute CLUSTER FLAGS...
  local cluster=$1; shift
  launch "cluster$cluster" contribute --name "cluster$cluster" --cluster "$cluster" --steps "$steps" ${limit[@]+"${limit[@]}"} "$@"
}
contribute 0 --objective velocity
contribute 1 --objective velocity
contribute 2 --objective epsilon --precondition 0.7 --inverse-alpha 100
contribute 3 --objective velocity
launch aggregator assemble --per-cluster 1
say "four contributors and an aggregator are at work; their logs are in $home/"

line() { tail -n 1 "$1" | cut -c1-110; }
ready() { # every contributor has published, and the aggregator's last word is that it serves them all
  local cluster
  for cluster in 0 1 2 3; do grep -q '^published' "$home/cluster$cluster.log" || return 1; done
  grep '^serving' "$home/aggregator.log" | tail -n 1 | grep -q 'serving 4 experts for 4 of 4 clusters'
}
shown=$SECONDS
until ready; do
  alive
  if grep -q '^refused:' "$home/aggregator.log"; then grep '^refused:' "$home/aggregator.log" >&2; die "the aggregator refused an expert (--fresh trains anew)."; fi
  if [ $(( SECONDS - shown )) -ge 20 ]; then
    shown=$SECONDS
    say "after $(( SECONDS - started )) s:"
    for name in cluster0 cluster1 cluster2 cluster3 aggregator; do say "  $name: $(line "$home/$name.log")"; done
  fi
  sleep 1
done
say "all four experts are admitted, $(( SECONDS - started )) s after the start:"
grep '^admitted' "$home/aggregator.log" | tail -n 4
peak=$(for pid in "${pids[@]}"; do awk '/VmHWM/ {print $2}' "/proc/$pid/status" 2>/dev/null || true; done | awk '{s += $1} END {printf "%.1f", s / 1e6}')
say "memory of the six processes at their peaks together: $peak GB"

HDD_THREADS=$cores "$node" experts --data "$home/client"
HDD_THREADS=$cores "$node" evaluate --data "$home/client" --prompts deploy/demo-prompts.txt --count "$count" --steps 30 --seed 1 \
  --out demo/samples.png --samples-json demo/samples.json --report demo/report.json
say "$size demo done in $(( SECONDS - started )) s; the pictures with their prompts are demo/samples.png"
