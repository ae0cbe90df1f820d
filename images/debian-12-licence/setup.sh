ln -s ../lib/licence/client.py /usr/local/bin/licence
systemctl enable licence.service
