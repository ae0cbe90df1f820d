# Runs as root in the tree, once all packages are installed and the files of root/ are there.
systemctl enable guest-keys.service systemd-networkd.service systemd-resolved.service
systemctl disable systemd-networkd-wait-online.service

# What keeps a machine in order over months takes a test's time, at a moment of its own choosing.
systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer systemd-tmpfiles-clean.timer

# Nothing to do here, and each costs a guest without KVM a program's start.
systemctl mask systemd-pstore.service systemd-firstboot.service systemd-repart.service \
    systemd-machine-id-commit.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
    sys-fs-fuse-connections.mount sys-kernel-config.mount modprobe@drm.service
systemctl disable systemd-network-generator.service

# All is up to date: systemd compares these with /usr, and would look for new users and the like at each start.
touch /etc/.updated /var/.updated
