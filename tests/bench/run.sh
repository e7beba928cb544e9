#!/bin/bash
# make bench: speed beside peers, which live in an environment of their own (build/bench-env, 6 GB: torch brings its CUDA
# libraries along). Results stand in build/bench/; docs/PERFORMANCE.md holds those that were measured with care, on a machine
# that did nothing else. Arguments go to encode.py (--rounds, --titles, --long-texts).
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly build=${BUILD:-build}
readonly environment=$build/bench-env
readonly model=build/models/all-MiniLM-L6-v2

if ! cmp -s tests/bench/requirements.txt "$environment/.requirements"; then
    echo "bench: installing the peers into $environment" >&2
    rm -rf "$environment"
    /usr/bin/python3 -m venv "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check -r tests/bench/requirements.txt
    cp tests/bench/requirements.txt "$environment/.requirements"
fi
make -s "$build/bench/encode_bench"
"$environment/bin/python" tests/bench/encode.py "$model" "$build/bench/encode_bench" --json "$build/bench/encode.json" "$@"
