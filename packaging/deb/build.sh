#!/bin/sh
# Build drimbox_<version>_<architecture>.deb: the package and its locked dependencies in an environment
# of their own, /opt/drimbox, for the Python of this Debian. Needs dpkg-deb and the checkout's .venv (pip).
#
#   PYTHON   the Python it is built for (default: /usr/bin/python3)
#   COMPRESS what dpkg-deb compresses with (default: xz)
#   DIST     where the package goes (default: dist)
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-/usr/bin/python3}
pip=.venv/bin/python
version=$("$pip" -c 'from importlib.metadata import version; print(version("drimbox"))')
architecture=$(dpkg --print-architecture)
# Compiled dependencies are of one minor version of Python.
minor=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
next=$("$python" -c 'import sys; print("%d.%d" % (sys.version_info[0], sys.version_info[1] + 1))')

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
opt=$root/opt/drimbox
umask 022

"$python" -m venv --without-pip "$opt"
"$pip" -m pip --disable-pip-version-check -q --python "$opt/bin/python" install --no-compile \
    --require-hashes --only-binary :all: -r requirements/runtime.txt
"$pip" -m hatchling build -t wheel -d "$work/wheel" >/dev/null
"$pip" -m pip --disable-pip-version-check -q --python "$opt/bin/python" install --no-compile \
    --no-index --no-deps "$work"/wheel/*.whl
# The environment stands at /opt/drimbox once installed, not where it was made.
grep -rlI "^#!$opt/bin/python" "$opt/bin" | xargs -r sed -i "1s|^#!$opt/bin/python[0-9.]*|#!/opt/drimbox/bin/python|"
rm -f "$opt"/bin/activate* "$opt"/bin/Activate*
find "$opt" \( -name direct_url.json -o -name RECORD \) -path '*drimbox-*' -delete
sed -i '/^command = /d' "$opt/pyvenv.cfg"
"$python" -m compileall -q -s "$root" "$opt/lib" >/dev/null 2>&1 || true
if grep -rlI -e "$work" "$opt" | grep -v '\.pyc$'; then
    echo "paths of the build remain in the package" >&2
    exit 1
fi

install -D -m 644 packaging/drimbox.service "$root/lib/systemd/system/drimbox.service"
install -D -m 644 etc/drimbox.toml "$root/etc/drimbox/drimbox.toml"
doc=$root/usr/share/doc/drimbox
install -d "$doc" "$root/usr/bin"
cp -r docs/* "$doc/"
cp CHANGELOG.md README.md packaging/deb/copyright "$doc/"
find etc -mindepth 1 -maxdepth 1 -type d -exec cp -r {} "$doc/" \;
ln -s /opt/drimbox/bin/drimbox "$root/usr/bin/drimbox"

install -d "$root/DEBIAN"
size=$(du -sk --exclude=DEBIAN "$root" | cut -f1)
sed -e "s/@VERSION@/$version/; s/@ARCHITECTURE@/$architecture/; s/@SIZE@/$size/; s/@PYTHON@/$minor/; s/@NEXT@/$next/" \
    packaging/deb/control > "$root/DEBIAN/control"
echo /etc/drimbox/drimbox.toml > "$root/DEBIAN/conffiles"
for script in postinst prerm postrm; do
    install -m 755 "packaging/deb/$script" "$root/DEBIAN/$script"
done
(cd "$root" && find . -type f ! -path './DEBIAN/*' -printf '%P\0' | sort -z | xargs -0 md5sum) > "$root/DEBIAN/md5sums"

mkdir -p "${DIST:-dist}"
file=${DIST:-dist}/drimbox_${version}_${architecture}.deb
dpkg-deb --root-owner-group -Z"${COMPRESS:-xz}" --build "$root" "$file" >/dev/null
echo "$file"
