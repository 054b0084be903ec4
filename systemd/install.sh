#!/bin/sh
# Installs, upgrades, fences and removes traind; `make install` and its like call it.
#   PYTHON   the Python to run on (3.11 or newer)       DESTDIR  install into this tree, for packagers
#   PREFIX   where units and man page go (/usr/local)   PURGE=1  uninstall removes state and settings too
set -eu
umask 022
cd "$(dirname "$0")/.."
home=/opt/traind
settings=/etc/traind/config.toml
state=/var/lib/traind
options=/etc/modprobe.d/traind.conf
DESTDIR=${DESTDIR:-}
PREFIX=${PREFIX:-/usr/local}
units="traind.service traind-launcher.service traind-launcher.socket"

say() { printf '%s\n' "$*"; }
refuse() {
    printf 'traind: %s\n' "$*" >&2
    exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }
systemd_runs() { [ -z "$DESTDIR" ] && [ -d /run/systemd/system ] && has systemctl; }

only_root() {
    [ -n "$DESTDIR" ] || [ "$(id -u)" = 0 ] ||
        refuse "\`make $1\` wants root: sudo make $1${2:-}"
}

only_here() {
    only_root "$1"
    [ -z "$DESTDIR" ] || refuse "\`make $1\` is for the machine it runs on, without DESTDIR="
}

# Prints why a Python will not do; nothing when it will. $2 = shared: other accounts run it too.
objection() {
    has "$1" || {
        say "there is no $1"
        return
    }
    "$1" -c '
import os, sys
if sys.version_info < (3, 11):
    sys.exit(print(f"{sys.executable} is {sys.version.split()[0]}, and 3.11 or newer is needed"))
try:
    import ensurepip, sqlite3, venv
except ImportError as missing:
    sys.exit(print(f"{sys.executable} lacks {missing.name}; on Debian and Ubuntu install python3-venv"))
path = os.path.realpath(sys.executable)
while sys.argv[1] == "shared" and path != "/":
    if not os.stat(path).st_mode & 1:
        sys.exit(print(f"{sys.executable} lies in {path}, which other accounts may not enter"))
    path = os.path.dirname(path)
' "$2" 2>/dev/null || :
}

choose_python() {
    if [ -n "${PYTHON:-}" ]; then
        why=$(objection "$PYTHON" "$1")
        [ -z "$why" ] || refuse "$why; name another one with PYTHON="
        return
    fi
    for PYTHON in /usr/bin/python3 /usr/bin/python3.14 /usr/bin/python3.13 /usr/bin/python3.12 \
        /usr/bin/python3.11 /usr/local/bin/python3; do
        why=$(objection "$PYTHON" "$1")
        [ -n "$why" ] || return 0
        whys="${whys:-}
  $why"
    done
    refuse "no Python of this machine will do; name one with PYTHON=${whys:-}"
}

