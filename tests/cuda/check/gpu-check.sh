#!/bin/bash
# Checks and measures the CUDA plug-in on a machine with a GPU (`make gpu-check`). Needs nvcc 13.0 or later, gcc,
# cuBLASLt and NCCL, and nothing else of what Engram needs: no network, broker, LMDB or oneDNN. Takes under 8 minutes.
# 1. builds plug-in, tests and benchmark  2. the tests of gpu/backend.h on the GPU  3. compute-sanitizer on a part of
# them  4. the benchmark  5. the same work by PyTorch and sentence-transformers, where they are installed.
#   tests/cuda/check/gpu-check.sh [build|test|sanitize|bench|peers]...      default: all
set -uo pipefail
cd "$(dirname "$0")/../../.." || exit 1
readonly build=${BUILD:-build}
readonly out=$build/gpu-check
readonly test_limit_s=60 sanitizer_limit_s=25 peers_limit_s=150
readonly tests=(test_backend test_backend_keys test_backend_streams)
mkdir -p "$out"
unset "${!ENGRAM_@}"
export BUILD=$build LD_LIBRARY_PATH=$build/cuda/nvidia/cu13/lib:$build/cuda/nvidia/nccl/lib:${LD_LIBRARY_PATH-}

build() { # programs look for the plug-in beside themselves, and a fetched toolkit's libraries are in build/cuda
    tools/cuda.sh && make -s "-j$(nproc)" gpu-check-build && cp "$build/libengram_cuda.so" "$out/"
}

run_tests() { # the count is of tests, as in tests/run.sh
    local name ran ok status passed=0 failed=0
    for name in "${tests[@]}"; do
        timeout "$test_limit_s" "$out/$name" >"$out/$name.log" 2>&1
        status=$?
        ran=$(grep -cF '[ RUN      ]' "$out/$name.log")
        ok=$(grep -cF '[       OK ]' "$out/$name.log")
        [ "$ran" -gt 0 ] && { [ "$status" -eq 0 ] || [ "$ran" -gt "$ok" ]; } || ran=$((ok + 1)) # it ended between two tests
        [ "$ran" -eq "$ok" ] || tail -n 20 "$out/$name.log"
        passed=$((passed + ok)) failed=$((failed + ran - ok))
    done
    grep -hE '^4 devices.*: ' "$out"/*.log | sort -u # one GPU: what more would take was left out
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ]
}

sanitize() { # one case of each program: the device is much slower under it
    local tool name status bad=0
    command -v compute-sanitizer >/dev/null || {
        echo 'compute-sanitizer is not installed: left out'
        return
    }
    for tool in memcheck racecheck; do
        for name in "${tests[@]}"; do
            SUITE_CASES=1 timeout "$sanitizer_limit_s" compute-sanitizer --tool "$tool" --error-exitcode 9 "$out/$name" >"$out/$name.$tool.log" 2>&1
            status=$?
            [ "$status" -ne 124 ] || ! grep -qE '=========.*(Invalid|Race|Error|hazard)' "$out/$name.$tool.log" || status=9
            case $status in
            0) echo "compute-sanitizer $tool, $name: nothing found" ;;
            124) echo "compute-sanitizer $tool, $name: ended after $sanitizer_limit_s s, nothing found until then" ;;
            *)
                bad=1
                echo "compute-sanitizer $tool, $name:"
                grep -E '=====|FAILED' "$out/$name.$tool.log" | head -n 20
                ;;
            esac
        done
    done
    return "$bad"
}

[ $# -gt 0 ] || set -- build test sanitize bench peers
status=0
for step in "$@"; do
    case $step in
    build) build || exit 1 ;;
    test) run_tests || status=1 ;;
    sanitize) sanitize || status=1 ;;
    bench) "$out/gpu_bench" || status=1 ;;
    peers) timeout "$peers_limit_s" python3 tests/cuda/check/peers.py ;;
    *)
        echo "gpu-check: no step '$step': build, test, sanitize, bench, peers" >&2
        exit 2
        ;;
    esac
done
exit "$status"
