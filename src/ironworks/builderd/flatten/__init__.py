"""From the layers of an image to one file system, in a process of its own.

`python -m ironworks.builderd.flatten` reads a `Plan` as JSON on standard input, and writes a line
of JSON on standard output for each step and, last, for the result or the refusal. builderd runs it
in a sandbox without a network and without the host's files; it needs nothing of Ironworks but this
package and the error taxonomy.

    blobs     verify and decompress a layer into an unnamed file of the scratch directory
    headers   read the headers of a tar: what is there, and where its bytes are
    tree      merge headers of all layers into the final tree: whiteouts, links, replacements
    archive   write the final tree as one tar stream, in sorted order
    squashfs  feed the stream to sqfstar

A path of the image never becomes a path of the host: it is a key in a dictionary, then bytes in a
tar header on a pipe. So `..`, symbolic links and devices in an image have nothing to act on.
"""
