-- Run while the server makes its first tables and does not look at them yet.
FLUSH PRIVILEGES;
CREATE DATABASE wiki;
-- Nobody can log in as this user until somebody has said: ALTER USER wiki@'%' IDENTIFIED BY '…'
CREATE USER wiki@'%' IDENTIFIED VIA mysql_native_password USING 'invalid';
GRANT ALL ON wiki.* TO wiki@'%';
