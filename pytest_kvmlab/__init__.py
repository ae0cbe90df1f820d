"""pytest fixtures that start, check and take down KVM guests through libvirt."""

__version__ = "0.1.0"
