#!/bin/bash
# Find a CUDA toolkit for `make cuda`, or fetch one (deps/cuda.txt) into build/cuda, and write what the Makefile needs to
# know of it to build/cuda.mk. Silent and quick when that is there. The folder appears only whole, as the model's does.
# An installed toolkit is used if it is 13.0 or later and links with cuBLASLt and NCCL: nvcc on PATH, or /usr/local/cuda.
#   CUDA=fetch tools/cuda.sh     fetch, whatever is installed
#   CUDA=DIR tools/cuda.sh       that toolkit and no other
set -euo pipefail
cd "$(dirname "$0")/.."
readonly build=${BUILD:-build} pin=deps/cuda.txt
readonly tree=$build/cuda new=$build/.cuda.$$
# what neither compiling, linking nor running needs: 140 MB
readonly unused=(cu13/bin/nvlink cu13/bin/__nvcc_device_query cu13/bin/bin2c cu13/lib/libnvvm.so.4 cu13/lib/libnvblas.so.13
    cu13/lib/libcudadevrt.a cu13/lib/libcudart.so.13 nccl/lib/libnccl_device.bc nccl/lib/libnccl_device.ltoir)

fail() {
    echo "cuda: $*" >&2
    exit 1
}

# ---- an installed one ----

links() { # TOOLKIT [WHEELS]: a plug-in made with it finds all that ours needs
    local release
    release=$("$1/bin/nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\)\..*/\1/p')
    [ "${release:-0}" -ge 13 ] || return
    printf '%s\n' '#include <cublasLt.h>' '#include <nccl.h>' 'size_t both(void);' \
        'size_t both(void) { int v; ncclGetVersion(&v); return cublasLtGetVersion(); }' >"$new/probe.cu"
    "$1/bin/nvcc" ${2:+-isystem "$2/cu13/include" -isystem "$2/nccl/include"} -Xcompiler -fPIC -c -o "$new/probe.o" \
        "$new/probe.cu" &&
        ${CXX:-g++} -shared -Wl,-z,defs -o "$new/probe.so" "$new/probe.o" -L"$1/lib64" -L"$1/lib" \
            ${2:+-L"$2/cu13/lib" -L"$2/nccl/lib"} -lcudart_static -l:libcublasLt.so.13 -l:libnccl.so.2 -lpthread -ldl -lrt
}

wheels() { # where Python packages such as PyTorch's keep cuBLAS and NCCL; nothing: they have none
    python3 -c 'import importlib.util as u; s = u.find_spec("nvidia"); print([*s.submodule_search_locations][0] if s else "")' \
        2>/dev/null
}

installed() { # the first toolkit that links, alone or with the wheels' libraries: TOOLKIT [WHEELS]; else nothing
    local nvcc toolkit
    for nvcc in "$(command -v nvcc)" /usr/local/cuda/bin/nvcc; do
        [ -x "$nvcc" ] || continue
        nvcc=$(readlink -f "$nvcc")
        toolkit=${nvcc%/bin/nvcc}
        for with in '' "$(wheels)"; do
            ! links "$toolkit" "$with" >/dev/null 2>&1 || {
                echo "$toolkit" "$with"
                return
            }
        done
    done
}

# ---- the fetched one ----

fetch() {
    ! cmp -s "$pin" "$tree/.pin" || return 0
    case $(uname -m) in x86_64 | aarch64) ;; *)
        fail "no CUDA toolkit for $(uname -m) can be fetched: install one, and name it with CUDA=DIR" ;;
    esac
    /usr/bin/python3 -m pip --version >/dev/null 2>&1 || fail "pip is missing: run \`make deps\`"
    echo "cuda: fetching the CUDA toolkit, cuBLAS and NCCL (880 MB)" >&2
    # pip unpacks in TMPDIR: the wheels go with the folder, also where this is interrupted
    TMPDIR=$(realpath "$new") /usr/bin/python3 -m pip install --quiet --no-deps --no-compile --no-cache-dir \
        --only-binary :all: --disable-pip-version-check --root-user-action ignore --require-hashes --requirement "$pin" \
        --target "$new/tree" >"$build/cuda-fetch.log" 2>&1 ||
        fail "pip could not fetch it: $(grep -m 1 ERROR "$build/cuda-fetch.log" || tail -n 1 "$build/cuda-fetch.log")" \
            "(all of it: $build/cuda-fetch.log)"
    (cd "$new/tree/nvidia" && rm -f "${unused[@]}")
    cp "$pin" "$new/tree/.pin"
    rm -rf "$tree"
    mv -T "$new/tree" "$tree"
    rm -f "$build/cuda-fetch.log"
}

# ---- what the Makefile reads ----

describe_installed() { # TOOLKIT [WHEELS]
    cat <<EOF
# an installed toolkit: $("$1/bin/nvcc" --version | sed -n 's/^Cuda.*, //p')
NVCC := $1/bin/nvcc
CUDA_CPPFLAGS :=${2:+ -isystem $2/cu13/include -isystem $2/nccl/include}
CUDA_LDFLAGS := -L$1/lib64 -L$1/lib${2:+ -L$2/cu13/lib -L$2/nccl/lib -Wl,-rpath,$2/cu13/lib:$2/nccl/lib}
EOF
}

describe_fetched() { # the sum makes another pin compile everything again
    cat <<EOF
# the toolkit of $pin, $(sha256sum <"$pin" | cut -c 1-16)
NVCC := $tree/nvidia/cu13/bin/nvcc
CUDA_CPPFLAGS := -isystem $tree/nvidia/nccl/include
CUDA_LDFLAGS := -L$tree/nvidia/cu13/lib -L$tree/nvidia/nccl/lib \\
	-Wl,-rpath,'\$\$ORIGIN/cuda/nvidia/cu13/lib:\$\$ORIGIN/cuda/nvidia/nccl/lib'
EOF
}

for left in "$build"/.cuda.*; do # by a run that was killed: up to 2 GB
    [ ! -d "$left" ] || kill -0 "${left##*.}" 2>/dev/null || rm -rf "$left"
done
mkdir -p "$new" || fail "cannot write to $build"
trap 'rm -rf "$new"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
case ${CUDA-} in
fetch) toolkit= ;;
'') toolkit=$(installed) ;;
*)
    toolkit=$CUDA
    links "$toolkit" || fail "no toolkit 13.0 or later with cuBLASLt and NCCL in CUDA=$toolkit"
    ;;
esac
if [ -n "$toolkit" ]; then
    # shellcheck disable=SC2086 # one word or two
    describe_installed $toolkit >"$new/mk"
else
    fetch
    describe_fetched >"$new/mk"
fi
cmp -s "$new/mk" "$build/cuda.mk" || mv "$new/mk" "$build/cuda.mk"
