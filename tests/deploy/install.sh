#!/usr/bin/env bash
# Installs the programs that the tests of deploy/ run, from Debian's packages: those that are not there yet.
set -eu
PATH="$PATH:/usr/sbin:/sbin"

missing=()
while read -r program package; do
  command -v "$program" >/dev/null || missing+=("$package")
done <<'LIST'
haproxy     haproxy
nginx       nginx-light
promtool    prometheus
buildah     buildah
debootstrap debootstrap
socat       socat
ip          iproute2
unshare     util-linux
LIST
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "Install these first, as root: ${missing[*]}" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# Nothing is started: the tests start what they need.
policy=/usr/sbin/policy-rc.d
[ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy; chmod +x $policy; trap 'rm $policy' EXIT; }
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
