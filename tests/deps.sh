#!/bin/sh
# make deps: the Debian packages that building and testing need. Installs what is missing, says what it does, and does
# nothing when all are there.
set -eu

build='gcc make pkg-config libglib2.0-dev liburing-dev libnbd-dev libcmocka-dev zlib1g-dev libzstd-dev
    nettle-dev'
# the tools that judge us, and what the lints and fuzzers need
tests='python3 python3-libnbd git qemu-utils qemu-system-common nbdkit libnbd-bin fio e2fsprogs socat clang-format clang
    libclang-rt-14-dev'

missing=
for p in $build $tests; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing="$missing $p"
done
if [ -z "$missing" ]; then
    echo 'deps: all packages are installed'
    exit 0
fi
root=
if [ "$(id -u)" != 0 ]; then
    root='sudo'
    command -v sudo >/dev/null || { echo "deps: not root, and no sudo. Install as root:$missing" >&2; exit 1; }
fi
echo "deps: installing$missing"
install() {
    # shellcheck disable=SC2086
    $root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends -q $missing
}
# The lists may be absent or old: fetch them only when the packages cannot be had without.
# shellcheck disable=SC2086
if ! apt-get install -s -q --no-install-recommends $missing >/dev/null 2>&1 || ! install; then
    echo 'deps: fetching the package lists'
    $root apt-get update -q
    install
fi
