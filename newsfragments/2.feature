`tahoe-stream helper run` runs a Tahoe helper node that takes uploads while they are still being written, and encodes
and places their shares meanwhile; stock clients use it as before. `tahoe-stream put` streams a file, a pipe or a
command's output and prints an ordinary read cap; `tahoe-stream demo` shows it on a grid of its own. protocol.txt is
the protocol between them.
