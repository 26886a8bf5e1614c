#!/bin/sh
# Runs in the guest of `cargo xtask guest`, as root, under real systemd: installs the package, starts the service, and shows that
# it does what its unit and this folder's guide promise. No network but loopback.
set -u
cd "$(dirname "$0")"
. ./checks.sh
. ./settings.sh
export DEBIAN_FRONTEND=noninteractive SYSTEMD_COLORS=0 SYSTEMD_PAGER= NO_COLOR=1

CONFIG=/etc/cableway/cableway.toml
SERVER=http://127.0.0.1:8080
# An emulated processor is slow: what takes a moment elsewhere may take minutes here.
PATIENCE=180

step() { echo; echo "=== $*"; }

# until_true COMMAND: looks each second, for as long as an emulated machine may need.
until_true() {
    for _ in $(seq $PATIENCE); do
        "$@" && return 0
        sleep 1
    done
    return 1
}

property() { systemctl show --property="$1" --value cableway.service; }
is_active() { systemctl --quiet is-active "${1:-cableway.service}"; }
is_not() { ! "$@"; }
metric() { curl -s $SERVER/metrics | awk -v name="$1" '$1 == name { print $2 }'; }
clients() { metric cableway_clients_num; }
holds() { [ "$(clients)" = "$1" ]; }
has_another_process() { [ "$(property MainPID)" != 0 ] && [ "$(property MainPID)" != "$1" ] && is_active; }
# Whether systemd is the parent of the main process. It does not wait for the end of another one's child, and may kill it at once.
is_systemds() { [ "$(awk '/^PPid:/ { print $2 }' "/proc/$(property MainPID)/status")" = 1 ]; }
is_alone() { [ "$(pgrep -c -x cableway)" = 1 ]; }
says() { grep -q -- "$1" "$2"; }
logged() { journalctl --unit cableway.service --boot --no-pager --output=cat | grep -q -- "$1"; }

# The status of an upgrade to a WebSocket from a page of that origin. curl then waits for messages until its time is over.
upgrade() {
    curl -s -o /dev/null -w '%{http_code}' --http1.1 --max-time "${2:-5}" -H "Origin: $1" -H 'Connection: Upgrade' -H 'Upgrade: websocket' \
        -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==' -H 'Sec-WebSocket-Protocol: actioncable-v1-json' \
        $SERVER/cable
}
upgrade_is() { status=$(upgrade "$1"); [ "$status" = "$2" ] || { echo "$1: $status"; return 1; }; }

# check_held N SECONDS: holds N clients for a while, in the background, and waits until the server has them.
check_held() {
    ./cableway-loadtest idle --target ws://127.0.0.1:8080/cable --processes 1 --connections "$1" --hold "$2" --timeout 300 >load.txt 2>&1 &
    load=$!
    # For whoever waits: an emulated machine takes minutes.
    while sleep 10 && kill -0 $load && ! holds "$1"; do echo "$(date +%T) $(clients) clients"; done 2>/dev/null
    check "one process holds $1 clients" holds "$1"
    # What the server says of them: sessions, sockets, and whoever is gone with the cause.
    curl -s $SERVER/metrics | grep -E '^cableway_(clients|websockets|connections|handshakes)_num|^cableway_connections_(accepted|closed)_total' | grep -v ' 0$'
    systemctl show --property=StatusText cableway.service
}
# check_nobody_lost: waits until the clients above leave by themselves.
check_nobody_lost() {
    wait "$load"
    check 'nobody was lost' [ $? = 0 ]
    load_report
}
# What the load test says in the end, without its lines of progress.
load_report() { sed -n '/^idle on/,$p' load.txt; }

step 'The machine'
systemctl is-system-running --wait
systemctl --version | head -1
uname -r
free -m
nproc
ulimit -n 1048576

step 'Installation'
check 'the package is installed' dpkg --install old.deb
check 'it is neither enabled nor started' is_not is_active
check 'systemd finds nothing wrong with its units' systemd-analyze verify --man=no cableway.service cableway.socket
systemd-analyze security --no-pager cableway.service | tail -1

