#!/bin/sh
# The test guest's only program. It says what it sees on its console and does what its kernel command line asks:
#   kubexen.address=10.88.0.5/24            address of eth0
#   kubexen.exit=poweroff|reboot|crash      how to end, kubexen.exit-after=SECONDS after the start (default 5)
#   kubexen.log                             write each tick to a sector of its own on the first disk
# Each writable disk carries a count of the starts that saw it in its second sector: "DISK xvda boots=3 log=40", with the
# number of ticks that earlier starts have logged on it without a gap.
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "$module"; done </modules

address= exit_how= exit_after=5 log=
for word in $(cat /proc/cmdline); do
    case $word in
    kubexen.address=*) address=${word#*=} ;;
    kubexen.log) log=xvda ;;
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
        echo "DISK $1 boots=$boots log=$(count_logged "$1")"
    else
        echo "DISK $1 failed"
    fi
}

# The log begins at sector 1000, with one tick in each.
count_logged() {
    dd if="/dev/$1" bs=512 skip=1000 count=1000 2>/dev/null | tr -s '\0' '\n' | {
        ticks=0
        while read -r line && [ "$line" = "tick=$ticks" ]; do ticks=$((ticks + 1)); done
        echo $ticks
    }
}

echo "GUEST up kernel=$(uname -r) type=$(cat /sys/hypervisor/guest_type) address=${address:-none}"
seen=" "
tick=0
while :; do
    for path in /sys/block/xvd*; do
        disk=${path##*/}
        [ -e "/dev/$disk" ] || continue
        case $seen in *" $disk "*) continue ;; esac
        seen="$seen$disk "
        count_boots "$disk"
    done
    if [ -n "$log" ] && [ $tick -lt 1000 ]; then
        echo "tick=$tick" | dd of="/dev/$log" bs=512 seek=$((1000 + tick)) conv=notrunc,sync,fsync 2>/dev/null
    fi
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
