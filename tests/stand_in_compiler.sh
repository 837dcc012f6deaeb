#!/bin/sh
# Stands in for the C compiler and the archiver where test_faults.c builds a library thousands of
# times: what it makes holds the files that it was given.
# usage: stand_in_compiler.sh OPTION... FILE... -o RESULT, or: stand_in_compiler.sh rcsD RESULT FILE...
set -eu
result='' files=''
[ "$1" != rcsD ] || { result=$2 && shift 2; }
while [ $# -gt 0 ]; do
    case $1 in
    -o) result=$2 && shift ;;
    *.c | *.o) files="$files $1" ;;
    esac
    shift
done
cat $files >"$result"
