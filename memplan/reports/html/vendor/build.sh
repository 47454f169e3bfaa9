#!/usr/bin/env bash
# Builds charts.min.js and LICENSES.txt again, from the npm packages that package.json names. Needs node and npm.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
cp "$here/package.json" "$here/entry.js" "$work"
cd "$work"
npm install --quiet --no-audit --no-fund --ignore-scripts
modules=node_modules
{
  echo "charts.min.js contains the packages below, each under the licence that follows it."
  for package in echarts zrender tslib @dagrejs/dagre @dagrejs/graphlib; do
    version=$(node --print "require('./$modules/$package/package.json').version")
    printf '\n==== %s %s\n\n' "$package" "$version"
    for text in NOTICE LICENSE LICENSE.txt licenses/LICENSE-d3; do
      [ ! -f "$modules/$package/$text" ] || sed 's/[[:space:]]*$//' "$modules/$package/$text"
    done
  done
} > "$here/LICENSES.txt"
banner=$(printf '/*!\n%s\n*/' "$(cat "$here/LICENSES.txt")")
"$modules/.bin/esbuild" entry.js --bundle --minify --format=iife --global-name=charts --target=es2020 \
  --legal-comments=none --log-level=warning --banner:js="$banner" --outfile="$here/charts.min.js"
