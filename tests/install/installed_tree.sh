#!/usr/bin/env bash
# Installs the build into an empty folder and looks at the result as a stranger would: one check per call.
#
# usage: installed_tree.sh CHECK BUILD_FOLDER        environment: CC, CXX (defaults cc, c++), MESON
#
# Exit code 0 passed, 1 failed (with the reason), 77 could not run here (with the reason).
set -euo pipefail

check=$1
build=$2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
read -ra cc <<<"${CC:-cc}"
read -ra cxx <<<"${CXX:-c++}"
strict=(-Wall -Wextra -Wpedantic -Werror)

root=$(mktemp -d "${TMPDIR:-/tmp}/walrus-install.XXXXXX")
trap 'rm -rf "$root"' EXIT
tree=$root/tree

fail() {
    printf '%s: FAILED: %s\n' "$check" "$*"
    exit 1
}

skip() {
    printf '%s: %s\n' "$check" "$*"
    exit 77
}

# Only the installed tree is visible to pkg-config: what it says must do, without a path of the build folder.
find_tree() {
    "${MESON:-meson}" install -C "$build" --no-rebuild --quiet --destdir "$tree" >"$root/install.log" 2>&1 ||
        { cat "$root/install.log" && fail "meson install"; }
    local pc
    pc=$(find "$tree" -name libwalrus-client.pc)
    [[ -n $pc ]] || fail "no libwalrus-client.pc installed"
    export PKG_CONFIG_LIBDIR=${pc%/*} PKG_CONFIG_SYSROOT_DIR=$tree PKG_CONFIG_PATH=
    prefix=$tree$(PKG_CONFIG_SYSROOT_DIR='' pkg-config --variable=prefix libwalrus-client)
    libdir=$tree$(PKG_CONFIG_SYSROOT_DIR='' pkg-config --variable=libdir libwalrus-client)
    shared_library=$libdir/libwalrus-client.so
}

flags() { # flags PKG_CONFIG_ARGUMENT...: into the array `flags`
    read -ra flags <<<"$(pkg-config "$@" libwalrus-client)"
}

# run PROGRAM: it prints the version of the library it runs with; that must be the one pkg-config names.
run_and_compare() {
    local printed wanted
    printed=$(LD_LIBRARY_PATH=$libdir "$1") || fail "$1 ended with $?"
    wanted=$(pkg-config --modversion libwalrus-client)
    [[ $printed == "$wanted" ]] || fail "the program says version '$printed', pkg-config says '$wanted'"
}

need_static_libc() {
    [[ $("${cc[@]}" -print-file-name=libc.a) == */* ]] || skip "SKIPPED: no static libc here"
}

needed_by() {
    LC_ALL=C readelf -dW "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'
}

programs() {
    printf '%s\n' "$prefix"/{sbin,bin}/{walrusd,walrus,walrus-bench} | while read -r path; do
        if [[ -f $path ]]; then printf '%s\n' "$path"; fi
    done
}

# A helper of `walrus torture`: in no search path, but below the prefix.
torture() {
    find "$prefix" -name walrus-torture
}

every_file_is_there() {
    local name
    for name in walrusd walrus walrus-bench; do
        programs | grep -q "/$name\$" || fail "program $name is not installed"
    done
    [[ -x $(torture) ]] || fail "program walrus-torture is not installed"
    [[ -f $prefix/include/walrus.h ]] || fail "walrus.h is not installed"
    [[ -f $libdir/libwalrus-client.a ]] || fail "no static library"
    [[ -e $shared_library ]] || fail "no shared library"
    local strays
    strays=$(find "$tree" -type f \( -name '*.a' -o -name '*.h' -o -name '*.so*' \) \
        ! -name 'libwalrus-client*' ! -name walrus.h)
    [[ -z $strays ]] || fail "installed though they are nobody's business: $strays"
}

programs_run() {
    local path wanted
    wanted=$(pkg-config --modversion libwalrus-client)
    while read -r path; do
        LD_LIBRARY_PATH=$libdir "$path" --help </dev/null >"$root/help" 2>&1 || fail "$path --help ended with $?"
        [[ -s $root/help ]] || fail "$path --help prints nothing"
        if [[ $path == */walrus-bench ]]; then
            continue # says its version in each report
        fi
        LD_LIBRARY_PATH=$libdir "$path" --version </dev/null >"$root/said" 2>&1 || fail "$path --version ended with $?"
        grep -qF "$wanted" "$root/said" || fail "$path --version says '$(cat "$root/said")', not $wanted"
    done < <(programs)
    # `walrus torture` finds its helper, and walrusd, wherever the tree lies.
    LD_LIBRARY_PATH=$libdir "$prefix/bin/walrus" torture "$root/tried" --seconds 1 --json --segment 5M >"$root/said" 2>&1 ||
        fail "walrus torture ended with $?: $(cat "$root/said")"
    if ! grep -q '"good":true' "$root/said" || ! grep -qE '"kills":[1-9]' "$root/said"; then
        fail "walrus torture says $(cat "$root/said")"
    fi
}

