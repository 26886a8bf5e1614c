# Shared by the scripts in peers/: what every server needs to be installed, started, described and ended.
#
# A peer defines peer_install and peer_start and ends with `peer "$@"`. It is run by bash with `set -eu`. What it starts
# stays in its process group; what servers print goes to standard error, because standard output carries one line only.
# shellcheck shell=bash

versus=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
name=$(basename "$0")
: "${VERSUS_HOME:?is the directory where peers are installed}"
VERSUS_HOME=$(mkdir -p "$VERSUS_HOME" && cd "$VERSUS_HOME" && pwd)
: "${VERSUS_CONNECTIONS:=15000}" "${VERSUS_BACKLOG:=4096}"
export VERSUS_HOME VERSUS_CONNECTIONS VERSUS_BACKLOG

# Sources of the small servers, and a directory that is empty at every start.
programs=$versus/programs
scratch=$VERSUS_HOME/run/$name

# Seconds until a server must accept; the runner gives up after 60.
accepts_s_max=50

# Ends with a reason, which is the last line on standard error.
fail() {
    echo "$*" >&2
    exit 1
}

# need COMMAND HOW: fails unless the command is there.
need() {
    command -v "$1" >/dev/null || fail "$1 is missing: $2"
}

# attempt WHAT COMMAND...: fails with the first thing that looks like a reason in what the command printed.
attempt() {
    local what=$1 log=$VERSUS_HOME/$1.log reason
    shift
    if ! (set -o pipefail && "$@" 2>&1 | tee "$log" >&2); then
        reason=$(grep -i -m1 'err\|fatal\|unable\|fail' "$log" || tail -n 1 "$log")
        fail "$what cannot be installed: $reason"
    fi
}

# once WHAT SOURCE COMMAND...: runs the command, unless it went well before for the same source directory.
once() {
    local what=$1 source=$2 stamp=$VERSUS_HOME/$1.installed print
    shift 2
    print=$(cd "$source" && find . -type f ! -path './target/*' ! -path './node_modules/*' -exec cksum {} + | LC_ALL=C sort | cksum)
    if [ "$(cat "$stamp" 2>/dev/null)" = "$print" ]; then
        return
    fi
    attempt "$what" "$@"
    echo "$print" >"$stamp"
}

# The packages of programs/WHAT's lock file and its sources, in $VERSUS_HOME/WHAT. None of them needs its install script.
# Not `npm ci`: it refuses a lock file without the optional packages of other systems that a registry lacks.
npm_install() {
    rm -rf "${VERSUS_HOME:?}/$1"
    cp -R "$programs/$1" "$VERSUS_HOME/$1" && cd "$VERSUS_HOME/$1" && npm install --ignore-scripts --no-audit --no-fund
}

npm_program() {
    need node "install Node.js 18 or newer"
    need npm "install Node.js with npm"
    once "$1" "$programs/$1" npm_install "$1"
}

go_build() {
    mkdir -p "$VERSUS_HOME/go" && go build -C "$programs/go" -o "$VERSUS_HOME/go/" ./gorilla ./gws
}

go_programs() {
    if [ ! -x "$VERSUS_HOME/go/$name" ]; then
        need go "install Go 1.23 or newer (apt-get install golang-go, or see https://go.dev/doc/install)"
    fi
    once go "$programs/go" go_build
}

tungstenite_build() {
    cargo build --release --locked --manifest-path "$programs/tungstenite/Cargo.toml" \
        --target-dir "$VERSUS_HOME/build/tungstenite"
}

tungstenite_program() {
    need cargo "see https://rustup.rs"
    once tungstenite "$programs/tungstenite" tungstenite_build
}

