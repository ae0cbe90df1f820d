#!/bin/sh
# The test starts the server, once it has said what is served.
systemctl disable nfs-server.service
