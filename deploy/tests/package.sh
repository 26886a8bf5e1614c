#!/bin/sh
# Installs the Debian package in a bare Debian, configures it wrong and right, upgrades, removes and purges it. Runs as root
# in a root directory of its own with a network of its own, without systemd: `cargo xtask test package` puts it there.
#
# Beside it lie old.deb and new.deb: the package, and one of a higher version that brings another cableway.toml.
set -u
cd "$(dirname "$0")"
. ./checks.sh
export DEBIAN_FRONTEND=noninteractive

CONFIG=/etc/cableway/cableway.toml

# Every file of the system but what dpkg itself keeps.
files() {
    find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /check \
        -o -path /var/lib/dpkg -o -path /var/log -o -path /var/cache \) -prune -o -print | sort
}

# Starts the server as a user without rights, and waits until its log names the last endpoint. Like `stop` it does not run
# inside `check`, which has a shell of its own, but leaves its status behind.
start() {
    rm -f /tmp/log
    mkfifo /tmp/log
    setpriv --reuid=65534 --regid=65534 --clear-groups cableway serve --norpc --noauth "$@" >/tmp/log 2>&1 &
    server=$!
    exec 3</tmp/log
    while read -r line <&3; do
        case $line in *"metrics: http"*) return 0 ;; esac
    done
    return 1
}

stop() {
    kill -TERM "$server" && cat <&3 >/dev/null && wait "$server"
}

is_refused_and_explained() {
    ! said=$(cableway serve 2>&1) && echo "$said" | grep -q "$1"
}

is_there() { for file; do [ -e "$file" ] || { echo "$file is missing"; return 1; }; done; }
is_gone() { for file; do [ ! -e "$file" ] || { echo "$file is there"; return 1; }; done; }
is_readable_by_root_alone() { [ "$(stat -c '%U %a' "$1")" = 'root 600' ]; }
says() { grep -q "$1" "$2"; }

files >/tmp/before

check 'it is installed' dpkg --install old.deb
check 'all of it is there' is_there /usr/bin/cableway /usr/lib/systemd/system/cableway.service \
    /usr/lib/systemd/system/cableway.socket $CONFIG /etc/cableway/cableway.env /usr/lib/sysctl.d/90-cableway.conf \
    /usr/share/man/man1/cableway.1.gz /usr/share/bash-completion/completions/cableway \
    /usr/share/zsh/vendor-completions/_cableway /usr/share/fish/vendor_completions.d/cableway.fish \
    /usr/share/doc/cableway/copyright /usr/share/doc/cableway/crates.txt
check 'secrets are for root' is_readable_by_root_alone /etc/cableway/cableway.env
check 'the unit starts the program of the package' says '^ExecStart=/usr/bin/cableway ' /usr/lib/systemd/system/cableway.service
check 'nothing is enabled' is_gone /etc/systemd/system/multi-user.target.wants/cableway.service \
    /etc/systemd/system/sockets.target.wants/cableway.socket
check 'bash reads the completions' bash -n /usr/share/bash-completion/completions/cableway

start
check 'it serves with the configuration as shipped' [ $? = 0 ]
check 'it is healthy' cableway healthcheck
stop
check 'it stops when asked to, with status 0' [ $? = 0 ]
check 'nobody is healthy then' sh -c '! cableway healthcheck'

echo 'prot = 8081' >>$CONFIG
check 'a wrong configuration is refused with its name' is_refused_and_explained prot
printf '[server]\nport = 8081\n' >$CONFIG
start
check 'it serves with a changed configuration' [ $? = 0 ]
check 'it is healthy where the configuration says' cableway healthcheck --url http://127.0.0.1:8081/health
stop
check 'it stops again' [ $? = 0 ]

check 'it is upgraded' dpkg --force-confdef --force-confold --install new.deb
check 'the changed configuration is kept' says 'port = 8081' $CONFIG
check 'the new one lies beside it' says 'Brought by a newer package' $CONFIG.dpkg-dist

check 'it is removed' dpkg --remove cableway
check 'the program is gone' is_gone /usr/bin/cableway /usr/lib/systemd/system/cableway.service
check 'the changed configuration is still there' says 'port = 8081' $CONFIG

check 'it is installed again and finds its configuration' dpkg --force-confdef --force-confold --install old.deb
check 'which is the changed one' says 'port = 8081' $CONFIG
check 'it is purged' dpkg --purge cableway
files >/tmp/after
check 'and nothing of it remains' diff /tmp/before /tmp/after

summary
