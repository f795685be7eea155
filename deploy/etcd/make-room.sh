#!/bin/sh
# Gives an etcd that has used up its quota (alarm NOSPACE) room again: forgets old revisions, returns what they took,
# ends the alarm. Members serve nothing while they are defragmented, one after the other; pods do not notice.
#
# usage: ETCDCTL_ENDPOINTS=<all members> [ETCDCTL_CACERT=... ETCDCTL_CERT=... ETCDCTL_KEY=...] make-room.sh
set -eu

revision=$(etcdctl endpoint status --write-out=json | tr ',{}' '\n\n\n' | sed -n 's/^"revision"://p' | sort -n | tail -1)
[ -n "$revision" ] || { echo "no member tells its revision" >&2; exit 1; }
# Somebody else may have compacted up to here already.
etcdctl compact --physical "$revision" || true
etcdctl defrag
etcdctl alarm disarm
etcdctl endpoint status --write-out=table
