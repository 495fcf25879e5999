#!/bin/sh
# dom0's first process: devices, modules, xenstored and its companions, then
# the agent that speaks with the host. Everything it prints is on Xen's serial
# line. Nothing here waits for time to pass.
export PATH=/usr/sbin:/usr/bin:/usr/lib/xen/bin:/usr/lib/busybox HOME=/root
b=/usr/lib/busybox
$b/mount -t proc proc /proc
$b/mount -t sysfs sys /sys
$b/mount -t devtmpfs dev /dev
$b/mkdir -p /dev/pts /dev/shm /run/xen /run/xenstored /share /lab
$b/mount -t devpts devpts /dev/pts
$b/mount -t tmpfs tmpfs /dev/shm
$b/mount -t tmpfs run /run
mkdir -p /run/xen /run/xenstored /run/lock
mount -t tmpfs tmp /tmp
for dir in /usr/lib/xen-*/bin; do ln -s "${dir%/bin}" /usr/lib/xen; done

say() { echo "lab: $*" >/dev/kmsg; }
die() { echo "lab: dom0 init failed: $*"; echo "lab: dom0 init failed: $*" >/dev/kmsg; sync; poweroff -f; }

for m in xen-privcmd xenfs xen-evtchn xen-gntdev xen-gntalloc \
    virtio_pci virtio_console 9pnet_virtio 9p; do
    modprobe $m || die "cannot load $m"
done
mount -t xenfs xenfs /proc/xen || die "cannot mount xenfs"
p9=trans=virtio,version=9p2000.L,msize=262144
mount -t 9p -o $p9,cache=mmap share /share || die "cannot mount the share"
mount -t 9p -o $p9,ro,cache=loose lab /lab || die "cannot mount the images"

xenstored --pid-file /run/xen/xenstored.pid || die "xenstored"
xen-init-dom0 >/dev/null || die "xen-init-dom0"
xenconsoled --log=all --pid-file=/run/xen/xenconsoled.pid || die "xenconsoled"
say "dom0 is up"
/usr/bin/lab-agent /dev/virtio-ports/agent /dev/vport*p1
say "agent ended"
sync
poweroff -f
