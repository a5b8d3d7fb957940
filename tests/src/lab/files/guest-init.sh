#!/bin/sh
# The test guest's only program. It says what it sees on its console and does what its kernel command line asks:
#   kubexen.address=10.88.0.5/24            address of eth0
#   kubexen.exit=poweroff|reboot|crash      how to end, kubexen.exit-after=SECONDS after the start (default 5)
# Each writable disk carries a count of the starts that saw it in its second sector: "DISK xvda boots=3".
# What it has is told again whenever it changes: "HAS cpus=2 memory=118 xvda=32768 eth0", CPUs that run, memory in MiB, disks
# with their sectors, interfaces.
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "$module"; done </modules

address= exit_how= exit_after=5
for word in $(cat /proc/cmdline); do
    case $word in
    kubexen.address=*) address=${word#*=} ;;
    kubexen.exit=*) exit_how=${word#*=} ;;
    kubexen.exit-after=*) exit_after=${word#*=} ;;
    esac
done

# Frontends connect on their own time: wait until each has made its device, at most ten seconds in all.
tries=0
for device in /sys/bus/xen/devices/vbd-* /sys/bus/xen/devices/vif-*; do
    [ -e "$device" ] || continue
    while [ ! -e "$device/block" ] && [ ! -e "$device/net" ] && [ $tries -lt 100 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
done

ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    ip link set eth0 up
    [ -n "$address" ] && ip address add "$address" dev eth0
fi

count_boots() {
    if [ "$(cat "/sys/block/$1/ro")" = 1 ]; then
        echo "DISK $1 readonly"
        return
    fi
    boots=$(dd if="/dev/$1" bs=512 skip=1 count=1 2>/dev/null | tr -d '\0' | sed -n 's/^boots=\([0-9]*\)$/\1/p')
    boots=$((${boots:-0} + 1))
    if echo "boots=$boots" | dd of="/dev/$1" bs=512 seek=1 count=1 conv=notrunc,sync,fsync 2>/dev/null; then
        echo "DISK $1 boots=$boots"
    else
        echo "DISK $1 failed"
    fi
}

# A CPU that was plugged in is there, and does nothing until somebody says so.
start_cpus() {
    for online in /sys/devices/system/cpu/cpu*/online; do
        [ -e "$online" ] && [ "$(cat "$online")" = 0 ] && echo 1 >"$online"
    done
}

holdings() {
    cpus=$(grep -c '^processor' /proc/cpuinfo)
    memory=$(sed -n 's/^MemTotal: *\([0-9]*\) kB$/\1/p' /proc/meminfo)
    text="cpus=$cpus memory=$((memory / 1024))"
    for path in /sys/block/xvd*; do
        [ -e "$path/size" ] && text="$text ${path##*/}=$(cat "$path/size")"
    done
    for path in /sys/class/net/eth*; do
        [ -e "$path" ] && text="$text ${path##*/}"
    done
    echo "$text"
}

echo "GUEST up kernel=$(uname -r) type=$(cat /sys/hypervisor/guest_type) address=${address:-none}"
seen=" "
held=
tick=0
while :; do
    start_cpus
    now=$(holdings)
    [ "$now" = "$held" ] || echo "HAS $now"
    held=$now
    for disk in $seen; do
        [ -e "/sys/block/$disk" ] || seen=" $(echo "$seen" | tr ' ' '\n' | sed "/^$disk$/d" | tr '\n' ' ') "
    done
    for path in /sys/block/xvd*; do
        disk=${path##*/}
        [ -e "/dev/$disk" ] || continue
        case $seen in *" $disk "*) continue ;; esac
        seen="$seen$disk "
        count_boots "$disk"
    done
    echo "TICK $tick"
    if [ -n "$exit_how" ] && [ $tick -ge "$exit_after" ]; then
        case $exit_how in
        crash) echo "GUEST crash" && echo c >/proc/sysrq-trigger ;;
        *) "/sbin/$exit_how" ;;
        esac
    fi
    sleep 1
    tick=$((tick + 1))
done
