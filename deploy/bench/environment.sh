#!/usr/bin/env bash
# Finds or makes the Python environment of the benchmarks and prints its folder.
#
# On x86-64 Linux without an NVIDIA card only torch's CPU libraries are fetched, 550 MB instead of 3 GB. The wheel's Python
# module cannot be loaded without CUDA's, so a small library stands in for them: every function that the module
# asks of them is there and returns 0.
set -euo pipefail
export PIP_ROOT_USER_ACTION=ignore

here=$(cd "$(dirname "$0")" && pwd)
die() { printf 'bench: %s\n' "$*" >&2; exit 1; }
cache=${HDD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hdd-node}
home=$cache/bench-$(cksum < "$here/requirements.txt" | cut -d' ' -f1)
[ -f "$home/complete" ] && { printf '%s\n' "$home"; exit 0; }

python=${PYTHON:-python3}
"$python" -m pip --version >/dev/null 2>&1 || die "$python has no pip; install Python 3 with pip (Debian: apt install python3-pip)."
printf 'bench: installing PyTorch into %s (once)\n' "$home" >&2
rm -rf "$home"
"$python" -m venv --without-pip "$home" || die "$python cannot make environments; install its venv module (Debian: apt install python3-venv)."
pip() { "$python" -m pip --python "$home/bin/python" install --quiet --no-warn-conflicts --no-cache-dir --disable-pip-version-check "$@" >&2 || die "could not install $*; check the connection."; }

stand_in() { # stand_in LIB: replaces CUDA's part of torch in folder LIB
  local lib=$1 base cudart
  cudart=$(echo "$lib"/../../nvidia/cu13/lib/libcudart.so.*)
  base=("$lib"/libtorch_cpu.so "$lib"/libc10.so "$lib"/libshm.so "$cudart" "$("${CXX:-c++}" -print-file-name=libstdc++.so.6)")
  rm "$lib"/libtorch_cuda*.so "$lib"/libc10_cuda.so "$lib"/libcaffe2_nvrtc.so "$lib"/libtorch_nvshmem.so "$lib"/libtorch.so
  comm -23 \
    <(nm -D --undefined-only "$lib/libtorch_python.so" | awk '$1 == "U" {print $2}' |
      grep -vE '^_?Py|@(GLIBC|GLIBCXX|CXXABI|GCC)' | sed 's/@.*//' | sort -u) \
    <(nm -D --defined-only "${base[@]}" | awk '{print $3}' | sed 's/@.*//' | sort -u) |
    awk '
      BEGIN { print ".bss\n.balign 16\nzero: .zero 4096" }
      { print ".globl " $1 }
      /^_ZT/ { # a type: its kind and its name
        print ".data\n.balign 16\n" $1 ": .quad _ZTVN10__cxxabiv117__class_type_infoE + 16, 1f\n1: .asciz \"" $1 "\""; next }
      { print ".text\n.type " $1 ", @function\n" $1 ":" }
      /get_gil_checker/ { print "leaq zero(%rip), %rax\nret"; next } # returns a reference
      { print "xorl %eax, %eax\nret" }
      END { print ".section .note.GNU-stack,\"\",@progbits" }' > "$lib/stand-in.s"
  "${CXX:-c++}" -shared -o "$lib/libtorch_cuda.so" "$lib/stand-in.s" -Wl,-soname,libtorch_cuda.so || die "the C++ compiler could not build $lib/stand-in.s."
  for name in libtorch.so libc10_cuda.so libcudnn.so.9 libcufile.so.0; do
    "${CXX:-c++}" -shared -o "$lib/$name" -x c++ /dev/null
  done
}

if [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] && ! nvidia-smi -L 2>/dev/null | grep -q GPU; then
  torch=$(grep '^torch==' "$here/requirements.txt")
  pip --no-deps "$torch" nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85
  stand_in "$(echo "$home"/lib/python3*/site-packages/torch/lib)"
  pip $(grep -v '^torch==' "$here/requirements.txt") typing-extensions sympy networkx jinja2 fsspec filelock numpy "setuptools<82"
else
  pip -r "$here/requirements.txt"
fi
"$home/bin/python" -c 'import torch' || die "PyTorch in $home cannot be loaded."
touch "$home/complete"
printf '%s\n' "$home"
