# A VPN that was set up by hand, and ufw.
install wireguard-tools wireguard-go iptables ufw
umask 077
cat >/etc/wireguard/wg0.conf <<END
# of the owner
[Interface]
Address = 10.66.0.2/24
PrivateKey = $(wg genkey)
ListenPort = 51999

[Peer]
PublicKey = $(wg genkey | wg pubkey)
AllowedIPs = 10.66.0.0/24
END
systemctl enable --now --quiet wg-quick@wg0
ufw allow 22/tcp >/dev/null
ufw --force enable >/dev/null
