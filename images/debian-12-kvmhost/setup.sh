useradd --create-home --shell /bin/bash --groups kvm tester

# The libvirt of the whole machine starts when somebody asks for it.
systemctl disable libvirtd.service libvirt-guests.service virtlogd.service virtlockd.service
systemctl enable libvirtd.socket
