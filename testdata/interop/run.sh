#!/usr/bin/env bash
# Foreign clients on a cluster of three, with nodes killed. `make interop`.
#
#   testdata/interop/run.sh [run/cluster.json]     PARTS=abc by default, PROFANITY=no leaves the terminal client out, CONFORMANCE=no the rules, TOKENS=no the JavaScript client, ARCHIVE=no the archive
#
# Without a file it brings a cluster of its own up in a scratch folder, and down again.
# slixmpp goes into a virtual environment under .cache/ that is kept, xmpp.js beside it.
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
CLUSTER=${1:-}
export BIN=${BIN:-$ROOT/bin}
PORTS=${PORTS:-10200} # added to the usual ports of a cluster of our own
VENV=$ROOT/.cache/interop
MODULES=$ROOT/.cache/interop-js
export PYTHONDONTWRITEBYTECODE=1

fail() {
	echo "interop: $*" >&2
	exit 1
}

# found: brings three nodes up and waits until they are described.
found() {
	local tries=0
	WORK=$(mktemp -d /tmp/interop.XXXXXX)
	trap dissolve EXIT
	trap 'exit 130' INT TERM
	(cd "$ROOT" && exec "$BIN/muster" demo run --binary "$BIN/musterd" --dir "$WORK/run" --nodes 3 --domain example.test --users 6 --ports "$PORTS") >"$WORK/log" 2>&1 &
	DEMO=$!
	until grep -q 'What to do next' "$WORK/log"; do
		kill -0 $DEMO 2>/dev/null || fail "the cluster did not come up: $(tail -5 "$WORK/log")"
		tries=$((tries + 1))
		[ $tries -lt 1200 ] || fail "the cluster did not come up within two minutes: $(tail -5 "$WORK/log")"
		sleep 0.1
	done
	CLUSTER=$WORK/run/cluster.json
}

dissolve() {
	local status=$?
	if kill -INT "$DEMO" 2>/dev/null; then
		wait "$DEMO" || true
	fi
	if [ $status != 0 ]; then
		echo "interop: the nodes' messages:" >&2
		tail -n 15 "$WORK"/log "$WORK"/run/*.log "$WORK"/run/*/*.log >&2 2>/dev/null || true
	fi
	rm -rf "$WORK"
}

command -v python3 >/dev/null || fail "python3 is needed"
if ! cmp -s "$HERE/requirements.txt" "$VENV/requirements.txt"; then
	rm -rf "$VENV"
	python3 -m venv "$VENV" || fail "python3 cannot make a virtual environment (Debian: apt-get install python3-venv)"
	"$VENV/bin/pip" install --quiet --disable-pip-version-check -r "$HERE/requirements.txt" || fail "slixmpp cannot be installed"
	cp "$HERE/requirements.txt" "$VENV/requirements.txt"
fi

if [ "${TOKENS:-yes}" != no ] && ! cmp -s "$HERE/package.json" "$MODULES/installed.json"; then
	command -v npm >/dev/null || fail "node and npm are needed (Debian: apt-get install nodejs npm)"
	rm -rf "$MODULES"
	mkdir -p "$MODULES"
	cp "$HERE/package.json" "$MODULES/"
	npm install --prefix "$MODULES" --no-package-lock --no-audit --no-fund --loglevel error || fail "xmpp.js cannot be installed"
	cp "$HERE/package.json" "$MODULES/installed.json"
fi

if [ -z "$CLUSTER" ]; then
	[ -x "$BIN/musterd" ] || fail "no $BIN/musterd: run make build first"
	found
fi
[ -r "$CLUSTER" ] || fail "cannot read $CLUSTER"

status=0
if [ "${PROFANITY:-yes}" != no ]; then
	"$HERE/profanity.sh" "$CLUSTER" || status=1
fi
if [ "${CONFORMANCE:-yes}" != no ]; then
	BIN=$BIN "$VENV/bin/python" "$HERE/conformance.py" "$CLUSTER" || status=1
fi
if [ "${TOKENS:-yes}" != no ]; then
	CA=$(PYTHONPATH=$HERE "$VENV/bin/python" -c 'import sys; from cluster import Cluster; print(Cluster(sys.argv[1], sys.argv[2]).ca)' "$CLUSTER" "$ROOT")
	NODE_EXTRA_CA_CERTS=$CA INTEROP_MODULES=$MODULES node "$HERE/tokens.mjs" "$CLUSTER" || status=1
fi
if [ "${ARCHIVE:-yes}" != no ]; then
	"$VENV/bin/python" "$HERE/archive.py" "$CLUSTER" || status=1
fi
"$VENV/bin/python" "$HERE/resume.py" "$CLUSTER" || status=1
"$VENV/bin/python" "$HERE/two_clients.py" "$CLUSTER" --parts "${PARTS:-abc}" || status=1
exit $status
