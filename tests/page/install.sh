#!/bin/sh
# A browser for the page's tests, and fonts for what they write: where apt-get can install them, and once.
set -eu
for name in chromium chromium-browser google-chrome google-chrome-stable; do
  if command -v "$name" >/dev/null; then exit 0; fi
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "The page's tests need Chromium: install it, or run this as root on Debian." >&2
  exit 2
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends chromium fonts-inter fonts-noto-core fonts-noto-cjk fonts-noto-color-emoji >/dev/null
