#!/usr/bin/env bash
# Two people at terminals: profanity on two nodes, a message each way, read off the screens.
#
#   testdata/interop/profanity.sh run/cluster.json
#
# profanity and tmux come from Debian's packages when they are missing and we are root.
set -euo pipefail

CLUSTER=$1
LIMIT=${LIMIT:-20} # seconds for each thing to appear on a screen
WORK=$(mktemp -d /tmp/profanity.XXXXXX)
TMUX_SOCKET=muster-interop-$$
PASSED=0 FAILED=0

fail() {
	echo "profanity: $*" >&2
	exit 1
}

cleanup() {
	tmux -L "$TMUX_SOCKET" kill-server 2>/dev/null || true
	rm -rf "$WORK"
}
trap cleanup EXIT

missing=()
for name in profanity tmux; do
	command -v $name >/dev/null || missing+=($name)
done
if [ ${#missing[@]} -gt 0 ]; then
	[ "$(id -u)" = 0 ] || fail "please install: apt-get install ${missing[*]}"
	{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } >"$WORK/apt.log" 2>&1 ||
		fail "apt-get install ${missing[*]} failed: $(tail -3 "$WORK/apt.log")"
fi

# account NUMBER: jid, password, host and port of user NUMBER on node NUMBER (or the last one).
account() {
	python3 - "$CLUSTER" "$1" <<'PY'
import json, sys
cluster, number = json.load(open(sys.argv[1])), int(sys.argv[2])
user, node = cluster["users"][number], cluster["nodes"][min(number, len(cluster["nodes"]) - 1)]
host, _, port = node["addresses"]["client"].rpartition(":")
print(user["jid"], user["password"], host, port)
PY
}

# sit NAME NUMBER: opens a terminal with profanity, logged in as user NUMBER.
sit() {
	local name=$1 jid password host port home="$WORK/$1"
	read -r jid password host port < <(account "$2")
	mkdir -p "$home/config/profanity" "$home/data/profanity"
	cat >"$home/data/profanity/accounts" <<ACCOUNT
[$jid]
enabled=true
jid=$jid
server=$host
port=$port
resource=terminal
password=$password
tls.policy=trust
ACCOUNT
	chmod 600 "$home/data/profanity/accounts"
	tmux -L "$TMUX_SOCKET" -f /dev/null new-session -d -s "$name" -x 150 -y 40 \
		"env LC_ALL=C.UTF-8 TERM=screen HOME=$home XDG_CONFIG_HOME=$home/config XDG_DATA_HOME=$home/data profanity -a $jid 2>$home/err"
}

screen() { tmux -L "$TMUX_SOCKET" capture-pane -p -t "$1"; }

type_in() { tmux -L "$TMUX_SOCKET" send-keys -t "$1" -l -- "$2" && tmux -L "$TMUX_SOCKET" send-keys -t "$1" Enter; }

# shows CHECK NAME PATTERN: waits until the pattern is on the screen, and books the outcome.
shows() {
	local tries=0
	until screen "$2" 2>/dev/null | grep -Eq -- "$3"; do
		tries=$((tries + 1))
		if [ $tries -gt $((LIMIT * 10)) ]; then
			FAILED=$((FAILED + 1))
			echo "FAIL  $1; the screen shows:"
			screen "$2" 2>/dev/null | sed '/^ *$/d' || echo "nothing: profanity has ended"
			return 0
		fi
		sleep 0.1
	done
	PASSED=$((PASSED + 1))
	echo "PASS  $1"
}

read -r alice _ < <(account 0)
read -r bob _ < <(account 1)
sit alice 0
sit bob 1
shows "profanity logs in on the first node" alice "$alice.*logged in successfully"
shows "profanity logs in on the second node" bob "$bob.*logged in successfully"
type_in alice "/msg $bob a word from the terminal"
shows "the sender sees the own message" alice "me: a word from the terminal"
type_in bob "/win 2"
shows "the message is on the other screen" bob "a word from the terminal"
type_in bob "and one back"
shows "the answer is on the first screen" alice "and one back"
type_in alice "/disconnect"
shows "profanity logs out" alice "logged out|[Dd]isconnected"
echo "profanity: $PASSED passed, $FAILED failed"
[ $FAILED = 0 ]
