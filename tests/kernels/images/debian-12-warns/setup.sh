make -C /lib/modules/*/build M=/usr/src/planted modules
