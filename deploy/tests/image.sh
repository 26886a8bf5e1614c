#!/bin/sh
# Builds the image and runs it: image.sh REPOSITORY FOLDER SYSTEM, as root. FOLDER/built holds what the Dockerfile's first stage
# would have built, SYSTEM a bare Debian that stands in for the image that the last stage begins with.
set -u
here=$(dirname "$0")
. "$here/checks.sh"
repository=$1
folder=$2
system=$3

# Images of this test are its own: no other tool on the machine sees them.
engine() { buildah --root "$folder/images" --runroot "$folder/run" --storage-driver vfs "$@"; }
field() { engine inspect --type image --format "{{$1}}" cableway; }
is() { [ "$2" = "$1" ] || { echo "it is '$2' and not '$1'"; return 1; }; }

# The image that the last stage begins with.
import_base() {
    base=$(engine from scratch) && engine add --quiet "$base" "$system" / && engine commit --quiet "$base" localhost/bare-debian && engine rm "$base"
}

build() {
    engine build --quiet --pull-never --format docker --isolation chroot --file "$repository/Dockerfile" \
        --build-context "build=$folder/built" --build-context "debian:bookworm-slim=container-image://localhost/bare-debian" \
        --tag cableway "$repository"
}

check 'an image to begin with is there' import_base
check 'the image is built' build
check 'its user has no rights' is 65532:65532 "$(field .Docker.Config.User)"
check 'it is stopped with SIGTERM' is SIGTERM "$(field .Docker.Config.StopSignal)"
check 'it starts the server' is '[/usr/bin/cableway] [serve]' "$(field .Docker.Config.Entrypoint) $(field .Docker.Config.Cmd)"
check 'its health is asked of the server itself' is '[CMD /usr/bin/cableway healthcheck]' "$(field .Docker.Config.Healthcheck.Test)"

container=$(engine from --pull-never localhost/cableway)
# As an engine would run it, but for the namespaces: with the image's user and variables, and with 1024 open files, which is what
# buildah gives.
inside() { engine run --isolation chroot "$container" -- "$@"; }

check 'a process in it is not root' is 65532 "$(inside id -u)"

rm -f "$folder/log"
mkfifo "$folder/log"
# Ports and processes are those of the machine here, so the server takes a free one and says which.
inside /usr/bin/cableway serve --norpc --noauth --port 0 --http-broadcast-port 0 >"$folder/log" 2>&1 &
engine=$!
exec 3<"$folder/log"
port=
server=
: >"$folder/said"
while read -r line <&3; do
    echo "$line" >>"$folder/said"
    case $line in *"Starting Cableway"*) server=$(echo "$line" | sed 's/.*pid: \([0-9]*\).*/\1/') ;; esac
    case $line in *"metrics: http"*) port=$(echo "$line" | sed 's/.*:\([0-9]*\)\/metrics.*/\1/'); break ;; esac
done
check 'it serves with 1024 open files' [ -n "$port" ]
check 'and says that these are few' grep -q 'WARN open files (hard limit): 1,024' "$folder/said"
check 'it listens for others than itself' grep -q '0\.0\.0\.0' "$folder/said"
check 'it finds itself healthy' inside /usr/bin/cableway healthcheck --url "http://127.0.0.1:$port/health"
check 'SIGTERM reaches it' kill -TERM "$server"
cat <&3 >/dev/null
wait "$engine"
check 'and it ends with status 0' [ $? = 0 ]
check 'it is unhealthy then' sh -c "! $folder/built/src/target/release/cableway healthcheck --url http://127.0.0.1:$port/health"

engine rm "$container" >/dev/null
engine rmi --all --force >/dev/null
summary
