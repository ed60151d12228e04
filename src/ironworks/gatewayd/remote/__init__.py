"""The services that gatewayd calls: builderd, and the metald of each host."""
