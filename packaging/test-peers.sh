#!/bin/sh
# Install the Debian packages that the tests use as real peers. Without root, say what is missing.
set -u
packages="dcmtk haproxy orthanc orthanc-dicomweb dicom3tools xmlsec1 curl openssl poppler-utils prometheus postgresql rsyslog rsyslog-openssl age tinyproxy"
missing=""
for package in $packages; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ]; then
    echo "== paquets absents :$missing (les tests qui en dépendent seront ignorés ; les installer en root)"
    exit 0
fi
echo "== installation des paquets :$missing"
export DEBIAN_FRONTEND=noninteractive
# A package that ships a service must not start it here.
policy=/usr/sbin/policy-rc.d
[ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' > "$policy" && chmod +x "$policy" && trap 'rm -f "$policy"' EXIT; }
apt-get update -qq >/dev/null 2>&1 || true
apt-get install -y -qq --no-install-recommends $missing >/dev/null || {
    echo "== installation impossible :$missing" >&2
    [ "${CI:-}" = true ] && exit 1
    exit 0
}
