#!/bin/bash
# The measurements behind docs/PERFORMANCE.md, in turn: encoding beside sentence-transformers, the whole stage beside encoding
# alone, the memory, the lexical score. The peers live in build/bench-env. Numbers also go to build/bench/*.json. Takes about 20 minutes on 2
# cores; a machine that does something else meanwhile still gives fair ratios, but slower figures.
#   tests/bench/run.sh [encode] [stage] [memory] [lexical]
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly build=${BUILD:-build} environment=build/bench-env model=build/models/all-MiniLM-L6-v2

make --no-print-directory -s all "$build/bench/encode_bench" "$build/bench/memory_bench" "$build/bench/lexical_bench"

bench_encode() {
    if ! cmp -s tests/bench/requirements.txt "$environment/installed.txt"; then
        echo "bench: installing the peers into $environment" >&2
        python3 -m venv --clear "$environment"
        "$environment/bin/pip" install -q --disable-pip-version-check -r tests/bench/requirements.txt
        cp tests/bench/requirements.txt "$environment/installed.txt"
    fi
    "$environment/bin/python" tests/bench/encode.py "$model" "$build/bench/encode_bench" --json "$build/bench/encode.json"
}

bench_stage() {
    /usr/bin/python3 tests/bench/stage.py "$build/engram" "$model" "$build/bench/encode_bench" \
        --json "$build/bench/stage.json"
}

bench_memory() {
    "$build/bench/memory_bench" "$build/bench/memory"
}

bench_lexical() {
    "$build/bench/lexical_bench" "$build/bench"
}

sed -n 's/^model name[^:]*: */CPU: /p;T;q' /proc/cpuinfo
echo "threads: $(nproc), $(uname -sr)"
[ $# -gt 0 ] || set -- encode stage memory lexical
for what in "$@"; do
    case $what in
    encode | stage | memory | lexical)
        printf '\n== %s ==\n' "$what"
        "bench_$what"
        ;;
    *)
        echo "tests/bench/run.sh: no '$what'; there are: encode stage memory lexical" >&2
        exit 2
        ;;
    esac
done
