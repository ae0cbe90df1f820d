"""What was decided: a frozen plan of each guest, and its libvirt XML. Pure."""
