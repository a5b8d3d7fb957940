#!/bin/sh
# /sbin/poweroff and /sbin/reboot, which the kernel runs when xenstore's control/shutdown says so: there is no init
# to ask, so the kernel is told directly.
how=${0##*/}
echo "GUEST $how" >/dev/console
sync
exec busybox "$how" -f
