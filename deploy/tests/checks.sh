# Counting checks for the scripts beside this one. Each check is a line; the last lines are read by `cargo xtask`.

passed=0
failed=0

# check NAME COMMAND [ARG...]: runs the command in a shell of its own; its output is shown when it fails.
check() {
    name=$1
    shift
    if output=$("$@" 2>&1); then
        passed=$((passed + 1))
        echo "ok - $name"
    else
        failed=$((failed + 1))
        echo "not ok - $name"
        echo "$output" | sed 's/^/    /'
    fi
}

# Says how many checks passed; fails when one failed.
summary() {
    echo "# pass $passed"
    echo "# fail $failed"
    [ "$failed" = 0 ]
}