debian_unpack() {
    local debs=$VERSUS_HOME/debian/$name deb
    rm -rf "$debs" && mkdir -p "$debs/partial"
    local apt=(apt-get install --download-only --reinstall --yes --no-install-recommends
        -o "Dir::Cache::archives=$debs" -o Debug::NoLocking=1 "$@")
    # A new machine's list of packages may be old or missing.
    "${apt[@]}" || { apt-get update && "${apt[@]}"; } || return
    for deb in "$debs"/*.deb; do
        dpkg-deb --extract "$deb" "$VERSUS_HOME/debian/root" || return
    done
    rm -rf "$debs"
}

# debian COMMAND PACKAGE...: has the command of Debian packages. A system that lacks it gets them unpacked in
# $VERSUS_HOME, not installed: installed ones would start their services.
debian() {
    local command=$1
    shift
    debian_path
    if command -v "$command" >/dev/null; then
        return
    fi
    need apt-get "install $*, then run this again"
    attempt "$name" debian_unpack "$@"
    # Again, because there may have been no libraries before.
    debian_path
    command -v "$command" >/dev/null || fail "the packages $* have no command $command"
}

# What was unpacked comes after what the system has. Libraries are looked for in there first, but it has only those that
# the system lacked.
debian_path() {
    local root=$VERSUS_HOME/debian/root
    export PATH=$PATH:$root/usr/sbin:$root/usr/bin
    LD_LIBRARY_PATH=$(printf '%s:' "$root"/usr/lib/*-linux-gnu "$root"/lib/*-linux-gnu)${LD_LIBRARY_PATH-}
    export LD_LIBRARY_PATH
}

# Whether somebody accepts on the port. Asked by connecting: the kernel's list of sockets takes long to read where there
# are many.
accepts() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# A free port below those that the kernel hands to clients, so that none of thousands can take it in between.
ports_taken=" "
free_port() {
    local clients_from port
    read -r clients_from _ </proc/sys/net/ipv4/ip_local_port_range
    if [ "$clients_from" -lt 12000 ]; then
        clients_from=32768
    fi
    while :; do
        port=$((10000 + (RANDOM * 32768 + RANDOM) % (clients_from - 10000)))
        if [ "${ports_taken#* "$port" }" = "$ports_taken" ] && ! accepts "$port"; then
            ports_taken+="$port "
            # In a variable, not on standard output: a subshell would forget what it took.
            # shellcheck disable=SC2034
            free_port=$port
            return
        fi
    done
}

# Servers that were started, in order, and processes that these have started outside this process group. Each is ended
# when this script is.
servers=() strays=()

# run COMMAND...: starts a server; its process id is in $!, its output in the log.
run() {
    "$@" >&2 </dev/null &
    servers+=($!)
}

# Tenths of a second that servers have to end, before they are made to.
ends_ds_max=50

# Asked a second time, servers that let their clients go in peace stop waiting for them.
end_servers() {
    local waited
    trap '' TERM INT
    trap - EXIT
    if [ ${#servers[@]} -gt 0 ]; then
        kill -TERM "${servers[@]}" "${strays[@]}" 2>/dev/null || :
        sleep 0.2
        kill -TERM "${servers[@]}" "${strays[@]}" 2>/dev/null || :
        for ((waited = 0; waited < ends_ds_max; waited++)); do
            kill -0 "${servers[@]}" "${strays[@]}" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "${servers[@]}" "${strays[@]}" 2>/dev/null || :
        wait
    fi
}

# await PORT: waits until somebody accepts on the port, or a server is gone.
await() {
    local server waited=0
    until accepts "$1"; do
        for server in "${servers[@]}"; do
            kill -0 "$server" 2>/dev/null || fail "$name ended before it accepted on port $1"
        done
        waited=$((waited + 1))
        [ $waited -lt $((accepts_s_max * 20)) ] || fail "$name does not accept on port $1"
        sleep 0.05
    done
}

# The processes that a process started, one a line.
children() {
    grep -ls "^PPid:[[:space:]]*$1\$" /proc/[0-9]*/status | cut -d/ -f3
}

json_string() {
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}

