#!/usr/bin/env bash
# Does normalis install where nothing of it is, and do its main job there?
#
#   scripts/check_install.sh [--how wheel|source|uv|pipx] [--python PYTHON] [--lowest] [PIP_ARGS ...]
#
# Builds a wheel of this clone (or installs the folder itself), installs it into an empty environment
# in a temporary folder, and there fits, scores and reports a tiny set of generated images. Prints how
# long the installation took and how large it is. --lowest takes the versions of constraints-min.txt.
# Without a GPU on Linux add: --extra-index-url https://download.pytorch.org/whl/cpu
set -euo pipefail

how=wheel python=python3 lowest=
while [ $# -gt 0 ]; do
    case "$1" in
        --how) how=$2; shift 2 ;;
        --python) python=$2; shift 2 ;;
        --lowest) lowest=yes; shift ;;
        *) break ;;
    esac
done
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
limits=()
[ -z "$lowest" ] || limits=(-c "$here/constraints-min.txt")

say() { printf '\n== %s\n' "$*"; }

copy() { # the clone without what was built in it
    mkdir "$work/clone"
    (cd "$here" && git ls-files -z | xargs -0 tar cf -) | tar xf - -C "$work/clone"
}

copy
say "$("$python" --version), $how"
started=$(date +%s)
case "$how" in
    wheel|source)
        "$python" -m venv "$work/venv"
        bin="$work/venv/bin"
        thing="$work/clone"
        if [ "$how" = wheel ]; then
            "$bin/python" -m pip wheel -q --no-deps --wheel-dir "$work/dist" "$work/clone"
            thing=$(ls "$work"/dist/normalis-*.whl)
        fi
        "$bin/python" -m pip install -q "$thing" "${limits[@]}" "$@" ;;
    uv)
        uv venv -q --python "$python" "$work/venv"
        bin="$work/venv/bin"
        uv pip install -q --python "$bin/python" "$work/clone" "${limits[@]}" "$@" ;;
    pipx)
        export PIPX_HOME="$work/pipx" PIPX_BIN_DIR="$work/bin"
        pipx install -q --python "$python" "$work/clone" --pip-args "${limits[*]} $*"
        bin="$work/bin" ;;
    *) echo "--how must be wheel, source, uv or pipx, got $how" >&2; exit 2 ;;
esac
say "installed in $(($(date +%s) - started)) s, $(du -sm "$work" | cut -f1) MB"

cd "$work" # never the clone: what is imported must be what was installed
"$bin/normalis" --version
"$bin/normalis" doctor
say "a tiny demo"
if [ "$how" != pipx ]; then
    "$bin/python" -c 'from normalis.datasets.phantom import write_demo
write_demo("data", train=60, normal=6, anomalous=6)'
    "$bin/normalis" fit data/train/good --out run --epochs 1
    "$bin/normalis" score run data/test --out scored
    "$bin/normalis" report scored --out page.html
    test -s page.html
fi
say "works"
