#!/bin/sh
# Looks at the built library as a linker and a stranger's compiler would.
# usage: check_library.sh SHARED_LIBRARY PUBLIC_HEADER SYMBOL_MAP      environment: CC, CXX
set -eu
library=$1 header=$2 map=$3
cc=${CC:-cc} cxx=${CXX:-c++}
failed=0

say() {
    echo "check_library: $*"
    failed=1
}

names() {
    nm -D --defined-only "$library" | awk '$2 != "A" {print $3}' | sed 's/@.*//' | sort -u
}

others=$(names | grep -v '^walrus_[a-z]' || true)
[ -z "$others" ] || say "exports more than walrus_*:" "$others"
internal=$(names | grep '^walrus__' || true)
[ -z "$internal" ] || say "exports internal names:" "$internal"

# What the header declares, the map lists and the library exports is the same set.
declared=$(tr '\n' ' ' <"$header" | sed 's/;/;\n/g' | sed -n 's/.*WALRUS_API [^(]*[ *]\(walrus_[a-z_]*\)(.*/\1/p' | sort -u)
[ "$declared" = "$(names)" ] || say "header and library differ: $(printf '%s\n' "$declared" "$(names)" | sort | uniq -u | tr '\n' ' ')"
listed=$(sed -n 's/^ *\(walrus_[a-z_]*\);$/\1/p' "$map" | sort -u)
[ "$listed" = "$(names)" ] || say "map and library differ: $(printf '%s\n' "$listed" "$(names)" | sort | uniq -u | tr '\n' ' ')"
nm -D --defined-only "$library" | grep -q ' walrus_connect@@WALRUS_0.1$' || say "walrus_connect has no version WALRUS_0.1"

needed=$(readelf -d "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' |
    grep -vE '^(libc\.so\.6|ld-linux.*|libasan\.so.*|libubsan\.so.*|libtsan\.so.*)$' || true)
[ -z "$needed" ] || say "needs more than libc:" "$needed"
readelf -d "$library" | grep -q 'SONAME.*\[libwalrus-client\.so\.0\]' || say "soname is not libwalrus-client.so.0"
if readelf -W -l "$library" | grep -q 'GNU_STACK.*E'; then say "wants an executable stack"; fi

for standard in c99 c11 c17; do
    "$cc" -std=$standard -Wall -Wextra -Wpedantic -Werror -fsyntax-only -x c "$header" 2>&1 || say "header does not compile as $standard"
done
for standard in c++11 c++20; do
    "$cxx" -std=$standard -Wall -Wextra -Wpedantic -Werror -fsyntax-only -x c++ "$header" 2>&1 ||
        say "header does not compile as $standard"
done
[ $failed -eq 0 ] && echo "check_library: ok"
exit $failed
