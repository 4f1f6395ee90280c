#!/usr/bin/env bash
# Measures Muster, ejabberd, Prosody and a bare TLS relay by the same load, a few
# times each and interleaved, and prints one table of medians. `make bench-peers`.
#
#   ROUNDS=3 SESSIONS=2000 SECS=6 SERVERS="relay muster muster-three ejabberd ejabberd-archive prosody" testdata/peers/run.sh
#
# muster-three is a cluster of three nodes, whose clients are spread over them;
# ejabberd-archive keeps all messages in PostgreSQL. Both only chat.
#
# Everything listens on 127.0.0.1, lives in a scratch folder and is gone afterwards.
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
BIN=${BIN:-$ROOT/bin}
ROUNDS=${ROUNDS:-3}
SESSIONS=${SESSIONS:-2000}         # accounts, and idle sessions
SECS=${SECS:-6}                    # of each timed run
SERVERS=${SERVERS:-relay muster muster-three ejabberd ejabberd-archive prosody}
SCENARIOS=${SCENARIOS:-idle login chat chat-live chat-open presence}
OUT=${OUT:-}                       # keep the results (JSON) here
BENCH=${BENCH:-$BIN/musterbench}
DOMAIN=bench.test
USERS="user%d@$DOMAIN:secret"

fail() {
	echo "bench-peers: $*" >&2
	exit 1
}

# ours PID: whether it is a process of this script that still runs. A number alone may be somebody else's by now.
ours() { jobs -pr | grep -qx "$1"; }

# stop PID: ends a server, by force if it does not end by itself.
stop() {
	local tries=0
	while ours "$1"; do
		if [ $tries = 0 ]; then
			kill "$1" 2>/dev/null || true
		elif [ $tries = 150 ]; then
			kill -9 "$1" 2>/dev/null || true
		fi
		tries=$((tries + 1))
		sleep 0.1
	done
	wait "$1" 2>/dev/null || true
}

cleanup() {
	local pid
	for pid in $(jobs -pr); do
		stop "$pid"
	done
	[ -n "${KEEP:-}" ] || rm -rf "$WORK"
}

# The peers come from Debian; their own services must not start.
install_peers() {
	local wanted=() missing=() policy=/usr/sbin/policy-rc.d ours=
	for name in $SERVERS; do
		case $name in
		ejabberd | prosody) wanted+=("$name") ;;
		ejabberd-archive) wanted+=(ejabberd erlang-p1-pgsql postgresql) ;;
		esac
	done
	for name in "${wanted[@]}"; do
		dpkg -s "$name" >/dev/null 2>&1 || missing+=("$name")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	[ "$(id -u)" = 0 ] || fail "please install: apt-get install ${missing[*]} (or run this as root)"
	if [ ! -e $policy ]; then
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod +x $policy
		ours=yes
	fi
	{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } >"$WORK/apt.log" 2>&1 ||
		fail "apt-get install ${missing[*]} failed: $(tail -3 "$WORK/apt.log")"
	[ -z "$ours" ] || rm -f $policy
}

# measure ROUND NAME: all scenarios against the server that was just started.
measure() {
	local round=$1 name=$2 scenario
	local target=(--label "$name" --users "$USERS" --accounts "$SESSIONS" --sources 8 --json)
	if [ -n "$CLUSTER" ]; then
		target+=(--cluster "$CLUSTER")
	else
		target+=(--address "$ADDRESS" --transport "$TRANSPORT" --pid "${MEASURED:-$PID}")
	fi
	for scenario in $SCENARIOS; do
		case $name-$scenario in
		muster-three-chat* | ejabberd-archive-chat*) ;;
		muster-three-* | ejabberd-archive-*) continue ;;
		esac
		local out="$RESULTS/$round-$name-$scenario.json" args
		case $scenario in
		idle) args=(idle --sessions "$SESSIONS" --settle 4s --workers 4) ;;
		login) args=(login --count $((SESSIONS / 2)) --workers 4) ;;
		chat) args=(chat --pairs 50 --warmup 2s --duration "${SECS}s") ;;
		chat-live) args=(chat --live --pairs 50 --warmup 2s --duration "${SECS}s") ;;
		chat-open) args=(chat --pairs 50 --rate 1000 --warmup 1s --duration "${SECS}s") ;;
		presence) args=(presence --online $((SESSIONS / 4)) --ring "$SESSIONS" --changes 8 --duration 30s) ;;
		*) fail "unknown scenario $scenario" ;;
		esac
		"$BENCH" "${args[@]}" "${target[@]}" >"$out" 2>"$WORK/bench.log" || fail "$scenario against $name: $(tail -2 "$WORK/bench.log")"
	done
}

for name in "$BENCH" "$BIN/musterd" "$BIN/muster"; do
	[ -x "$name" ] || fail "no $name: run make build first"
done
ulimit -n "$(ulimit -Hn)"
WORK=$(mktemp -d /tmp/bench-peers.XXXXXX)
chmod 755 "$WORK"
trap cleanup EXIT
trap 'exit 130' INT TERM
RESULTS=${OUT:-$WORK/results}
mkdir -p "$RESULTS"
rm -f "$RESULTS"/*.json
# shellcheck source=servers.sh
. "$HERE/servers.sh"
install_peers

for round in $(seq "$ROUNDS"); do
	for name in $SERVERS; do
		echo "round $round of $ROUNDS: $name" >&2
		dir="$WORK/$name-$round"
		mkdir -p "$dir"
		STOP='' CLUSTER='' MEASURED=''
		"start_${name/-/_}" "$dir"
		measure "$round" "$name"
		for pid in ${STOP:-$PID}; do
			stop "$pid"
		done
		rm -rf "$dir"
	done
done
"$BENCH" report "$RESULTS" --baselines ejabberd,relay
