#!/bin/bash
# The measurements of docs/PERFORMANCE.md, one after the other; each also by its name. They are for a machine that does nothing
# else meanwhile: ratios stay fair if it does, single figures get worse. The peers are in build/bench-env and
# build/classifier-env; numbers also go to build/bench/*.json. Arguments after -- go to the measurement (of one name).
#   tests/bench/run.sh [encode] [latency] [stage] [beside] [live] [memory] [lexical] [classifier] [-- ARGUMENT...]
#   encode      encoding beside other libraries and beside what oneDNN's matmul would allow      about 20 minutes
#   latency     a single text beside onnxruntime and others                                        5 minutes
#   stage       the stage through a broker beside encoding alone and a loop in Python             20 minutes
#   beside      the stage beside a process that takes half of one core                             8 minutes
#   live        label to live, and the texts meanwhile, at half load                               6 minutes
#   memory, lexical: the memory and the lexical score by themselves                                5 minutes
#   classifier  the comparison of docs/QUALITY.md with trained classifiers; only by its name      an hour
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONDONTWRITEBYTECODE=1
readonly build=${BUILD:-build} model=build/models/all-MiniLM-L6-v2

programs=(encode_bench gemm_bench live_probe memory_bench lexical_bench)
make --no-print-directory -s all "${programs[@]/#/$build/bench/}"

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
    build/bench-env/bin/python tests/bench/encode.py "$model" "$build/bench/encode_bench" "$build/bench/gemm_bench" \
        build/bench-env/peers --json "$build/bench/encode.json" "$@"
}

bench_latency() {
    environment build/bench-env tests/bench/requirements.txt
    build/bench-env/bin/python tests/bench/latency.py "$model" "$build/bench/encode_bench" build/bench-env/peers \
        --json "$build/bench/latency.json" "$@"
}

bench_stage() {
    environment build/bench-env tests/bench/requirements.txt
    on_broker stage --loop build/bench-env/bin/python "$@"
}

bench_beside() {
    on_broker beside "$@"
}

bench_live() {
    on_broker live "$build/bench/live_probe" "$@"
}

# on_broker NAME ARGUMENT...: with Debian's Python, as the end-to-end tests
on_broker() {
    /usr/bin/python3 "tests/bench/$1.py" "$build/engram" "$model" "$build/bench/encode_bench" "${@:2}" \
        --json "$build/bench/$1.json"
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
echo "threads: $(nproc), $(uname -sr), load: $(cut -d" " -f1-3 /proc/loadavg)"
names=()
while [ $# -gt 0 ]; do
    case $1 in
    encode | latency | stage | beside | live | memory | lexical | classifier) names+=("$1") ;;
    --)
        shift
        break
        ;;
    *)
        echo "tests/bench/run.sh: no '$1'; there are: encode latency stage beside live memory lexical classifier" >&2
        exit 2
        ;;
    esac
    shift
done
[ ${#names[@]} -gt 0 ] || names=(encode latency stage beside live memory lexical)
for name in "${names[@]}"; do
    printf '\n== %s ==\n' "$name"
    "bench_$name" "$@"
done
