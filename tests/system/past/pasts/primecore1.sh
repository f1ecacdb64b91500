# A provider's image: docker-ce, an old compose stack on a port of ours, ufw.
# Docker's packages by name, files and conflicts, made of Debian's.
work=$(mktemp -d) && cd "$work"
install binutils ufw iptables busybox-static ca-certificates
repack() { # new name, conflicts, depends, Debian's packages...
  local name=$1 conflicts=$2 depends=$3
  shift 3
  apt-get download -q "$@" >/dev/null
  mkdir -p "$name/DEBIAN"
  for part in "$@"; do
    mkdir part && dpkg-deb -R "${part}"_*.deb part && rm -rf part/DEBIAN/{md5sums,control,shlibs,triggers,conffiles}
    [ -e part/etc ] && (cd part && find etc -type f -printf '/%p\n') >>"$name/DEBIAN/conffiles"
    for script in part/DEBIAN/*; do [ -e "$script" ] && mv "$script" "$name/DEBIAN/"; done
    rmdir part/DEBIAN && cp -a part/. "$name/" && rm -rf part
  done
  cat >"$name/DEBIAN/control" <<END
Package: $name
Version: 5:26.1.5-1~debian.13~trixie
Architecture: $(dpkg --print-architecture)
Maintainer: Docker <support@docker.com>
Depends: $depends
Conflicts: $conflicts
Replaces: $conflicts
Description: $name of another source
END
  dpkg-deb -b "$name" "$name.deb" >/dev/null
}
repack containerd.io "containerd, runc" "libseccomp2" containerd runc
repack docker-ce-cli "docker-cli" "libc6" docker-cli
repack docker-ce "docker.io, docker, docker-engine" "containerd.io, docker-ce-cli, iptables, tini, libsystemd0, libnftables1 | libc6" docker.io
repack docker-compose-plugin "docker-compose" "docker-ce-cli" docker-compose
install ./containerd.io.deb ./docker-ce-cli.deb ./docker-ce.deb ./docker-compose-plugin.deb
systemctl start docker.service
# The old stack: one container that publishes the node exporter's port, with data in a volume.
mkdir -p image/bin && cp /bin/busybox image/bin/busybox && ln -s busybox image/bin/sh
tar -C image -c . | docker import - old:1 >/dev/null
mkdir -p /home/old-stack && cd /home/old-stack
cat >compose.yml <<END
services:
  exporter:
    image: old:1
    command: [/bin/busybox, sh, -c, "[ -e /data/kept ] || echo of-the-owner >/data/kept; exec /bin/busybox httpd -f -p 9100 -h /data"]
    ports: ["19100:9100"]
    volumes: ["data:/data"]
    restart: always
volumes: {data: {}}
END
docker compose up -d --quiet-pull 2>/dev/null
ufw allow 22/tcp >/dev/null
ufw --force enable >/dev/null
ufw allow 80/tcp >/dev/null