step 'Doctor'
# Enough to need most of the settings, and within this machine's memory.
goal=100000
# Every layer wrong, as after bad advice.
modprobe nf_conntrack
nft -f - <<'END'
table inet firewall {
    chain input {
        type filter hook input priority 0
        ct state established accept
    }
}
END
sysctl -q -w fs.nr_open=20000 fs.file-max=30000 fs.epoll.max_user_watches=50000 net.core.somaxconn=128 net.core.netdev_max_backlog=100 \
    net.ipv4.tcp_max_syn_backlog=128 net.ipv4.tcp_syncookies=0 net.ipv4.tcp_mem='1000 2000 3000' net.ipv4.tcp_rmem='16777216 16777216 16777216' \
    net.ipv4.tcp_wmem='16777216 16777216 16777216' net.ipv4.ip_local_port_range='40000 41000' net.netfilter.nf_conntrack_max=1000
ulimit -n 20000
cableway doctor --connections $goal >doctor.txt
check 'it says no when every layer is wrong, with status 1' [ $? = 1 ]
cat doctor.txt
# Its own lines, as a person would copy them; those that begin with * are for a file and the next login.
sed -n 's/^ *-> \([^*]\)/\1/p' doctor.txt >fixes.sh
echo 'The lines that it gives:'
cat fixes.sh
. ./fixes.sh
cableway doctor --connections $goal >doctor.txt
check 'it says yes after them, with status 0' [ $? = 0 ]
cat doctor.txt
nft delete table inet firewall
# One of its lines starts the service again. The load test below needs its descriptors.
systemctl stop cableway.service
ulimit -n 1048576

step 'A wrong configuration'
cp $CONFIG shipped.toml
echo 'prot = 8080' >>$CONFIG
systemctl start cableway.service
check 'a service with a wrong configuration does not start' is_not is_active
check 'the journal names what is wrong' logged 'prot'
systemctl stop cableway.service

step 'Kernel settings'
sysctl --system >sysctl.txt 2>&1
check 'the package brings kernel settings' says 'fs.nr_open = ' sysctl.txt

step 'Readiness'
# An emulated processor has no time for a ping every 3 seconds to each of 25,000: unanswered ones would end connections.
cat >$CONFIG <<'END'
app.ping_interval = "60s"
rpc.implementation = "none"
noauth = true

streams.public = true
END
check 'it starts' systemctl start cableway.service
check 'it serves as soon as systemd calls it started' upgrade_is https://example.com 101
check 'it is healthy' cableway healthcheck
systemctl status --no-pager cableway.service
echo "limit of open files: $(awk '/open files/ { print $4 }' "/proc/$(property MainPID)/limits")"

step "$connections clients in one process"
check_held "$connections" 40
echo "descriptors of the process: $(ls "/proc/$(property MainPID)/fd" | wc -l)"
grep VmRSS "/proc/$(property MainPID)/status"
check_nobody_lost

step 'Watchdog'
before=$(property MainPID)
check 'it is stopped in mid-run (SIGSTOP), which it cannot notice' systemctl kill --signal=STOP cableway.service
check 'systemd ends it and starts another one' until_true has_another_process "$before"
check 'the watchdog was the reason' logged 'atchdog timeout'
check 'the new process serves' upgrade_is https://example.com 101
systemctl show --property=NRestarts cableway.service

