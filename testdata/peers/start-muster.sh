# How Muster is started for the benchmark: one node or three, made and run by its own `muster demo`.
# Accounts and contacts are imported from files; then the node starts afresh, as the
# peers do, so that memory is not counted from the height of the import. Sourced by
# servers.sh with $dir and $nodes set.

MUSTER_PORTS=10100 # added to Muster's usual ports

run="$dir/run"

# demo: brings the node up; the runner's process id is in STOP.
demo() {
	: >"$dir/out.log"
	"$BIN/muster" demo run --dir "$run" --binary "$BIN/musterd" --nodes "$nodes" --domain "$DOMAIN" --ports $MUSTER_PORTS >"$dir/out.log" 2>&1 &
	PID=$! STOP=$!
	await "$dir" Muster grep -q 'What to do next' "$dir/out.log"
}

# field PATH: a value of the node's description.
field() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["nodes"][0]'"$1"')' "$run/cluster.json"; }

demo
data=$(field '["data"]')
"$BIN/muster" --data "$data" user import --quiet "$dir/users.csv" >"$dir/import.log" 2>&1 || fail "muster user import: $(tail -3 "$dir/import.log")"
"$BIN/muster" --data "$data" roster import --quiet "$dir/rosters.csv" >"$dir/import.log" 2>&1 || fail "muster roster import: $(tail -3 "$dir/import.log")"
"$BIN/muster" --data "$data" settings set c2s.unlimited_networks 127.0.0.0/8 >"$dir/import.log" 2>&1 || fail "muster settings set: $(tail -3 "$dir/import.log")" # the peers have no limits either
stop "$STOP"
demo
PID=$(field '["pid"]') ADDRESS=$(field '["addresses"]["client_tls"]') TRANSPORT=direct
