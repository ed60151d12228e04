"""ConnectRPC over h2c and HTTP/1.1: the server of a service, and its clients of the others.

Import the modules themselves: this one stays empty, so that a command-line client that needs the
mapping of errors does not load a server for it.
"""
