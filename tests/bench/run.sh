#!/bin/bash
# The measurements of docs/PERFORMANCE.md, one after the other: encoding beside sentence-transformers, the whole stage beside
# encoding alone, the memory, the lexical score. They take about 20 minutes on 2 cores. If the machine does something else
# meanwhile, ratios stay fair and single figures get worse. By name also the comparison of docs/QUALITY.md with trained
# classifiers (an hour). The peers are in build/bench-env and build/classifier-env; numbers also go to build/bench/*.json.
#   tests/bench/run.sh [encode] [stage] [memory] [lexical] [classifier]
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly build=${BUILD:-build} model=build/models/all-MiniLM-L6-v2

make --no-print-directory -s all "$build/bench/encode_bench" "$build/bench/memory_bench" "$build/bench/lexical_bench"

# environment ENVIRONMENT REQUIREMENTS: made if absent or not as the file says
environment() {
    if ! cmp -s "$2" "$1/installed.txt"; then
        echo "bench: installing $2 into $1" >&2
        python3 -m venv --clear "$1"
        "$1/bin/pip" install -q --disable-pip-version-check -r "$2"
        cp "$2" "$1/installed.txt"
    fi
}

bench_encode() {
    environment build/bench-env tests/bench/requirements.txt
    build/bench-env/bin/python tests/bench/encode.py "$model" "$build/bench/encode_bench" --json "$build/bench/encode.json"
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

bench_classifier() {
    environment build/classifier-env tests/bench/classifier-requirements.txt
    build/classifier-env/bin/python tests/bench/classifier.py --json "$build/bench/classifier.json"
}

sed -n 's/^model name[^:]*: */CPU: /p;T;q' /proc/cpuinfo
echo "threads: $(nproc), $(uname -sr)"
[ $# -gt 0 ] || set -- encode stage memory lexical
for what in "$@"; do
    case $what in
    encode | stage | memory | lexical | classifier)
        printf '\n== %s ==\n' "$what"
        "bench_$what"
        ;;
    *)
        echo "tests/bench/run.sh: no '$what'; there are: encode stage memory lexical classifier" >&2
        exit 2
        ;;
    esac
done
