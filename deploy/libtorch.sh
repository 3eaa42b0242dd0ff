#!/usr/bin/env bash
# Finds or installs libtorch and prints its folder, for use as LIBTORCH.
#
#   LIBTORCH=$(deploy/libtorch.sh)
#
# Order: a LIBTORCH that is already set; the per-user cache; else the torch wheel from the Python package index: whole where
# there is an NVIDIA card, only its CPU libraries on other x86-64 Linux machines, plain elsewhere.
# The cache is ${HDD_CACHE:-${XDG_CACHE_HOME:-~/.cache}/hdd-node}.
set -euo pipefail
export PIP_ROOT_USER_ACTION=ignore

version=2.11.0
say() { printf '%s\n' "$*" >&2; }
die() { say "libtorch: $*"; exit 1; }

version_in() { # the version of the libtorch in folder $1
  if [ -f "$1/build-version" ]; then cat "$1/build-version"
  elif [ -f "$1/version.py" ]; then sed -n "s/^__version__ = '\([^']*\)'.*/\1/p" "$1/version.py"
  fi
}

if [ -n "${LIBTORCH:-}" ]; then
  [ -d "$LIBTORCH/lib" ] && [ -d "$LIBTORCH/include" ] ||
    die "LIBTORCH=$LIBTORCH holds no lib/ and include/; point it at a libtorch $version, or unset it to have one installed."
  found=$(version_in "$LIBTORCH")
  case "$found" in
    "$version" | "$version"+*) ;;
    "") die "LIBTORCH=$LIBTORCH does not say its version (no build-version, no version.py); unset it to have $version installed." ;;
    *) die "LIBTORCH=$LIBTORCH is version $found, this project needs $version; unset it to have that one installed." ;;
  esac
  printf '%s\n' "$LIBTORCH"; exit 0
fi

cache=${HDD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hdd-node}
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then kind=cuda; need=9000
elif [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ]; then kind=cpu; need=3000
else kind=plain; need=3000; fi
home=$cache/libtorch-$version-$kind
[ -f "$home/torch/build-version" ] && { printf '%s\n' "$home/torch"; exit 0; }

python=${PYTHON:-python3}
command -v "$python" >/dev/null 2>&1 || die "no Python found; install Python 3 with pip (Debian: apt install python3-pip), or set LIBTORCH to a libtorch $version."
"$python" -m pip --version >/dev/null 2>&1 || die "$python has no pip; install it (Debian: apt install python3-pip), or set LIBTORCH to a libtorch $version."
mkdir -p "$cache" || die "cannot write to $cache; set HDD_CACHE to a folder that you own."
free=$(df -Pm "$cache" | awk 'NR==2 {print $4}')
[ "$free" -ge "$need" ] || die "$cache has $free MB free and $need MB are needed while unpacking; free some, or set HDD_CACHE to a folder on another disk."

work=$(mktemp -d "$cache/.libtorch-XXXXXX")
trap 'rm -rf "$work"' EXIT
pip() { "$python" -m pip install --quiet --no-compile --no-cache-dir --disable-pip-version-check --target "$work" "$@" >&2; }
failed="could not install torch $version from the Python package index; check the connection and that $("$python" --version) has a wheel for it, or set LIBTORCH to a libtorch $version."

if [ $kind = cpu ]; then
  say "libtorch: installing the CPU libraries of torch $version into $home (550 MB download, about 1 to 3 minutes, once)"
  pip --no-deps "torch==$version" nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85 || die "$failed"
  lib=$work/torch/lib
  rm -f "$lib"/libtorch_cuda*.so "$lib"/libc10_cuda.so "$lib"/libcaffe2_nvrtc.so "$lib"/libtorch_nvshmem.so "$lib"/libtorch_python.so \
    "$lib"/libtorch_global_deps.so "$lib"/libtorch.so "$work"/nvidia/cu13/lib/*nvperf* "$work"/nvidia/cu13/lib/*pcsampling*
  # The wheel's libtorch.so pulls in CUDA; this one names the CPU libraries only.
  "${CXX:-c++}" -shared -o "$lib/libtorch.so" -x c++ /dev/null -Wl,--no-as-needed -L"$lib" -l:libtorch_cpu.so -l:libc10.so \
    -Wl,--allow-shlib-undefined -Wl,-rpath,'$ORIGIN' || die "the C++ compiler ${CXX:-c++} could not link libtorch.so; install one (Debian: apt install g++)."
  find "$work" -mindepth 1 -maxdepth 1 ! -name torch ! -name nvidia ! -name '*.dist-info' -exec rm -rf {} +
  find "$work/torch" -mindepth 1 -maxdepth 1 ! -name lib ! -name include ! -name version.py -exec rm -rf {} +
else
  say "libtorch: installing torch $version into $home ($([ $kind = cuda ] && echo '3 GB download, about 5 to 15' || echo '100 to 500 MB download, about 1 to 5') minutes, once)"
  pip "torch==$version" || die "$failed"
fi
# torch-sys reads this file to refuse another version; it is also the mark of a finished install.
version_in "$work/torch" > "$work/build-version"; mv "$work/build-version" "$work/torch/build-version"
rm -rf "$home"
mv "$work" "$home"
trap - EXIT
chmod 755 "$home"
printf '%s\n' "$home/torch"
