#!/usr/bin/env bash
# Runs all tests, after setting up what they need: PostgreSQL, Redis, an S3 (moto's), and a Python and a Node with the
# official OpenAI SDK of each.
#
#   bash tests/run.sh [arguments for the test runner]
#
# A server is taken from, in this order:
#   1. LONGSHORE_TEST_POSTGRES_URL (a role that may create databases) and LONGSHORE_TEST_REDIS_URL;
#   2. what answers on 127.0.0.1:5432 and 127.0.0.1:6379;
#   3. docker-compose.yml, where a Docker engine answers;
#   4. the installed programs, started on free ports for this run alone; as root on Debian they are installed first.
#
# Tests that stop and kill a server start one of their own, wherever the one of all tests comes from: they need the
# programs.
set -euo pipefail

say() { printf 'tests: %s\n' "$*" >&2; }
die() { printf 'tests: error: %s\n' "$*" >&2; exit 1; }

# Cargo reads a relative target folder from where it is called, and that is about to change.
case ${CARGO_TARGET_DIR:-} in
'' | /*) ;;
*) export CARGO_TARGET_DIR="$PWD/$CARGO_TARGET_DIR" ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}

# Servers that were started for this run end with it.
scratch='' redis_process=''
clean_up() {
    if [[ -n $redis_process ]]; then
        kill "$redis_process" 2>/dev/null || true
        wait "$redis_process" 2>/dev/null || true
    fi
    if [[ -n $scratch && -f $scratch/postgres/postmaster.pid ]]; then
        as_postgres pg_ctl --pgdata "$scratch/postgres" --mode immediate stop >/dev/null 2>&1 || true
    fi
    if [[ -n $scratch ]]; then rm -rf "$scratch"; fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# In /tmp rather than under the target folder, which the user `postgres` may not be allowed to enter.
make_scratch() {
    if [[ -z $scratch ]]; then
        scratch=$(mktemp -d /tmp/longshore-tests.XXXXXX)
        chmod 711 "$scratch"
    fi
}

can_install() { [[ $EUID -eq 0 && -f /etc/debian_version ]] && command -v apt-get >/dev/null; }

lists_are_fresh=''
install() {
    say "installing $*"
    export DEBIAN_FRONTEND=noninteractive
    if [[ -z $lists_are_fresh ]]; then
        apt-get -qq update >&2 || die "\`apt-get update\` failed"
        lists_are_fresh=yes
    fi
    apt-get -qq install --yes --no-install-recommends "$@" </dev/null >&2 || die "\`apt-get install $*\` failed"
}

# Compose wants the secrets of all services, whichever are started; those of other services are not used.
compose_up() {
    LONGSHORE_ADMIN_KEY=unused LONGSHORE_POSTGRES_PASSWORD=${LONGSHORE_POSTGRES_PASSWORD:-longshore} \
        docker compose up --detach --wait "$@" </dev/null >&2
}

has_docker() { docker version >/dev/null 2>&1 && docker compose version >/dev/null 2>&1; }

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# PostgreSQL

# Whether the role of this URL can log in without being asked for a password, and may create databases.
takes_databases() {
    local allowed='select rolsuper or rolcreatedb from pg_roles where rolname = current_user'
    [[ $(PGCONNECT_TIMEOUT=5 psql --no-psqlrc --no-password --tuples-only --no-align --command "$allowed" "$1" 2>/dev/null) == t ]]
}

# PostgreSQL refuses to run as root; and it complains where it cannot enter the working directory.
as_postgres() {
    if [[ $EUID -eq 0 ]]; then
        (cd / && exec runuser --user postgres -- env PATH="$PATH" "$@")
    else
        "$@"
    fi
}

has_postgres_programs() {
    # Debian keeps them out of the path, in a folder for each version.
    PATH="$PATH:$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)"
    command -v initdb >/dev/null && command -v pg_ctl >/dev/null
}

start_postgres() {
    local port
    make_scratch
    mkdir -m 700 "$scratch/postgres"
    if [[ $EUID -eq 0 ]]; then chown postgres "$scratch/postgres"; fi
    port=$(free_port)
    as_postgres initdb --pgdata "$scratch/postgres" --username postgres --auth trust --encoding UTF8 --no-locale \
        --no-sync >/dev/null || die "\`initdb\` failed"
    # What it holds need not outlive this run, so it never waits for the disk.
    as_postgres pg_ctl --pgdata "$scratch/postgres" --log "$scratch/postgres/log" --wait --timeout 60 start --options \
        "-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off -c max_connections=300" \
        >/dev/null || { cat "$scratch/postgres/log" >&2; die "PostgreSQL did not start"; }
    LONGSHORE_TEST_POSTGRES_URL="postgres://postgres@127.0.0.1:$port/postgres"
}

find_postgres() {
    local url
    if [[ -n ${LONGSHORE_TEST_POSTGRES_URL:-} ]]; then
        say "PostgreSQL: the one of LONGSHORE_TEST_POSTGRES_URL"
        return
    fi
    if command -v psql >/dev/null; then
        for url in "postgres://postgres@127.0.0.1:5432/postgres" \
            "postgres://longshore:longshore@127.0.0.1:5432/longshore" \
            "postgres://$(id -un)@127.0.0.1:5432/postgres"; do
            if takes_databases "$url"; then
                say "PostgreSQL: the one at 127.0.0.1:5432"
                LONGSHORE_TEST_POSTGRES_URL=$url
                return
            fi
        done
    fi
    if has_docker; then
        say "PostgreSQL: by \`docker compose\`, left running"
        compose_up postgres ||
            die "\`docker compose up postgres\` failed; where its port is taken, set LONGSHORE_POSTGRES_PORT"
        LONGSHORE_TEST_POSTGRES_URL="postgres://longshore:${LONGSHORE_POSTGRES_PASSWORD:-longshore}@127.0.0.1:${LONGSHORE_POSTGRES_PORT:-5432}/longshore"
        return
    fi
    if ! has_postgres_programs; then
        can_install || die "PostgreSQL is missing: install it, or start Docker, or set LONGSHORE_TEST_POSTGRES_URL"
        install postgresql
        has_postgres_programs || die "\`initdb\` is missing, though PostgreSQL was installed"
    fi
    start_postgres
    say "PostgreSQL: started for this run"
}

# Redis

answers_ping() {
    local reply=''
    { exec 3<>"/dev/tcp/127.0.0.1/$1"; } 2>/dev/null || return 1
    printf 'PING\r\n' >&3
    read -r -t 5 reply <&3 || true
    exec 3>&-
    [[ $reply == +PONG* ]]
}

start_redis() {
    local port attempt
    make_scratch
    port=$(free_port)
    redis-server --bind 127.0.0.1 --port "$port" --dir "$scratch" --save '' --appendonly no \
        </dev/null >"$scratch/redis.log" 2>&1 &
    redis_process=$!
    for ((attempt = 0; attempt < 100; attempt++)); do
        if answers_ping "$port"; then
            LONGSHORE_TEST_REDIS_URL="redis://127.0.0.1:$port"
            return
        fi
        sleep 0.1
    done
    cat "$scratch/redis.log" >&2
    die "Redis did not answer within 10 s"
}

find_redis() {
    if [[ -n ${LONGSHORE_TEST_REDIS_URL:-} ]]; then
        say "Redis: the one of LONGSHORE_TEST_REDIS_URL"
    elif answers_ping 6379; then
        say "Redis: the one at 127.0.0.1:6379"
        LONGSHORE_TEST_REDIS_URL=redis://127.0.0.1:6379
    elif has_docker; then
        say "Redis: by \`docker compose\`, left running"
        compose_up redis ||
            die "\`docker compose up redis\` failed; where its port is taken, set LONGSHORE_REDIS_PORT"
        LONGSHORE_TEST_REDIS_URL="redis://127.0.0.1:${LONGSHORE_REDIS_PORT:-6379}"
    else
        if ! command -v redis-server >/dev/null; then
            can_install || die "Redis is missing: install it, or start Docker, or set LONGSHORE_TEST_REDIS_URL"
            install redis-server
        fi
        start_redis
        say "Redis: started for this run"
    fi
}

# Tests that need a program that is missing say so, and fail.
find_programs() {
    if ! has_postgres_programs; then
        if can_install; then install postgresql; else say "PostgreSQL's programs are missing: tests that stop it will fail"; fi
    fi
    if ! command -v redis-server >/dev/null; then
        if can_install; then install redis-server; else say "\`redis-server\` is missing: tests that stop it will fail"; fi
    fi
}

# Python

find_python() {
    if ! command -v python3 >/dev/null; then
        can_install || die "python3 is missing: install Python 3.11 or newer"
        install python3 python3-venv
    fi
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "\`python3\` is $(python3 --version); the pinned SDK needs Python 3.11 or newer"
}

# Makes a virtual environment anew when its pins changed, or when the Python that it was made with is gone: its folder under
# the target folder, the pins, and a module that it then has.
make_environment() {
    local environment=$target/$1 requirements=$2 module=$3
    if cmp -s "$requirements" "$environment/installed.txt" && "$environment/bin/python" -c "import $module" 2>/dev/null; then
        return
    fi
    say "installing what $requirements names into $environment"
    rm -rf "$environment"
    if ! python3 -c 'import ensurepip' 2>/dev/null; then
        can_install || die "Python's ensurepip is missing: install the package python3-venv"
        install python3-venv
    fi
    python3 -m venv "$environment" >&2 || die "\`python3 -m venv\` failed"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$requirements" </dev/null >&2 ||
        die "what $requirements names could not be installed"
    # Last, so that an installation that broke off is made again.
    cp "$requirements" "$environment/installed.txt"
}

# Node

find_node() {
    if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
        can_install || die "node and npm are missing: install Node.js 20 or newer"
        install nodejs npm
    fi
    node -e 'process.exit(process.versions.node.split(".")[0] < 20 ? 1 : 0)' ||
        die "\`node\` is $(node --version); the pinned SDK needs Node.js 20 or newer"
}

# Installs the packages anew when the pins changed.
make_packages() {
    local packages=$target/sdk-node lock=tests/sdk/package-lock.json
    LONGSHORE_TEST_NODE_MODULES=$packages/node_modules
    if cmp -s "$lock" "$packages/installed.json" && [[ -d $LONGSHORE_TEST_NODE_MODULES/openai ]]; then
        return
    fi
    say "installing the OpenAI SDK for Node into $packages"
    rm -rf "$packages"
    mkdir -p "$packages"
    cp tests/sdk/package.json "$lock" "$packages"
    npm ci --prefix "$packages" --ignore-scripts --no-audit --no-fund --loglevel error </dev/null >&2 ||
        die "the SDK of $lock could not be installed"
    # Last, so that an installation that broke off is made again.
    cp "$lock" "$packages/installed.json"
}

command -v cargo >/dev/null || die "cargo is missing: install Rust with rustup; rust-toolchain.toml names the version"
find_python
make_environment sdk tests/sdk/requirements.txt openai
make_environment s3 tests/s3/requirements.txt moto
LONGSHORE_TEST_PYTHON=$target/sdk/bin/python LONGSHORE_TEST_S3_PYTHON=$target/s3/bin/python
find_node
make_packages
find_postgres
find_redis
find_programs
export LONGSHORE_TEST_POSTGRES_URL LONGSHORE_TEST_REDIS_URL LONGSHORE_TEST_PYTHON LONGSHORE_TEST_S3_PYTHON
export LONGSHORE_TEST_NODE_MODULES

# What the shell is set up for must not leak into the daemons under test: least of all keys that cost money.
unset OPENAI_API_KEY OPENAI_BASE_URL OPENAI_WEBHOOK_SECRET ANTHROPIC_API_KEY GEMINI_API_KEY MISTRAL_API_KEY
# Or lead to another bucket.
for name in "${!AWS_@}"; do unset "$name"; done
for name in "${!LONGSHORE_@}"; do
    if [[ $name != LONGSHORE_TEST_* ]]; then unset "$name"; fi
done
# Tests talk to this machine only, and not through a proxy.
export NO_PROXY="127.0.0.1,localhost,::1${NO_PROXY:+,$NO_PROXY}" no_proxy="127.0.0.1,localhost,::1${no_proxy:+,$no_proxy}"

# Either runner's own summary is the last thing that is printed.
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --workspace --locked --no-fail-fast "$@" </dev/null
else
    say "cargo-nextest is not installed, so \`cargo test\` runs the tests, without time limits"
    cargo test --workspace --locked --no-fail-fast --lib --bins --tests "$@" </dev/null
fi
