# Waits until whoever holds its standard input is gone, then ends a Docker engine of a test and
# everything that it ran: its processes are those that name its directory ($DIRECTORY) or are in the
# control group of one of its containers. So a test that is cut off leaves nothing either.
cat > /dev/null

containers() {
    find "$DIRECTORY/data" -maxdepth 3 -regextype posix-extended \
        -regex '.*/containers/[0-9a-f]{64}' -printf '%f\n' 2> /dev/null
}
# Those that name the directory come first: the engine would start others anew.
processes() {
    for process in /proc/[0-9]*; do
        if tr '\0' ' ' 2> /dev/null < "$process/cmdline" | grep -qF -- "$DIRECTORY"; then
            echo "${process#/proc/}"
        fi
    done
    for id in $ids; do
        grep -lF -- "$id" /proc/[0-9]*/cgroup 2> /dev/null | cut -d/ -f3
    done
}

tries=0
while [ "$tries" -lt 100 ]; do
    ids=$(containers)
    left=$(processes)
    [ -n "$left" ] || break
    # shellcheck disable=SC2086 # they are words
    kill -KILL $left 2> /dev/null
    tries=$((tries + 1))
    sleep 0.05
done
for id in $ids; do
    # The engine has a group for each container in every hierarchy.
    find /sys/fs/cgroup -depth -type d -path "*$id*" -exec rmdir {} + 2> /dev/null
done
cut -d' ' -f5 /proc/self/mountinfo | grep -F -- "$DIRECTORY/" | sort -r | while read -r point; do
    umount -l "$point"
done
[ -z "$NETWORK" ] || ip netns del "$NETWORK" 2> /dev/null
rm -rf -- "$DIRECTORY"
