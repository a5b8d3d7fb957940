#!/bin/sh
# dom0's first process: the kernel's file systems and modules, then busybox init with /etc/inittab.
export PATH=/usr/sbin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
# Without udev nobody makes these, and Xen's block script spins on a missing /dev/stdin.
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
while read -r module; do
    insmod "$module" || echo "dom0: $module was not loaded"
done </etc/kubexen-lab/boot-modules
exec busybox init
