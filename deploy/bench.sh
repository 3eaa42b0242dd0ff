#!/usr/bin/env bash
# Training and sampling beside the same networks in PyTorch, in turns: speeds and their ratios, as lines of JSON.
#
#   deploy/bench.sh                      all cases of the CPU, about 20 minutes
#   deploy/bench.sh train-small          one of them; --help lists them, with those of a CUDA card
#   deploy/bench.sh parts                the parts of a step by themselves: our kernels beside libtorch's operators
#   deploy/bench.sh --rounds 3           fewer turns: a first look
#
# PyTorch is installed once into an environment of its own in the per-user cache. What else runs on the machine slows both
# sides; for figures to quote, let nothing else run.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/prepare.sh

if [ "${1:-}" = parts ]; then
  exec cargo bench --quiet -p hdd-expert-runtime --bench parts -- "${@:2}"
fi
environment=$(deploy/bench/environment.sh)
cargo build --release --quiet -p hdd-router-service --example bench
target=$(cargo metadata --format-version 1 --no-deps | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
exec "$environment/bin/python" deploy/bench/compare.py --ours "$target/release/examples/bench" "$@"
