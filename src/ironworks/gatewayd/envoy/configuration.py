"""From state to Envoy's configuration: pure. Source: Envoy's v3 API, as of 1.40."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from ironworks.gatewayd.envoy import clusters, listener, routes
from ironworks.gatewayd.envoy.types import Edge

Config: TypeAlias = dict[str, Any]

NODE_ID = "ironworks-edge"
STATS_PREFIXES = (
    "http.edge.",
    "edge_limit.",
    "cluster.",
    "cluster_manager.cds.",
    "listener_manager.",
    "server.",
)
"""Of Envoy's thousands of counters, those that we show; the others cost memory for nothing."""


MAX_CONNECTIONS = 20_000
"""Connections of all clients together; the next one is closed at once."""
_CONNECTIONS = (
    "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3"
    ".DownstreamConnectionsConfig"
)


def version_of(resources: object) -> str:
    """Version of a configuration: 16 hex digits of the hash of its content."""
    content = json.dumps(resources, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _discovery(resources: list[Config]) -> Config:
    return {"version_info": version_of(resources), "resources": resources}


def _from_file(edge: Edge, name: str) -> Config:
    source = {"path": str(edge.directory / name)}
    return {"path_config_source": source, "resource_api_version": "V3"}


def bootstrap(edge: Edge) -> Config:
    """What Envoy is started with."""
    return {
        "node": {"id": NODE_ID, "cluster": NODE_ID},
        "admin": {"address": {"pipe": {"path": str(edge.admin_socket), "mode": 0o600}}},
        "dynamic_resources": {
            "lds_config": _from_file(edge, "lds.json"),
            "cds_config": _from_file(edge, "cds.json"),
        },
        "stats_config": {
            "stats_matcher": {
                "inclusion_list": {
                    "patterns": [{"prefix": prefix} for prefix in STATS_PREFIXES],
                }
            }
        },
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": _CONNECTIONS,
                        "max_active_downstream_connections": MAX_CONNECTIONS,
                    },
                }
            ]
        },
    }


def lds(edge: Edge) -> Config:
    """The listener."""
    rds = _from_file(edge, "rds.json")
    return _discovery([listener.compile_listener(edge, rds)])


def rds(edge: Edge) -> Config:
    """The routes."""
    return _discovery([routes.compile_routes(edge)])


def cds(edge: Edge) -> Config:
    """The clusters."""
    return _discovery(clusters.compile_clusters(edge))


def compile_all(edge: Edge) -> Mapping[str, Config]:
    """File name → content, in the order to write them: what one refers to stands in one before."""
    return {
        "cds.json": cds(edge),
        "rds.json": rds(edge),
        "lds.json": lds(edge),
        "bootstrap.json": bootstrap(edge),
    }


def static(edge: Edge) -> Config:
    """The whole configuration in one file without discovery: what `envoy --mode validate` can see.

    (It accepts a bootstrap whatever the files hold that it names.)
    """
    compiled = listener.compile_listener(edge, {})
    filters = compiled["filter_chains"][0]["filters"]
    manager = {**filters[0]["typed_config"], "route_config": routes.compile_routes(edge)}
    del manager["rds"]
    for part in (manager["route_config"], compiled):
        part.pop("@type")
    filters[0] = {**filters[0], "typed_config": manager}
    found = clusters.compile_clusters(edge)
    for cluster in found:
        del cluster["@type"]
    return {
        **{key: value for key, value in bootstrap(edge).items() if key != "dynamic_resources"},
        "static_resources": {"listeners": [compiled], "clusters": found},
    }


def version(edge: Edge) -> str:
    """Version of the whole configuration."""
    return version_of(compile_all(edge))
