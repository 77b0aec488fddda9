#!/bin/sh
# Installs the Debian packages Ingot is built and tested with, if any is missing.
#   --test    also what the tests run beside our own programs
#   --check   also what `make check` needs
#   --fuzz    also what `make fuzz` needs
#   --static  also what `make STATIC=1` needs: OpenBLAS is partly Fortran
set -eu
packages="gcc make libopenblas-dev liblapack-dev libxxhash-dev libzstd-dev libcunit1-dev
          libjansson-dev libpcre2-dev libutf8proc-dev libssl-dev pkg-config"
tests="python3 python3-numpy python3-xxhash python3-zstandard rustc file procps
       munge slurmctld slurmd slurm-client"
case "${1:-}" in
    --test) packages="$packages $tests" ;;
    --check) packages="$packages $tests cppcheck" ;;
    --fuzz) packages="$packages clang" ;;
    --static) packages="$packages gfortran" ;;
    "") ;;
    *) echo "usage: scripts/setup.sh [--test | --check | --fuzz | --static]" >&2; exit 2 ;;
esac
missing=""
for package in $packages; do
    state=$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null || true)
    case "$state" in
        ii*) ;;
        *) missing="$missing $package" ;;
    esac
done
[ -n "$missing" ] || exit 0
echo "setup: installing$missing"
as_root=""
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || {
        echo "setup: not root and no sudo; as root run: apt-get install$missing" >&2
        exit 2
    }
    as_root="sudo"
fi
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -q
# shellcheck disable=SC2086
$as_root apt-get install -y -q --no-install-recommends $missing
