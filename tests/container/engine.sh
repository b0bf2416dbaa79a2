#!/usr/bin/env bash
# What the tests need on a bare Debian bookworm machine, as root: programs, a Docker engine with buildx and compose, a base image
# made from Debian's packages (no registry is asked) and a root file system with Apptainer. What is there already is reused.
#   engine.sh programs    LAMMPS, a browser, make, git, and what Python wants: Debian's packages
#   engine.sh docker      a running engine, the image local/python-base:bookworm, and kustomize for deploy/kubernetes
#   engine.sh apptainer   the folder /var/tmp/mlip-pace-apptainer, a Debian sid with Apptainer and the user tester
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
BASE=local/python-base:bookworm
SID=/var/tmp/mlip-pace-apptainer
PLUGINS=/usr/libexec/docker/cli-plugins
CERTIFICATES=/etc/ssl/certs/ca-certificates.crt
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

fail() {
  echo "engine.sh: $*" >&2
  exit 1
}

update() {
  apt-get update -qq || fail "apt-get update failed: Debian's packages cannot be reached"
}

# dpkg knows the names of packages that are not installed, too: only their status tells.
need() {
  local package status missing=()
  for package in "$@"; do
    status=$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return
  [ "$(id -u)" = 0 ] || fail "these packages are missing, and only root can install them: ${missing[*]}"
  echo "engine.sh: installing ${missing[*]}"
  update
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || fail "apt-get could not install ${missing[*]}"
}

# Where this machine gets Debian's packages from, as lines of sources.list: apt knows from its lists which of its sources are Debian's.
sources() {
  local lines
  lines() { apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) main' 'Origin: Debian' | sort -u; }
  lines=$(lines)
  [ -n "$lines" ] || { update && lines=$(lines); }
  [ -n "$lines" ] || fail "apt's sources name no mirror of Debian"
  echo "$lines"
}

# The mirror alone: other suites are there too.
mirror() {
  sources | awk '$3 !~ /security/ {print $2; exit}'
}

# A newer Debian's package, unpacked but not installed: these programs need no more than the libc of bookworm.
unpacked() { # SUITE PACKAGE FILE TARGET
  [ -x "$4" ] && return
  local work apt debian
  debian=$(mirror)
  work=$(mktemp -d)
  mkdir -p "$work"/{lists,archives}/partial
  echo "deb [signed-by=$KEYRING] $debian $1 main" >"$work/sources"
  apt=(apt-get -qq -o "Dir::Etc::SourceList=$work/sources" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$work/lists"
    -o "Dir::Cache=$work" -o APT::Sandbox::User=root -o Acquire::Check-Valid-Until=false)
  "${apt[@]}" update || fail "apt-get update failed for Debian $1"
  (cd "$work" && "${apt[@]}" download "$2" && dpkg-deb --extract "$2"_*.deb files) || fail "Debian $1 gave no package $2"
  install -D "$work/files/$3" "$4.part"
  mv "$4.part" "$4" # whole or not at all
  rm -r "$work"
}

engine() {
  docker info >/dev/null 2>&1 && return
  nohup dockerd >/var/log/mlip-pace-dockerd.log 2>&1 &
  for _ in $(seq 60); do
    docker info >/dev/null 2>&1 && return
    sleep 1
  done
  tail /var/log/mlip-pace-dockerd.log >&2
  fail "the Docker engine did not start within a minute; the lines above are the last of /var/log/mlip-pace-dockerd.log"
}

# The host's certificates, because a build in the image must reach the package index that the host reaches.
base_image() {
  docker image inspect $BASE >/dev/null 2>&1 && return
  [ -s $CERTIFICATES ] || fail "$CERTIFICATES is missing: update-ca-certificates makes it"
  local tar debian
  debian=$(sources)
  tar=$(mktemp --suffix=.tar)
  mmdebstrap --quiet --variant=minbase --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --include=ca-certificates,python3,python3-venv,libgomp1,libstdc++6 \
    --customize-hook="upload $CERTIFICATES $CERTIFICATES" bookworm "$tar" - <<<"$debian" || fail "mmdebstrap made no base image"
  docker import --change "ENV PIP_CERT=$CERTIFICATES SSL_CERT_FILE=$CERTIFICATES" "$tar" $BASE >/dev/null
  rm "$tar"
}

# Made under another name: what is there under its own is whole.
sid() {
  [ -d $SID/home/tester ] && return
  local debian
  debian=$(mirror)
  rm -rf --one-file-system $SID $SID.part
  debootstrap --keyring=$KEYRING --variant=minbase sid $SID.part "$debian" >$SID.log || {
    tail $SID.log >&2
    fail "debootstrap made no Debian sid; the lines above are the last of $SID.log"
  }
  for file in /etc/hosts /etc/resolv.conf; do
    [ ! -e $file ] || cp $file $SID.part/etc/
  done
  chroot $SID.part apt-get -qq -o Acquire::Check-Valid-Until=false update
  chroot $SID.part apt-get -qq -y --no-install-recommends install apptainer >/dev/null || fail "Debian sid gave no apptainer"
  chroot $SID.part useradd --create-home tester
  mv $SID.part $SID
}

case ${1:-} in
programs)
  need lammps chromium chromium-driver make git python3-venv ca-certificates libgomp1
  ;;
docker)
  need docker.io mmdebstrap ca-certificates debian-archive-keyring
  for plugin in docker-buildx docker-compose; do
    unpacked trixie $plugin usr/libexec/docker/cli-plugins/$plugin $PLUGINS/$plugin
  done
  unpacked sid kustomize usr/bin/kustomize /usr/local/bin/kustomize
  engine
  base_image
  ;;
apptainer)
  need debootstrap debian-archive-keyring
  sid
  ;;
*)
  sed -n '2,6s/^# //p' "$0" >&2
  exit 64
  ;;
esac
