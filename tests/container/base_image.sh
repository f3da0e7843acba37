#!/usr/bin/env bash
# Make an image python:3.13-slim from Debian packages and a CPython of this machine, where no image registry is reached.
# Usage: base_image.sh PYTHON_PREFIX SCRATCH BUILDAH...   (buildah with its global options)
set -euo pipefail
prefix=$1 root=$2/root
shift 2

mmdebstrap --quiet --variant=minbase --mode=root --include=ca-certificates,libssl3,libffi8,libsqlite3-0,liblzma5,\
libbz2-1.0,zlib1g,libreadline8,libncursesw6,libuuid1,libexpat1,netbase,tzdata bookworm "$root"
rm -rf "$root"/usr/share/{doc,man,locale} "$root"/var/cache/apt
tar -C "$prefix" --exclude='*/test' --exclude='*/idlelib' --exclude='*/site-packages/*' --exclude='*.a' \
    --exclude='__pycache__' --exclude='./share' -cf - . | tar -C "$root/usr/local" -xf -
for name in python python3; do ln -sf python3.13 "$root/usr/local/bin/$name"; done
chroot "$root" ldconfig
chroot "$root" python -m ensurepip --default-pip >/dev/null 2>&1

container=$("$@" from scratch)
"$@" add --quiet "$container" "$root" / >/dev/null
"$@" config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
"$@" commit --quiet "$container" docker.io/library/python:3.13-slim >/dev/null
"$@" rm "$container" >/dev/null
rm -rf "$root"
