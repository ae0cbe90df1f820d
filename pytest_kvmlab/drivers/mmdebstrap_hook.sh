#!/bin/sh
# Called by mmdebstrap with a stage and the root of the tree; the folder $KVMLAB_WORK has what goes into the tree.
set -eu
stage=$1 root=$2 work=$KVMLAB_WORK

inside() {
    env -u KVMLAB_WORK -u KVMLAB_SHELL PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root chroot "$root" "$@"
}

# As the installer of Debian 12 makes them; from Debian 13 on, base-files brings them.
merge_usr() {
    for name in bin sbin lib lib32 lib64 libx32; do
        mkdir -p "$root/usr/$name"
        ln -s "usr/$name" "$root/$name"
    done
}

# The devices are there already: as real ones, or as this kind of build fakes them.
unpack_parent() {
    tar --extract --file "$work/parent.tar" --directory "$root" --exclude './dev/*' --numeric-owner \
        --keep-directory-symlink --xattrs --xattrs-include='*'
}

install_packages() {
    mkdir "$root/.packages"
    cp "$work"/packages/*.deb "$root/.packages"
    inside sh -euc 'apt-get install --yes --no-install-recommends --allow-downgrades \
            -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts=/dev/null -o APT::Sandbox::User=root \
            -o DPkg::Options::=--force-confdef -o DPkg::Options::=--force-confold /.packages/*.deb'
    rm -r "$root/.packages"
    # Only what the recipe names was asked for; the rest may go when nothing needs it any more.
    xargs -r -a "$work/automatic" env -u KVMLAB_WORK PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" \
        apt-mark auto >/dev/null
}

# mmdebstrap takes both from this machine; without the former, systemd-resolved puts its own link there.
forget_the_host() {
    rm -f "$root/etc/resolv.conf" "$root/etc/hostname"
}

describe_system() {
    echo localhost >"$root/etc/hostname"
    chmod 644 "$root/etc/hostname"
    printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' >"$root/etc/hosts"
    echo 'LABEL=root / ext4 defaults,noatime 0 1' >"$root/etc/fstab"
}

# By the tree's own tar, since a link such as /lib leads elsewhere from outside.
copy_files() {
    inside tar --extract --directory / --keep-directory-symlink --no-overwrite-dir --numeric-owner <"$work/files.tar"
}

run_setup() {
    echo "kvmlab: setup.sh begins"
    cp "$work/setup.sh" "$root/.setup.sh"
    mkdir "$root/.setup"
    status=0
    # In fakechroot mode the whole of this runs without a network, and nobody could switch it off again.
    if [ "$MMDEBSTRAP_MODE" = fakechroot ]; then set --; else set -- unshare --net; fi
    env -u KVMLAB_WORK -u KVMLAB_SHELL PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
        "$@" chroot "$root" sh -eu /.setup.sh >"$root/.setup/log" 2>&1 </dev/null || status=$?
    cat "$root/.setup/log"
    [ "$status" = 0 ] || setup_failed "$status"
    rm -r "$root/.setup" "$root/.setup.sh"
}

setup_failed() {
    echo "kvmlab: setup.sh failed: $1"
    if [ -n "${KVMLAB_SHELL:-}" ]; then
        {
            echo "setup.sh failed with status $1 (/.setup.sh, output in /.setup/log); this is the tree as it left it"
            inside sh -i +m || true
        } </dev/tty >/dev/tty 2>&1
    fi
    exit 1
}

# Once, after everything that it depends on.
make_initramfs() {
    [ ! -e "$root/usr/sbin/update-initramfs" ] || inside update-initramfs -c -k "${KVMLAB_BOOTS:-all}"
}

# The package of an older kernel than the tree's leaves the links where they are.
choose_kernel() {
    ln -sfn "boot/vmlinuz-$KVMLAB_BOOTS" "$root/vmlinuz"
    ln -sfn "boot/initrd.img-$KVMLAB_BOOTS" "$root/initrd.img"
}

# What a system has for itself alone, what is of the build, and what the kinds of build make differently.
forget_identity() {
    rm -f "$root"/etc/ssh/ssh_host_*_key "$root"/etc/ssh/ssh_host_*_key.pub "$root/etc/machine-id" \
        "$root/var/lib/systemd/random-seed" "$root/var/lib/systemd/credential.secret" "$root/root/.bash_history" \
        "$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap" "$root/etc/apt/apt.conf.d/99mmdebstrap" "$root/vmlinuz.old" \
        "$root/initrd.img.old"
    : >"$root/etc/machine-id"
    chmod 444 "$root/etc/machine-id"
    if [ -d "$root/var/log/journal" ]; then
        rm -r "$root/var/log/journal"
        mkdir -m 755 "$root/var/log/journal"
    fi
    # Whether apt has made itself a user's folders depends on who could reach the folder of the build.
    inside sh -euc 'mkdir -p "$@"; chmod 700 "$@"; chown _apt:root "$@"' sh \
        /var/cache/apt/archives/partial /var/lib/apt/lists/partial
}

case $stage in
setup)
    forget_the_host
    if [ -e "$work/parent.tar" ]; then unpack_parent; else merge_usr; fi
    ;;
customize)
    [ ! -d "$work/packages" ] || install_packages
    [ -e "$work/parent.tar" ] || describe_system
    copy_files
    [ ! -e "$work/setup.sh" ] || run_setup
    make_initramfs
    [ -z "$KVMLAB_BOOTS" ] || choose_kernel
    forget_identity
    # mmdebstrap names its own archive here; a recipe's own list is in a file of sources.list.d.
    : >"$root/etc/apt/sources.list"
    ;;
esac