# build DIR HOME: makes a venv in DIR that works once it stands at HOME. Nothing is written here.
build() {
    source=$(mktemp -d)
    trap 'rm -rf "$source"' EXIT
    cp -R daemon pyproject.toml README.md "$source"
    find "$source" \( -name __pycache__ -o -name '*.egg-info' \) -prune -exec rm -rf {} +
    rm -rf "$1"
    mkdir -p "$(dirname "$1")"
    "$PYTHON" -m venv "$1"
    "$1/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check "$source"
    "$1/bin/python" -m compileall -q -s "$1" -p "$2" "$1/lib"
    for file in "$1/pyvenv.cfg" "$1"/bin/*; do
        [ -L "$file" ] || sed -i "s|$1|$2|g" "$file"
    done
}

# check_settings VENV FILE: refuses while the old traind still stands.
check_settings() {
    [ ! -e "$2" ] || "$1/bin/python" -m traind config check "$2" >/dev/null ||
        refuse "$2 will not do for this version; nothing was changed"
}

# swap NEW OLD: jobs that run have what they need in memory.
swap() {
    rm -rf "$2.old"
    [ ! -e "$2" ] || mv "$2" "$2.old"
    mv "$1" "$2"
    rm -rf "$2.old"
}

put() { install -D -m 644 "$1" "$DESTDIR$2"; }

put_files() {
    for unit in $units; do put "systemd/$unit" "$PREFIX/lib/systemd/system/$unit"; done
    put systemd/traind.sysusers.conf "$PREFIX/lib/sysusers.d/traind.conf"
    put systemd/traind.tmpfiles.conf "$PREFIX/lib/tmpfiles.d/traind.conf"
    put systemd/traind.logind.conf "$PREFIX/lib/systemd/logind.conf.d/traind.conf"
    install -d "$DESTDIR$PREFIX/bin"
    ln -sf "$home/bin/traind" "$DESTDIR$PREFIX/bin/traind"
    put_words "$1" "$PREFIX/share"
    if [ -e "$DESTDIR$settings" ]; then
        say "kept $settings"
    else
        install -d "$DESTDIR$(dirname "$settings")"
        # Every setting as a comment, so that a later version's defaults count; one is the service's own.
        sed -e 's/^[a-z_]* = /#&/' -e 's/^#http = "off"           /http = "127.0.0.1:7979"/' \
            config.toml >"$DESTDIR$settings"
    fi
}

# put_words VENV SHARE: man page and completions, written by the program itself.
put_words() {
    tell="$1/bin/python -m"
    share=$DESTDIR$2
    install -d "$share/man/man1" "$share/bash-completion/completions" \
        "$share/zsh/site-functions" "$share/fish/vendor_completions.d"
    $tell traind.cli.manual >"$share/man/man1/traind.1"
    $tell traind completion bash >"$share/bash-completion/completions/traind"
    $tell traind completion zsh >"$share/zsh/site-functions/_traind"
    $tell traind completion fish >"$share/fish/vendor_completions.d/traind.fish"
}

remove_words() {
    rm -f "$1/man/man1/traind.1" "$1/bash-completion/completions/traind" \
        "$1/zsh/site-functions/_traind" "$1/fish/vendor_completions.d/traind.fish"
}

make_accounts() {
    if has systemd-sysusers; then
        systemd-sysusers "$PREFIX/lib/sysusers.d/traind.conf"
        return
    fi
    nologin=$(command -v nologin || echo /bin/false)
    for group in traind-admin traind-gpu traind; do
        getent group "$group" >/dev/null || groupadd --system "$group"
    done
    getent passwd traind >/dev/null || useradd --system --gid traind --home-dir "$state" \
        --no-create-home --shell "$nologin" --comment "traind job queue" traind
    usermod --append --groups traind-gpu traind
}

make_directories() {
    if has systemd-tmpfiles; then
        systemd-tmpfiles --create "$PREFIX/lib/tmpfiles.d/traind.conf"
        return
    fi
    install -d -m 755 /etc/traind "$state"
    install -d -m 700 -o traind -g traind "$state/daemon"
    install -d -m 711 "$state/runs"
}

# A restart would be felt by whoever sits at a screen.
reload_logind() { systemctl --quiet kill --signal=HUP systemd-logind.service 2>/dev/null || :; }

start() {
    if has systemctl; then systemctl --quiet enable traind-launcher.socket traind.service; fi
    if ! systemd_runs; then
        say "not started: systemd does not run here. Where it does, traind comes up with the machine."
        return
    fi
    systemctl daemon-reload
    reload_logind
    systemctl start traind-launcher.socket
    systemctl try-restart traind-launcher.service
    systemctl restart traind.service ||
        refuse "installed, but it does not start: journalctl -u traind -u traind-launcher -n 30"
    say "traind runs; \`traind doctor\` checks this machine"
}

install_all() {
    only_root install "; for yourself alone: make install-user"
    choose_python shared
    build "$DESTDIR$home.new" "$home"
    check_settings "$DESTDIR$home.new" "$DESTDIR$settings"
    put_files "$DESTDIR$home.new"
    swap "$DESTDIR$home.new" "$DESTDIR$home"
    say "installed $home, on $PYTHON"
    if [ -n "$DESTDIR" ]; then
        say "on the target: systemd-sysusers, systemd-tmpfiles --create, systemctl enable --now" \
            "traind-launcher.socket traind.service"
        return
    fi
    make_accounts
    make_directories
    start
}

upgrade() {
    only_root upgrade
    [ -x "$home/bin/traind" ] || refuse "there is no traind in $home to upgrade: sudo make install"
    if systemd_runs && systemctl --quiet is-active traind.service; then
        "$home/bin/traind" backup || refuse "no backup could be made, so nothing was changed"
    fi
    install_all
}

# The GPUs' device files are given to a group that only jobs get. By the module's own options: what
# NVIDIA's libraries make and mend, nvidia-modprobe, goes by these.
fence() {
    only_here fence
    [ -x "$home/bin/traind" ] || refuse "there is no traind in $home: sudo make install"
    "$home/bin/traind" config show "$settings" | grep -q '^fence = "group"' ||
        refuse "jobs would not reach the GPUs: first write fence = \"group\" under [gpus] in" \
            "$settings, and restart traind.service"
    group=$(getent group traind-gpu | cut -d: -f3)
    [ -n "$group" ] || refuse "there is no group traind-gpu: sudo make install"
    mkdir -p "$(dirname "$options")"
    {
        printf '# Written by `make fence` of traind; `make unfence` removes it.\n'
        printf 'options nvidia NVreg_DeviceFileUID=0 NVreg_DeviceFileGID=%s' "$group"
        printf ' NVreg_DeviceFileMode=0660\n'
    } >"$options"
    rebuild_initramfs
    say "wrote $options: from the next start of the machine on only jobs reach the GPUs." \
        "\`traind doctor\` says whether it is so"
}

unfence() {
    only_here unfence
    [ -e "$options" ] || refuse "there is no fence to remove: $options does not exist"
    rm -f "$options"
    rebuild_initramfs
    say "removed $options: from the next start of the machine on everybody reaches the GPUs"
}

rebuild_initramfs() {
    if has update-initramfs; then
        update-initramfs -u
    elif has dracut; then
        say "if the initramfs holds the nvidia module, rebuild it: dracut --force"
    fi
}

uninstall() {
    only_root uninstall "; for your own: make uninstall-user"
    if systemd_runs; then
        systemctl --quiet disable --now traind.service traind-launcher.socket || :
        systemctl stop traind-launcher.service || :
        if [ -n "${PURGE:-}" ]; then systemctl stop traind-jobs.scope 2>/dev/null || :; fi
    elif [ -z "$DESTDIR" ] && has systemctl; then
        systemctl --quiet disable traind.service traind-launcher.socket || :
    fi
    for unit in $units; do rm -f "$DESTDIR$PREFIX/lib/systemd/system/$unit"; done
    rm -f "$DESTDIR$PREFIX/bin/traind" "$DESTDIR$PREFIX/lib/sysusers.d/traind.conf" \
        "$DESTDIR$PREFIX/lib/tmpfiles.d/traind.conf" \
        "$DESTDIR$PREFIX/lib/systemd/logind.conf.d/traind.conf"
    remove_words "$DESTDIR$PREFIX/share"
    if [ -z "$DESTDIR" ] && [ -e "$options" ]; then unfence; fi
    rm -rf "$DESTDIR$home" "$DESTDIR$home.new"
    if systemd_runs; then systemctl daemon-reload && reload_logind; fi
    if [ -z "${PURGE:-}" ]; then
        say "removed $home; jobs that run go on. Kept: $state, $(dirname "$settings"), the account" \
            "traind (PURGE=1 removes them)"
        return
    fi
    rm -rf "$DESTDIR$state" "$DESTDIR$(dirname "$settings")"
    if [ -z "$DESTDIR" ]; then
        if getent passwd traind >/dev/null; then userdel traind; fi
        for group in traind traind-admin traind-gpu; do
            if getent group "$group" >/dev/null; then groupdel "$group"; fi
        done
    fi
    say "removed $home, $state, $(dirname "$settings") and the account traind; checkpoints in" \
        "people's homes stay"
}

for_user() {
    [ "$(id -u)" != 0 ] || refuse "\`make $1-user\` is for an ordinary account; for everybody: make $1"
    data=${XDG_DATA_HOME:-$HOME/.local/share}
    own=$data/traind/venv
    unit=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user/traind.service
    program=$HOME/.local/bin/traind
}

manager_runs() { has systemctl && systemctl --user show-environment >/dev/null 2>&1; }

install_user() {
    for_user install
    choose_python own
    build "$own.new" "$own"
    check_settings "$own.new" "${XDG_CONFIG_HOME:-$HOME/.config}/traind/config.toml"
    put_words "$own.new" "$data"
    swap "$own.new" "$own"
    mkdir -p "$(dirname "$unit")" "$(dirname "$program")"
    sed "s|$home|$own|g" systemd/traind-user.service >"$unit"
    ln -sf "$own/bin/traind" "$program"
    say "installed $own, on $PYTHON; the program is $program"
    if ! manager_runs; then
        say "not started: no systemd of yours can be reached. \`traind serve\` starts it by hand."
        return
    fi
    systemctl --user daemon-reload
    systemctl --user --quiet enable traind.service
    systemctl --user restart traind.service ||
        refuse "installed, but it does not start: journalctl --user -u traind -n 30"
    if [ "$(loginctl show-user --property=Linger --value "$(id -un)" 2>/dev/null)" != yes ]; then
        say "traind runs. \`loginctl enable-linger\` keeps it and its jobs running when you log out."
    fi
}

uninstall_user() {
    for_user uninstall
    if manager_runs; then systemctl --user --quiet disable --now traind.service || :; fi
    rm -rf "$own" "$own.new" "$unit" "$program"
    remove_words "$data"
    if manager_runs; then systemctl --user daemon-reload; fi
    say "removed $own; jobs that run go on. Kept: ${XDG_STATE_HOME:-$HOME/.local/state}/traind" \
        "and your settings"
}

case ${1:-} in
    install) install_all ;;
    upgrade) upgrade ;;
    uninstall) uninstall ;;
    fence) fence ;;
    unfence) unfence ;;
    install-user) install_user ;;
    uninstall-user) uninstall_user ;;
    *) refuse "say install, upgrade, uninstall, fence, unfence, install-user or uninstall-user, not '${1:-}'" ;;
esac
