"""A host: its disk, its identity and the systemd-nspawn command that boots it."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from lab import bases, disks
from lab.common import KNOWN_HOSTS, LOGS, NETNS, OPERATOR_KEY, SSH, LabError, run
from lab.common import write_if_changed as write
from lab.topology import HOSTS, RESOLVER, Host

DROPPED_CAPABILITIES = ("CAP_SYS_TIME", "CAP_SYS_MODULE", "CAP_SYS_RAWIO")
_DEVICES = ("/dev/net/tun", "/dev/fuse", "/dev/autofs")
# nspawn tells the supervisor by this status that the host asked for a reboot.
REBOOT_STATUS = 133


def disk(host: Host) -> Path:
    """Directory of a host's disk (in the supervisor's mount namespace)."""
    return disks.CURRENT.resolve() / host.name


def root(host: Host) -> Path:
    """Where a host's merged root is mounted."""
    return disk(host) / "root"


def console_log(host: Host) -> Path:
    """What the host wrote to its console."""
    return LOGS / f"console-{host.name}.log"


def make_disk(host: Host, base: str) -> str | None:
    """Create what is missing of a host's disk; return a note when it stands on an older base."""
    directory = disk(host)
    for name in ("upper", "work", "root", "docker"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    (directory / "docker").chmod(0o710)
    record = directory / "base"
    if not record.exists():
        record.write_text(base + "\n")
        return None
    mine = record.read_text().strip()
    if not bases.base_path(mine).is_dir():
        raise LabError(
            f"the disk of {host.name} stands on the base {mine}, which is gone: "
            "`python3 -m lab destroy` and start again"
        )
    if mine != base:
        return f"{host.name}: its disk stands on an older base ({mine}); `destroy` renews it"
    return None


def make_keys() -> None:
    """The operator's key, a host key per host, and known_hosts that pins them."""
    SSH.mkdir(parents=True, exist_ok=True, mode=0o700)
    _make_key(OPERATOR_KEY, "prime-spark-lab operator")
    lines = []
    for host in HOSTS.values():
        key = SSH / f"host_{host.name}"
        _make_key(key, f"root@{host.name}")
        public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
        lines.append(f"{host.address},{host.name} {public}\n")
    write(KNOWN_HOSTS, "".join(lines))


def _make_key(path: Path, comment: str) -> None:
    if not (path.exists() and path.with_suffix(".pub").exists()):
        path.unlink(missing_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path])


def mount_root(host: Host) -> None:
    """Mount the overlay root (called in the supervisor's mount namespace)."""
    directory = disk(host)
    lower = bases.base_path((directory / "base").read_text().strip()).resolve()
    options = f"lowerdir={lower},upperdir={directory}/upper,workdir={directory}/work"
    run(["mount", "-t", "overlay", f"lab-{host.name}", "-o", options, root(host)])


def unmount_root(host: Host) -> None:
    """Unmount the overlay root."""
    run(["umount", root(host)], check=False)


