#!/bin/bash
# Everything that makes the booted kernel a Xen host of the lab; runs once, under busybox init.
export PATH=/usr/sbin:/usr/bin:/usr/lib/xen-4.17/bin
number=1
for word in $(cat /proc/cmdline); do
    case $word in kubexen.host=*) number=${word#*=} ;; esac
done
hostname "xen-$number"

# Network first: it does not depend on Xen. eth0 is QEMU's user network, eth1 the segment between the hosts.
ip link set lo up
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2
ip link add xenbr0 type bridge
ip link set eth1 master xenbr0
ip link set eth1 up
ip address add "10.77.0.$number/24" dev xenbr0
ip address add "10.88.0.$number/24" dev xenbr0
ip link set xenbr0 up
modprobe 8021q
ip link add link eth1 name migrate0 type vlan id 99
ip address add "10.99.0.$number/24" dev migrate0
ip link set migrate0 up

# The disks are told apart by the serial numbers that QEMU was given.
mkdir -p /dev/lab /srv/kubexen
for disk in /sys/block/vd*; do
    ln -s "/dev/${disk##*/}" "/dev/lab/$(cat "$disk/serial")"
done
mount -t ext4 /dev/lab/data /srv/kubexen || echo "dom0: /srv/kubexen was not mounted"

mount -t xenfs xenfs /proc/xen
mkdir -p /run/xen /run/xenstored /run/lock/lvm /run/lvm /run/xen-hotplug /run/kubexen-lab /run/kubexen-agent
xenstored --pid-file /run/xenstored.pid
for _ in $(seq 100); do
    [ -S /run/xenstored/socket ] && break
    sleep 0.1
done
xen-init-dom0
xenconsoled --pid-file=/run/xenconsoled.pid
echo "KUBEXEN-LAB READY after $(cut -d' ' -f1 /proc/uptime) s"
