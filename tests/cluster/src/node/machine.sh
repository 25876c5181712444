# The first process of the node's own process, mount and network namespaces. Its argument is the
# node's folder. When it ends, the kernel ends all others and takes down mounts and interfaces.
set -eu
folder=$1
# what the kubelet mounts is seen by containerd and by containers that ask for it, not by the host
mount --make-rshared /
# where the components have their habits; the host's own stay untouched
for place in /var/lib /var/log /run; do
    mount -t tmpfs tmpfs "$place"
done
mkdir -p /var/lib/kubelet "$folder/kubelet"
mount --bind "$folder/kubelet" /var/lib/kubelet
ip link set lo up
ip address add "$2/32" dev lo
echo 1 >/proc/sys/net/ipv4/ip_forward
touch "$folder/up"
# as the first process it also reaps whom their parents left
sleep infinity &
while :; do wait; done
