# Builds and runs the virtual machine of the tests beside this folder: sourced by them, with `here` (the folder of the
# tests), `folder` (for packages, images and logs), `bin` (with `stoker` and `stoker-git`) and `show` (what runs in the guest,
# a program of Python in this folder). Afterwards the guest's words are in `$log`.

release=${RELEASE:-bookworm}
# Where this machine has its packages from.
debian=${DEBIAN:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m 1 '/debian/$')}
export PATH="$PATH:/usr/sbin:/sbin"
for program in qemu-system-x86_64 debootstrap cpio xz mke2fs mkfs.xfs; do
    command -v "$program" >/dev/null || { echo "missing: $program" >&2; exit 1; }
done

# The guest's system, once.
root=$folder/root
if [[ ! -e $root/.whole ]]; then
    debootstrap --variant=minbase --include=git,python3,procps,xfsprogs,util-linux,kmod,busybox-static,iproute2 \
        bookworm "$root" "$debian"
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/usr/share/{doc,locale,man}
    touch "$root/.whole"
fi

# A kernel, unpacked: by an apt of its own, so that this machine's lists stay as they are.
apt=$folder/apt-$release
mkdir -p "$apt"/{lists,cache/archives}/partial
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $debian $release main" >"$apt/sources.list"
apt_options=(-o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root -q)
kernel=$folder/kernel-$release
if [[ ! -e $kernel/.whole ]]; then
    apt-get "${apt_options[@]}" update
    name=${KERNEL:-$(apt-cache "${apt_options[@]}" depends linux-image-cloud-amd64 | awk '/Depends:/ {print $2; exit}')}
    (cd "$apt" && rm -f ./*.deb && apt-get "${apt_options[@]}" download "$name")
    rm -rf "$kernel"
    dpkg-deb -x "$apt"/*.deb "$kernel"
    touch "$kernel/.whole"
fi
version=$(basename "$kernel"/lib/modules/*)

# Modules, and what follows from them.
early=$folder/early-$release
rm -rf "$early" "$root/modules"
mkdir -p "$early"/{bin,new,proc,sys,dev,by-hand} "$root/modules/lib/modules/$version/kernel"
from=$kernel/lib/modules/$version
parts=(drivers/virtio drivers/block fs/{ext4,jbd2,xfs,overlayfs,quota,mbcache.ko,mbcache.ko.xz} lib crypto arch/x86/crypto)
for part in "${parts[@]}"; do
    [[ -e $from/kernel/$part ]] || continue
    mkdir -p "$(dirname "$root/modules/lib/modules/$version/kernel/$part")"
    cp -r "$from/kernel/$part" "$root/modules/lib/modules/$version/kernel/$part"
done
find "$root/modules" -name '*.xz' -exec xz -d {} +
cp "$from"/modules.{builtin,builtin.modinfo,order} "$root/modules/lib/modules/$version/"
chroot "$root" /sbin/depmod -b /modules "$version"
mv "$root/modules/lib" "$early/lib"
rmdir "$root/modules"
cp "$root/bin/busybox" "$early/bin/busybox"
cp "$here/guest/early" "$early/init"
cp "$here/guest/boot" "$here"/guest/*.py "$early/by-hand/"
echo "$show" >"$early/by-hand/show"
chmod 755 "$early/init" "$early/by-hand/boot"
(cd "$early" && find . | cpio --quiet -o -H newc | gzip -1) >"$folder/early-$release.gz"

# The disks, new each time: the root with the binaries, and the pool.
for program in stoker stoker-git; do
    strip --strip-debug -o "$root/usr/local/bin/$program" "$bin/$program"
done
rm -f "$folder"/{root,pool,second}.img
mke2fs -q -t ext4 -d "$root" "$folder/root.img" 2G
truncate -s 2G "$folder/pool.img"
mkfs.xfs -q "$folder/pool.img"
truncate -s 1G "$folder/second.img"
mke2fs -q -t ext4 -O quota,project -E quotatype=prjquota -m 0 "$folder/second.img"

# The guest says on its console what the emulator is to do: `@monitor COMMAND`.
log=$folder/log-$release
: >"$log"
fifo=$folder/monitor
rm -f "$fifo"
mkfifo "$fifo"
exec 3<>"$fifo"
qemu-system-x86_64 -accel tcg,thread=multi -cpu "${CPU:-max}" -smp 2 -m 2048 -nodefaults -nic none -display none \
    -kernel "$kernel/boot/vmlinuz-$version" -initrd "$folder/early-$release.gz" \
    -append "console=ttyS0 quiet psi=1 cgroup_no_v1=all panic=5 ${APPEND:-}" \
    -drive "file=$folder/root.img,format=raw,if=virtio,id=root" \
    -drive "file=$folder/pool.img,format=raw,if=virtio,id=pool" \
    -drive "file=$folder/second.img,format=raw,if=virtio,id=second" \
    -serial "file:$log" -monitor stdio <"$fifo" >"$folder/monitor-$release.log" 2>&1 &
qemu=$!
trap 'kill "$qemu" 2>/dev/null || true; rm -f "$fifo"' EXIT
given=0
until=$((SECONDS + ${LIMIT:-1500}))
while kill -0 "$qemu" 2>/dev/null && ((SECONDS < until)); do
    mapfile -t wanted < <(tr -d '\r' <"$log" | grep -a '^@monitor ' || true)
    while ((given < ${#wanted[@]})); do
        echo "${wanted[given]#@monitor }" >&3
        given=$((given + 1))
    done
    sleep 0.05
done

tr -d '\r' <"$log" | grep -a -v '^@monitor '
! grep -a -q '^NOT ' "$log" && grep -a -q '^the show ended: 0' "$log"
