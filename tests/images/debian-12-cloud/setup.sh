# What debian-12 has for the run's keys goes, and with it the shell on the serial line that asks for no password.
systemctl disable guest-keys.service
rm -r /etc/systemd/system/guest-keys.service /usr/local/sbin/guest-keys \
    /etc/systemd/system/serial-getty@ttyS0.service.d /etc/ssh/sshd_config.d/host-key.conf
# As cloud images have it.
echo 'PasswordAuthentication no' >/etc/ssh/sshd_config.d/50-cloud.conf
