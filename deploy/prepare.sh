# Sourced by the scripts here: checks the prerequisites, then exports LIBTORCH. Each fault is one sentence with its remedy.
say() { printf '%s\n' "$*"; }
die() { printf '%s\n' "${0##*/}: $*" >&2; exit 1; }

command -v cargo >/dev/null 2>&1 || die "no cargo found; install Rust 1.95 or newer from https://rustup.rs"
rust=$(rustc --version | awk '{print $2}')
[ "$(printf '1.95.0\n%s\n' "$rust" | sort -V | head -n 1)" = 1.95.0 ] || die "Rust $rust is too old; run 'rustup update' (1.95 or newer is needed)."
command -v "${CXX:-c++}" >/dev/null 2>&1 || die "no C++ compiler (${CXX:-c++}) found; install one (Debian: apt install g++, macOS: xcode-select --install)."
[ "${HDD_WITHOUT_TORCH:-}" ] || { LIBTORCH=$("$(dirname "${BASH_SOURCE[0]}")/libtorch.sh") || exit 1; export LIBTORCH; }
cores=$(nproc 2>/dev/null || sysctl -n hw.ncpu)
