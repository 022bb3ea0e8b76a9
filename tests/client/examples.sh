#!/usr/bin/env bash
# Runs the examples against a real broker, as their first comments say, and reads back what they wrote.
# usage: examples.sh WALRUSD WALRUS blocking=PROGRAM epoll=PROGRAM [uring=PROGRAM]
set -euo pipefail
walrusd=$1 walrus=$2
shift 2
folder=$(mktemp -d "${TMPDIR:-/tmp}/walrus-examples.XXXXXX")
export WALRUS_SOCKET=$folder/socket
broker=
trap 'if [[ -n $broker ]]; then kill -9 "$broker" 2>/dev/null || true; fi; rm -rf "$folder"' EXIT

fail() {
    echo "examples: FAILED: $*"
    exit 1
}

start() {
    mkfifo "$folder/said"
    "$walrusd" --data-dir "$folder/data" >"$folder/said" 2>"$folder/log" 3>&- &
    broker=$!
    local line=
    read -r line <"$folder/said" || true
    rm "$folder/said"
    [[ $line == *"ready on"* ]] || fail "walrusd said '$line': $(tail -3 "$folder/log")"
}

expect() { # expect TOPIC COUNT: the lines are 1 to COUNT, each once, in order
    "$walrus" read "$1" >"$folder/read" || fail "walrus read $1"
    seq "$2" | cmp - "$folder/read" || fail "topic $1 does not hold the lines 1 to $2"
}

blocking() {
    [[ $("$1" greetings hello world) == $'committed 2 entries from sequence 1\n1: hello\n2: world' ]] ||
        fail "blocking wrote or read something else"
}

# An event loop: from a file, from a pipe, nothing at all; then the broker is killed in the middle, and comes back.
event_loop() {
    local name=$1 program=$2
    seq 100000 >"$folder/lines"
    [[ $("$program" "$name-file" <"$folder/lines") == "100000 lines committed" ]] || fail "$name from a file"
    expect "$name-file" 100000
    [[ $(seq 30000 | "$program" "$name-pipe") == "30000 lines committed" ]] || fail "$name from a pipe"
    expect "$name-pipe" 30000
    [[ $("$program" "$name-nothing" </dev/null) == "0 lines committed" ]] || fail "$name of nothing"
    mkfifo "$folder/input"
    "$program" "$name-killed" <"$folder/input" >"$folder/end" &
    local client=$!
    exec 3>"$folder/input"
    seq 50000 >&3
    kill -9 "$broker"
    wait "$broker" 2>/dev/null || true
    start
    seq 50001 60000 >&3
    exec 3>&-
    wait "$client" || fail "$name ended with $? when its broker was killed"
    rm "$folder/input"
    [[ $(<"$folder/end") == "60000 lines committed" ]] || fail "$name and a killed broker: $(<"$folder/end")"
    expect "$name-killed" 60000
}

start
for example in "$@"; do
    name=${example%%=*} program=${example#*=}
    case $name in
    blocking) blocking "$program" ;;
    *) event_loop "$name" "$program" ;;
    esac
    echo "examples: $name: ok"
done
