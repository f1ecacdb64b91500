# A Raspberry Pi that has run for months: its user needs a password for sudo, its NAS stands in fstab, and
# numbers are taken.
useradd --uid 1000 --create-home --shell /bin/bash --groups sudo pi
echo "pi:$PASSWORD" | chpasswd
install -d -m 0700 -o pi -g pi /home/pi/.ssh 2>/dev/null || mkdir -p /home/pi/.ssh
cp /root/.ssh/authorized_keys /home/pi/.ssh/ && chown -R pi: /home/pi/.ssh && chmod 700 /home/pi/.ssh
groupadd --gid 1490 media
mkdir -p /srv/share /mnt/nas
echo of-the-owner >/srv/share/kept
echo "/srv/share /mnt/nas none bind 0 0" >>/etc/fstab
mount /mnt/nas
