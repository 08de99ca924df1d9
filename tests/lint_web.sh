#!/usr/bin/env bash
# Lint the scripts and styles of the pages, and check the types of the scripts. Needs npm.
set -euo pipefail
cd "$(dirname "$0")/web"
npm install --no-package-lock --no-audit --no-fund --silent
npx biome lint --error-on-warnings ../../shakegpt_jax/web/static/*.{js,css}
npx tsc --project .