# announce KEY VALUE...: prints the line about this peer. Keys as in README.md; `publish.url` and its like are inside
# `publish`, `say.text` may come several times, `pids` takes a list of numbers with spaces.
announce() {
    local key value outer="" publish="" texts="" say=""
    while [ $# -gt 0 ]; do
        key=$1 value=$2
        shift 2
        case $key in
        publish.*) publish+=",\"${key#*.}\":$(json_string "$value")" ;;
        say.text) texts+=",$(json_string "$value")" ;;
        say.bytes) say+=",\"bytes\":$value" ;;
        say.*) say+=",\"${key#*.}\":$(json_string "$value")" ;;
        at_once) outer+=",\"at_once\":$value" ;;
        pids)
            # shellcheck disable=SC2086 # a list of numbers
            printf -v value ',%s' $value
            outer+=",\"pids\":[${value#,}]"
            ;;
        *) outer+=",\"$key\":$(json_string "$value")" ;;
        esac
    done
    [ -z "$publish" ] || outer+=",\"publish\":{${publish#,}}"
    [ -z "$texts" ] || outer+=",\"say\":{\"texts\":[${texts#,}]$say}"
    echo "{${outer#,}}"
}

# Stays until a server ends by itself, which is a failure, or this script is told to end.
hold() {
    local status=0
    wait -n "${servers[@]}" || status=$?
    fail "$name ended by itself with status $status"
}

# How many processes a proxy needs, with two sockets for a client, and how many clients each may then have: processes,
# clients_each_max. A few descriptors are for other things; clients are not spread quite evenly.
divide_clients() {
    local clients_from clients_to
    read -r clients_from clients_to </proc/sys/net/ipv4/ip_local_port_range
    if [ "$VERSUS_CONNECTIONS" -ge $((clients_to - clients_from)) ]; then
        fail "a proxy has $((clients_to - clients_from)) ports towards its backend's one address: not enough for $VERSUS_CONNECTIONS clients"
    fi
    clients_each_max=$((($(ulimit -n) - 200) / 2))
    # shellcheck disable=SC2034 # for the peers
    processes=$(((VERSUS_CONNECTIONS * 11 / 10 + clients_each_max - 1) / clients_each_max))
}

# The yardstick as something to proxy to: sets bare_address and bare_control, its process id in $!.
run_bare() {
    local words
    "$VERSUS_LOADTEST" bare --listen 127.0.0.1:0 --backlog "$VERSUS_BACKLOG" "$@" >"$scratch/bare.out" </dev/null &
    servers+=($!)
    until words=$(grep -s '^listening .* control ' "$scratch/bare.out"); do
        kill -0 $! 2>/dev/null || fail "the yardstick did not start"
        sleep 0.02
    done
    # shellcheck disable=SC2034 # for the peers
    read -r _ bare_address _ bare_control <<<"$words"
}

# unset_all PREFIX...: a deployment's variables must not change what is measured.
unset_all() {
    local prefix variable
    for prefix; do
        for variable in $(compgen -e | grep "^$prefix"); do
            unset "$variable"
        done
    done
}

# $VERSUS_CABLEWAY with its own defaults: sets address and publish_url.
run_cableway() {
    local publish_port
    unset_all ANYCABLE_ CABLEWAY_
    free_port && publish_port=$free_port
    free_port
    run "$VERSUS_CABLEWAY" serve --ignore-config-path --host 127.0.0.1 --port "$free_port" --backlog "$VERSUS_BACKLOG" \
        --http-broadcast-port "$publish_port" "$@"
    await "$free_port"
    await "$publish_port"
    # shellcheck disable=SC2034 # for the peers
    address=127.0.0.1:$free_port publish_url=http://127.0.0.1:$publish_port/_broadcast
}

# What Action Cable clients subscribe to, and what they say. Nobody answers a message on a public stream; the pong says
# that it has been dealt with.
# shellcheck disable=SC2034,SC2016 # for the peers; the dollar is the server's
cable_channel='{"channel":"$pubsub","stream_name":"load"}'
cable_message() {
    printf '{"command":"message","identifier":%s,"data":"{pad}"}' "$(json_string "$1")"
}

peer() {
    case ${1-} in
    install)
        trap '' HUP
        peer_install
        ;;
    start)
        trap 'end_servers; exit 0' TERM INT
        trap end_servers EXIT
        rm -rf "$scratch" && mkdir -p "$scratch"
        # Every server may hold as many sockets as the system lets it.
        ulimit -n "$(ulimit -Hn)"
        peer_start
        ;;
    *) fail "usage: $0 install|start" ;;
    esac
}
