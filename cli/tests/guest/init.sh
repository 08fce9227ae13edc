#!/bin/busybox sh
# First process of a test guest: mounts, modules, the daemon, and a loop that runs what the test says.
export PATH=/bin HOME=/
if [ "$1" != mounted ]; then
    # pivot_root(2), by which containers enter their root, refuses to leave the kernel's first file system: the same
    # files are made the root as a mount of their own.
    mount --bind / /new && cd /new && mount --move . / && exec chroot . /init mounted
fi
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t cgroup2 cgroup /sys/fs/cgroup
for word in $(cat /proc/cmdline); do
    case "$word" in
    guest.name=*) hostname "${word#*=}" ;;
    guest.address=*) address="${word#*=}" ;;
    guest.lacks=*) lacks=",${word#*=}," ;;
    esac
done
while read -r module; do
    case "$lacks" in *",$module,"*) continue ;; esac
    insmod "/modules/$module.ko" || echo "guest: module $module was not loaded"
done </modules/order
ip link set lo up
ip address add "$address" dev eth0
ip link set eth0 up
mount -t ext4 /dev/vda /var/lib/rswarm || echo "guest: no disk"
# As a host does it: the daemon starts with the machine, whatever happened to the machine before.
setsid rswarm daemon </dev/null >/run/daemon.log 2>&1 &
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = control ] && exec 3<>"/dev/${port##*/}"
done
# A line is "NUMBER SECONDS COMMAND"; the answer is its output and "\036NUMBER STATUS".
while IFS= read -r line <&3; do
    number="${line%% *}" line="${line#* }"
    seconds="${line%% *}" line="${line#* }"
    timeout -s KILL "$seconds" sh -c "$line" </dev/null >&3 2>&1 3>&-
    printf '\036%s %s\n' "$number" "$?" >&3
done
# The test is gone, and so are we: nobody would end this machine otherwise.
poweroff -f