step 'A new configuration'
check_held 1000 60
check 'every origin may connect' upgrade_is https://evil.example 101
sed -i '1i server.allowed_origins = ["*.example.com"]' $CONFIG
before=$(property MainPID)
check 'it is told to read its configuration again (SIGHUP)' systemctl kill --signal=HUP --kill-whom=main cableway.service
check 'the other origin is refused now' until_true upgrade_is https://evil.example 403
check 'its own is let in' upgrade_is https://www.example.com 101
check 'the process is the same' [ "$(property MainPID)" = "$before" ]
check 'everybody is still there' holds 1000
# The load test's own clients come from no origin of those.
sed -i 1d $CONFIG
check 'it starts anew and hands everything over (reload)' systemctl reload cableway.service
check 'the process is another one' [ "$(property MainPID)" != "$before" ]
check 'and a child of systemd' is_systemds
check 'which is the only one' until_true is_alone
check 'and all are welcome again' upgrade_is https://evil.example 101
check 'everybody is still there' holds 1000
echo 'prot = 8080' >>$CONFIG
before=$(property MainPID)
check 'with a mistake in the configuration the reload fails' is_not systemctl reload cableway.service
check 'the process is the same' [ "$(property MainPID)" = "$before" ]
check 'it is active' is_active
check 'everybody is still there' holds 1000
sed -i '$d' $CONFIG
check_nobody_lost
journalctl --unit cableway.service --boot --no-pager --output=cat | grep -E 'read again|upgrade'

step 'Stop'
check_held 1000 30
check 'it stops' systemctl stop cableway.service
check 'with success' [ "$(property Result)" = success ]
wait "$load"
journalctl --unit cableway.service --boot --no-pager --output=cat | tail -8
load_report

step 'Socket activation'
check 'only the socket listens' systemctl start cableway.socket
check 'the server does not run' is_not is_active
check 'the first client is served' upgrade_is https://example.com 101
check 'by a server that runs now' is_active
check_held 1000 30
check_nobody_lost
systemctl stop cableway.socket cableway.service

step 'An upgrade'
check 'it starts' systemctl start cableway.service
before=$(property MainPID)
check_held 1000 240
check 'the package is upgraded under them' dpkg --force-confdef --force-confold --install new.deb
check 'another process serves' [ "$(property MainPID)" != "$before" ]
check 'with the new program' [ "$(readlink "/proc/$(property MainPID)/exe")" = /usr/bin/cableway ]
check 'everybody is still there' holds 1000
check 'and one more can come' upgrade_is https://example.com 101
after=$(property MainPID)
check 'its watchdog is fed: it is still the same after a minute' sh -c 'sleep 60 && [ "$(systemctl show --property=MainPID --value cableway.service)" = "$0" ]' "$after"
systemctl status --no-pager cableway.service
check 'the configuration is kept' says 'noauth = true' $CONFIG
check_nobody_lost
# The process that came by an upgrade is stopped and watched as any other.
check_held 1000 60
check 'it stops' systemctl stop cableway.service
check 'with success' [ "$(property Result)" = success ]
wait "$load"
check 'its clients were told to come back' says 'told to disconnect 1000$' load.txt
load_report
check 'it starts' systemctl start cableway.service
check 'it hands over (reload)' systemctl reload cableway.service
before=$(property MainPID)
check 'the process that took over is stopped in mid-run (SIGSTOP)' systemctl kill --signal=STOP --kill-whom=main cableway.service
check 'systemd ends it and starts another one' until_true has_another_process "$before"
check 'the new process serves' upgrade_is https://example.com 101
check 'systemd has seen no process that was not its child' is_not logged 'not our child'

if [ "$fill" != 0 ]; then
    step 'As many clients as memory allows, in one process'
    systemctl restart cableway.service
    timeout --signal=INT "$fill" ./cableway-loadtest idle --target ws://127.0.0.1:8080/cable --processes 1 --connections 1000000 --hold 30 --timeout 600 --leave-memory 160 \
        >load.txt 2>&1 &
    load=$!
    while kill -0 $load 2>/dev/null; do
        echo "$(date +%T) clients $(clients), $(awk '/MemAvailable/ { print $2, $3 }' /proc/meminfo) available, $(grep VmRSS "/proc/$(property MainPID)/status")"
        sleep 30
    done
    wait $load
    load_report
fi

step 'Removal'
check 'it is purged while it runs' dpkg --purge cableway
check 'it runs no longer' is_not is_active
check 'no unit is left' is_not systemctl --quiet cat cableway.service
check 'no configuration is left' [ ! -e /etc/cableway ]
systemctl --failed --no-legend

summary
