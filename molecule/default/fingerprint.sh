# Everything that a run may write to, one line each: kind, mode, owner, size or target, path, content.
# Times are left out: reading moves some of them.
for directory in /etc /opt /usr/local /var/lib/prime-spark; do
  [ -e "$directory" ] || continue
  find "$directory" -xdev -printf '%y %m %U:%G %l %p\n'
  find "$directory" -xdev -type f -exec sha256sum {} +
done | LC_ALL=C sort
