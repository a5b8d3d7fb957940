#!/bin/sh
# One process for each command of the lab; nofork hands the socket itself to the command's server.
export PATH=/usr/sbin:/usr/bin:/usr/lib/xen-4.17/bin HOME=/root
mkdir -p /run/kubexen-lab
exec socat TCP-LISTEN:7000,reuseaddr,fork,backlog=64 EXEC:/usr/lib/kubexen-lab/control-serve,nofork
