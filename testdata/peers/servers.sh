# How each server of the benchmark is started. Sourced by run.sh, which sets
# WORK (scratch folder), BENCH (the musterbench binary), DOMAIN, USERS and SESSIONS.
#
# start_NAME DIR leaves the server running and sets PID, ADDRESS and TRANSPORT, or
# CLUSTER in place of the last two; MEASURED where not PID alone is measured, and
# STOP where not PID alone is to be stopped.

# The longest that a server may take until it accepts connections, in seconds.
START_LIMIT=60

# as USER COMMAND...: runs the command as that system user when we are root, or as ourselves.
# The command replaces the shell, so that $! is the server's own process id.
as() {
	local user=$1
	shift
	if [ "$(id -u)" = 0 ] && id "$user" >/dev/null 2>&1; then
		exec setpriv --reuid="$user" --regid="$user" --clear-groups "$@"
	fi
	exec "$@"
}

# fill TEMPLATE OUT DIR PORT
fill() {
	sed -e "s|@DIR@|$3|g" -e "s|@PORT@|$4|g" -e "s|@DOMAIN@|$DOMAIN|g" "$1" >"$2"
}

# certificate DIR: one self-signed ECDSA P-256 certificate, as Muster and the relay use.
certificate() {
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$DOMAIN" \
		-addext "subjectAltName=DNS:$DOMAIN" -keyout "$1/cert.key" -out "$1/cert.crt" 2>"$1/openssl.log" ||
		fail "openssl made no certificate: $(cat "$1/openssl.log")"
	cat "$1/cert.key" "$1/cert.crt" >"$1/cert.pem"
	chmod 644 "$1"/cert.*
}

# await DIR WHAT TEST...: polls until the test succeeds; the server must stay alive meanwhile.
await() {
	local dir=$1 what=$2 tries=0
	shift 2
	until "$@"; do
		ours "$PID" || fail "$what ended while starting: $(tail -5 "$dir/out.log")"
		tries=$((tries + 1))
		[ $tries -le $((START_LIMIT * 10)) ] || fail "$what did not start within $START_LIMIT s: $(tail -5 "$dir/out.log")"
		sleep 0.1
	done
}

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start_relay() {
	"$BENCH" relay --listen 127.0.0.1:15220 --domain "$DOMAIN" >"$1/out.log" 2>&1 &
	PID=$! ADDRESS=127.0.0.1:15220 TRANSPORT=relay
	await "$1" relay listening 15220
}

start_ejabberd() { serve_ejabberd "$1" "$HERE/ejabberd.yml.in"; }

# ejabberd as before, with an archive for everybody in PostgreSQL, as it is installed: with fsync.
start_ejabberd_archive() {
	local dir=$1 postgres schema database
	postgres=$(dirname "$(dpkg -L postgresql-15 postgresql-16 postgresql-17 2>/dev/null | grep -m1 '/bin/initdb$')")
	schema=$(dpkg -L ejabberd | grep -m1 '/sql/pg.sql')
	mkdir -p "$dir/pg"
	own postgres "$dir/pg"
	(as postgres "$postgres/initdb" -D "$dir/pg/data" -A trust -U bench) >"$dir/pg.log" 2>&1 || fail "initdb: $(tail -3 "$dir/pg.log")"
	(as postgres "$postgres/postgres" -D "$dir/pg/data" -p 15226 -c listen_addresses=127.0.0.1 -c unix_socket_directories="$dir/pg") >>"$dir/pg.log" 2>&1 &
	PID=$! database=$!
	await "$dir" PostgreSQL "$postgres/pg_isready" -q -h 127.0.0.1 -p 15226 -U bench
	"$postgres/createdb" -h 127.0.0.1 -p 15226 -U bench ejabberd
	case $schema in
	*.gz) gunzip -c "$schema" ;;
	*) cat "$schema" ;;
	esac | "$postgres/psql" -q -v ON_ERROR_STOP=1 -h 127.0.0.1 -p 15226 -U bench ejabberd >>"$dir/pg.log" 2>&1 || fail "the schema: $(tail -3 "$dir/pg.log")"
	cat "$HERE/ejabberd.yml.in" "$HERE/ejabberd-archive.yml.in" >"$dir/ejabberd.yml.in"
	mkdir "$dir/ejabberd" # a folder of its own: not even its neighbours may read the database's
	serve_ejabberd "$dir/ejabberd" "$dir/ejabberd.yml.in"
	MEASURED=$PID,$database STOP="$PID $database"
}

# serve_ejabberd DIR TEMPLATE
serve_ejabberd() {
	local dir=$1 libs
	libs=$(dirname "$(dirname "$(dpkg -L ejabberd | grep '/ebin$' | head -1)")")
	certificate "$dir"
	fill "$2" "$dir/ejabberd.yml" "$dir" 15223
	fill "$HERE/ejabberd-load.erl.in" "$dir/load.erl" "$dir" 15223
	"$BENCH" provision --format ejabberd --users "$USERS" --accounts "$SESSIONS" --out "$dir"
	mkdir -p "$dir/spool"
	own ejabberd "$dir"
	# Once to load accounts and contacts, and afresh to be measured: memory must not be
	# counted from the height of the load.
	launch_ejabberd "$dir" "$libs" -eval "$(cat "$dir/load.erl")"
	await "$dir" "ejabberd's load" test -e "$dir/loaded"
	wait "$PID" || fail "ejabberd did not stop after its load: $(tail -5 "$dir/out.log")"
	launch_ejabberd "$dir" "$libs"
	ADDRESS=127.0.0.1:15223 TRANSPORT=direct
	await "$dir" ejabberd listening 15223
}

# launch_ejabberd DIR LIBS ARGUMENT...: without distribution, so that no epmd stays behind.
launch_ejabberd() {
	local dir=$1 libs=$2
	shift 2
	(
		cd "$dir" || exit 1
		export HOME="$dir" ERL_LIBS="$libs" EJABBERD_CONFIG_PATH="$dir/ejabberd.yml" EJABBERD_LOG_PATH="$dir/ejabberd.log" ERL_CRASH_DUMP="$dir/crash.dump"
		as ejabberd erl -noinput +K true +P 250000 +Q 65536 -mnesia dir "\"$dir/spool\"" -s ejabberd "$@"
	) >"$dir/out.log" 2>&1 &
	PID=$!
}

start_prosody() {
	local dir=$1
	certificate "$dir"
	fill "$HERE/prosody.cfg.lua.in" "$dir/prosody.cfg.lua" "$dir" 15224
	"$BENCH" provision --format prosody --users "$USERS" --accounts "$SESSIONS" --out "$dir/data"
	own prosody "$dir"
	(
		cd "$dir" || exit 1
		as prosody prosody -F --config "$dir/prosody.cfg.lua"
	) >"$dir/out.log" 2>&1 &
	PID=$! ADDRESS=127.0.0.1:15224 TRANSPORT=direct
	await "$dir" Prosody listening 15224
}

start_muster() { serve_muster "$1" 1; }

start_muster_three() {
	serve_muster "$1" 3
	CLUSTER="$1/run/cluster.json"
}

# serve_muster DIR NODES
serve_muster() {
	local dir=$1 nodes=$2
	"$BENCH" provision --format csv --users "$USERS" --accounts "$SESSIONS" --out "$dir"
	# shellcheck source=start-muster.sh
	. "$HERE/start-muster.sh"
}

# own USER DIR: gives the folder to the user that the server runs as.
own() {
	if [ "$(id -u)" = 0 ] && id "$1" >/dev/null 2>&1; then
		chown -R "$1:" "$2"
	fi
}
