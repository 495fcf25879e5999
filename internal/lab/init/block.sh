#!/bin/sh
# libxl's disk script for a dom0 without bash: names a block device to the
# kernel's backend. A regular file gets a loop device.
[ "$1" = add ] || {
    loop=$(xenstore-read "$XENBUS_PATH/lab-loop" 2>/dev/null) && losetup -d "$loop"
    exit 0
}
dev=$(xenstore-read "$XENBUS_PATH/params") || exit 1
if [ -f "$dev" ]; then
    modprobe loop
    dev=$(losetup --find --show "$dev") || exit 1
    xenstore-write "$XENBUS_PATH/lab-loop" "$dev"
fi
numbers=$(stat -L -c '%t:%T' "$dev") || exit 1
xenstore-write "$XENBUS_PATH/physical-device" "$numbers" \
    "$XENBUS_PATH/physical-device-path" "$dev" \
    "$XENBUS_PATH/hotplug-status" connected
