# What its installation made: keys and numbers that no two servers share. A guest makes its own.
rm -r /var/lib/mysql
install -d -o mysql -g mysql -m 700 /var/lib/mysql
systemctl enable kvmlab-mariadb.service
