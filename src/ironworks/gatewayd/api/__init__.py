"""The wire: protobuf messages to types and back, nothing else."""
