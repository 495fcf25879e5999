#!/bin/sh
# A guest's first process: devices and modules, then a loop that takes jobs
# from the console. A job arrives as lines "w ID BASE64" and runs at "x ID";
# its output goes to a file and is printed as lines that carry the ID, so that
# kernel messages and several jobs at once cannot garble it ("p ID" prints it
# again). Jobs run beside each other.
export PATH=/usr/sbin:/usr/bin:/usr/lib/busybox HOME=/root
b=/usr/lib/busybox
$b/mount -t proc proc /proc
$b/mount -t sysfs sys /sys
$b/mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir /run/jobs

# Parameters of modules stand on the command line as module.name=value.
load() {
    params=
    for word in $(cat /proc/cmdline); do
        case $word in "$1".*) params="$params ${word#*.}" ;; esac
    done
    modprobe "$1" $params
}
load xen_blkfront

# print ID: the job's result, each line with its number, and at the end the
# exit code and the start of the sum over all of it. busybox is named by its
# path where its applet starts faster than the dynamic program.
print() {
    job=/run/jobs/$1
    sum=$($b/sha256sum <$job.out)
    read -r code <$job.code
    {
        echo
        base64 -w 120 $job.out | awk -v id="$1" '{ print "<" id ":" NR ":" $0 ">" }'
        echo "<$1:end:$code:${sum%"${sum#????????????????}"}>"
    } >$job.text
    flock /run/console $b/cat $job.text
}

run() {
    base64 -d </run/jobs/$1.b64 >/run/jobs/$1.sh
    sh /run/jobs/$1.sh >/run/jobs/$1.out 2>&1 </dev/null
    echo $? >/run/jobs/$1.code
    print $1
}

exec </dev/console >/dev/console 2>&1
stty raw -echo
dmesg -n 1
: >/run/console
echo
echo "<guest:ready>"
while read -r verb id data; do
    case $verb in
    w) echo "$data" >>/run/jobs/$id.b64 ;;
    x) run $id & ;;
    p) print $id & ;;
    f) rm -f /run/jobs/$id.* ;;
    esac
done
poweroff -f
