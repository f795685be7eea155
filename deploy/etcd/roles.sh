#!/bin/sh
# Makes the etcd users of a Podway cluster: one operator, and one user per node that can write its own keys only, so
# that a stolen node credential cannot take another node's blocks.
#
# usage: ETCDCTL_ENDPOINTS=... ETCDCTL_USER=root:... roles.sh [operator | controller | NODE...]
#
# Users are made without a password: they log in with a client certificate whose common name is the user's name
# (etcd --client-cert-auth). Where PODWAY_PASSWORDS names a folder with a file <user> in it, the user gets the
# password in that file instead; etcd takes it only while the user is made. On the node, `username` and
# `passwordFile` in podway.yaml name both. Switch checks on with `etcdctl auth enable`, after a user `root` was made.
# PODWAY_FLANNEL_PREFIX (/coreos.com/network): nodes may also take flannel's subnets there, for a migration from flannel.
set -eu

prefix=${PODWAY_PREFIX:-/podway/v1/}
flannel=${PODWAY_FLANNEL_PREFIX:-}
[ $# -gt 0 ] || { echo "usage: $0 [operator | controller | NODE...]" >&2; exit 64; }

role() { # role NAME: made if missing
    etcdctl role get "$1" >/dev/null 2>&1 || etcdctl role add "$1"
}
user() { # user NAME ROLE
    if ! etcdctl user get "$1" >/dev/null 2>&1; then
        if [ -n "${PODWAY_PASSWORDS:-}" ] && [ -f "$PODWAY_PASSWORDS/$1" ]; then
            etcdctl user add --interactive=false "$1" <"$PODWAY_PASSWORDS/$1"
        else
            etcdctl user add --no-password "$1"
        fi
    fi
    etcdctl user grant-role "$1" "$2"
}

for name in "$@"; do
    if [ "$name" = operator ]; then
        role podway-operator
        etcdctl role grant-permission podway-operator readwrite --prefix=true "$prefix"
        [ -z "$flannel" ] || etcdctl role grant-permission podway-operator readwrite --prefix=true "$flannel/"
        user podway-operator podway-operator
        continue
    fi
    if [ "$name" = controller ]; then
        role podway-controller
        etcdctl role grant-permission podway-controller read --prefix=true "$prefix"
        for key in claims/ nodes/ live/ usage/ released/ drained/; do
            etcdctl role grant-permission podway-controller readwrite --prefix=true "$prefix$key"
        done
        etcdctl role grant-permission podway-controller readwrite "${prefix}controller"
        user podway-controller podway-controller
        continue
    fi
    role "podway-node-$name"
    # Everybody reads everything: routes, pools, policies.
    etcdctl role grant-permission "podway-node-$name" read --prefix=true "$prefix"
    for key in "nodes/$name" "live/$name" "usage/$name"; do
        etcdctl role grant-permission "podway-node-$name" readwrite "$prefix$key"
    done
    etcdctl role grant-permission "podway-node-$name" readwrite --prefix=true "${prefix}claims/$name/"
    if [ -n "$flannel" ]; then
        etcdctl role grant-permission "podway-node-$name" read "$flannel/config"
        etcdctl role grant-permission "podway-node-$name" readwrite --prefix=true "$flannel/subnets/"
    fi
    user "$name" "podway-node-$name"
done
