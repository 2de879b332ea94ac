#!/bin/sh
# The report's test renders it in a browser, and is skipped where none can be had.
set -eu
for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null 2>&1; then exit 0; fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  { apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium; } >/dev/null 2>&1 \
    || echo "chromium could not be installed: the browser test will be skipped" >&2
fi
