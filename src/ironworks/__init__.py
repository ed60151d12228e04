"""Ironworks: a self-hosted microVM cloud, from an OCI image to a running VM and its bill.

Read the packages from the bottom: `model` is the vocabulary, `runtime` the chassis that every
service stands on, `storage` the engines; then one package a service (`gatewayd`, `builderd`,
`assetmanagerd`, `metald`, `billaged`, `aggregatord`), all of one shape; `sdk` and `cli` on top.
"""

__version__ = "0.1.0"
