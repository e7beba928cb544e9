#!/bin/bash
# Install build/libengram_cuda.so into DIR, for `make install`: what an earlier one installed there goes first. A plug-in
# that was built with a fetched toolkit brings the libraries that it needs, into the folder where its run path looks.
#   tools/cuda-install.sh DIR     CUDA_LIBS=no leaves the libraries out
set -euo pipefail
readonly build=${BUILD:-build} to=$1
readonly plugin=$build/libengram_cuda.so

needed() { # the files of the fetched toolkit that the plug-in names
    local library
    readelf -dW "$plugin" | sed -n 's/.*(NEEDED).*\[\(.*\)\]$/\1/p' | while read -r library; do
        find "$build"/cuda/nvidia/*/lib -name "$library"
    done
}

rm -rf "$to"
[ -f "$plugin" ] || exit 0
install -D -m 755 "$plugin" "$to/libengram_cuda.so"
readelf -dW "$plugin" | grep -q '(RUNPATH)' || exit 0 # an installed toolkit: the loader knows where
if [ "${CUDA_LIBS-}" = no ]; then
    echo "installed the plug-in without its libraries: have the loader find $(needed | sed 's|.*/||' | paste -sd ' ')" >&2
    exit 0
fi
needed | while read -r library; do
    install -D -m 644 "$library" "$to/${library#"$build"/}"
done
for licence in "$build"/cuda/nvidia_{cublas,nccl_cu13}-*/licenses/*; do
    name=${licence#"$build"/cuda/} # the wheel's, with its version
    install -D -m 644 "$licence" "$to/cuda/licences/${name%%.dist-info*}.txt"
done
echo "installed with the plug-in's CUDA libraries, $(du -sm "$to" | cut -f 1) MiB; CUDA_LIBS=no leaves them out" >&2