c99_program_shared() {
    flags --cflags --libs
    "${cc[@]}" -std=c99 "${strict[@]}" -o "$root/program" "$here/version.c" "${flags[@]}" || fail "does not build"
    needed_by "$root/program" | grep -q '^libwalrus-client\.so\.0$' || fail "not linked with the shared library"
    run_and_compare "$root/program"
}

# The program in README.md, taken out of it: builds, and says where it looked when no broker is there.
readme_example_builds() {
    awk '/^    #include/ { inside = 1 } /^[^ ]/ { inside = 0 } inside { sub(/^    /, ""); print }' \
        "$here/../../README.md" >"$root/readme.c"
    [[ -s $root/readme.c ]] || fail "README.md holds no program"
    flags --cflags --libs
    "${cc[@]}" -std=c99 "${strict[@]}" -o "$root/program" "$root/readme.c" "${flags[@]}" || fail "does not build"
    local status=0
    WALRUS_SOCKET=$root/nobody LD_LIBRARY_PATH=$libdir "$root/program" 2>"$root/words" || status=$?
    [[ $status -eq 1 ]] || fail "ended with $status without a broker, not with 1"
    grep -qF "$root/nobody" "$root/words" || fail "does not name the socket: $(cat "$root/words")"
}

c99_program_static() {
    need_static_libc
    flags --static --cflags --libs
    "${cc[@]}" -std=c99 "${strict[@]}" -static -o "$root/program" "$here/version.c" "${flags[@]}" || fail "does not build"
    [[ -z $(needed_by "$root/program") ]] || fail "is not static"
    run_and_compare "$root/program"
}

cxx11_program_shared() {
    command -v "${cxx[0]}" >/dev/null || skip "SKIPPED: no C++ compiler here"
    flags --cflags --libs
    "${cxx[@]}" -std=c++11 "${strict[@]}" -Wold-style-cast -o "$root/program" -x c++ "$here/version.c" -x none "${flags[@]}" ||
        fail "does not build"
    run_and_compare "$root/program"
}

cxx11_program_static() {
    command -v "${cxx[0]}" >/dev/null || skip "SKIPPED: no C++ compiler here"
    need_static_libc
    flags --static --cflags --libs
    "${cxx[@]}" -std=c++11 "${strict[@]}" -static -o "$root/program" -x c++ "$here/version.c" -x none "${flags[@]}" ||
        fail "does not build"
    run_and_compare "$root/program"
}

only_walrus_symbols_are_exported() {
    local names strays
    names=$(nm -D --defined-only "$shared_library" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }') # A: version nodes
    strays=$(grep -v '^walrus_' <<<"$names" || true)
    [[ -z $strays ]] || fail "also exported: $strays"
    # What walrus.h declares and what the library exports are the same set.
    local declared
    declared=$("${cc[@]}" -E "$prefix/include/walrus.h" | grep -oE '\bwalrus_[a-z0-9_]+ *\(' | tr -d ' (')
    [[ -n $declared ]] || fail "walrus.h declares nothing"
    diff <(sort -u <<<"$declared") <(sort -u <<<"$names") ||
        fail "declared in walrus.h (<) and exported (>) differ"
}

library_needs_libc_only() {
    local needed
    needed=$(needed_by "$shared_library" | grep -vE '^(libc\.so\.6|ld-linux.*)$' || true)
    [[ -z $needed ]] || fail "also needs: $needed"
}

library_has_its_soname() {
    local soname
    soname=$(LC_ALL=C readelf -dW "$shared_library" | sed -n 's/.*(SONAME).*\[\(.*\)\]/\1/p')
    [[ $soname == libwalrus-client.so.0 ]] || fail "soname is '$soname'"
    [[ -e $libdir/$soname ]] || fail "$soname is not installed"
}

hardened() { # hardened FILE: what every object that is loaded must have
    LC_ALL=C readelf -lW "$1" >"$root/segments"
    LC_ALL=C readelf -dW "$1" >"$root/dynamic"
    grep -q GNU_RELRO "$root/segments" || fail "$1: no RELRO"
    grep -qE 'BIND_NOW|Flags:.* NOW' "$root/dynamic" || fail "$1: not bound at start (BIND_NOW)"
    grep 'GNU_STACK' "$root/segments" | grep -q 'RW ' || fail "$1: executable stack"
    ! grep -qE '\((RPATH|RUNPATH)\)' "$root/dynamic" || fail "$1: holds a run path"
    ! grep -q TEXTREL "$root/dynamic" || fail "$1: relocations in its code"
}

programs_and_library_are_hardened() {
    local path
    hardened "$shared_library"
    while read -r path; do
        hardened "$path"
        LC_ALL=C readelf -hW "$path" | grep -q 'Type: *DYN' || fail "$path: not position independent"
        grep -q 'Flags:.* PIE' "$root/dynamic" || fail "$path: not marked PIE"
    done < <(programs && torture)
    [[ -n $(programs) ]] || fail "no program is installed"
}

find_tree
case $check in
every_file_is_there | programs_run | readme_example_builds | c99_program_shared | c99_program_static | cxx11_program_shared | cxx11_program_static | \
    only_walrus_symbols_are_exported | library_needs_libc_only | library_has_its_soname | programs_and_library_are_hardened)
    "$check"
    ;;
*)
    fail "no such check"
    ;;
esac
printf '%s: passed\n' "$check"
