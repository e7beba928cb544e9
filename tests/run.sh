#!/bin/bash
# Run the tests, all kinds or those named, and end with one line: "N passed, N failed". Exit 1 where a test failed or a
# kind ran nothing. Whole logs lie in build/test-logs/; the end of a failed one is shown. What is skipped counts as
# failed: it proved nothing. Everything must be built: `make test` does that. Ends what it started, also interrupted.
#   tests/run.sh [unit] [unit-asan] [emulated] [emulated-asan] [golden] [e2e] [docs]
#   PYTEST_ADDOPTS="-k forget" narrows the pytest kinds
# The kind compose needs an engine and images: tests/compose/run.sh (`make test-compose`) sees to them, then calls this.
# The kind cuda needs the plug-in: `make cuda` builds it, then calls this.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
readonly build=${BUILD:-build}
readonly logs=$build/test-logs
readonly kinds_all=(unit unit-asan emulated emulated-asan golden e2e docs)
readonly program_limit_s=600 kind_limit_s=1800 tail_lines=40 # limits only end what hangs
export program_limit_s PYTHONDONTWRITEBYTECODE=1
export ASAN_OPTIONS=${ASAN_OPTIONS-detect_leaks=1} UBSAN_OPTIONS=${UBSAN_OPTIONS-print_stacktrace=1}
unset "${!ENGRAM_@}" # the tester's own settings are not the tests'

readonly plugin=$build/libengram_cuda.so plugin_aside=$build/.libengram_cuda.so.aside
passed_all=0
failed_all=0
running=

plugin_back() { # also what a killed run left aside; one that was built since wins
    [ ! -f "$plugin_aside" ] || { mv -n "$plugin_aside" "$plugin" && rm -f "$plugin_aside"; }
}

leave() { # end the runner's whole group; what a killed test left in the temporary folder goes too, brokers first
    trap '' INT TERM
    [ -z "$running" ] || { kill -- "-$running" && wait "$running"; } 2>/dev/null
    find "$TMPDIR" -name server.properties -printf '%h\0' 2>/dev/null |
        xargs -0 -r -n 1 tests/broker/broker stop --grace 2 --remove
    plugin_back
    rm -rf "$TMPDIR"
}

# A kind's runner leaves its counts in $passed and $failed and the logs worth showing in $shown.

run_program() { # one cmocka program: its log, and its exit status beside it
    timeout --foreground --kill-after=10 "$program_limit_s" "$1" >"$2.log" 2>&1
    echo $? >"$2.status"
}
export -f run_program

run_cmocka() { # FOLDER: every program in it, as many at once as there are CPUs
    local folder=$1 out=$logs/$kind program ran ok status
    mkdir -p "$out"
    find "$folder" -maxdepth 1 -type f -executable -name 'test_*' -printf '%f\n' 2>/dev/null | sort >"$out/programs"
    # shellcheck disable=SC2016 # the inner shell's own $1 to $3
    setsid xargs -a "$out/programs" -r -P "$(nproc)" -I{} bash -c 'run_program "$1/$3" "$2/$3"' - "$folder" "$out" {} &
    running=$!
    wait "$running"
    running=
    while read -r program; do
        status=$(cat "$out/$program.status" 2>/dev/null || echo missing)
        ran=$(grep -oF '[ RUN      ]' "$out/$program.log" | wc -l)
        ok=$(grep -oF '[       OK ]' "$out/$program.log" | wc -l)
        # a test that began and was not OK failed, crashed or was skipped; a program may also die between tests
        [ "$ran" -gt 0 ] && { [ "$status" = 0 ] || [ "$ran" -gt "$ok" ]; } || ran=$((ok + 1))
        passed=$((passed + ok))
        failed=$((failed + ran - ok))
        [ "$ran" -eq "$ok" ] || {
            echo "exit status $status" >>"$out/$program.log"
            shown+=("$out/$program.log")
        }
    done <"$out/programs"
}

xml_count() { # ATTRIBUTE of the first test suite in $xml, 0 without
    sed -n "s/.*<testsuite [^>]*\b$1=\"\([0-9]*\)\".*/\1/p;T;q" "$xml" 2>/dev/null | grep . || echo 0
}

run_pytest() { # FOLDER: pytest's own counts, from its XML
    local log=$logs/$kind.log xml=$logs/$kind.xml status
    local -a side_by_side=()
    [ "$kind" != e2e ] || side_by_side=(-n 2 --dist loadfile) # they mostly wait: two brokers, a file each at a time
    setsid timeout --kill-after=60 "$kind_limit_s" /usr/bin/python3 -m pytest "${side_by_side[@]}" -p no:cacheprovider -v --tb=short \
        --durations=10 --junitxml="$xml" "$1" >"$log" 2>&1 </dev/null &
    running=$!
    wait "$running"
    status=$?
    running=
    failed=$(($(xml_count errors) + $(xml_count failures) + $(xml_count skipped)))
    passed=$(($(xml_count tests) - failed))
    [ "$status" -ne 5 ] || return # no tests in the folder
    [ "$status" -eq 0 ] || [ "$failed" -gt 0 ] || { # ended by its time limit or by an error of its own
        echo "exit status $status" >>"$log"
        failed=1
    }
    [ "$failed" -eq 0 ] || shown+=("$log")
}

run_kind() {
    kind=$1
    local -a shown=()
    local passed=0 failed=0 begun=$SECONDS log
    [ ! -t 1 ] || printf '%-10s ...\r' "$kind"
    # all kinds but its own test the CPU, and count the lines that are logged
    plugin_back
    [ "$kind" = cuda ] || [ ! -f "$plugin" ] || mv "$plugin" "$plugin_aside"
    case $kind in
    unit) run_cmocka "$build/tests" ;;
    unit-asan) run_cmocka "$build/tests-asan" ;;
    emulated) run_cmocka "$build/emulated-checked" ;; # the CUDA plug-in on the CPU
    emulated-asan) SUITE_CASES=3 run_cmocka "$build/emulated-asan" ;;
    *) run_pytest "tests/$kind" ;;
    esac
    plugin_back
    if [ $((passed + failed)) -eq 0 ]; then
        printf '%-10s ran nothing\n' "$kind"
        failed=1
    else
        printf '%-10s %5d passed %5d failed %5d s\n' "$kind" "$passed" "$failed" $((SECONDS - begun))
    fi
    for log in "${shown[@]}"; do
        printf -- '--- the end of %s\n' "$log"
        tail -n "$tail_lines" "$log" | sed 's/^/    /'
    done
    passed_all=$((passed_all + passed))
    failed_all=$((failed_all + failed))
}

TMPDIR=$(mktemp -d -t engram-tests.XXXXXX) || exit 1
export TMPDIR
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
[ $# -gt 0 ] || set -- "${kinds_all[@]}"
for kind in "$@"; do
    case " ${kinds_all[*]} compose cuda " in *" $kind "*) ;; *)
        echo "tests/run.sh: no kind '$kind'; there are: ${kinds_all[*]}" >&2
        exit 2
        ;;
    esac
    rm -rf "${logs:?}/$kind" "$logs/$kind.log" "$logs/$kind.xml"
done
mkdir -p "$logs" || exit 1
for kind in "$@"; do
    run_kind "$kind"
done
echo "$passed_all passed, $failed_all failed"
[ "$failed_all" -eq 0 ]
