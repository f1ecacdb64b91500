#!/bin/sh
# Create the database cluster on first start, give up root, run the given command.
#
# Understood as by the official image: POSTGRES_PASSWORD[_FILE], POSTGRES_USER, POSTGRES_DB,
# POSTGRES_INITDB_ARGS, POSTGRES_HOST_AUTH_METHOD, and /docker-entrypoint-initdb.d/*.{sh,sql}.
set -eu

fail() {
    echo "docker-entrypoint: $*" >&2
    exit 1
}

initialise() {
    user=${POSTGRES_USER:-postgres}
    database=${POSTGRES_DB:-$user}
    method=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}

    if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then
        [ -z "${POSTGRES_PASSWORD:-}" ] ||
            fail "set POSTGRES_PASSWORD_FILE or POSTGRES_PASSWORD, not both"
        password=$(cat "$POSTGRES_PASSWORD_FILE")
    else
        password=${POSTGRES_PASSWORD:-}
    fi
    [ -n "$password" ] || [ "$method" = trust ] ||
        fail "the first start needs POSTGRES_PASSWORD_FILE"

    # The password travels in a file of this user only, never as an argument.
    pwfile=$(umask 0077 && mktemp)
    printf '%s\n' "$password" > "$pwfile"
    # Left unquoted on purpose: the variable holds several options.
    # shellcheck disable=SC2086
    set -- ${POSTGRES_INITDB_ARGS:-}
    [ -z "$password" ] || set -- --pwfile="$pwfile" "$@"
    initdb --pgdata="$PGDATA" --username="$user" "$@" || { rm -f "$pwfile"; exit 1; }
    rm -f "$pwfile"
    printf '\nhost all all all %s\n' "$method" >> "$PGDATA/pg_hba.conf"

    set -- /docker-entrypoint-initdb.d/*
    if [ "$database" != postgres ] || [ -e "$1" ]; then
        # Reachable through the socket only until the scripts are done.
        PGPASSWORD=$password
        export PGPASSWORD
        pg_ctl --pgdata="$PGDATA" --wait --silent \
            --options="-c listen_addresses='' -c unix_socket_directories=/run/postgresql" start
        if [ "$database" != postgres ]; then
            echo 'CREATE DATABASE :"name"' | psql --quiet --no-psqlrc -v ON_ERROR_STOP=1 \
                -h /run/postgresql -U "$user" -d postgres -v name="$database"
        fi
        for script in "$@"; do
            case "$script" in
                *.sh) echo "docker-entrypoint: $script"; . "$script" ;;
                *.sql)
                    echo "docker-entrypoint: $script"
                    psql --quiet --no-psqlrc -v ON_ERROR_STOP=1 \
                        -h /run/postgresql -U "$user" -d "$database" -f "$script"
                    ;;
            esac
        done
        pg_ctl --pgdata="$PGDATA" --mode=fast --wait --silent stop
        unset PGPASSWORD
    fi
    unset password
}

case "${1:-}" in
    "" | -*) set -- postgres "$@" ;;
esac

if [ "$1" = postgres ]; then
    if [ "$(id -u)" = 0 ]; then
        mkdir -p "$PGDATA" /run/postgresql
        chmod 0700 "$PGDATA"
        find "$PGDATA" ! -user postgres -exec chown postgres:postgres '{}' +
        chown postgres:postgres /run/postgresql
        chmod 3777 /run/postgresql
        if [ -n "${POSTGRES_PASSWORD_FILE:-}" ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
            # Read while still root: the secret's file may be root's alone.
            POSTGRES_PASSWORD=$(cat "$POSTGRES_PASSWORD_FILE")
            export POSTGRES_PASSWORD
            unset POSTGRES_PASSWORD_FILE
        fi
        exec setpriv --reuid=postgres --regid=postgres --clear-groups "$0" "$@"
    fi
    [ -s "$PGDATA/PG_VERSION" ] || initialise
    unset POSTGRES_PASSWORD
fi

exec "$@"
