#!/bin/sh
# The test guest's only program. It says what it sees on its console and does what its kernel command line asks:
#   kubexen.address=10.88.0.5/24            address of eth0
#   kubexen.agent                           write into xenstore what agents in guests write there
#   kubexen.babble                          write nonsense there instead
#   kubexen.beat=10.88.0.255                send a numbered packet there every 100 ms, and do not tick
#   kubexen.dirty=32                        write to so many MiB of memory over and over
#   kubexen.exit=poweroff|reboot|crash      how to end, kubexen.exit-after=SECONDS after the start (default 5)
#   kubexen.log                             write each tick to a sector of its own on the first disk, and say when that fails
# Each writable disk carries a count of the starts that saw it in its second sector: "DISK xvda boots=3 log=40", with the
# number of ticks that earlier starts have logged on it without a gap. Of a read-only disk it tells the letters that it begins
# with: "DISK xvdo readonly begins=install-me"; and if it holds a seed for cloud-init, the lines of its files:
# "SEED xvdp user-data: #cloud-config".
# What it has is told again whenever it changes: "HAS cpus=2 memory=118 xvda=32768 eth0", CPUs that run, memory in MiB, disks
# with their sectors, interfaces.
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "$module"; done </modules

address= agent= beat= dirty= exit_how= exit_after=5 log=
for word in $(cat /proc/cmdline); do
    case $word in
    kubexen.address=*) address=${word#*=} ;;
    kubexen.agent) agent=tell ;;
    kubexen.babble) agent=babble ;;
    kubexen.beat=*) beat=${word#*=} ;;
    kubexen.dirty=*) dirty=${word#*=} ;;
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
        echo "DISK $1 readonly begins=$(dd if="/dev/$1" bs=64 count=1 2>/dev/null | tr -cd 'a-zA-Z0-9-')"
        if mount -t vfat -o ro "/dev/$1" /seed 2>/dev/null; then
            for file in /seed/*; do
                sed "s|^|SEED $1 ${file##*/}: |" "$file"
            done
            umount /seed
        fi
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

# The log begins at sector 1000, with one tick in each.
count_logged() {
    dd if="/dev/$1" bs=512 skip=1000 count=1000 2>/dev/null | tr -s '\0' '\n' | {
        ticks=0
        while read -r line && [ "$line" = "tick=$ticks" ]; do ticks=$((ticks + 1)); done
        echo $ticks
    }
}

# Writes a node of this domain: a message of xenstore's wire protocol, at most 255 bytes long, whose answer is not looked at.
write() {
    length=$(printf '%03o' $((${#1} + 1 + ${#2})))
    {
        printf '\013\0\0\0\1\0\0\0\0\0\0\0'"\\$length"'\0\0\0'"$1"'\0'
        printf '%s' "$2"
    } >&3
    dd bs=4096 count=1 <&3 >/dev/null 2>&1
}

memory() {
    sed -n "s/^$1: *\([0-9]*\) kB/\1/p" /proc/meminfo
}

# What is written is lost when the guest moves to another host, so it is written again and again.
tell() {
    write data/os_name "KubeXen test guest"
    write data/os_majorver 1
    write data/os_minorver 0
    write data/os_uname "$(uname -r)"
    write data/meminfo_total "$(memory MemTotal)"
    write data/meminfo_free "$(memory MemAvailable)"
    write attr/PVAddons/MajorVersion 1
    write attr/PVAddons/MinorVersion 0
    write attr/PVAddons/MicroVersion 0
    write attr/PVAddons/BuildVersion 1
    [ -n "$address" ] && write attr/vif/0/ipv4/0 "${address%/*}"
}

babble() {
    long=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
    write data/os_name "a$(printf '\033')[31mb$tick"
    write data/meminfo_total lots
    write data/meminfo_free 99999999999999999999
    for slot in 0 1 2 3 4 5 6 7 8 9 a b c d e f g h i j k l m n o p q r s t u v w x y z; do
        write "attr/vif/0/ipv4/$slot" "10.0.0.$slot.1"
    done
    write data/os_uname "$long$long$long"
}

[ -n "$agent" ] && exec 3<>/dev/xen/xenbus
[ -n "$dirty" ] && while :; do dd if=/dev/zero of=/dirty bs=64k count=$((dirty * 16)) conv=notrunc; done 2>/dev/null &

echo "FLAGS $(sed -n '/^flags/{s/^[^:]*: //p;q}' /proc/cpuinfo) ."
echo "GUEST up kernel=$(uname -r) type=$(cat /sys/hypervisor/guest_type) address=${address:-none}"
[ -n "$beat" ] && while :; do ping -q -i 0.1 -s 16 "$beat" >/dev/null; done
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
    if [ -n "$log" ] && [ $tick -lt 1000 ]; then
        echo "tick=$tick" | dd of="/dev/$log" bs=512 seek=$((1000 + tick)) conv=notrunc,sync,fsync 2>/dev/null ||
            echo "WRITE of tick $tick failed"
    fi
    echo "TICK $tick"
    [ -n "$agent" ] && [ $((tick % 10)) = 0 ] && $agent
    if [ -n "$exit_how" ] && [ $tick -ge "$exit_after" ]; then
        case $exit_how in
        crash) echo "GUEST crash" && echo c >/proc/sysrq-trigger ;;
        *) "/sbin/$exit_how" ;;
        esac
    fi
    sleep 1
    tick=$((tick + 1))
done
