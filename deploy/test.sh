#!/usr/bin/env bash
# Every check of this project: format, lints, documents, the build without libtorch, and the tests. What CI runs.
# From nothing about 30 minutes on two cores, most of them compiling; 5 minutes when run again.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/prepare.sh

step() { say "== $1 (after $(( SECONDS / 60 )) min)"; }

step "format"
cargo fmt --all --check
step "build without libtorch: a relay for a small server (about 4 minutes from nothing)"
(unset LIBTORCH; cargo build --release --quiet -p hdd-node --no-default-features)
light=$(mktemp -d); trap 'rm -rf "$light"' EXIT
target=$(cargo metadata --format-version 1 --no-deps | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
cp "$target/release/hdd-node" "$light/hdd-node"
export HDD_NODE_LIGHT=$light/hdd-node
step "build (about 10 minutes from nothing, most of it libtorch's bindings)"
cargo build --release --quiet --workspace
export HDD_NODE=$target/release/hdd-node
"$HDD_NODE" --version
step "lints (about 3 minutes from nothing)"
cargo clippy --release --quiet --workspace --all-targets -- -D warnings
step "documents"
RUSTDOCFLAGS="-D warnings" cargo doc --release --quiet --workspace --no-deps
step "tests (about 5 minutes)"
cargo test --release --workspace --no-fail-fast
say "all checks passed in $(( SECONDS / 60 )) min"
