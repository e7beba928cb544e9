#!/bin/bash
# Install what is missing of deps/packages-debian-12.txt (as root, or by sudo), then fetch the broker. Silent and quick,
# without root and network, when all of it is there. Instead, with --dev what make format, tidy and bench need, and with
# --compose what make test-compose needs where no Docker engine runs.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
log=$root/build/deps.log
list=$root/deps/packages-debian-12.txt
case ${1-} in --dev | --compose) list=$root/deps/packages-debian-12-${1#--}.txt ;; esac

fail() {
    echo "deps: $*" >&2
    exit 1
}

packages_missing() { # the names in the list that dpkg does not show as installed
    comm -23 <(sed 's/#.*//' "$list" | tr -s ' \t' '\n' | grep . | sort -u) \
        <(dpkg-query --show --showformat='${db:Status-Status} ${Package}\n' | sed -n 's/^installed //p' | sort -u)
}

apt() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@" >>"$log" 2>&1
}

packages_install() {
    as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "neither root nor sudo; have root run: apt-get install $*"
        as_root=(sudo)
    fi
    mkdir -p "$root/build"
    : >"$log"
    echo "deps: installing $*" >&2
    apt install -y --no-install-recommends "$@" && return
    apt update || true # one dead mirror of several is no reason to stop
    apt install -y --no-install-recommends "$@" ||
        fail "apt-get could not install them: $(grep -m 1 '^E:' "$log" || echo 'no reason given') (all of it: $log)"
}

command -v dpkg-query >/dev/null ||
    fail "this is not Debian; install by hand what stands for the packages in ${list#"$root/"}"
missing=$(LC_ALL=C packages_missing)
# shellcheck disable=SC2086 # one word a package
[ -z "$missing" ] || packages_install $missing
[ $# -gt 0 ] || { "$root/tests/broker/fetch" && "$root/tests/broker/librdkafka"; }