def personalize(host: Host) -> None:
    """Write what makes a bare Debian this host. Called while it is off; keeps what it has."""
    top = root(host)

    def path(name: str) -> Path:
        """A path in the root whose directory is really inside it."""
        target = top / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.parent.resolve().is_relative_to(top):
            raise LabError(f"{host.name}: /{name} leads out of the host's disk")
        return target

    def once(name: str, content: str) -> None:
        target = path(name)
        if not target.is_symlink() and not target.exists():
            write(target, content)

    if not path("etc/machine-id").read_text().strip():
        write(path("etc/machine-id"), uuid.uuid4().hex + "\n", 0o444)
    once("etc/hostname", host.name + "\n")
    hosts = path("etc/hosts")
    if not hosts.exists() or host.name not in hosts.read_text():
        write(hosts, f"127.0.0.1 localhost\n127.0.1.1 {host.name}\n")
    write(path("etc/resolv.conf"), f"nameserver {RESOLVER}\n")

    key = SSH / f"host_{host.name}"
    write(path("etc/ssh/ssh_host_ed25519_key"), key.read_text(), 0o600)
    write(path("etc/ssh/ssh_host_ed25519_key.pub"), key.with_suffix(".pub").read_text())
    authorized = path("root/.ssh/authorized_keys")
    authorized.parent.chmod(0o700)
    operator = OPERATOR_KEY.with_suffix(".pub").read_text()
    have = authorized.read_text() if authorized.exists() else ""
    if operator not in have:
        write(authorized, have + operator, 0o600)

    old = path("etc/apt/sources.list")
    if old.exists():
        old.unlink()
    once("etc/apt/sources.list.d/debian.sources", _apt_sources(host))

    # The kernel belongs to the machine: sysctls other than net.*, its clock and its modules too.
    write(
        path("etc/systemd/system/systemd-sysctl.service.d/lab.conf"),
        "[Service]\nExecStart=\nExecStart=/usr/lib/systemd/systemd-sysctl --prefix=net\n",
    )
    _mask(path("etc/systemd/system/systemd-timesyncd.service"))
    # No NFS in the kernel: the unit would fail once nfs-common is installed.
    filesystems = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    if "rpc_pipefs" not in filesystems:
        _mask(path("etc/systemd/system/run-rpc_pipefs.mount"))
    # Addresses come from outside; systemd-networkd would remove the rules that hold packets in.
    _mask(path("etc/systemd/system/systemd-networkd.service"))


def _mask(unit: Path) -> None:
    if not unit.is_symlink() and not unit.exists():
        unit.symlink_to("/dev/null")


def _apt_sources(host: Host) -> str:
    stanzas = []
    for line in bases.sources(host.suite):
        _, uri, suite, *components = line.split()
        stanzas.append(
            f"Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: {' '.join(components)}\n"
            "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        )
    return "\n".join(stanzas)


def nspawn_command(host: Host) -> list[str]:
    """The command that boots a host; exit status REBOOT_STATUS asks for another boot."""
    binds = [f"--bind={device}" for device in _DEVICES if Path(device).exists()]
    return [
        "systemd-nspawn",
        "--quiet",
        "--settings=no",
        "--register=no",
        "--keep-unit",
        f"--machine={host.name}",
        f"--uuid={_machine_id(host)}",
        f"--directory={root(host)}",
        "--boot",
        f"--network-namespace-path={NETNS / host.name}",
        "--capability=all",
        f"--drop-capability={','.join(DROPPED_CAPABILITIES)}",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        "--console=pipe",
        *binds,
        f"--bind={disk(host)}/docker:/var/lib/docker",
    ]


def nspawn_environment() -> dict[str, str]:
    """What systemd-nspawn has to be told on a machine without systemd, or with hybrid cgroups."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        # Only /proc/sys/net is the host's own; the rest of /proc/sys and /sys is the machine's.
        "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
        "UNIFIED_CGROUP_HIERARCHY": "1",
        "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
        "SYSTEMD_SECCOMP": "0",
        "SYSTEMD_NSPAWN_LOCK": "0",
    }


def _machine_id(host: Host) -> str:
    return (root(host) / "etc/machine-id").read_text().strip()


# Docker with live-restore leaves containers running when it stops, and their shims ignore SIGTERM:
# a host would wait for them until it is killed. Without it Docker stops them as each image says,
# and starts them at the next boot. The changed configuration is gone then.
PREPARE_POWEROFF = """
set -eu
systemctl --quiet is-active docker.service || exit 0
config=/etc/docker/daemon.json
sed 's/"live-restore": true/"live-restore": false/' "$config" > /run/lab-daemon.json
mount --bind /run/lab-daemon.json "$config"
systemctl reload docker.service
until [ "$(docker info --format '{{.LiveRestoreEnabled}}')" = false ]; do sleep 0.1; done
"""


def free_space(path: Path) -> int:
    """Bytes that are free where a path lies (or will lie)."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
