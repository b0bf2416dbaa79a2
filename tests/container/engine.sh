#!/usr/bin/env bash
# What the container tests need on a bare Debian bookworm machine, as root: a Docker engine with buildx and compose, a base image
# made from Debian's packages (no registry is asked) and a root file system with Apptainer. What is there already is reused.
#   engine.sh docker      a running engine, the image local/python-base:bookworm, and kustomize for deploy/kubernetes
#   engine.sh apptainer   the folder /var/tmp/mlip-pace-apptainer, a Debian sid with Apptainer and the user tester
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
BASE=local/python-base:bookworm
SID=/var/tmp/mlip-pace-apptainer
PLUGINS=/usr/libexec/docker/cli-plugins
CERTIFICATES=/etc/ssl/certs/ca-certificates.crt

need() {
  dpkg-query --show "$@" >/dev/null 2>&1 && return
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Where this machine gets Debian's packages from; other suites are there too.
mirror() {
  apt-get indextargets --format '$(REPO_URI)' | awk '!/security/ && !n++'
}

# A newer Debian's package, unpacked but not installed: these programs need no more than the libc of bookworm.
unpacked() { # SUITE PACKAGE FILE TARGET
  [ -x "$4" ] && return
  local work apt
  work=$(mktemp -d)
  mkdir -p "$work"/{lists,archives}/partial
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) $1 main" >"$work/sources"
  apt=(apt-get -qq -o "Dir::Etc::SourceList=$work/sources" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$work/lists"
    -o "Dir::Cache=$work" -o APT::Sandbox::User=root -o Acquire::Check-Valid-Until=false)
  "${apt[@]}" update
  (cd "$work" && "${apt[@]}" download "$2" && dpkg-deb --extract "$2"_*.deb files)
  install -D "$work/files/$3" "$4"
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
  exit 1
}

# The host's certificates, because a build in the image must reach the package index that the host reaches.
base_image() {
  docker image inspect $BASE >/dev/null 2>&1 && return
  local tar
  tar=$(mktemp --suffix=.tar)
  mmdebstrap --quiet --variant=minbase --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --include=ca-certificates,python3,python3-venv,libgomp1,libstdc++6 \
    --customize-hook="upload $CERTIFICATES $CERTIFICATES" bookworm "$tar"
  docker import --change "ENV PIP_CERT=$CERTIFICATES SSL_CERT_FILE=$CERTIFICATES" "$tar" $BASE >/dev/null
  rm "$tar"
}

sid() {
  [ -x $SID/usr/bin/apptainer ] && return
  rm -rf $SID
  debootstrap --variant=minbase sid $SID "$(mirror)" >/dev/null
  cp /etc/hosts /etc/resolv.conf $SID/etc/
  chroot $SID apt-get -qq -o Acquire::Check-Valid-Until=false update
  chroot $SID apt-get -qq -y --no-install-recommends install apptainer >/dev/null
  chroot $SID useradd --create-home tester
}

case ${1:-} in
docker)
  need docker.io mmdebstrap uidmap
  for plugin in docker-buildx docker-compose; do
    unpacked trixie $plugin usr/libexec/docker/cli-plugins/$plugin $PLUGINS/$plugin
  done
  unpacked sid kustomize usr/bin/kustomize /usr/local/bin/kustomize
  engine
  base_image
  ;;
apptainer)
  need debootstrap
  sid
  ;;
*)
  sed -n '2,5s/^# //p' "$0" >&2
  exit 64
  ;;
esac
