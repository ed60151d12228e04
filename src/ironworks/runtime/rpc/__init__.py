"""ConnectRPC over h2c and HTTP/1.1: the server of a service, and its clients of the others."""

from ironworks.runtime.rpc.client import Clients as Clients
from ironworks.runtime.rpc.server import RpcServer as RpcServer
