#!/bin/sh
# The procedure without Drover: a block copy of every disk, left running so that it follows the guest's writes, and a graceful shutdown once
# a person has said yes. No pivot: the copy goes on until QEMU ends. What `make bench-naive` compares with.
#
#   naive.sh mirror URI DOMAIN DIRECTORY   begin a copy of each disk to DIRECTORY/DISK.xml, wait until libvirt calls all of them ready
#   naive.sh cutover URI DOMAIN            shut the guest down, wait until it is off
set -eu
uri=$2 domain=$3
case $1 in
  mirror)
    disks=0
    for destination in "$4"/*.xml; do
      disk=$(basename "$destination" .xml) disks=$((disks + 1))
      virsh -q -c "$uri" blockcopy "$domain" "$disk" --xml "$destination" --reuse-external --transient-job
    done
    until [ "$(virsh -q -c "$uri" dumpxml "$domain" | grep -c "<mirror .*ready='yes'")" = "$disks" ]; do
      [ "$(virsh -q -c "$uri" dumpxml "$domain" | grep -c '<mirror ')" = "$disks" ] || { echo "a copy has failed" >&2; exit 1; }
      sleep 0.2
    done
    ;;
  cutover)
    virsh -q -c "$uri" shutdown "$domain"
    until [ "$(virsh -q -c "$uri" domstate "$domain")" = "shut off" ]; do sleep 0.2; done
    ;;
esac
