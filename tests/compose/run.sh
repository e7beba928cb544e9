#!/bin/bash
# Bring the compose project up and test it from outside (make test-compose). Uses the Docker engine that answers; where
# none does, and this is root on Debian, installs one and runs it for as long as this takes, with all its data in a
# temporary folder. Where public images cannot be pulled, stand-ins are built: engram-test/debian, engram-test/kafka,
# engram-test/prometheus. Everything made here is gone afterwards, also when it fails; pulled images stay.
# KEEP=1 leaves the project up, to look at it.
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly logs=build/test-logs pull_limit_s=300
work=$(mktemp -d -t engram-compose.XXXXXX)
engine=
tests=
mkdir -p "$logs"

fail() {
    echo "test-compose: $*" >&2
    exit 1
}
quietly() { # LOG COMMAND...: what it prints goes to a log, whose end is shown where it fails
    local log=$logs/compose-$1.log
    shift
    "$@" >"$log" 2>&1 </dev/null || {
        tail -n 40 "$log" >&2
        fail "\`$1\` failed; all of it: $log"
    }
}

# ---- the engine ----

engine_start() {
    if [ "$(id -u)" -ne 0 ] || [ ! -e /etc/debian_version ]; then
        fail "no Docker engine answers: start one (\`docker info\` tells), or run this as root on Debian"
    fi
    tools/deps.sh --compose
    iptables-save >"$work/iptables"
    cp /proc/sys/net/ipv4/ip_forward "$work/ip_forward"
    export DOCKER_HOST=unix://$work/docker.sock
    setsid dockerd --data-root "$work/data" --exec-root "$work/exec" --pidfile "$work/dockerd.pid" --host "$DOCKER_HOST" \
        --storage-driver overlay2 >"$logs/compose-dockerd.log" 2>&1 </dev/null &
    engine=$!
    for _ in $(seq 120); do
        ! docker info >/dev/null 2>&1 || return 0
        kill -0 "$engine" 2>/dev/null || break
        sleep 0.5
    done
    tail -n 5 "$logs/compose-dockerd.log" >&2
    fail "dockerd does not start; all it says: $logs/compose-dockerd.log"
}

engine_stop() { # and what it leaves in the kernel
    kill "$engine" && wait "$engine"
    ip link delete docker0
    iptables-restore <"$work/iptables"
    cat "$work/ip_forward" >/proc/sys/net/ipv4/ip_forward
}

compose_find() {
    if docker compose version >/dev/null 2>&1; then
        echo docker compose
    elif command -v docker-compose >/dev/null; then
        echo docker-compose
    else
        fail "neither \`docker compose\` nor docker-compose is there: install one"
    fi
}

# ---- images: functions that `quietly` runs chain their commands, for `set -e` does not reach into them ----

pulled() { # IMAGE: there, or to be had
    docker image inspect "$1" >/dev/null 2>&1 || timeout "$pull_limit_s" docker pull -q "$1" >/dev/null 2>&1
}

stand_in_debian() {
    # with the authorities that this host has beside Debian's: what is fetched here comes through them there too
    tools/deps.sh --compose && debootstrap --variant=minbase trixie "$work/debian" &&
        cp -r /usr/local/share/ca-certificates "$work/debian/usr/local/share/" &&
        tar -C "$work/debian" -c . | docker import - engram-test/debian && rm -rf "$work/debian"
}

stand_in_kafka() {
    local plugin=org.apache.maven.plugins:maven-dependency-plugin:3.8.1
    cp -r tests/compose/kafka "$work/kafka" && cp -r build/broker/jars "$work/kafka/jars" &&
        cp tests/broker/log4j2.properties "$work/kafka/" &&
        mvn -B -q "$plugin:copy" -Dartifact=org.apache.kafka:kafka-tools:4.3.1 -DoutputDirectory="$work/kafka/jars" &&
        docker build -t engram-test/kafka --build-arg BASE="$BASE" "$work/kafka"
}

stand_in_prometheus() {
    docker build -t engram-test/prometheus --build-arg BASE="$BASE" tests/compose/prometheus
}

images() {
    export BASE=debian:trixie-slim KAFKA_IMAGE=apache/kafka:4.3.1 PROMETHEUS_IMAGE=prom/prometheus:v3.5.0
    if ! pulled "$BASE"; then
        echo "test-compose: $BASE cannot be pulled; making a stand-in" >&2
        BASE=engram-test/debian
        quietly debian stand_in_debian
    fi
    if ! pulled "$KAFKA_IMAGE"; then
        echo "test-compose: $KAFKA_IMAGE cannot be pulled; making a stand-in" >&2
        KAFKA_IMAGE=engram-test/kafka
        quietly kafka stand_in_kafka
    fi
    if ! pulled "$PROMETHEUS_IMAGE"; then
        echo "test-compose: $PROMETHEUS_IMAGE cannot be pulled; making a stand-in" >&2
        PROMETHEUS_IMAGE=engram-test/prometheus
        quietly prometheus stand_in_prometheus
    fi
    export STAGE_IMAGE=engram-test/engram STAGE_GPU_IMAGE=engram-test/engram-gpu
    echo "test-compose: building the image, unit tests inside" >&2
    # shellcheck disable=SC2086 # one word or two
    quietly build $COMPOSE build engram
    grep -E '^[0-9]+ passed, 0 failed' "$logs/compose-build.log" >&2 || true
}

# ---- all of it ----

leave() {
    local status=$?
    trap '' INT TERM
    set +e
    {
        [ -z "$tests" ] || { kill "$tests" && wait "$tests"; }
        # shellcheck disable=SC2086
        [ -z "${COMPOSE-}" ] || for project in "$COMPOSE_PROJECT_NAME" "$COMPOSE_PROJECT_NAME-other"; do
            $COMPOSE --profile observability --profile gpu -p "$project" down --volumes --remove-orphans --timeout 2
            docker ps -aq --filter "label=com.docker.compose.project=$project" | xargs -r docker rm -fv
            docker volume ls -q --filter "name=$project" | xargs -r docker volume rm
        done
        docker images -q 'engram-test/*' | sort -u | xargs -r docker rmi -f
        docker image prune -f --filter label=engram.stage
        [ -z "$engine" ] || engine_stop
    } >"$logs/compose-leave.log" 2>&1
    rm -rf "$work"
    exit "$status"
}
[ -n "${KEEP-}" ] || trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

docker info >/dev/null 2>&1 || engine_start
COMPOSE=$(compose_find)
export COMPOSE COMPOSE_PROJECT_NAME=engram-test-$$
images
tests/run.sh compose &
tests=$!
wait "$tests"
