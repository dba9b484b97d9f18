#!/usr/bin/env bash
# Installs the Debian packages that Drover's build and lab need. Does nothing, quickly, when they are there.
set -euo pipefail

packages=(
  # building
  build-essential cmake pkg-config libssl-dev libvirt-dev git ca-certificates
  # the source side: libvirt, QEMU, and what the test guest is made of
  libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 qemu-utils
  linux-image-cloud-amd64 busybox-static cpio acpid qemu-guest-agent e2fsprogs
  # the storage, the network to it, and NBD clients that nobody here wrote
  nfs-ganesha nfs-ganesha-vfs iproute2 libnbd-bin nbdkit
  # git over ssh
  openssh-server openssh-client
  # clocks that a test sets
  libfaketime
  # the official Nutanix SDKs run in it
  python3-venv
)

for tool in cargo:1.89 go:1.26; do
  command -v "${tool%%:*}" >/dev/null || {
    echo "setup: ${tool%%:*} is missing: install ${tool%%:*} ${tool##*:} or newer and put it on PATH" >&2
    exit 1
  }
done

missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

echo "==> install ${#missing[@]} Debian packages: ${missing[*]}"
start=$SECONDS
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# No service is to start: the lab runs its own instances.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
echo "<== install Debian packages: $((SECONDS - start)) s"
