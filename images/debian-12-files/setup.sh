install -d -o nobody -g nogroup -m 2775 /srv/files
# Names by broadcast and domain controllers are other servers.
systemctl mask nmbd.service samba-ad-dc.service
# What a server knows of itself, and of nobody else, it writes down at its first start.
find /var/lib/samba /var/cache/samba -name '*.tdb' -delete
