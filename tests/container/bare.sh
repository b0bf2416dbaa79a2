#!/usr/bin/env bash
# A command on a machine where nothing was installed by hand: a Debian bookworm made from nothing, with no more than Python,
# this repository's last commit in /work/project and the folder beside it, shared/, as root.
#   bare.sh FOLDER COMMAND...     bare.sh /var/tmp/bare bash .ci/run
# FOLDER must not exist; remove it afterwards. From this machine it has the way to Debian's and Python's packages, and the kernel.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# -ge 2 ] && [ ! -e "$1" ] || { sed -n '2,6s/^# //p' "$0" >&2; exit 64; }
bare=$1
shift

mmdebstrap --quiet --variant=minbase --include=python3 bookworm "$bare" - \
  < <(apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) main' 'Origin: Debian' | sort -u)
for file in /etc/hosts /etc/resolv.conf /etc/pip.conf /etc/apt/apt.conf.d /usr/local/share/ca-certificates; do
  [ ! -e $file ] || cp -rL $file "$bare/$(dirname $file)/"
done
mkdir -p "$bare/work"
git bundle create --quiet "$bare/work/bundle" HEAD
cp -rH ../shared "$bare/work/shared"

# git is not there yet: the clone is made from here, as a fresh one with its own .git.
git clone --quiet "$bare/work/bundle" "$bare/work/project"
rm "$bare/work/bundle"

# A real root of its own and not a chroot, since containers start in a root of their own, too; its processes end with it.
exec unshare --mount --pid --fork --kill-child sh -c '
  mount --make-rprivate / && mount --bind "$0" "$0" && cd "$0" && mkdir -p .old
  mount -t proc proc proc && mount --rbind /dev dev && mount --rbind /sys sys && mount -t tmpfs run run && mount -t tmpfs tmp tmp
  chmod 1777 tmp && pivot_root . .old && cd /work/project && umount -l /.old
  export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  exec "$@"' "$bare" "$@"
