#!/bin/sh
# Runs a command in an image's root folder as a hardened container does: a read-only root with a tmpfs on /tmp, models
# read-only, a numeric user, no capabilities, and no network but the loopback. To be started in new namespaces.
#
#   run_image.sh ROOT MODELS USER:GROUP FOLDER NAME=VALUE... COMMAND...
set -eu
root=$1 models=$2 user=${3%:*} group=${3#*:} folder=$4
shift 4

mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null zero full random urandom; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
# As a runtime makes the image's working folder, and what is mounted, where it is not there.
mkdir -p "$root$folder" "$root/models"
mount --bind "$models" "$root/models"
mount -o remount,bind,ro "$root/models"
mount -o remount,bind,ro "$root"
ip link set lo up

exec chroot "$root" setpriv --reuid "$user" --regid "$group" --clear-groups --no-new-privs \
  --inh-caps=-all --bounding-set=-all env --ignore-environment --chdir "$folder" "$@"
