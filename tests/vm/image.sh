#!/bin/sh
# Makes the disk of the machine that `make test-vm` starts; wants root.
#   image.sh base DIR                  a small Debian below DIR, with a kernel
#   image.sh disk BASE FILES KEY DISK  an ext4 image of it, with FILES laid over and traind installed
set -eu

packages=systemd,systemd-sysv,libpam-systemd,dbus-user-session,python3,python3-venv,make,passwd,procps,curl
packages=$packages,openssh-server,linux-image-cloud-amd64

base() {
    rm -rf "$1" "$1.new"
    # The initramfs holds what finds the disk and no more: all of it is unpacked at each start.
    mmdebstrap --quiet --variant=minbase --mode=root --format=directory --include=$packages \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d"' \
        --essential-hook='echo MODULES=list >"$1/etc/initramfs-tools/conf.d/vm"' \
        --essential-hook='printf "virtio_pci\nvirtio_blk\next4\n" >"$1/etc/initramfs-tools/modules"' \
        bookworm "$1.new"
    cd "$1.new"
    echo vm >etc/hostname
    echo '127.0.0.1 localhost vm' >etc/hosts
    echo '/dev/vda / ext4 defaults 0 1' >etc/fstab
    printf '[Match]\nName=e*\n[Network]\nAddress=10.0.2.15/24\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n' \
        >etc/systemd/network/80-vm.network
    systemctl --quiet --root=. enable systemd-networkd
    systemctl --quiet --root=. set-default multi-user.target
    systemctl --quiet --root=. mask systemd-networkd-wait-online.service systemd-timesyncd.service \
        apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
        e2scrub_reap.service fstrim.timer getty@tty1.service getty-static.service \
        systemd-pstore.service
    chroot . useradd --create-home --shell /bin/bash --uid 4321 alice
    mv "$1.new" "$1"
}

disk() {
    work=$(mktemp -d -p "$(dirname "$4")")
    trap 'rm -rf "$work"' EXIT
    mkdir "$work/upper" "$work/work" "$work/root"
    unshare --mount --propagation=private sh -eu -s "$1" "$2" "$3" "$4" "$work" <<'END'
mount -t overlay overlay -o "lowerdir=$1,upperdir=$5/upper,workdir=$5/work" "$5/root"
cd "$5/root"
cp -a "$2/." .
for home in root home/alice; do
    install -d -m 700 -o "$(stat -c %u $home)" "$home/.ssh"
    install -m 600 -o "$(stat -c %u $home)" "$3" "$home/.ssh/authorized_keys"
done
mount -t proc proc proc
mount --bind /dev dev
env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels \
    chroot . make --silent -C /src install
umount proc dev
mke2fs -q -F -t ext4 -d . "$4" 2G
END
}

case ${1:-} in
    base) base "$2" ;;
    disk) disk "$2" "$3" "$4" "$5" ;;
    *) sed -n '2,4p' "$0" && exit 2 ;;
esac
