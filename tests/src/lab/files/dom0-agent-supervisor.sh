#!/bin/bash
# Keeps the node agent running while /run/kubexen-agent/wanted exists. The command line is in
# /run/kubexen-agent/command, one NUL after each word; the agent's output goes to a virtio port that QEMU writes
# to a file on the machine, so it outlives the host.
export PATH=/usr/sbin:/usr/bin:/usr/lib/xen-4.17/bin HOME=/root
cd /run/kubexen-agent || exit 1
[ -p wake ] || mkfifo wake
exec 3<>wake
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = kubexen.agent ] && exec >"/dev/${port##*/}" 2>&1
done
while :; do
    if [ -e wanted ]; then
        mapfile -d '' -t command <command
        "${command[@]}" </dev/null 3<&- &
        echo $! >pid.new && mv pid.new pid
        wait $!
        echo "agent-supervisor: the agent ended with status $?"
        rm -f pid
        # A pause, so that an agent that fails at once does not eat the host's only CPU.
        [ -e wanted ] && read -r -t 1 -u 3
    else
        read -r -u 3
    fi
done
