#!/bin/sh
# Verifies formatting, lint, types, import contracts, proto lint and that generated code is current.
# Changes nothing. Every check runs, so that one run shows all there is to mend.
set -u
failed=""
step() {
    name=$1
    shift
    printf '%s … ' "$name"
    if output=$("$@" 2>&1); then
        echo ok
    else
        echo FAILED
        printf '%s\n' "$output"
        failed="$failed $name;"
    fi
}

generated_is_current() {
    fresh=$(mktemp -d)
    buf generate -o "$fresh" && diff -r -x __pycache__ "$fresh/src/ironworks/gen" src/ironworks/gen
    status=$?
    rm -rf "$fresh"
    return $status
}

step "format" ruff format --check .
step "lint" ruff check .
step "types" basedpyright
step "import contracts" lint-imports
step "proto lint" buf lint
step "generated code" generated_is_current
[ -z "$failed" ] || { echo "Not clean:$failed"; exit 1; }
