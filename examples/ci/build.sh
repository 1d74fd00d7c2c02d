#!/usr/bin/env bash
# The steps of a CI job, the same for every CI system: build, prove, compare with the last release.
#   PROFILE    the device (default: host)
#   OUT        where everything goes (default: dist)
#   PREVIOUS   manifest.json of the last release, or its bundle folder; not there on the first build
# EDGEPIPE_CACHE is what the job restores before and saves after: with it, only what changed is built.
set -euo pipefail
profile=${PROFILE:-host} out=${OUT:-dist} previous=${PREVIOUS:-}
mkdir -p "$out"

code=0
edgepipe compress --profile "$profile" --out "$out/bundle" --force --archive --junit "$out/junit.xml" || code=$?
bundle="$out/bundle"
[ "$code" -ge 10 ] && [ "$code" -le 15 ] && bundle="$out/bundle.rejected"   # the budget broke: publish why
[ -f "$bundle/report.html" ] && cp "$bundle/report.html" "$bundle/manifest.json" "$out/"
[ "$code" -eq 0 ] || exit "$code"

if [ -n "$previous" ] && [ -e "$previous" ]; then
  edgepipe diff "$previous" "$bundle"   # a regression fails with the exit code of its axis
fi
edgepipe cache prune --max-size "${CACHE_SIZE:-4GB}"
