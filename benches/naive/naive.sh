#!/bin/sh
# The procedure without Drover: a background block copy, and a shutdown when it says that it is ready. What `make bench-naive` compares with.
#
#   naive.sh mirror URI DOMAIN DESTINATION.xml   begin the copy, wait until libvirt calls it ready
#   naive.sh cutover URI DOMAIN                  shut the guest down, wait until it is off
set -eu
uri=$2 domain=$3
case $1 in
  mirror)
    virsh -q -c "$uri" blockcopy "$domain" vda --xml "$4" --reuse-external --transient-job
    until virsh -q -c "$uri" dumpxml "$domain" | grep -q "<mirror .*ready='yes'"; do
      virsh -q -c "$uri" dumpxml "$domain" | grep -q '<mirror ' || { echo "the copy has failed" >&2; exit 1; }
      sleep 0.2
    done
    ;;
  cutover)
    virsh -q -c "$uri" shutdown "$domain"
    until [ "$(virsh -q -c "$uri" domstate "$domain")" = "shut off" ]; do sleep 0.2; done
    ;;
esac
