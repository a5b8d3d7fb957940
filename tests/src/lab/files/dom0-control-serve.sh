#!/bin/bash
# Serves one command of the lab on a socket that is standard input and output.
#
#   client: TOKEN newline  COMMAND-LENGTH INPUT-LENGTH newline  command  input
#   server: EXIT-CODE OUTPUT-LENGTH ERRORS-LENGTH newline  output  errors
#
# The client closes the connection to give up: the command and its children are killed then. What the command writes
# goes to files first, so that a daemon it leaves behind cannot keep the answer back.
exec 3<&0 4>&1 </dev/null >/dev/null
read -r -u 3 token
[ "$token" = "$(cat /etc/kubexen-lab/token)" ] || exit 1
read -r -u 3 command_length input_length
folder=$(mktemp -d /run/kubexen-lab/command.XXXXXX) || exit 1
trap 'rm -rf "$folder"' EXIT
head -c "$command_length" <&3 >"$folder/command"
mkfifo "$folder/input"
setsid bash "$folder/command" <"$folder/input" >"$folder/output" 2>"$folder/errors" 3<&- 4>&- &
command=$!
{
    head -c "$input_length" <&3 >"$folder/input"
    cat <&3 >/dev/null
    [ -e "$folder/ended" ] || kill -KILL -- "-$command"
} 4>&- 2>/dev/null &
guard=$!
wait "$command"
status=$?
touch "$folder/ended"
{
    echo "$status $(stat -c %s "$folder/output") $(stat -c %s "$folder/errors")"
    cat "$folder/output" "$folder/errors"
} >&4
# Closing a socket on unread input would throw away the answer: wait until the client has closed its side.
exec 4>&-
wait "$guard"
