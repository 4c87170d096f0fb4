# shellcheck shell=bash
# The step `packages` of setup.sh, which sources this: what the machine itself has to have, installed with apt-get on
# Debian and Ubuntu and named elsewhere.

is_debian_family() {
    [ -r /etc/os-release ] && have dpkg-query && have apt-get &&
        grep -qE '^ID(_LIKE)?=.*\b(debian|ubuntu)\b' /etc/os-release
}

is_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

mpicc_works() { printf '#include <mpi.h>\n' | "${MPICC:-mpicc}" -E -x c - >/dev/null 2>&1; }

# The library with the compiler's own headers, both of which bindgen reads.
libclang_is_there() {
    [ -z "${LIBCLANG_PATH:-}" ] || return 0
    if is_debian_family; then
        dpkg-query -W -f '${db:Status-Status} ${Package}\n' 'libclang-*dev' 2>/dev/null |
            grep -qE '^installed libclang-([0-9]+-)?dev$'
    else
        { ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null; } | grep -q 'libclang[-.0-9]*\.so' ||
            { have llvm-config && compgen -G "$(llvm-config --libdir)/libclang*.so*" >/dev/null; }
    fi
}

certificates_are_there() {
    [ -n "${SSL_CERT_FILE:-}" ] || [ -e /etc/ssl/certs/ca-certificates.crt ] || [ -d /etc/pki/tls/certs ] ||
        [ -e /etc/ssl/ca-bundle.pem ] || [ -e /etc/ssl/cert.pem ]
}

# Each thing that the build needs: whether it is there, the Debian packages with it, and its name for people.
needs=(compiler pkg-config mpicc mpirun libclang hdf5 python curl certificates git)

is_met() {
    case "$1" in
    compiler) have cc && have c++ && have make ;;
    pkg-config) have pkg-config ;;
    mpicc) mpicc_works ;;
    mpirun) have mpirun ;;
    libclang) libclang_is_there ;;
    hdf5) [ -n "${HDF5_DIR:-}" ] || { have pkg-config && pkg-config --exists hdf5; } ;;
    python) find_python ;;
    curl) have curl || have cargo ;;
    certificates) certificates_are_there ;;
    git) have git ;;
    esac
}

debian_packages() {
    case "$1" in
    compiler) say build-essential ;;
    pkg-config) say pkg-config ;;
    mpicc) say libopenmpi-dev openmpi-bin ;;
    mpirun) ;; # comes with mpicc; where only a site's mpicc is, its own mpirun has to be found
    libclang) say libclang-dev ;;
    hdf5) say libhdf5-dev ;; # the serial library: libhdf5-openmpi-dev would take its place
    python) say python3-venv ;;
    curl) say curl ;;
    certificates) say ca-certificates ;;
    git) say git ;;
    esac
}

describe() {
    local h5cc
    case "$1" in
    compiler) say "a C and C++ compiler and make (cc, c++, make)" ;;
    pkg-config) say "pkg-config" ;;
    mpicc) say "MPI's compiler: ${MPICC:-mpicc} does not find mpi.h or is not on PATH" ;;
    mpirun) say "MPI's starter: mpirun is not on PATH" ;;
    libclang) say "libclang with its headers (LIBCLANG_PATH may name its folder)" ;;
    hdf5)
        if h5cc="$(command -v h5cc)"; then
            say "HDF5 by pkg-config; h5cc is there, so: export HDF5_DIR=$(dirname "$(dirname "$h5cc")")"
        else
            say "HDF5 with its headers (pkg-config --exists hdf5; HDF5_DIR may name its folder)"
        fi
        ;;
    python) say "Python 3.10 to 3.14 with venv (python3 -m venv; PYTHON may name it)" ;;
    curl) say "curl, or cargo already installed" ;;
    certificates) say "the certificates of https servers (ca-certificates)" ;;
    git) say "git" ;;
    esac
}

missing_needs() {
    local need
    for need in "${needs[@]}"; do
        is_met "$need" || printf '%s\n' "$need"
    done
}

install_debian_packages() {
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        have sudo || fail "not root, and no sudo. Someone who may, please run: apt-get install $*"
        as_root=(sudo)
    fi
    say "packages: installing $*"
    ${as_root[@]+"${as_root[@]}"} apt-get update -qq
    ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    hash -r
}

step_packages() {
    local missing need package wanted=() lines=()
    missing="$(missing_needs)"
    if [ -z "$missing" ]; then
        say "packages: ok"
        return
    fi
    if is_debian_family; then
        for need in $missing; do
            for package in $(debian_packages "$need"); do
                is_installed "$package" || wanted+=("$package")
            done
        done
        if [ ${#wanted[@]} -gt 0 ]; then
            install_debian_packages "${wanted[@]}"
            missing="$(missing_needs)"
        fi
    fi
    if [ -n "$missing" ]; then
        for need in $missing; do
            lines+=("$(describe "$need")")
        done
        fail "this machine lacks:" "${lines[@]}" \
            "Please install these (or load your site's modules) and run this again."
    fi
    say "packages: ok, installed ${wanted[*]}"
}
