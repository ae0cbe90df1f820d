a2dissite -q 000-default
a2disconf -q mediawiki serve-cgi-bin
a2ensite -q kvmlab-wiki
systemctl enable kvmlab-wiki.service

# The texts of the interface: gathered by the first visitor, they would take him half a minute without KVM.
mkdir /var/cache/kvmlab-wiki
php /usr/share/mediawiki/maintenance/rebuildLocalisationCache.php --no-database --lang=en

# Maintenance for months, which a test has no time for.
systemctl mask phpsessionclean.timer apache-htcacheclean.service
