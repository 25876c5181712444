# Outlives the test by a moment: when the test's end of standard input is gone, whatever the reason,
# it kills all of its process group, to which the components belong, and removes their folder.
# Arguments: the folder; a command that takes down what else was set up, if any.
trap '' INT TERM HUP
while read -r _; do :; done
export group=$$
# from outside the group: it would kill itself
exec setsid --fork bash -c '
    kill -KILL -- "-$group"
    # those whose parent is gone wait for the system to take note of their end
    for _ in $(seq 100); do
        kill -0 -- "-$group" || break
        sleep 0.05
    done
    folder=$1
    shift
    [ "$#" = 0 ] || "$@"
    rm -rf "$folder"
    # not the last command, which bash would become: rm closes its output before it is gone
    exit 0
' keeper "$@" 2>/dev/null
