#!/usr/bin/env bash
# What the tests need of the system besides Python: installed where this is root with apt, else named.
set -euo pipefail
missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }
need cc gcc
need cc libc6-dev  # only recommended by gcc; its headers and start-up files
need chromium chromium
need npm npm
need ssh openssh-client
need adb adb
need espeak-ng espeak-ng
[ -f /usr/share/dict/american-english ] || missing+=(wamerican)
[ -d /usr/share/fonts/truetype/dejavu ] || missing+=(fonts-dejavu-core)
[ -d /usr/share/fonts/truetype/liberation ] || missing+=(fonts-liberation)
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
else
  echo "tests that need them will fail without: ${missing[*]} (Debian: apt-get install ${missing[*]})" >&2
fi
