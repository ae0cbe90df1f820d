systemd-sysusers /usr/lib/sysusers.d/measurement.conf
systemctl enable measurement.service
